"""Probes and exchanges as measurements: which samples stand for them in a run, and their records."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.probes.features import Feature, Kind, feature_layers, needle_features
from segregation.probes.interchange import Exchanged, interchange
from segregation.probes.linear import linear_probe
from segregation.probes.samples import Target, labelled
from segregation.prompts.sample import Metadata, Sample
from segregation.runs.generate import described, encode_checked, whole_plan
from segregation.runs.record import Record
from segregation.scores.probes import INTERCHANGE, PROBE, UNTOUCHED

PROBED: Metadata = {"measure": PROBE}
"""Settings of the records of probes."""


@dataclass(frozen=True)
class Probe:
    """One linear probe: what it tells, from what."""

    target: Target
    feature: Feature

    def sample(self, prompts: Sequence[Sample]) -> Sample:
        """What stands for this probe in a run: a sample whose prompt is all prompts that the probe reads."""
        feature, rows = self.feature, labelled(prompts, self.target).rows
        return Sample(
            id=f"{self.target}/{feature.kind}/layer-{feature.layer}/+{feature.distance}",
            prompt="\n".join(prompts[row].prompt for row in rows),
            target=self.target,
            metadata={
                "task": "state-probe",
                "target": self.target,
                "feature": feature.kind,
                "layer": feature.layer,
                "distance": feature.distance,
                "prompts": len(rows),
            },
        )


def probes(model: HybridModel, distances: Sequence[int]) -> list[Probe]:
    """Both targets from everything that the model has to read from, at these distances."""
    return [
        Probe(target, Feature(kind, layer, distance))
        for target in get_args(Target)
        for kind in get_args(Kind)
        for layer in feature_layers(model, kind)
        for distance in distances
    ]


def probe_records(
    model: HybridModel,
    prompts: Sequence[Sample],
    wanted: Sequence[tuple[Probe, Sample]],
    *,
    batch_size: int | None = None,
) -> Iterator[Record]:
    """Fit and test probes, each with the sample that stands for it; a record for each, distance by distance.

    Raises:
        SampleError: prompts that ``needle_features`` or ``labelled`` refuses.
        ModelError: as ``needle_features``.
    """
    distances = sorted({probe.feature.distance for probe, _ in wanted})
    told = {target: labelled(prompts, target) for target in get_args(Target)}
    n_tokens = len(encode_checked(model, prompts[0], 0))
    by_feature: dict[Feature, list[tuple[Probe, Sample]]] = defaultdict(list)
    for probe, sample in wanted:
        by_feature[probe.feature].append((probe, sample))
    for feature, found in needle_features(model, prompts, distances, batch_size=batch_size):
        for probe, sample in by_feature[feature]:
            which = told[probe.target]
            probed = linear_probe(found[list(which.rows)], np.array(which.labels), np.array(which.groups))
            values = {name: float(value) for name, value in vars(probed).items()}
            yield _record(model, sample, n_tokens, values, PROBED, batch_size)


def interchange_settings(distance: int) -> Metadata:
    """Settings of the records of exchanges at a distance."""
    return {"measure": INTERCHANGE, "distance": distance}


def interchange_records(
    model: HybridModel,
    pairs: Sequence[tuple[Sample, Sample]],
    distance: int,
    ways: Sequence[Exchanged],
    *,
    max_new_tokens: int = 40,
    batch_size: int | None = None,
) -> Iterator[Record]:
    """A record for each pair, with values ``WAY/NAME`` of what its first sample answers with its second's memory.

    Raises:
        ModelError: as ``interchange``.
        SampleError: as ``interchange``.
    """
    yield from _answers(model, pairs, distance, ways, interchange_settings(distance), max_new_tokens, batch_size)


UNTOUCHED_SETTINGS: Metadata = {"measure": UNTOUCHED}
"""Settings of the records with nothing exchanged."""


def untouched_records(
    model: HybridModel,
    pairs: Sequence[tuple[Sample, Sample]],
    *,
    max_new_tokens: int = 40,
    batch_size: int | None = None,
) -> Iterator[Record]:
    """A record for each pair, with values ``nothing/NAME`` of what its first sample answers.

    Raises:
        ModelError: as ``interchange``.
        SampleError: as ``interchange``.
    """
    yield from _answers(model, pairs, 0, ("nothing",), UNTOUCHED_SETTINGS, max_new_tokens, batch_size)


def _answers(
    model: HybridModel,
    pairs: Sequence[tuple[Sample, Sample]],
    distance: int,
    ways: Sequence[Exchanged],
    settings: Metadata,
    max_new_tokens: int,
    batch_size: int | None,
) -> Iterator[Record]:
    for found in interchange(model, pairs, distance, ways, max_new_tokens=max_new_tokens, batch_size=batch_size):
        values = {
            f"{way}/{name}": float(getattr(answer, name))
            for way, answer in found.answers.items()
            for name in ("own", "other", "own_loglikelihood", "other_loglikelihood")
        }
        yield _record(model, found.sample, len(encode_checked(model, found.sample, 0)), values, settings, batch_size)


def _record(
    model: HybridModel,
    sample: Sample,
    prompt_tokens: int,
    values: Mapping[str, float],
    settings: Metadata,
    batch_size: int | None,
) -> Record:
    acted = whole_plan(model, Plan())
    return Record.of(
        sample,
        kind="measurement",
        plan=acted.to_json(),
        plan_hash=acted.hash,
        prompt_tokens=prompt_tokens,
        values=dict(values),
        settings=settings,
        **described(model, batch_size),
    )
