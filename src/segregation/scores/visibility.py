"""Deciding the claims about what attention must see of the needle and its context, and when."""

from collections.abc import Sequence
from statistics import fmean

from segregation.interventions.phase import Phase
from segregation.interventions.presets import PAPER_PHASES
from segregation.interventions.visibility import Semantics, View
from segregation.scores.claims import Claim, Verdict
from segregation.scores.deciding import (
    GONE,
    KEPT,
    all_of,
    at_least,
    at_most,
    base_of,
    base_problem,
    claim_of,
    needles,
    rate,
    retained,
)
from segregation.scores.outcomes import Outcome

ALIVE = 0.5
"""At least this share of base retrieval counts as alive."""

BINARY = ("needle hidden", "only the needle")
"""The two manipulations that the paper calls binary."""


def needle_in_generation(outcomes: Sequence[Outcome]) -> Claim | None:
    """Hiding the needle in generation destroys retrieval (at most 5% are retrieved).

    Control: hiding a decoy, as many characters, in the same phase of the same samples keeps 95% of base retrieval.
    """
    hidden = needles(outcomes, View("needle hidden", Phase.GENERATION).plan)
    decoy = needles(outcomes, View("decoy hidden", Phase.GENERATION).plan)
    if not hidden:
        return None
    left, problem = rate(hidden), base_problem(base_of(hidden, outcomes))
    both = {row.sample_id for row in hidden} & {row.sample_id for row in decoy}
    decoy = [row for row in decoy if row.sample_id in both]
    if not problem and not base_of(decoy, outcomes):
        problem = "its control, a decoy hidden in generation, was not run on its samples"
    if problem:
        return claim_of("needle-in-generation", hidden, left, "undecided", problem)
    control = retained(decoy, base_of(decoy, outcomes))
    note = f"control: with a decoy hidden in generation {control.value:.0%} of base retrieval is kept (n = {control.n})"
    verdict = at_most(left, GONE)
    if at_least(control, KEPT) == "fails":
        verdict, note = "undecided", f"hiding anything may do the same; {note}"
    return claim_of("needle-in-generation", [*hidden, *decoy], left, verdict, note)


def context_somewhere(outcomes: Sequence[Outcome]) -> Claim | None:
    """Hiding the context but the needle in prefill only, or in generation only, keeps 50%; in both at most 5% is left.

    ``measured`` is what is retrieved with the context hidden in all phases. The single phases are its control: what
    dies in both is alive in each.
    """
    phases = {"prefill": Phase.PREFILL, "generation": Phase.GENERATION, "all phases": Phase.ALL}
    found = {name: needles(outcomes, View("context hidden, needle kept", at).plan) for name, at in phases.items()}
    rows = [row for group in found.values() for row in group]
    if not rows:
        return None
    left = rate(found["all phases"]) if found["all phases"] else None
    problem = base_problem(base_of(rows, outcomes))
    if not problem and (lacking := [name for name, group in found.items() if not base_of(group, outcomes)]):
        problem = f"not run: the context hidden in {' and in '.join(lacking)}"
    if problem or left is None:
        return claim_of("context-somewhere", rows, left, "undecided", problem)
    single = [retained(found[name], base_of(found[name], outcomes)) for name in ("prefill", "generation")]
    verdicts: list[Verdict] = [at_most(left, GONE), *(at_least(interval, ALIVE) for interval in single)]
    rates = ", ".join(f"in {name} {rate(group).percent}" for name, group in found.items())
    note = f"exact retrieval with the context hidden and the needle kept: {rates}"
    return claim_of("context-somewhere", rows, left, all_of(*verdicts), note)


def prefill_nonsense(outcomes: Sequence[Outcome]) -> Claim | None:
    """Edited the paper's way, the prefill without the needle, or with nothing else, leaves at most 5% retrieval.

    The prefill is what the paper's code of the family calls so. ``measured`` is the larger of the two rates. The note
    has the mean scores, which tell nonsense from an answer that is half right, and the same under our semantics.
    """
    family = next((outcome.family for outcome in outcomes if outcome.family), "")
    if family not in PAPER_PHASES:
        return None
    during = PAPER_PHASES[family]["prefill"]

    def edited(semantics: Semantics) -> dict[str, list[Outcome]]:
        return {mode: needles(outcomes, View(mode, during, semantics).plan) for mode in BINARY}

    paper, default = edited("paper"), edited("default")
    rows = [row for group in paper.values() for row in group]
    if not rows:
        return None
    if lacking := [mode for mode, group in paper.items() if not group]:
        return claim_of("prefill-nonsense", rows, None, "undecided", f"not run: {lacking[0]}, in prefill")
    worst = max(map(rate, paper.values()), key=lambda interval: interval.value)
    verdict = _all_gone(paper)
    if problem := base_problem(base_of(rows, outcomes)):
        return claim_of("prefill-nonsense", rows, worst, "undecided", problem)
    note = f"edited the paper's way: {_told(paper)}"
    if all(default.values()):
        under_ours = _all_gone(default)
        answer = "is undecided" if under_ours == "undecided" else under_ours
        note += f"; causal and renormalised: {_told(default)}; so edited, it {answer}"
        rows += [row for group in default.values() for row in group]
    else:
        note += "; causal and renormalised it was not run"
    return claim_of("prefill-nonsense", rows, worst, verdict, note)


def _all_gone(modes: dict[str, list[Outcome]]) -> Verdict:
    verdicts: list[Verdict] = [at_most(rate(group), GONE) for group in modes.values()]
    return all_of(*verdicts)


def _told(modes: dict[str, list[Outcome]]) -> str:
    """Rate and mean score of each manipulation, in words."""
    return ", ".join(
        f"{mode} {rate(rows).percent}, mean score {fmean(row.value for row in rows):.2f}"
        for mode, rows in modes.items()
    )
