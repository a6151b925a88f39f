"""What is run: samples, each with its plans."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from segregation.interventions.rules import Plan
from segregation.prompts.sample import Sample

Task = tuple[Sample, Sequence[Plan]]
"""A sample with the plans that it is run under."""
Group = tuple[Sequence[Sample], Sequence[Plan]]
"""Samples with the plans that all of them are run under."""


def by_sample(groups: Iterable[Group]) -> list[Task]:
    """Each sample of these groups once, with its plans of all of them: what they read alike can be read once.

    >>> one, two = (Sample(id=name, prompt="a b", target="c") for name in "xy")
    >>> [(sample.id, len(plans)) for sample, plans in by_sample([([one, two], [Plan()]), ([one], [Plan()])])]
    [('x', 1), ('y', 1)]
    """
    found: dict[str, tuple[Sample, dict[Plan, None]]] = {}
    for samples, plans in groups:
        for sample in samples:
            key = json.dumps(asdict(sample), default=str, sort_keys=True)
            found.setdefault(key, (sample, {}))[1].update(dict.fromkeys(plans))
    return [(sample, list(plans)) for sample, plans in found.values()]
