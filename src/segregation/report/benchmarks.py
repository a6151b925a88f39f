"""The figure of what is left of choice tasks with few heads or none, raw and corrected for chance."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter

from segregation.interventions.rules import AblateHeads, Plan
from segregation.report.canvas import blank
from segregation.report.names import plan_name
from segregation.scores.knowledge import KNOWLEDGE_KEPT, Knowledge, choices_of, knowledge
from segregation.scores.outcomes import Outcome, sweep_point
from segregation.scores.statistics import Interval

_BARS = {"raw": ("#0072B2", -0.2), "corrected": ("#E69F00", 0.2)}
_LABELS = {"raw": "raw: accuracy over base accuracy", "corrected": "corrected: chance taken off both"}


def known_tasks(outcomes: Sequence[Outcome]) -> list[Knowledge]:
    """The choice tasks that the base knows enough of, with what is left of them with k heads, or none, in each phase.

    >>> known_tasks([])
    []
    """
    asked = choices_of(outcomes)
    plans = dict.fromkeys(outcome.plan for outcome in asked if _of_heads(outcome.plan))
    return [task for task in knowledge(asked, plans) if task.left]


def retention_bars(tasks: Sequence[Knowledge], model: str) -> Figure:
    """Retention of each task (a panel) under each plan (a pair of bars), raw and corrected for chance.

    Whiskers are 95% intervals; the dotted line is the paper's 84% of MMLU, corrected for chance.
    """
    plans = sorted(dict.fromkeys(plan for task in tasks for plan in task.left), key=_order)
    figure = blank(3.1 + 2.6 * len(tasks), 1.7 + 0.55 * len(plans))
    axes = figure.subplots(1, len(tasks), squeeze=False, sharex=True, sharey=True).ravel()
    for axis, task in zip(axes, tasks, strict=True):
        _bars(axis, task, plans)
    ends = [end for task in tasks for left in task.left.values() for end in (left.corrected.low, left.corrected.high)]
    axes[0].set_xlim(min(0.0, min(ends) - 0.03), max(1.05, max(ends) + 0.03))
    axes[0].set_yticks(range(len(plans)), [plan_name(plan).replace(" in ", "\nin ", 1) for plan in plans], fontsize=8)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle(f"{model}: what is left of general ability", fontsize=12, fontweight="bold")
    return figure


def _bars(axis: Axes, task: Knowledge, plans: Sequence[Plan]) -> None:
    for kind, (colour, shift) in _BARS.items():
        found: list[tuple[float, Interval]] = [
            (y + shift, task.left[plan].raw if kind == "raw" else task.left[plan].corrected)
            for y, plan in enumerate(plans)
            if plan in task.left
        ]
        at, values = [y for y, _ in found], [interval.value for _, interval in found]
        errors = [[i.value - i.low for _, i in found], [i.high - i.value for _, i in found]]
        axis.barh(at, values, height=0.36, color=colour, label=_LABELS[kind])
        axis.errorbar(values, at, xerr=np.clip(errors, 0, None), fmt="none", ecolor="black", elinewidth=1, capsize=2.5)
        for y, interval in found:
            axis.annotate(
                f"{interval.value:.0%}",
                (1.02, y),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=7,
                annotation_clip=False,
            )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.axvline(1, color="black", linewidth=0.8, zorder=0)
    axis.axvline(
        KNOWLEDGE_KEPT,
        color="black",
        linewidth=1,
        linestyle=(0, (1, 2)),
        label=f"{KNOWLEDGE_KEPT:.0%}, corrected: the paper's MMLU",
    )
    axis.xaxis.set_major_locator(MultipleLocator(0.5))
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel("left of base accuracy", fontsize=9)
    base = task.base
    axis.set_title(
        f"{task.task}\nbase {base.value:.0%} [{100 * base.low:.0f}, {100 * base.high:.0f}], "
        f"chance {task.chance:.0%}, n = {base.n}",
        fontsize=9,
    )


def _of_heads(plan: Plan) -> bool:
    """Whether a plan keeps k chosen heads, or none."""
    match plan.rules:
        case (AblateHeads(heads="all"),):
            return True
    point = sweep_point(plan)
    return point is not None and point.choice != "random"


def _order(plan: Plan) -> tuple[int, int, str]:
    """Most heads first, then by phase."""
    point = sweep_point(plan)
    return (-point.k if point else 0, plan.during.value, plan_name(plan))
