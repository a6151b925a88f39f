"""Figures of a dissociation run: what each side takes from retrieval and from facts, and when it must act."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from segregation.interventions.matched import Match, side_of
from segregation.interventions.phase import Phase
from segregation.interventions.phase_cells import Cell
from segregation.interventions.rules import Plan
from segregation.interventions.visibility import PHASES
from segregation.report.canvas import blank
from segregation.scores.deciding import BASE
from segregation.scores.dissociation import Dissociation, effect
from segregation.scores.dissociation_claims import FEWEST, Judged, judge
from segregation.scores.matched_effects import (
    LANGUAGE,
    MATCHING,
    MEASURING,
    RANDOM,
    RETRIEVAL,
    accuracies,
    in_dissociation,
    part_of,
)
from segregation.scores.outcomes import Outcome
from segregation.scores.phase_map import destroying, effect_of, phase_map, sufficing
from segregation.scores.statistics import Interval

CAPTIONS = {
    "dissociation_effects": "How much of retrieval (needles) and of facts an ablation takes away: 0% nothing, 100% "
    "all that the untouched model has above chance. Left: every dot is a set of attention heads or of recurrent "
    "mixers that is ablated. Small hollow dots are candidates, on the samples used for matching; large numbered ones "
    "are the pairs that did nearly the same total harm there, measured on other samples (equal numbers belong "
    "together); whiskers: 95% intervals. Grey crosses are the control: as many components, drawn at random and dealt "
    "to two sides whatever their kind. If attention serves retrieval alone and recurrence facts alone, attention lies"
    " at the lower right and recurrence at the upper left. Right: the same, mean over pairs, for every task.",
    "dissociation_phases": "All attention heads, all recurrent mixers, or both are set to zero in some phases "
    "(across): each cell is the share of the ability that this takes away, with its 95% interval. “Prefill” is every "
    "prompt position but the last. To the right, in letters (P prefill, L last prompt token, N new tokens): the "
    "smallest sets of phases whose ablation takes 95% or more, and the smallest that it is needed in, as "
    "ablating it in all the others takes at most 5%; by the measured shares, not their intervals.",
}
"""What a reader has to know to read each figure."""

COLOURS = {"attention": "#0072B2", "recurrent": "#D55E00", "both": "#555555"}
_MARKS = {"attention": "o", "recurrent": "s"}
_NAMES = {"attention": "attention heads", "recurrent": "recurrent mixers", "both": "both"}
_TASKS = {RETRIEVAL: "retrieval"}
_COLUMNS = (
    "prefill",
    "last prompt\ntoken",
    "new\ntokens",
    "prefill +\nlast token",
    "last +\nnew",
    "prefill +\nnew",
    "all\nphases",
)
_LETTERS = {Phase.PREFILL: "P", Phase.LAST: "L", Phase.DECODE: "N"}


def dissociation_figures(outcomes: Sequence[Outcome]) -> dict[str, Figure]:
    """The figures that a dissociation run has outcomes for, by file name without ending.

    >>> dissociation_figures([])
    {}
    """
    rows = in_dissociation(outcomes)
    figures: dict[str, Figure] = {}
    if _taken(rows, MATCHING):
        figures["dissociation_effects"] = effects_figure(rows)
    maps = {task: phase_map([o for o in rows if part_of(o) == MEASURING], task) for task in (RETRIEVAL, LANGUAGE)}
    maps = {task: cells for task, cells in maps.items() if len(cells) > 1}
    if maps:
        figures["dissociation_phases"] = phases_figure(maps, rows[0].model)
    return figures


def effects_figure(outcomes: Sequence[Outcome]) -> Figure:
    """What ablations take from retrieval (across) and facts (up), and the mean over matched pairs for every task."""
    judged = judge(outcomes)
    wide = judged.found is not None
    figure = blank(11.2 if wide else 6.4, 5.6)
    axes = figure.subplots(1, 2 if wide else 1, squeeze=False, width_ratios=[1.15, 1] if wide else None).ravel()
    _scatter(axes[0], outcomes, judged)
    if judged.found is not None:
        _means(axes[1], judged.found)
    figure.suptitle(f"{outcomes[0].model}: {_headline(judged)}", fontsize=12, fontweight="bold")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5 if wide else 2, frameon=False, fontsize=8)
    return figure


def phases_figure(maps: Mapping[str, Mapping[Cell, Interval]], model: str) -> Figure:
    """What each side takes away in which phases (across), one panel per task."""
    heights = [len(_rows(cells)) for cells in maps.values()]
    figure = blank(11.2, 1.5 + sum(0.9 + 0.55 * height for height in heights))
    axes = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights).ravel()
    image = None
    for axis, (task, cells) in zip(axes, maps.items(), strict=True):
        image = _map(axis, _TASKS.get(task, task), cells)
    axes[-1].set_xlabel("positions at which it is ablated", fontsize=9)
    assert image is not None
    bar = figure.colorbar(image, ax=axes.tolist(), shrink=0.8, pad=0.02)
    bar.set_label("taken away", fontsize=9)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f"{model}: when attention and recurrence are needed", fontsize=12, fontweight="bold")
    return figure


def _scatter(axis: Axes, outcomes: Sequence[Outcome], judged: Judged) -> None:
    for side in ("attention", "recurrent"):
        found = [at for plan, at in _taken(outcomes, MATCHING).items() if side_of(plan) == side]
        look = {"facecolors": "none", "edgecolors": COLOURS[side], "marker": _MARKS[side], "alpha": 0.6}
        if found:
            axis.scatter(*zip(*found, strict=True), s=16, linewidths=0.8, label=f"{_NAMES[side]}: candidates", **look)
    dealt = [at for part in _random_parts(outcomes) for at in _taken(outcomes, part).values()]
    if dealt:
        x, y = zip(*dealt, strict=True)
        axis.scatter(x, y, s=30, marker="x", color="#888888", linewidths=1, label="random, of both kinds", zorder=1)
    measured = _taken(outcomes, MEASURING)
    for side in ("attention", "recurrent"):
        pairs = [(n, _plan(pair, side)) for n, pair in enumerate(judged.pairs, 1)]
        _points(axis, side, [(n, _measured(outcomes, plan)) for n, plan in pairs if plan in measured])
    for total in (0.5, 1.0, 1.5):
        axis.plot([total, 0], [0, total], color="#cccccc", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axis.annotate("equal harm", (0.79, 0.21), rotation=-45, fontsize=7, color="#888888", ha="center", va="center")
    axis.set_xlim(-0.06, 1.09)
    axis.set_ylim(-0.06, 1.09)
    axis.set_aspect("equal")
    axis.set_xlabel("taken from retrieval")
    axis.set_ylabel("taken from facts")
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(PercentFormatter(xmax=1))
    axis.set_title("each ablated set", fontsize=10)


def _points(axis: Axes, side: str, found: Sequence[tuple[int, tuple[Interval, Interval]]]) -> None:
    """Large dots with whiskers; those at the same place share one label."""
    if not found:
        return
    x, y = [r.value for _, (r, _) in found], [f.value for _, (_, f) in found]
    errors = [np.clip([[i.value - i.low for i in column], [i.high - i.value for i in column]], 0, None)
              for column in ([r for _, (r, _) in found], [f for _, (_, f) in found])]  # fmt: skip
    axis.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt=_MARKS[side], color=COLOURS[side], markersize=8,
                  elinewidth=0.8, capsize=2, alpha=0.85, label=f"{_NAMES[side]}: matched pairs", zorder=3)  # fmt: skip
    places: dict[tuple[float, float], list[int]] = {}
    for (number, _), at in zip(found, zip(x, y, strict=True), strict=True):
        near = next((place for place in places if max(abs(place[0] - at[0]), abs(place[1] - at[1])) < 0.1), at)
        places.setdefault(near, []).append(number)
    for place, numbers in places.items():
        inward, halo = place[0] > 0.8, [withStroke(linewidth=2.5, foreground="white")]
        look = {"color": COLOURS[side], "fontsize": 10, "fontweight": "bold", "path_effects": halo}
        at = {"xytext": (-8 if inward else 8, 9), "textcoords": "offset points", "ha": "right" if inward else "left"}
        axis.annotate(", ".join(map(str, numbers)), place, va="center", zorder=5, **at, **look)


def _means(axis: Axes, found: Dissociation) -> None:
    tasks = list(found.effects)
    for number, side in enumerate(COLOURS):
        at = [x + 0.26 * (number - 1) for x in range(len(tasks))]
        means = [found.effects[task][side] for task in tasks]
        errors = [[i.value - i.low for i in means], [i.high - i.value for i in means]]
        axis.bar(at, [i.value for i in means], width=0.24, color=COLOURS[side], alpha=0.85, label=_NAMES[side])
        axis.errorbar(at, [i.value for i in means], yerr=np.clip(errors, 0, None), fmt="none", ecolor="black",
                      elinewidth=1, capsize=2.5)  # fmt: skip
    q = {test.task: test.adjusted for test in found.contrasts}
    labels = [f"{task}\nq = {q[task]:.2g}" for task in tasks]
    axis.set_xticks(range(len(tasks)), labels, fontsize=8)
    axis.set_ylim(0, 1.12)
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.set_ylabel("taken away, mean over pairs")
    axis.set_title("matched pairs; q: heads hit retrieval harder, mixers hit the others harder", fontsize=9)
    axis.legend(fontsize=8, frameon=False, ncols=3, loc="upper center")


def _map(axis: Axes, task: str, cells: Mapping[Cell, Interval]) -> AxesImage:
    rows = _rows(cells)
    values = np.full((len(rows), len(PHASES)), np.nan)
    for y, row in enumerate(rows.values()):
        for x, phase in enumerate(PHASES):
            if phase not in row:
                axis.text(x, y, "not run", ha="center", va="center", fontsize=7, color="#777777")
                continue
            values[y, x] = row[phase].value
            text = f"{row[phase].value:.0%}\n[{100 * row[phase].low:.0f}, {100 * row[phase].high:.0f}]"
            colour = "white" if row[phase].value < 0.5 else "black"
            axis.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
        if len(row) == len(PHASES):
            effects = {phase: interval.value for phase, interval in row.items()}
            needed = _sets(sufficing(effects))
            only = "" if needed == "no phase" else " only"
            text = f"destroyed by {_sets(destroying(effects))}\nneeded in {needed}{only}"
            axis.text(len(PHASES) - 0.4, y, text, va="center", fontsize=8, clip_on=False)
    image = axis.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
    axis.set_xticks(range(len(PHASES)), _COLUMNS, fontsize=8)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set_xticks(np.arange(0.5, len(PHASES) - 1), minor=True)
    axis.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="both", length=0)
    sizes = sorted({interval.n for interval in cells.values()})
    axis.set_title(f"{task} (n = {'-'.join(map(str, dict.fromkeys([sizes[0], sizes[-1]])))} a cell)", fontsize=9)
    return image


def _rows(cells: Mapping[Cell, Interval]) -> dict[str, dict[Phase, Interval]]:
    rows: dict[str, dict[Phase, Interval]] = {}
    several = len({cell.value for cell in cells if cell.side != "attention"}) > 1
    for side, name in _NAMES.items():
        for cell, interval in cells.items():
            if cell.side == side:
                value = f"\n({cell.value})" if several and side != "attention" else ""
                rows.setdefault(name + value, {})[cell.during] = interval
    return rows


def _sets(phases: Sequence[Phase]) -> str:
    """Sets of phases in letters.

    >>> _sets((Phase.LAST, Phase.PREFILL | Phase.DECODE)), _sets((Phase(0),)), _sets(())
    ('L, P+N', 'no phase', 'no set')
    """
    named = ["+".join(letter for phase, letter in _LETTERS.items() if phase in found) or "no phase" for found in phases]
    return ", ".join(named) or "no set"


def _headline(judged: Judged) -> str:
    found = judged.found
    if found is None:
        return f"no pairs to compare ({len(judged.pairs)} matched, {FEWEST} needed)"
    index = found.index or found.raw
    verdict = "undecided" if judged.problem else f"{found.verdict} dissociation"
    return (
        f"{verdict}, segregation index {index.value:.2f} [{index.low:.2f}, {index.high:.2f}], {len(judged.pairs)} pairs"
    )


def _taken(outcomes: Sequence[Outcome], part: str) -> dict[Plan, tuple[float, float]]:
    """Effects on retrieval and on facts of every plan that was run on both tasks of a part."""
    right = {task: accuracies(outcomes, part, task) for task in (RETRIEVAL, LANGUAGE)}
    chance = {o.task: o.chance for o in outcomes}
    if not all(BASE in plans and plans[BASE] > chance[task] for task, plans in right.items()):
        return {}
    lost = {
        task: {plan: effect(plans[BASE], rate, chance[task]).item() for plan, rate in plans.items() if plan != BASE}
        for task, plans in right.items()
    }
    return {plan: (taken, lost[LANGUAGE][plan]) for plan, taken in lost[RETRIEVAL].items() if plan in lost[LANGUAGE]}


def _measured(outcomes: Sequence[Outcome], plan: Plan) -> tuple[Interval, Interval]:
    """The same of one plan, where pairs are measured, with intervals."""
    retrieval, facts = (
        effect_of(
            [o for o in outcomes if (part_of(o), o.task, o.plan) == (MEASURING, task, plan)],
            [o for o in outcomes if (part_of(o), o.task, o.plan) == (MEASURING, task, BASE)],
        )
        for task in (RETRIEVAL, LANGUAGE)
    )
    return retrieval, facts


def _random_parts(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(part_of(o) for o in outcomes if part_of(o).startswith(RANDOM)))


def _plan(pair: Match, side: str) -> Plan:
    return pair.attention if side == "attention" else pair.recurrent
