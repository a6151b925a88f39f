"""What probes told and what patches changed, from their records: rates with intervals, per layer and distance."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from segregation.errors import ScoreError
from segregation.runs.record import Record
from segregation.scores.statistics import Interval, bootstrap_mean, difference, wilson

PROBE, INTERCHANGE, UNTOUCHED = "linear-probe", "interchange", "untouched"
"""The setting ``measure`` of the records that are read here."""


@dataclass(frozen=True)
class ProbeRow:
    """What a linear probe told at one place.

    The Wilson intervals take samples as independent, though those of one haystack are alike.

    Attributes:
        model: the model's name.
        target: what was told, "identity" or "presence".
        feature: what was read: "recurrent", "conv" or "residual".
        layer: the layer.
        distance: tokens since the needle's end.
        accuracy: share told right.
        shuffled: the same with shuffled labels, over all draws.
        chance: what the best constant guess gets right.
    """

    model: str
    target: str
    feature: str
    layer: int
    distance: int
    accuracy: Interval
    shuffled: Interval
    chance: float

    @property
    def selectivity(self) -> Interval:
        """Accuracy minus accuracy with shuffled labels. (Hewitt & Liang 2019)"""
        return difference(self.accuracy, self.shuffled)


@dataclass(frozen=True)
class PatchRow:
    """What runs answered with part of another run's memory.

    Attributes:
        model: the model's name.
        exchanged: what was taken from the other run: "states", "keys_values" or "nothing".
        distance: tokens since the needle's end, after which it was taken; ``None`` for nothing.
        own: share that answered with the needle of the run's own prompt.
        other: share that answered with that of the other run's.
        own_change: mean change of ln p of the own needle against nothing exchanged, in nats.
        other_change: that of the other's.
    """

    model: str
    exchanged: str
    distance: int | None
    own: Interval
    other: Interval
    own_change: Interval
    other_change: Interval


def probe_rows(records: Iterable[Record]) -> list[ProbeRow]:
    """A row for each record of a probe, by target, feature, layer and distance.

    Raises:
        ScoreError: a record of a probe that lacks something.
    """
    rows = []
    for record in records:
        if not _measures(record, PROBE):
            continue
        found = _values(record, ("correct", "n", "shuffled_correct", "shuffled_n", "chance"))
        where = record.metadata
        rows.append(
            ProbeRow(
                model=_model(record),
                target=str(where["target"]),
                feature=str(where["feature"]),
                layer=int(where["layer"] or 0),
                distance=int(where["distance"] or 0),
                accuracy=wilson(int(found["correct"]), int(found["n"])),
                shuffled=wilson(int(found["shuffled_correct"]), int(found["shuffled_n"])),
                chance=found["chance"],
            )
        )
    return sorted(rows, key=lambda row: (row.model, row.target, row.feature, row.layer, row.distance))


def patch_rows(records: Iterable[Record]) -> list[PatchRow]:
    """A row for each way of exchanging and distance, and one for nothing exchanged; samples that have both only.

    Raises:
        ScoreError: records of exchanges without those of the same samples with nothing exchanged.
    """
    untouched: dict[tuple[str, str], Mapping[str, float]] = {}
    cells: dict[tuple[str, str, int], list[tuple[str, Mapping[str, float]]]] = defaultdict(list)
    for record in records:
        if _measures(record, UNTOUCHED):
            untouched[_model(record), record.sample_id] = _of(record, "nothing")
        elif _measures(record, INTERCHANGE):
            for way in dict.fromkeys(name.partition("/")[0] for name in record.values):
                cell = (_model(record), way, int(record.settings["distance"] or 0))
                cells[cell].append((record.sample_id, _of(record, way)))
    rows = []
    for (model, way, distance), found in sorted(cells.items()):
        if lacking := [name for name, _ in found if (model, name) not in untouched]:
            raise ScoreError(
                f"a patch is compared with the same sample untouched; {len(lacking)} samples of {model} have no such "
                f"record, for example {lacking[0]!r}. Resume the run to its end"
            )
        rows.append(_patch_row(model, way, distance, [(values, untouched[model, name]) for name, values in found]))
    for model in dict.fromkeys(model for model, _ in untouched):
        alone = [values for (of, _), values in untouched.items() if of == model]
        rows.append(_patch_row(model, "nothing", None, [(values, values) for values in alone]))
    return rows


def _patch_row(
    model: str, way: str, distance: int | None, pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]
) -> PatchRow:
    def rate(name: str) -> Interval:
        return wilson(sum(values[name] > 0 for values, _ in pairs), len(pairs))

    def change(name: str) -> Interval:
        return bootstrap_mean([values[name] - base[name] for values, base in pairs])

    return PatchRow(
        model, way, distance, rate("own"), rate("other"), change("own_loglikelihood"), change("other_loglikelihood")
    )


def _measures(record: Record, what: str) -> bool:
    return record.kind == "measurement" and record.settings.get("measure") == what


def _of(record: Record, way: str) -> dict[str, float]:
    """What a record says of one way to exchange."""
    names = ("own", "other", "own_loglikelihood", "other_loglikelihood")
    found = _values(record, [f"{way}/{name}" for name in names])
    return {name: found[f"{way}/{name}"] for name in names}


def _values(record: Record, names: Sequence[str]) -> Mapping[str, float]:
    if missing := [name for name in names if name not in record.values]:
        raise ScoreError(
            f"record {record.key!r} should have the values {list(names)}, and lacks {missing}; run it again"
        )
    return record.values


def _model(record: Record) -> str:
    return PurePath(str(record.model.get("name", "unnamed"))).name
