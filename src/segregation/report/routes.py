"""The figure of what comes back with which memory: recovery of coalitions of channels, and credit per channel."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from segregation.errors import ScoreError
from segregation.report.canvas import blank
from segregation.runs.record import Record
from segregation.scores.routes import (
    ATTENTION,
    CHANNELS,
    RECURRENCE,
    Metric,
    RouteTable,
    recovery,
    route_tables,
    segregation_index,
    shapley,
)
from segregation.scores.statistics import Interval

CAPTIONS = {
    "routes": "Two runs read the same prompt, but their needles say different things. At a border the memory is put "
    "together from both: some of the four channels (keys, values, recurrent states, convolution states) are of the "
    "clean run, the others of the corrupt one, and the model goes on from there. Left: how much of the clean needle "
    "comes back with the channels named; 100% is what the clean run does by itself, 0% what the corrupt run does. "
    "Right: each channel's Shapley credit, its mean contribution over all orders in which the channels can be made "
    "clean; credits add up to 100%. Above: whether the clean needle is written whole, which a memory that carries "
    "neither needle does not do, so 0% is “carries nothing”. Below: ln p of the clean needle, which such a memory can "
    "make less unlikely than one that carries the wrong needle. Whiskers: 95% intervals over samples.",
}
"""What a reader has to know to read each figure, by the first part of its name."""

_LOOKS = {  # Okabe and Ito's colours; markers differ too
    "needle": ("right after the needle", "#0072B2", "o"),
    "question": ("before the question", "#D55E00", "s"),
    "answer": ("before the last prompt token", "#009E73", "^"),
}
_OTHER = ("#555555", "D")
_METRICS: Mapping[Metric, str] = {"clean_exact": "clean needle written whole", "clean": "ln p of the clean needle"}
_COALITIONS: Mapping[str, tuple[str, ...]] = {
    "KV cache alone": ATTENTION,
    "keys alone": ("keys",),
    "values alone": ("values",),
    "both states alone": RECURRENCE,
    "recurrent alone": ("recurrent",),
    "convolution alone": ("conv",),
}
_CHANNELS = {"keys": "keys", "values": "values", "recurrent": "recurrent\nstate", "conv": "convolution\nstate"}


def route_figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The figure of every model and plan among the route measurements, by file name without ending.

    >>> route_figures([])
    {}
    """
    groups: dict[tuple[str, str], list[RouteTable]] = defaultdict(list)
    for table in route_tables(records):
        groups[table.model, table.plan_hash].append(table)
    names = ["routes"] if len(groups) == 1 else [f"routes_{model}_{plan}" for model, plan in groups]
    return {name: route_figure(tables) for name, tables in zip(names, groups.values(), strict=True)}


def route_figure(tables: Sequence[RouteTable]) -> Figure:
    """Recovery (left) and Shapley credit (right) in exact retrieval (above) and in ln p (below), border by border."""
    first = tables[0]
    rows = [name for name, clean in _COALITIONS.items() if set(clean) <= set(first.channels)]
    channels = [channel for channel in CHANNELS if channel in first.channels]
    figure = blank(9.5, 2.4 + 0.86 * max(len(rows), len(channels)))
    axes = figure.subplots(2, 2, width_ratios=(1.25, 1), sharex="col")
    for (left, right), (metric, title) in zip(axes, _METRICS.items(), strict=True):
        _draw(left, tables, rows, lambda table, at=metric: _recoveries(table, rows, at))
        _draw(right, tables, [_CHANNELS[c] for c in channels], lambda table, at=metric: _credits(table, channels, at))
        left.set_title(f"recovery: {title}", fontsize=10)
        right.set_title(f"Shapley credit: {title}", fontsize=10)
    axes[1, 0].set_xlabel("recovery (0% = corrupt run, 100% = clean run)", fontsize=9)
    axes[1, 1].set_xlabel("share of what the clean memory is worth", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9)
    figure.suptitle(f"{first.model}: which memory brings the needle back?", fontsize=12, fontweight="bold")
    return figure


def _draw(
    axis: Axes, tables: Sequence[RouteTable], labels: Sequence[str], found: Callable[[RouteTable], list[Interval]]
) -> None:
    """A row for each label, and in it a marker with whiskers for each border."""
    for number, table in enumerate(tables):
        _, colour, marker = _LOOKS.get(table.border, ("", *_OTHER))
        shift = 0.22 * (number - (len(tables) - 1) / 2)
        try:
            intervals = found(table)
        except ScoreError:
            intervals = []  # the clean run is no better than the corrupt one; the legend says so
        values = np.array([interval.value for interval in intervals])
        ends = np.array([[i.value - i.low, i.high - i.value] for i in intervals]).reshape(-1, 2)
        axis.errorbar(
            values, np.arange(len(values)) + shift, xerr=np.clip(ends.T, 0, None), fmt=marker, color=colour,
            markersize=5, capsize=2.5, linewidth=1.2, label=_said(table),
        )  # fmt: skip
    for edge in (0, 1):
        axis.axvline(edge, color="#999999", linewidth=0.8, zorder=0)
    for between in np.arange(len(labels) - 1) + 0.5:
        axis.axhline(between, color="#dddddd", linewidth=0.6, zorder=0)
    axis.set_yticks(range(len(labels)), labels, fontsize=9)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)


def _recoveries(table: RouteTable, rows: Sequence[str], metric: Metric) -> list[Interval]:
    return [recovery(table, _COALITIONS[name], metric) for name in rows]


def _credits(table: RouteTable, channels: Sequence[str], metric: Metric) -> list[Interval]:
    found = shapley(table, metric)
    return [found[channel] for channel in channels]


def _said(table: RouteTable) -> str:
    """What the two runs do by themselves at a border, and the route index."""
    name = _LOOKS.get(table.border, (f"before position {table.border}", ""))[0]
    clean, corrupt = table.worth(CHANNELS, "clean_exact").mean(), table.worth((), "corrupt_exact").mean()
    try:
        index = segregation_index(table)
        told = f"route index {index.value:.2f} [{index.low:.2f}, {index.high:.2f}]"
    except ScoreError:
        told = "nothing to recover, so no route index"
    return f"{name}: {told}; own needle written by the clean run {clean:.0%}, the corrupt {corrupt:.0%} (n = {table.n})"
