"""Which figures a run has data for; retrieval over length and depth, and retrieval against heads kept."""

import io
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from segregation.interventions.rules import Plan
from segregation.interventions.visibility import view_of
from segregation.report.benchmarks import known_tasks, retention_bars
from segregation.report.canvas import blank
from segregation.report.names import phase_name, plan_name
from segregation.report.visibility import copies_map, visibility_map
from segregation.scores.outcomes import Outcome, Sweep, sweep_point
from segregation.scores.statistics import bootstrap_mean, wilson

_LOOKS = {  # Okabe and Ito's colours; marker and dash differ too, so that the lines stay apart in grey
    "entropy": ("#0072B2", "o", "-"),
    "l2": ("#D55E00", "s", "--"),
    "paper_entropy": ("#009E73", "D", "-."),
    "random": ("#555555", "^", ":"),
}


HANDFUL = 4
"""Plans of a visibility map, at most, that are drawn one by one; more of them are drawn as a map."""


def figures_of(outcomes: Sequence[Outcome]) -> dict[str, Figure]:
    """Every figure that the outcomes of one run have data for, by file name without ending."""
    needles = [outcome for outcome in outcomes if outcome.task == "needle"]
    figures: dict[str, Figure] = {}
    for readings in sorted({outcome.readings for outcome in needles}):
        grid = [outcome for outcome in needles if outcome.readings == readings]
        views = {plan for plan in _plans(grid) if view_of(plan)}
        swept = [plan for plan in _plans(grid) if sweep_point(plan)]
        plans = [plan for plan in _plans(grid) if plan not in swept or len(swept) == 1]  # one k is no sweep
        if len(views) > HANDFUL:
            plans = [plan for plan in plans if plan not in views]
        edited = {outcome.sample_id for outcome in grid if outcome.plan in plans and outcome.plan.rules}
        grid = [outcome for outcome in grid if outcome.plan in plans and outcome.sample_id in edited]
        if len({(outcome.context_length, outcome.depth_percent) for outcome in grid}) > 3 and len(plans) > 1:
            figures[f"retrieval_readings{readings}"] = heat_maps(grid)
    if len({point.k for outcome in needles if (point := sweep_point(outcome.plan))}) > 1:
        figures["heads_kept"] = retention_curves(needles)
    for name, kind in (("", [o for o in needles if not o.classic]), ("_classic", [o for o in needles if o.classic])):
        once, twice = ([o for o in kind if o.readings == readings] for readings in (1, 2))
        if len({outcome.plan for outcome in once if view_of(outcome.plan)}) > HANDFUL:
            figures[f"visibility{name}"] = visibility_map(once)
        if len({view.occurrence for outcome in twice if (view := view_of(outcome.plan))}) > 1:
            figures[f"copies{name}"] = copies_map(twice)
    tasks = known_tasks(outcomes)
    if sum(len(task.left) for task in tasks) > 1:
        figures["benchmarks"] = retention_bars(tasks, outcomes[0].model)
    return figures


def heat_maps(outcomes: Sequence[Outcome]) -> Figure:
    """Score over context length (across) and needle depth (down), one panel per plan."""
    plans = _plans(outcomes)
    columns = min(3, len(plans))
    rows = -(-len(plans) // columns)
    figure = blank(3.1 * columns + 1.0, 2.9 * rows + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis in axes[len(plans) :]:
        axis.set_visible(False)
    image = None
    for axis, plan in zip(axes, plans, strict=False):
        image = _heat_map(axis, [outcome for outcome in outcomes if outcome.plan == plan], plan)
    for axis in axes[::columns]:
        axis.set_ylabel("needle depth (%)")
    for position, axis in enumerate(axes[: len(plans)]):
        if position + columns >= len(plans):
            axis.set_xlabel("context length (tokens)")
            axis.tick_params(labelbottom=True)
    assert image is not None
    bar = figure.colorbar(image, ax=axes.tolist(), shrink=0.8, pad=0.02)
    bar.set_label("score (1 = the whole needle)")
    readings = {1: "read once", 2: "read twice"}.get(outcomes[0].readings, f"read {outcomes[0].readings} times")
    figure.suptitle(f"{outcomes[0].model}: needle in a haystack, context {readings}", fontsize=12, fontweight="bold")
    return figure


def retention_curves(outcomes: Sequence[Outcome]) -> Figure:
    """Exact retrieval against heads kept per attention layer, one panel per phase, one line per way to choose heads.

    Bars are Wilson 95% intervals over samples. For random heads the line is the mean over draws, the band its bootstrap
    95% interval.
    """
    points = [(point, outcome) for outcome in outcomes if (point := sweep_point(outcome.plan))]
    phases = sorted({point.during for point, _ in points}, key=lambda phase: phase.value)
    figure = blank(4.6 * len(phases) + 0.6, 4.2)
    axes = figure.subplots(1, len(phases), squeeze=False, sharey=True).ravel()
    for axis, during in zip(axes, phases, strict=True):
        swept = {o.sample_id for p, o in points if p.during == during and p.choice != "random"}
        base = [outcome for outcome in outcomes if not outcome.plan.rules and outcome.sample_id in swept]
        draws = _draw_curve(axis, [(p, o) for p, o in points if p.during == during])
        if base:
            rate = fmean(outcome.correct for outcome in base)
            axis.axhline(rate, color="black", linewidth=1, zorder=0)
            axis.axhline(0.95 * rate, color="black", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
            axis.annotate("95% of base", (0.01, 0.95 * rate), xycoords=("axes fraction", "data"), ha="left", va="top",
                          fontsize=8)  # fmt: skip
        lengths = [o.context_length for p, o in points if p.during == during]
        span = "-".join(str(n) for n in sorted({min(lengths), max(lengths)}))
        tokens = f"{span} tokens, n = {len(swept)}" + (f", {draws} draws" if draws else "")
        axis.set_title(f"{phase_name(during)} ({tokens})", fontsize=10)
        axis.set_xlabel("heads kept per attention layer (k)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("exact retrieval")
    axes[0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes[0].set_ylim(-0.03, 1.05)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{outcomes[0].model}: retrieval against heads kept", fontsize=12, fontweight="bold")
    return figure


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _plans(outcomes: Sequence[Outcome]) -> list[Plan]:
    """The plans in these outcomes, in the order they were first run."""
    return list(dict.fromkeys(outcome.plan for outcome in outcomes))


def _heat_map(axis: Axes, outcomes: Sequence[Outcome], plan: Plan):
    lengths = sorted({outcome.context_length for outcome in outcomes})
    depths = sorted({outcome.depth_percent for outcome in outcomes})
    cells: dict[tuple[float, int], list[float]] = defaultdict(list)
    for outcome in outcomes:
        cells[outcome.depth_percent, outcome.context_length].append(outcome.value)
    values = [[fmean(cells[d, length]) if (d, length) in cells else np.nan for length in lengths] for d in depths]
    image = axis.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
    axis.set_xticks(_some(len(lengths)), [str(lengths[i]) for i in _some(len(lengths))], fontsize=8)
    axis.set_yticks(_some(len(depths)), [f"{depths[i]:.0f}" for i in _some(len(depths))], fontsize=8)
    exact = wilson(sum(outcome.correct for outcome in outcomes), len(outcomes))
    axis.set_title(
        f"{plan_name(plan)}\nexact {exact.value:.0%} [{exact.low:.0%}, {exact.high:.0%}], n = {len(outcomes)}",
        fontsize=9,
    )
    return image


def _some(n: int) -> list[int]:
    """At most five positions out of n, ends included."""
    return sorted({round(position) for position in np.linspace(0, n - 1, min(n, 5))})


def _draw_curve(axis: Axes, points: Sequence[tuple[Sweep, Outcome]]) -> int:
    """Draw one line per choice of heads; the number of random draws per k."""
    by_choice: dict[str, dict[int, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for point, outcome in points:
        by_choice[point.choice][point.k].append(outcome)
    draws = 0
    for choice, (colour, marker, line) in _LOOKS.items():
        if choice not in by_choice:
            continue
        ks = sorted(by_choice[choice])
        looks = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5, "linewidth": 1.5}
        if choice == "random":
            rates = [_rate_per_draw(by_choice[choice][k]) for k in ks]
            draws = max(map(len, rates))
            means = [bootstrap_mean(rate) for rate in rates]
            axis.fill_between(ks, [m.low for m in means], [m.high for m in means], color=colour, alpha=0.2, linewidth=0)
            axis.plot(ks, [mean.value for mean in means], label="random heads (mean of draws)", **looks)
        else:
            found = [by_choice[choice][k] for k in ks]
            rates = [wilson(sum(o.correct for o in group), len(group)) for group in found]
            errors = [[r.value - r.low for r in rates], [r.high - r.value for r in rates]]
            axis.errorbar(
                ks, [r.value for r in rates], yerr=np.clip(errors, 0, None), capsize=2.5, label=f"by {choice}", **looks
            )
    return draws


def _rate_per_draw(outcomes: Sequence[Outcome]) -> list[float]:
    by_plan: dict[Plan, list[bool]] = defaultdict(list)
    for outcome in outcomes:
        by_plan[outcome.plan].append(outcome.correct)
    return [fmean(correct) for correct in by_plan.values()]
