"""Deciding each claim of arXiv 2510.19861 from the outcomes of one run on one model; needs no model."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, Plan
from segregation.scores.claims import Claim, Verdict
from segregation.scores.outcomes import Outcome, Sweep, sweep_point
from segregation.scores.statistics import Interval, bootstrap_mean, bootstrap_retention, mcnemar, wilson

BASE_NEEDED = 0.95
"""Share of right answers that the untouched model must reach before a claim about it is decided."""
GONE = 0.05
"""At most this share of exact retrievals counts as none."""
KEPT = 0.95
"""At least this share of base retrieval counts as kept."""
KNOWLEDGE_KEPT = 0.74
"""The paper's 84% of MMLU accuracy at a base of .66, corrected for chance (.25)."""
CHANCE = 0.25
"""Share of four-choice questions that a guess gets right."""

BASE = Plan()
ABLATED = Plan(AblateHeads("all", during=Phase.ALL))

STATEMENTS: dict[str, tuple[str, str | None]] = {
    "ablation": ("with every attention head ablated in all phases, exact retrieval is 0", "0% on three models"),
    "jrt": ("reading the context twice does not restore it", "no recovery"),
    "sparsity": (
        "some k <= 50% of the heads per layer, by entropy in generation, keeps >= 95% of base retrieval",
        "15% of heads (Jamba, 5 of 32)",
    ),
    "random-heads": ("at the same k, random heads do not keep it", None),
    "benchmarks": (
        "with k heads in generation, and with none at all, facts keep 74% of their chance-corrected accuracy",
        "84% of MMLU (raw); corrected for chance, 74%",
    ),
}
"""What each claim says, and the paper's own value."""


def decide(outcomes: Sequence[Outcome]) -> list[Claim]:
    """Every claim whose own intervention is among the outcomes, in the order of the paper."""
    deciders: tuple[Callable[[Sequence[Outcome]], Claim | None], ...] = (
        ablation,
        just_read_twice,
        sparsity,
        random_heads,
        benchmarks,
    )
    return [claim for decider in deciders if (claim := decider(outcomes)) is not None]


def ablation(outcomes: Sequence[Outcome]) -> Claim | None:
    """With every attention head ablated in all phases, exact retrieval is 0 (at most 5%).

    Control: under the same ablation facts are answered better than by chance, so the model is not merely broken.
    """
    ablated, facts = _needles(outcomes, ABLATED), _facts(outcomes, ABLATED)
    if not ablated:
        return None
    rate, problem = _rate(ablated), _base_problem(_needles(outcomes, BASE))
    if not problem and not facts:
        problem = "its control, facts under the same ablation, was not run"
    if not problem and _rate(facts).low <= CHANCE:
        problem = f"the ablated model answers facts at {_rate(facts).value:.0%}, so it may be merely broken"
    note = problem or f"control: under the same ablation {_rate(facts).value:.0%} of the facts are right (chance 25%)"
    return _claim("ablation", ablated, rate, "undecided" if problem else _at_most(rate, GONE), note)


def just_read_twice(outcomes: Sequence[Outcome]) -> Claim | None:
    """Reading the context twice does not restore what full ablation destroyed (at most 5% are retrieved).

    Control: read once, the same ablation does destroy it; otherwise there is nothing to restore.
    """
    twice, once = _needles(outcomes, ABLATED, readings=2), _needles(outcomes, ABLATED)
    if not twice:
        return None
    rate, problem = _rate(twice), _base_problem(_needles(outcomes, BASE, readings=2))
    if not problem and not once:
        problem = "its control, the same ablation on a context read once, was not run"
    if not problem and _at_most(_rate(once), GONE) != "holds":
        problem = f"there may be nothing to restore: read once, {_rate(once).value:.0%} is retrieved"
    note = problem or "share retrieved with the context read twice and every head ablated"
    return _claim("jrt", twice, rate, "undecided" if problem else _at_most(rate, GONE), note)


def sparsity(outcomes: Sequence[Outcome]) -> Claim | None:
    """Some k <= half of the heads per layer, by entropy in generation, keeps >= 95% of base retrieval.

    ``measured`` is the retention at the smallest k whose whole interval keeps it; without one, at the smallest whose
    rate does, or at half of the heads.
    Control: random heads at that k were run; what they keep is a claim of its own.
    """
    kept = _sweep_by_entropy(outcomes)
    if not kept:
        return None
    base = _needles(outcomes, BASE)
    if problem := _base_problem(base):
        return _claim("sparsity", kept[max(kept)], None, "undecided", problem)
    smallest, k, n_heads = *_smallest(kept, base), max(kept)
    fewer = {_at_least(_retention(kept[j], base), KEPT) for j in kept if j <= n_heads // 2}
    retained = _retention(kept[k], base)
    verdict = _at_least(retained, KEPT) if "holds" in fewer or fewer == {"fails"} else "undecided"
    note = f"retention with {k} of {n_heads} heads; the smallest k that keeps 95% is {smallest}"
    if 0 < smallest < k:
        note += ", by its rate alone"
    if k not in _sweep(outcomes, "random"):
        verdict, note = "undecided", f"its control, {k} random heads, was not run"
    note = f"{note}; {_test(kept[k], base)}"
    return _claim("sparsity", kept[k], retained, verdict, note)


def random_heads(outcomes: Sequence[Outcome]) -> Claim | None:
    """At the k of ``sparsity``, k random heads per layer do not keep 95% of base retrieval.

    The unit is the draw: ``n`` counts draws. Each runs on samples of its own, so the spread of their mean holds that of
    the samples too; where the draws agree, Wilson's interval over all their samples is the wider and is taken.
    """
    kept, drawn = _sweep_by_entropy(outcomes), _sweep(outcomes, "random")
    if not kept or not drawn:
        return None
    base = _needles(outcomes, BASE)
    if problem := _base_problem(base):
        return _claim("random-heads", drawn[max(drawn)], None, "undecided", problem)
    _, k = _smallest(kept, base)
    if k not in drawn:
        return _claim("random-heads", drawn[max(drawn)], None, "undecided", f"{k} random heads were not run")
    draws: dict[Plan, list[Outcome]] = defaultdict(list)
    for outcome in drawn[k]:
        draws[outcome.plan].append(outcome)
    scale = fmean(outcome.correct for outcome in base)
    mean = bootstrap_mean([fmean(outcome.correct for outcome in draw) / scale for draw in draws.values()])
    pooled = _rate(drawn[k])
    mean = Interval(mean.value, min(mean.low, pooled.low / scale), max(mean.high, pooled.high / scale), mean.n)
    note = f"mean retention of {len(draws)} draws of {k} of {max(kept)} heads"
    return _claim("random-heads", drawn[k], mean, _below(mean, KEPT), note)


def benchmarks(outcomes: Sequence[Outcome]) -> Claim | None:
    """Facts keep 74% of their chance-corrected accuracy, fully ablated and at the k of ``sparsity``.

    ``measured`` is the worse of the two. Control: the base answers at least 95% of the facts.
    """
    kept, needles = _sweep_by_entropy(outcomes), _needles(outcomes, BASE)
    base, ablated = _facts(outcomes, BASE), _facts(outcomes, ABLATED)
    if not kept or not base or not ablated:
        return None
    if problem := _base_problem(base, "facts") or _base_problem(needles):
        return _claim("benchmarks", ablated, None, "undecided", problem)
    _, k = _smallest(kept, needles)
    sparse = _facts(outcomes, kept[k][0].plan)
    if not sparse:
        return _claim("benchmarks", ablated, None, "undecided", f"facts with {k} heads were not run")
    with_k, with_none = _retention(sparse, base, CHANCE), _retention(ablated, base, CHANCE)
    worse, rows = min((with_none, ablated), (with_k, sparse), key=lambda pair: pair[0].value)
    note = f"the worse of {with_k.value:.0%} with k = {k} and {with_none.value:.0%} with none; {_test(rows, base)}"
    return _claim("benchmarks", rows, worse, _at_least(worse, KNOWLEDGE_KEPT), note)


def _claim(id: str, rows: Sequence[Outcome], measured: Interval | None, verdict: Verdict, note: str) -> Claim:
    """A claim about the model of ``rows``, whose records (and the base's) are the evidence."""
    statement, paper = STATEMENTS[id]
    kind = "loglikelihood" if rows[0].task == "facts" else "generate"
    return Claim(
        id=id,
        statement=statement,
        model=rows[0].model,
        paper=paper,
        measured=None if measured is None else measured.value,
        ci_low=None if measured is None else measured.low,
        ci_high=None if measured is None else measured.high,
        n=len(rows) if measured is None else measured.n,
        verdict=verdict,
        evidence=tuple(f"{kind}:*:{plan.hash}*" for plan in dict.fromkeys([BASE, *(row.plan for row in rows)])),
        note=note,
    )


def _needles(outcomes: Sequence[Outcome], plan: Plan, readings: int = 1) -> list[Outcome]:
    return [o for o in outcomes if o.task == "needle" and o.readings == readings and o.plan == plan]


def _facts(outcomes: Sequence[Outcome], plan: Plan) -> list[Outcome]:
    return [o for o in outcomes if o.task == "facts" and o.plan == plan]


def _sweep(outcomes: Sequence[Outcome], choice: str) -> dict[int, list[Outcome]]:
    """The needle outcomes of a sweep in generation, by k."""
    by_k: dict[int, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        point = sweep_point(outcome.plan) if outcome.task == "needle" else None
        if point is not None and point == Sweep(point.k, choice, Phase.GENERATION):
            by_k[point.k].append(outcome)
    return dict(sorted(by_k.items()))


def _sweep_by_entropy(outcomes: Sequence[Outcome]) -> dict[int, list[Outcome]]:
    """The sweep by entropy if it goes from no head to all of them, else nothing: a few values of k are no sweep."""
    kept = _sweep(outcomes, "entropy")
    return kept if len(kept) > 2 and list(kept) == list(range(len(kept))) else {}


def _smallest(kept: dict[int, list[Outcome]], base: Sequence[Outcome]) -> tuple[int, int]:
    """The smallest k whose retention reaches ``KEPT`` (at worst all), and the k to report, 1 to half of them.

    Reported is the smallest k whose whole interval reaches it; where none does, the smallest whose rate does.
    """
    retentions, half = {k: _retention(rows, base) for k, rows in kept.items()}, max(kept) // 2
    smallest = min((k for k, retention in retentions.items() if retention.value >= KEPT), default=max(kept))
    surely = [k for k in range(1, half + 1) if _at_least(retentions[k], KEPT) == "holds"]
    return smallest, min(surely, default=max(1, min(smallest, half)))


def _retention(rows: Sequence[Outcome], base: Sequence[Outcome], chance: float = 0.0) -> Interval:
    """What is left of base accuracy on the same samples, with the wider of two intervals.

    The paired bootstrap knows that the samples are the same, but is blind where all are right or all are wrong; the
    Wilson interval of the accuracy over base accuracy is not.
    """
    correct = {outcome.sample_id: outcome.correct for outcome in base}
    shared = [outcome for outcome in rows if outcome.sample_id in correct]
    accuracy, at_base = [o.correct for o in shared], [correct[o.sample_id] for o in shared]
    paired, rate, scale = bootstrap_retention(accuracy, at_base, chance=chance), _rate(shared), fmean(at_base) - chance
    low, high = min(paired.low, (rate.low - chance) / scale), max(paired.high, (rate.high - chance) / scale)
    return Interval(paired.value, low, high, len(shared))


def _test(rows: Sequence[Outcome], base: Sequence[Outcome]) -> str:
    """McNemar's exact test against the base on the same samples, in words."""
    correct = {outcome.sample_id: outcome.correct for outcome in base}
    shared = [outcome for outcome in rows if outcome.sample_id in correct]
    test = mcnemar([correct[o.sample_id] for o in shared], [o.correct for o in shared])
    return f"McNemar against base: p = {test.p_value:.2g} ({test.only_first} lost, {test.only_second} won)"


def _rate(outcomes: Sequence[Outcome]) -> Interval:
    return wilson(sum(outcome.correct for outcome in outcomes), len(outcomes))


def _base_problem(base: Sequence[Outcome], what: str = "needles") -> str:
    """Why the base does not allow a verdict; empty if it does."""
    if not base:
        return "the untouched model was not run"
    rate = fmean(outcome.correct for outcome in base)
    return (
        ""
        if rate >= BASE_NEEDED
        else f"the untouched model gets {rate:.0%} of the {what}, {BASE_NEEDED:.0%} are needed"
    )


def _at_most(interval: Interval, bar: float) -> Verdict:
    return "holds" if interval.high <= bar else "fails" if interval.low > bar else "undecided"


def _below(interval: Interval, bar: float) -> Verdict:
    return "holds" if interval.high < bar else "fails" if interval.low >= bar else "undecided"


def _at_least(interval: Interval, bar: float) -> Verdict:
    return "holds" if interval.low >= bar else "fails" if interval.high < bar else "undecided"
