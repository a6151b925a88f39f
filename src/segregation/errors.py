"""What can be wrong with an input, one error class per noun."""


class SegregationError(ValueError):
    """Base of every error this package raises for bad input."""


class SampleError(SegregationError):
    """A sample, needle, haystack or span that cannot be built or found."""


class ModelError(SegregationError):
    """A model that cannot be loaded, or a request its size or kind cannot meet."""


class FamilyError(ModelError):
    """A model family, or a config field of one, that is not understood."""


class PlanError(SegregationError):
    """A rule or plan that is impossible, or impossible on the model it is bound to."""


class RecordError(SegregationError):
    """A run folder, manifest or record line that cannot be read or resumed."""


class ScoreError(SegregationError):
    """A score or statistic that its records do not allow: too few of them, unpaired, or of another kind."""
