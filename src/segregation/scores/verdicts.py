"""Deciding each claim, those of arXiv 2510.19861 and those beyond it, from one run on one model; needs no model."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

from segregation.errors import ScoreError
from segregation.interventions.rules import Plan
from segregation.runs.record import Record
from segregation.scores.claims import Claim
from segregation.scores.compensation_claims import compensation
from segregation.scores.deciding import (
    ABLATED,
    GONE,
    KEPT,
    against_base,
    at_least,
    at_most,
    base_of,
    base_problem,
    below,
    claim_of,
    entropy_sweep,
    needles,
    rate,
    retained,
    sparsest,
    sweep_of,
    without_classic,
)
from segregation.scores.dissociation_claims import double_dissociation, recurrent_ablation
from segregation.scores.knowledge import benchmarks
from segregation.scores.outcomes import Outcome, general
from segregation.scores.route_claims import route_claims
from segregation.scores.statistics import Interval, bootstrap_mean
from segregation.scores.visibility import context_somewhere, needle_in_generation, prefill_nonsense

Decider = Callable[[Sequence[Outcome]], Claim | None]


def decide_run(records: Sequence[Record], outcomes: Sequence[Outcome]) -> list[Claim]:
    """Every claim that a run can decide: the paper's, then those about what recurrence does.

    Samples that an experiment set aside for itself (``general`` leaves them out) decide nothing but its own claims.
    """
    beyond: tuple[Decider, ...] = (compensation, recurrent_ablation, double_dissociation)
    own = [claim for decider in beyond if (claim := decider(outcomes)) is not None]
    return [*decide(general(outcomes)), *route_claims(records), *own]


def decide(outcomes: Sequence[Outcome]) -> list[Claim]:
    """Every claim of the paper whose own intervention is among the outcomes, in the order of the paper."""
    deciders: tuple[Decider, ...] = (
        ablation,
        just_read_twice,
        sparsity,
        random_heads,
        benchmarks,
        needle_in_generation,
        context_somewhere,
        prefill_nonsense,
    )
    unseen = without_classic(outcomes)
    return [claim for decider in deciders if (claim := decider(unseen)) is not None]


def smallest_k(outcomes: Sequence[Outcome]) -> int:
    """How many heads per layer ``sparsity`` and ``random-heads`` are about: 1 to half of them.

    It is the smallest k of the sweep by entropy in generation that keeps 95% of base retrieval, and half of the heads
    where none does or the untouched model retrieves too little to tell.

    Raises:
        ScoreError: there is no such sweep.
    """
    kept = entropy_sweep(outcomes)
    if not kept:
        raise ScoreError(
            "the number of heads is read from a sweep by entropy in generation, k from 0 to all heads, which these "
            "records do not hold; make one with `python -m experiments.head_sparsification`"
        )
    base = base_of([row for rows in kept.values() for row in rows], outcomes)
    return max(1, max(kept) // 2) if base_problem(base) else sparsest(kept, base)[1]


def ablation(outcomes: Sequence[Outcome]) -> Claim | None:
    """With every attention head ablated in all phases, exact retrieval is 0 (at most 5%).

    Control: under the same ablation facts are answered better than by chance, so the model is not merely broken.
    """
    ablated, facts = needles(outcomes, ABLATED), [o for o in outcomes if o.task == "facts" and o.plan == ABLATED]
    if not ablated:
        return None
    left, problem = rate(ablated), base_problem(base_of(ablated, outcomes))
    if not problem and not facts:
        problem = "its control, facts under the same ablation, was not run"
    if not problem and rate(facts).low <= facts[0].chance:
        problem = f"the ablated model answers facts at {rate(facts).value:.0%}, so it may be merely broken"
    if not problem:
        known, chance = rate(facts).value, facts[0].chance
        note = f"control: under the same ablation {known:.0%} of the facts are right (chance {chance:.0%})"
    else:
        note = problem
    return claim_of("ablation", ablated, left, "undecided" if problem else at_most(left, GONE), note)


def just_read_twice(outcomes: Sequence[Outcome]) -> Claim | None:
    """Reading the context twice does not restore what full ablation destroyed (at most 5% are retrieved).

    Control: read once, the same ablation does destroy it; otherwise there is nothing to restore.
    """
    twice, once = needles(outcomes, ABLATED, readings=2), needles(outcomes, ABLATED)
    if not twice:
        return None
    left, problem = rate(twice), base_problem(base_of(twice, outcomes))
    if not problem and not once:
        problem = "its control, the same ablation on a context read once, was not run"
    if not problem and at_most(rate(once), GONE) != "holds":
        problem = f"there may be nothing to restore: read once, {rate(once).value:.0%} is retrieved"
    note = problem or "share retrieved with the context read twice and every head ablated"
    return claim_of("jrt", twice, left, "undecided" if problem else at_most(left, GONE), note)


def sparsity(outcomes: Sequence[Outcome]) -> Claim | None:
    """Some k <= half of the heads per layer, by entropy in generation, keeps >= 95% of base retrieval.

    ``measured`` is the retention at the smallest k whose whole interval keeps it; without one, at the smallest whose
    rate does, or at half of the heads.
    Control: random heads at that k were run; what they keep is a claim of its own.
    """
    kept = entropy_sweep(outcomes)
    if not kept:
        return None
    base = base_of([row for rows in kept.values() for row in rows], outcomes)
    if problem := base_problem(base):
        return claim_of("sparsity", kept[max(kept)], None, "undecided", problem)
    smallest, k, n_heads = *sparsest(kept, base), max(kept)
    fewer = {at_least(retained(kept[j], base), KEPT) for j in kept if j <= n_heads // 2}
    left = retained(kept[k], base)
    verdict = at_least(left, KEPT) if "holds" in fewer or fewer == {"fails"} else "undecided"
    note = f"retention with {k} of {n_heads} heads; the smallest k that keeps 95% is {smallest}"
    if 0 < smallest < k:
        note += ", by its rate alone"
    if k not in sweep_of(outcomes, "random"):
        verdict, note = "undecided", f"its control, {k} random heads, was not run"
    note = f"{note}; McNemar against base: {against_base(kept[k], base)}"
    return claim_of("sparsity", kept[k], left, verdict, note)


def random_heads(outcomes: Sequence[Outcome]) -> Claim | None:
    """At the k of ``sparsity``, k random heads per layer do not keep 95% of base retrieval.

    The unit is the draw: ``n`` counts draws. Each runs on samples of its own, so the spread of their mean holds that of
    the samples too; where the draws agree, Wilson's interval over all their samples is the wider and is taken.
    """
    kept, drawn = entropy_sweep(outcomes), sweep_of(outcomes, "random")
    if not kept or not drawn:
        return None
    base = base_of([row for rows in kept.values() for row in rows], outcomes)
    if problem := base_problem(base):
        return claim_of("random-heads", drawn[max(drawn)], None, "undecided", problem)
    _, k = sparsest(kept, base)
    if k not in drawn:
        return claim_of("random-heads", drawn[max(drawn)], None, "undecided", f"{k} random heads were not run")
    draws: dict[Plan, list[Outcome]] = defaultdict(list)
    for outcome in drawn[k]:
        draws[outcome.plan].append(outcome)
    scale = fmean(outcome.correct for outcome in base)
    mean = bootstrap_mean([fmean(outcome.correct for outcome in draw) / scale for draw in draws.values()])
    pooled = rate(drawn[k])
    mean = Interval(mean.value, min(mean.low, pooled.low / scale), max(mean.high, pooled.high / scale), mean.n)
    note = f"mean retention of {len(draws)} draws of {k} of {max(kept)} heads"
    return claim_of("random-heads", drawn[k], mean, below(mean, KEPT), note)
