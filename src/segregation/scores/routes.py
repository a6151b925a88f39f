"""Which memory the needle went through: recovery of each coalition of channels, Shapley credit, and the route index.

A coalition is the set of channels whose memory, at a border, is of the clean run; the others are of the corrupt run.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from segregation.errors import ScoreError
from segregation.runs.record import Record
from segregation.scores.statistics import Interval, bootstrap_statistic, difference, wilson

CHANNELS = ("keys", "values", "recurrent", "conv")
ATTENTION, RECURRENCE = ("keys", "values"), ("recurrent", "conv")
"""The channels of the KV cache, and those of the recurrent state."""
MEASURE = "routes"
"""What the settings of these measurements name as what is measured."""
Metric = Literal["clean_exact", "clean", "corrupt_exact", "corrupt"]
"""Of the clean or the corrupt run's target: whether greedy decoding writes it whole (0 or 1), or its ln p in nats."""


def coalition(clean: Collection[str]) -> str:
    """The name of the coalition of these channels: their first letters in order, ``"-"`` for none.

    Raises:
        ScoreError: something that is no channel.

    >>> coalition(["values", "keys"]), coalition([])
    ('kv', '-')
    """
    if unknown := set(clean) - set(CHANNELS):
        raise ScoreError(f"channels are {', '.join(CHANNELS)}; got {', '.join(sorted(unknown))}")
    return "".join(channel[0] for channel in CHANNELS if channel in clean) or "-"


def coalitions(channels: Sequence[str] = CHANNELS) -> list[str]:
    """Every coalition of these channels, none first and all last.

    >>> coalitions(("keys", "values"))
    ['-', 'k', 'v', 'kv']
    """
    sizes = range(len(channels) + 1)
    return [coalition(some) for size in sizes for some in itertools.combinations(channels, size)]


@dataclass(frozen=True, eq=False)
class RouteTable:
    """What one model wrote from the memories of every coalition at one border, sample by sample.

    Attributes:
        model: its name.
        border: where the memories were put together.
        plan_hash: of what acted meanwhile.
        channels: those that the model has, all of ``CHANNELS`` or those of one kind.
        values: per metric and coalition, a value for each sample.
        changes: per channel, the largest difference of a number of the two runs' memories, for each sample.
    """

    model: str
    border: str
    plan_hash: str
    channels: tuple[str, ...]
    values: Mapping[Metric, Mapping[str, Float[np.ndarray, " sample"]]]
    changes: Mapping[str, Float[np.ndarray, " sample"]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.values["clean"]["-"])

    def worth(self, clean: Collection[str], metric: Metric) -> Float[np.ndarray, " sample"]:
        """The metric of the coalition of those of these channels that the model has, sample by sample."""
        return self.values[metric][coalition([channel for channel in clean if channel in self.channels])]


def route_tables(records: Sequence[Record]) -> list[RouteTable]:
    """A table for every model, plan and border among the route measurements, in the order they came.

    Raises:
        ScoreError: records of one table that do not have the same coalitions.
    """
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.kind == "measurement" and record.settings.get("measure") == MEASURE:
            name = PurePath(str(record.model.get("name", "unnamed"))).name
            groups[name, record.plan_hash, str(record.settings["border"])].append(record)
    return [_table(*key, group) for key, group in groups.items()]


def _table(model: str, plan_hash: str, border: str, records: Sequence[Record]) -> RouteTable:
    there = [tuple(c for c in CHANNELS if f"{coalition([c])}/clean" in record.values) for record in records]
    channels = there[0]
    wanted = [f"{name}/{metric}" for metric in get_args(Metric) for name in coalitions(channels)]
    wanted += [f"change/{channel[0]}" for channel in channels]
    for record, own in zip(records, there, strict=True):
        if own != channels or any(name not in record.values for name in wanted):
            raise ScoreError(
                f"every route measurement of {model} at the border {border!r} has the coalitions of "
                f"{', '.join(channels)}; record {record.key!r} has others. Measure it again"
            )
    values: dict[Metric, dict[str, Float[np.ndarray, " sample"]]] = {
        metric: {
            name: np.array([record.values[f"{name}/{metric}"] for record in records], dtype=float)
            for name in coalitions(channels)
        }
        for metric in get_args(Metric)
    }
    changes = {
        channel: np.array([record.values[f"change/{channel[0]}"] for record in records], dtype=float)
        for channel in channels
    }
    return RouteTable(model, border, plan_hash, channels, values, changes)


def recovery(table: RouteTable, clean: Collection[str], metric: Metric = "clean_exact") -> Interval:
    """How much of the difference between the two runs a coalition restores: rec = (m - m_d) / (m_c - m_d).

    m, m_c and m_d are means over samples of the metric of the coalition, of all channels and of none. It is a ratio of
    means: samples on which the two runs hardly differ weigh little, where a mean of ratios would blow them up. The
    interval is the paired percentile bootstrap's at 95%; for an exact metric, which may be the same in every sample,
    the wider of that and Wilson's for the share that the coalition gets right of the samples that only the clean run
    does. All channels give 1 and none gives 0.

    Raises:
        ScoreError: the clean run is not better than the corrupt one, in these samples or in some resample of them.
    """
    columns = _columns(table, metric, [clean])
    found = bootstrap_statistic(columns, lambda means: (means[:, 0] - means[:, 2]) / _scale(means, table, metric))
    if not metric.endswith("exact"):
        return found
    (alone,) = _shares(columns)
    return Interval(found.value, min(found.low, alone.low), max(found.high, alone.high), table.n)


def segregation_index(table: RouteTable, metric: Metric = "clean_exact") -> Interval:
    """SI = rec(KV only) - rec(state only), clipped to [-1, 1]: 1 all through attention, -1 all through the recurrence.

    A kind of layer that the model does not have carries nothing. The interval is the paired percentile bootstrap's at
    95%; for an exact metric the wider of it and Newcombe's for the difference of the two shares that ``recovery``
    speaks of, taken as uncorrelated. (Newcombe 1998, method 10)

    Raises:
        ScoreError: as ``recovery``.
    """
    columns = _columns(table, metric, [ATTENTION, RECURRENCE])
    found = bootstrap_statistic(columns, lambda means: (means[:, 0] - means[:, 1]) / _scale(means, table, metric))
    low, high = found.low, found.high
    if metric.endswith("exact"):
        shares = difference(*_shares(columns))
        low, high = min(low, shares.low), max(high, shares.high)
    return Interval(*(float(np.clip(end, -1, 1)) for end in (found.value, low, high)), n=table.n)


def shapley_weights(names: Sequence[str], channel: str) -> Float[np.ndarray, " coalition"]:
    """The weight of each coalition's worth in a channel's credit, for the coalitions of ``names`` (every one of them).

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)). (Shapley 1953)

    >>> shapley_weights(coalitions(("keys", "values")), "keys").tolist()
    [-0.5, 0.5, -0.5, 0.5]
    """
    n = max(len(name) for name in names if name != "-")
    letter = channel[0]

    def weight(name: str) -> float:
        size = len(name.replace("-", "").replace(letter, ""))
        share = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
        return share if letter in name else -share

    return np.array([weight(name) for name in names])


def shapley(table: RouteTable, metric: Metric = "clean_exact") -> dict[str, Interval]:
    """Each channel's Shapley credit: its share of what the clean memory is worth; the shares add up to 1.

    Worth is ``recovery``, so that v(all) - v(none) = 1. A channel that changes nothing gets 0, and channels that do the
    same get the same. Intervals are the paired percentile bootstrap's at 95%; one without a width says that every
    sample gave the same.

    Raises:
        ScoreError: as ``recovery``.
    """
    names = coalitions(table.channels)
    worth = np.stack([table.values[metric][name] for name in names], axis=1)

    def credit(means: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, " resample"]:
        return means[:, 0] / _scale(means, table, metric)

    gains = {channel: worth @ shapley_weights(names, channel) for channel in table.channels}
    return {
        channel: bootstrap_statistic(np.stack([gain, worth[:, -1], worth[:, 0]], axis=1), credit)
        for channel, gain in gains.items()
    }


def _columns(
    table: RouteTable, metric: Metric, coalitions: Sequence[Collection[str]]
) -> Float[np.ndarray, "sample column"]:
    """The coalitions' worth, then that of all channels and of none."""
    return np.stack([table.worth(clean, metric) for clean in (*coalitions, CHANNELS, ())], axis=1)


def _scale(
    means: Float[np.ndarray, "resample column"], table: RouteTable, metric: Metric
) -> Float[np.ndarray, " resample"]:
    """m_c - m_d, the last two columns."""
    scale = means[:, -2] - means[:, -1]
    if (scale <= 0).any():
        clean, corrupt = table.worth(CHANNELS, metric).mean(), table.worth((), metric).mean()
        raise ScoreError(
            f"there is nothing to recover: {metric} is {clean:.3g} from the clean memory of {table.model} and "
            f"{corrupt:.3g} from the corrupt one ({table.n} samples), and a recovery needs the first to be larger in "
            "every resample. Use more samples, or ones that the model gets right"
        )
    return scale


def _shares(columns: Float[np.ndarray, "sample column"]) -> list[Interval]:
    """Of the samples that the clean run gets right and the corrupt one does not: the share of each coalition."""
    telling = columns[(columns[:, -2] == 1) & (columns[:, -1] == 0)]
    return [wilson(int(column.sum()), len(telling)) for column in telling[:, :-2].T]
