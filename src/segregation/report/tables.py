"""Tables of claims and of rates, for a terminal, for Markdown and for the HTML page."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from segregation.interventions.token_rules import BalanceTokens, HideTokens, OnlyTokens
from segregation.report.names import phase_name, plan_name
from segregation.scores.claims import INDICES, Claim
from segregation.scores.outcomes import Outcome, sweep_point
from segregation.scores.statistics import wilson

_STYLES = {"holds": "bold green", "fails": "bold red", "undecided": "yellow"}


def measured(claim: Claim) -> str:
    """The measured number with its interval, in percent, or an index as it is.

    >>> measured(Claim("ablation", "", "m", None, 0.0, 0.0, 0.037, 100, "holds", ()))
    '0.0% [0.0, 3.7]'
    >>> measured(Claim("segregation-index", "", "m", None, 1.0, 0.98, 1.0, 60, "holds", ()))
    '1.00 [0.98, 1.00]'
    """
    if claim.measured is None or claim.ci_low is None or claim.ci_high is None:
        return "-"
    if claim.id in INDICES:
        return f"{claim.measured:.2f} [{claim.ci_low:.2f}, {claim.ci_high:.2f}]"
    return f"{claim.measured:.1%} [{100 * claim.ci_low:.1f}, {100 * claim.ci_high:.1f}]"


def claims_table(claims: Sequence[Claim]) -> Group:
    """The claims for a terminal: a row each, then what each says and how to read its number."""
    table = Table(title="Claims", title_justify="left", show_edge=False, box=box.ROUNDED)
    for name in ("claim", "model"):
        table.add_column(name)  # folded where the terminal is narrow, so that numbers and verdicts stay whole
    for name in ("measured [95% CI]", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for claim in claims:
        verdict = Text(claim.verdict, style=_STYLES[claim.verdict])
        table.add_row(claim.id, escape(claim.model), measured(claim), str(claim.n), verdict)
    legend: list[Text] = []
    for id in dict.fromkeys(claim.id for claim in claims):
        same = [claim for claim in claims if claim.id == id]
        said = Text.assemble((f"{id}: ", "bold"), same[0].statement)
        if same[0].paper:
            said.append(f" (paper: {same[0].paper})")
        for claim in same:
            said.append(f"\n  {claim.model}: {claim.note}", style="dim")
        legend.append(said)
    return Group(table, *legend)


def claims_markdown(claims: Sequence[Claim]) -> str:
    """The claims as a Markdown table.

    >>> print(claims_markdown([Claim("jrt", "no | recovery", "m", None, 0.0, 0.0, 0.037, 100, "holds", ())]))
    | claim | model | statement | paper | measured, 95% interval | n | verdict |
    |---|---|---|---|---|---|---|
    | jrt | m | no \\| recovery | - | 0.0% [0.0, 3.7] | 100 | holds |
    """
    rows = [
        (
            c.id,
            c.model,
            f"{c.statement} ({c.note})" if c.note else c.statement,
            c.paper or "-",
            measured(c),
            str(c.n),
            c.verdict,
        )
        for c in claims
    ]
    head = ("claim", "model", "statement", "paper", "measured, 95% interval", "n", "verdict")
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


@dataclass(frozen=True)
class RateRow:
    """How often one plan gave the right answer.

    Attributes:
        task: the task of the samples; the classic needle is a task of its own where there are others too.
        readings: how often the prompt holds the context.
        plan: the plan in words; random draws with equal k and phase share a row.
        n: records counted.
        correct: share of exact retrievals, or of right choices.
        low: lower end of its Wilson 95% interval.
        high: upper end.
        value: mean score (for needles the rubric, 0..1).
    """

    task: str
    readings: int
    plan: str
    n: int
    correct: float
    low: float
    high: float
    value: float


def rates(outcomes: Sequence[Outcome]) -> list[RateRow]:
    """One row per task, number of readings and plan, in the order they were run."""
    groups: dict[tuple[str, int, str], list[Outcome]] = defaultdict(list)
    kinds = {outcome.classic for outcome in outcomes if outcome.task == "needle"}
    for outcome in outcomes:
        task = "classic needle" if outcome.classic and len(kinds) > 1 else outcome.task
        groups[task, outcome.readings, _row_name(outcome)].append(outcome)
    rows = []
    for (task, readings, plan), group in groups.items():
        rate = wilson(sum(outcome.correct for outcome in group), len(group))
        value = fmean(outcome.value for outcome in group)
        rows.append(RateRow(task, readings, plan, len(group), rate.value, rate.low, rate.high, value))
    return rows


def beyond_window(outcomes: Sequence[Outcome]) -> list[str]:
    """For each span that left the attention window where a rule should have acted on it, in how many samples it did.

    >>> beyond_window([])
    []
    """
    named, behind = defaultdict(set), defaultdict(set)
    for outcome in outcomes:
        for rule in outcome.plan.rules:
            if isinstance(rule, HideTokens | OnlyTokens | BalanceTokens):
                named[rule.span].add(outcome.sample_id)
        for span in outcome.beyond_window:
            behind[span].add(outcome.sample_id)
    return [
        f"{len(samples)} of {len(named[span])} samples: {span.replace('+', ' and ')} beyond the attention window at "
        "some position that a rule about it acts on; nothing was edited there"
        for span, samples in behind.items()
    ]


def rates_table(outcomes: Sequence[Outcome]) -> Table:
    """The rates for a terminal, one row per task, number of readings and plan."""
    table = Table(
        title="Share of right answers, with Wilson 95% intervals",
        title_justify="left",
        caption="\n".join(map(escape, beyond_window(outcomes))) or None,
        caption_justify="left",
    )
    for name in ("task", "read", "plan", "n", "exact", "95% interval", "rubric"):
        table.add_column(name, justify="left" if name in ("task", "plan") else "right")
    for row in rates(outcomes):
        interval = f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
        names = escape(row.task), f"{row.readings}x", escape(row.plan)
        cells = (*names, str(row.n), f"{row.correct:.1%}", interval, f"{row.value:.2f}")
        table.add_row(*cells)
    return table


def _row_name(outcome: Outcome) -> str:
    point = sweep_point(outcome.plan)
    if point is not None and point.choice == "random":
        return f"{point.k} random heads per layer in {phase_name(point.during)}"
    return plan_name(outcome.plan)
