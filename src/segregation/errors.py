"""What can be wrong with an input, one error class per noun, and how a command says so."""

import contextlib
import sys
from collections.abc import Iterator

BAD_INPUT = 2
"""Exit code for input that is refused."""
INTERRUPTED = 130
"""Exit code where the user stopped the command."""


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


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn refused input into one line on standard error and exit code 2, and Ctrl-C into one and exit code 130.

    Other errors keep their traceback.

    >>> with refusing():
    ...     raise PlanError("k must be in 0..10, got 32")
    Traceback (most recent call last):
    SystemExit: 2
    """
    try:
        yield
    except SegregationError as error:
        print(f"segregation: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except KeyboardInterrupt:
        print("segregation: interrupted; what a run folder has by now is kept", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
