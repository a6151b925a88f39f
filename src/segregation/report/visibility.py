"""Figures of what attention may see, and when: retrieval over token rules and phases."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter

from segregation.interventions.phase import Phase
from segregation.interventions.visibility import MODES, PHASES, View, view_of
from segregation.report.canvas import blank
from segregation.report.names import copy_name, seen_name
from segregation.scores.deciding import base_of, rate
from segregation.scores.outcomes import Outcome

_COLUMNS = {
    Phase.PREFILL: "prefill",
    Phase.LAST: "last prompt\ntoken",
    Phase.DECODE: "new\ntokens",
    Phase.PREFILL | Phase.LAST: "prefill +\nlast token",
    Phase.GENERATION: "generation\n(last + new)",
    Phase.PREFILL | Phase.DECODE: "prefill +\nnew tokens",
    Phase.ALL: "all\nphases",
}
_PANELS = {
    "default": "our way: what is left of a row is scaled to 1; rows with nothing left are not edited",
    "paper": "the paper's way: nothing is scaled; prefill rows with nothing left are edited too",
}

Row = Mapping[Phase, Sequence[Outcome]]
"""The cells of a row, by the phases in which its rule acts."""


def visibility_map(outcomes: Sequence[Outcome]) -> Figure:
    """Exact retrieval by what attention may see (down) and when (across), one panel per semantics.

    All cells of a row are made of the same samples, as far as there are any that all of them have.
    """
    panels: dict[str, dict[str, dict[Phase, list[Outcome]]]] = {}
    for semantics in _PANELS:
        rows: dict[str, dict[Phase, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
        for outcome, view in _views(outcomes):
            if view.semantics == semantics and view.occurrence in ("all", 0):
                rows[view.mode][view.during].append(outcome)
        if rows:
            panels[semantics] = {seen_name(rule): rows[mode] for mode, rule in MODES.items() if mode in rows}
    return _maps(
        "what attention may see, and when",
        {_PANELS[semantics]: rows for semantics, rows in panels.items()},
        outcomes,
    )


def copies_map(outcomes: Sequence[Outcome]) -> Figure:
    """Exact retrieval by which copy of the needle attention cannot see (down) and when (across)."""
    rows: dict[str, dict[Phase, list[Outcome]]] = {}
    copies = {0: copy_name(0), 1: copy_name(1), "all": "both copies"}
    found = [(o, view) for o, view in _views(outcomes) if (view.mode, view.semantics) == ("needle hidden", "default")]
    for copy, name in copies.items():
        for outcome, view in found:
            if view.occurrence == copy:
                rows.setdefault(name, {}).setdefault(view.during, []).append(outcome)
    return _maps("context read twice, which copy is hidden", {"needle hidden": rows}, outcomes)


def _views(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, View]]:
    return [(outcome, view) for outcome in outcomes if (view := view_of(outcome.plan))]


def _maps(title: str, panels: Mapping[str, Mapping[str, Row]], outcomes: Sequence[Outcome]) -> Figure:
    """One panel below the other; ``panels`` holds rows by name."""
    drawn = {name: {label: _on_same_samples(row) for label, row in rows.items()} for name, rows in panels.items()}
    cells = [(during, group) for rows in drawn.values() for row in rows.values() for during, group in row.items()]
    phases = [phase for phase in PHASES if any(during == phase for during, _ in cells)]
    heights = [len(rows) for rows in drawn.values()]
    figure = blank(max(6.6, 2.9 + 0.95 * len(phases)), 1.6 + sum(0.95 + 0.5 * height for height in heights))
    axes = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights).ravel()
    image = None
    for axis, (name, rows) in zip(axes, drawn.items(), strict=True):
        image = _map(axis, name, rows, phases)
    axes[-1].set_xlabel("positions whose attention is edited", fontsize=9)
    assert image is not None
    bar = figure.colorbar(image, ax=axes.tolist(), shrink=min(1.0, 0.5 + 0.25 * len(axes)), pad=0.02)
    bar.set_label("exact retrieval", fontsize=9)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    bar.ax.tick_params(labelsize=8)
    shown = [outcome for _, group in cells for outcome in group]
    base = base_of(shown, outcomes)
    untouched = f"untouched {_rated(base)}" if base else "the untouched model was not run"
    needles = len({outcome.metadata.get("needle", outcome.sample_id) for outcome in shown})
    which = "the classic needle" if shown[0].classic else f"{needles} needles"
    kind = " (classic needle)" if shown[0].classic else ""
    lengths = [outcome.context_length for outcome in shown]
    tokens = f"{_span(set(lengths))} tokens of context"
    figure.supxlabel(f"{which}, {tokens}; {untouched}; in brackets: Wilson 95% intervals", fontsize=8)
    figure.suptitle(f"{shown[0].model}: {title}{kind}", fontsize=12, fontweight="bold")
    return figure


def _map(axis: Axes, name: str, rows: Mapping[str, Row], phases: Sequence[Phase]) -> AxesImage:
    values = np.full((len(rows), len(phases)), np.nan)
    sizes = {label: {len(group) for group in row.values()} for label, row in rows.items()}
    alike = len(set().union(*sizes.values())) == 1
    for y, row in enumerate(rows.values()):
        for x, phase in enumerate(phases):
            if phase not in row:
                axis.text(x, y, "not run", ha="center", va="center", fontsize=7, color="#777777")
                continue
            found = rate(row[phase])
            values[y, x] = found.value
            text = f"{found.value:.0%}\n[{100 * found.low:.0f}, {100 * found.high:.0f}]"
            colour = "white" if found.value < 0.5 else "black"
            axis.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    image = axis.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
    axis.set_xticks(range(len(phases)), [_COLUMNS[phase] for phase in phases], fontsize=8)
    labels = [label.replace(", ", ",\n") + ("" if alike else f"\n(n = {_span(sizes[label])})") for label in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_xticks(np.arange(0.5, len(phases) - 1), minor=True)
    axis.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    for x, (before, after) in enumerate(pairwise(phases)):
        if len(before.numbers) == 1 < len(after.numbers):
            axis.axvline(x + 0.5, color="white", linewidth=7)  # single phases to the left, unions to the right
    axis.tick_params(which="both", length=0)
    axis.set_title(name + (f" (n = {_span(set().union(*sizes.values()))} a cell)" if alike else ""), fontsize=9)
    return image


def _on_same_samples(row: Row) -> dict[Phase, list[Outcome]]:
    """The cells on the samples that all of them have; where there are none, on all their samples."""
    shared = set.intersection(*({outcome.sample_id for outcome in group} for group in row.values()))
    return {
        during: [outcome for outcome in group if not shared or outcome.sample_id in shared]
        for during, group in row.items()
    }


def _rated(outcomes: Sequence[Outcome]) -> str:
    found = rate(outcomes)
    return f"{found.value:.0%} [{100 * found.low:.0f}, {100 * found.high:.0f}], n = {found.n}"


def _span(sizes: set[int]) -> str:
    return f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)}-{max(sizes)}"
