"""The figure of what was tried to let the recurrent layers retrieve where attention cannot read the needle."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from segregation.interventions.compensation import CRIPPLED, Setting
from segregation.report.canvas import blank
from segregation.runs.record import Record
from segregation.scores.compensation import Prompting, Row, compensation_rows
from segregation.scores.deciding import GONE
from segregation.scores.statistics import Interval

CAPTIONS = {
    "compensation": "What is tried so that the recurrent layers retrieve where attention cannot read the needle: more "
    "needles, a nearer needle, a second reading, and (open squares) recurrent layers that skip all of the context but "
    "the needle. First row: needles retrieved whole, with Wilson's 95% intervals (dotted: 5%). Below: how much more "
    "probable the right answer is than in the same prompt with another answer in its needle, in nats per token of the "
    "answer (0: nothing is known of it), with bootstrap 95% intervals; the last row is the one above without the "
    "untouched attention, enlarged. Crosses, a control: recurrent layers that skip the needle instead.",
}
"""What a reader has to know to read the figure."""

_COLOURS = {  # Okabe and Ito's
    "untouched": "black",
    "ablated in generation": "#E69F00",
    "ablated": "#D55E00",
    "needle hidden": "#0072B2",
}
_ATTENTION = {
    "untouched": "attention untouched",
    "ablated in generation": "every head ablated in generation",
    "ablated": "every head ablated in all phases",
    "needle hidden": "needle hidden from attention",
}
_MARKERS = {"reads all": ("o", True), "skips distractors": ("s", False), "skips the needle": ("x", True)}
_RECURRENCE = {
    "reads all": "recurrent layers read everything",
    "skips distractors": "... skip the context but the needle",
    "skips the needle": "... skip the needle (control)",
}
_READINGS = {1: "once", 2: "twice"}

Column = tuple[str, str, Sequence[tuple[str, Prompting]]]
"""A title, what goes across, and the promptings with their labels."""


def compensation_figures(records: Sequence[Record]) -> dict[str, Figure]:
    """The figure, by name, if these records are of a search for compensation (some contexts have several needles)."""
    rows = compensation_rows(records)
    return {"compensation": compensation_figure(rows)} if any(row.prompting.copies > 1 for row in rows) else {}


def compensation_figure(rows: Sequence[Row]) -> Figure:
    """Retrieval and gain (down) against copies, distance, and a second reading with all of it together (across)."""
    columns = [column for column in (_copies(rows), _distances(rows), _read_again(rows)) if column[2]]
    crippled = [row for row in rows if row.setting.attention in CRIPPLED]
    measures: list[tuple[str, Sequence[Row], Callable[[Row], Interval | None]]] = [
        ("exact retrieval", rows, lambda row: row.exact),
        ("gain of the answer\n(nats per token)", rows, lambda row: row.gain),
        ("the same, enlarged:\nattention cut off", crippled, lambda row: row.gain),
    ]
    measures = [measure for measure in measures if any(measure[2](row) is not None for row in measure[1])]
    widths = [0.8 + 0.75 * len(promptings) for _, _, promptings in columns]
    figure = blank(2.2 + 1.35 * sum(widths), 2.4 + 2.3 * len(measures))
    axes = figure.subplots(len(measures), len(columns), squeeze=False, sharex="col", sharey="row", width_ratios=widths)
    for across, (name, shown, measure) in zip(axes, measures, strict=True):
        for axis, (_, _, promptings) in zip(across, columns, strict=True):
            _draw(axis, shown, [prompting for _, prompting in promptings], measure)
        across[0].set_ylabel(name, fontsize=9)
        if name == "exact retrieval":
            across[0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
            across[0].set_ylim(-0.05, 1.05)
            for axis in across:
                axis.axhline(GONE, color="#999999", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    for axis, below, (title, across, promptings) in zip(axes[0], axes[-1], columns, strict=True):
        axis.set_title(title, fontsize=9)
        below.set_xticks(range(len(promptings)), [label for label, _ in promptings], fontsize=8)
        below.set_xlim(-0.5, len(promptings) - 0.5)
        sizes = {row.exact.n for row in rows if row.prompting in dict(promptings).values()}
        below.set_xlabel(f"{across}\n(n = {_span(sizes)})".strip(), fontsize=9)
    figure.legend(handles=_legend(rows), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    title = "can the recurrent layers make up for attention?" if crippled else "what the untouched model retrieves"
    figure.suptitle(f"{rows[0].model}: {title}", fontsize=12, fontweight="bold")
    return figure


def _draw(
    axis: Axes, rows: Sequence[Row], promptings: Sequence[Prompting], measure: Callable[[Row], Interval | None]
) -> None:
    """One line per setting, its points side by side with those of the others."""
    cells = {(row.setting, row.prompting): row for row in rows}
    settings = _ordered(rows)
    axis.axhline(0, color="#999999", linewidth=0.8, zorder=0)
    for setting, shift in zip(settings, np.linspace(-0.36, 0.36, len(settings)), strict=True):
        found: Mapping[int, Interval] = {
            x: interval
            for x, prompting in enumerate(promptings)
            if (row := cells.get((setting, prompting))) is not None and (interval := measure(row)) is not None
        }
        if not found:
            continue
        values = [interval.value for interval in found.values()]
        errors = [[i.value - i.low for i in found.values()], [i.high - i.value for i in found.values()]]
        marker, filled = _MARKERS[setting.recurrence]
        colour = _COLOURS[setting.attention]
        axis.errorbar(
            [x + shift for x in found],
            values,
            yerr=np.clip(errors, 0, None),
            color=colour,
            marker=marker,
            markerfacecolor=colour if filled else "white",
            markersize=5,
            linestyle="none",
            elinewidth=1.2,
            capsize=2,
        )
    for x in range(len(promptings) - 1):
        axis.axvline(x + 0.5, color="#dddddd", linewidth=0.8, zorder=0)
    axis.tick_params(axis="x", length=0)
    axis.tick_params(axis="y", labelsize=8)


def _copies(rows: Sequence[Row]) -> Column:
    """The needle several times, against once, in a context of one length that is read once."""
    once = {row.prompting for row in rows if row.prompting.readings == 1}
    several = {prompting.plain for prompting in once if prompting.copies > 1}
    shown = sorted(
        (prompting for prompting in once if prompting.plain in several),
        key=lambda prompting: (prompting.context_length, prompting.depth_percent, prompting.copies),
    )
    where = ", ".join(sorted(_where(plain) for plain in several))
    labels = [(f"{prompting.copies}", prompting) for prompting in shown]
    return f"the needle repeated\n({where}, read once)", "needles in the context", labels


def _distances(rows: Sequence[Row]) -> Column:
    """One needle, ever nearer to the question."""
    distances = {
        row.prompting: row.distance for row in rows if row.prompting.readings == 1 and row.prompting.copies == 1
    }
    shown = sorted(distances, key=lambda prompting: -distances[prompting])
    labels = [(f"{distances[prompting]:.0f}", prompting) for prompting in shown]
    return "the needle nearer\n(one needle, read once)", "tokens from the needle to the question", labels


def _read_again(rows: Sequence[Row]) -> Column:
    """The context read again, beside the same read once, and everything together."""
    again = {row.prompting for row in rows if row.prompting.readings > 1}
    every = {row.prompting for row in rows}
    shown = sorted(
        again | {prompting.plain for prompting in again if prompting.plain in every},
        key=lambda p: (p.together, p.context_length, p.readings, p.copies),
    )

    def label(prompting: Prompting) -> str:
        reading = f"read {_READINGS.get(prompting.readings, f'{prompting.readings} times')}"
        if prompting.together:
            return f"all together:\n{reading},\n{prompting.copies} needles,\n{_where(prompting)}"
        return f"{reading}\n({_where(prompting)})"

    return "the context read again", "", [(label(prompting), prompting) for prompting in shown]


def _span(sizes: set[int]) -> str:
    return f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)}-{max(sizes)}"


def _where(prompting: Prompting) -> str:
    return f"{prompting.context_length} tokens, depth {prompting.depth_percent:.0f}%"


def _ordered(rows: Sequence[Row]) -> list[Setting]:
    """The settings, attention by attention."""
    return sorted(
        dict.fromkeys(row.setting for row in rows),
        key=lambda setting: (list(_COLOURS).index(setting.attention), list(_MARKERS).index(setting.recurrence)),
    )


def _legend(rows: Sequence[Row]) -> list[Line2D]:
    """Colours, then markers; only those that occur."""
    attention = {row.setting.attention for row in rows}
    recurrence = {row.setting.recurrence for row in rows}
    colours = [
        Line2D([], [], color=_COLOURS[name], linewidth=5, label=text)
        for name, text in _ATTENTION.items()
        if name in attention
    ]
    markers = [
        Line2D([], [], color="#555555", marker=_MARKERS[name][0], linestyle="none", label=text,
               markerfacecolor="#555555" if _MARKERS[name][1] else "white")
        for name, text in _RECURRENCE.items() if name in recurrence
    ]  # fmt: skip
    return colours + markers
