"""What the verdicts share: the bars, which outcomes a claim is about, and the side of a bar an interval lies on."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, Plan
from segregation.scores.claims import Claim, Verdict, conclude
from segregation.scores.outcomes import Outcome, Sweep, sweep_point
from segregation.scores.statistics import Interval, bootstrap_retention, mcnemar, wilson

BASE_NEEDED = 0.95
"""Share of right answers that the untouched model must reach before a claim about it is decided."""
GONE = 0.05
"""At most this share of exact retrievals counts as none."""
KEPT = 0.95
"""At least this share of base retrieval counts as kept."""

STATEMENTS: dict[str, tuple[str, str | None]] = {
    "ablation": ("with every attention head ablated in all phases, exact retrieval is 0", "0% on three models"),
    "jrt": ("reading the context twice does not restore it", "no recovery"),
    "sparsity": (
        "some k <= 50% of the heads per layer, by entropy in generation, keeps >= 95% of base retrieval",
        "15% of heads (Jamba, 5 of 32)",
    ),
    "random-heads": ("at the same k, random heads do not keep it", None),
    "benchmarks": (
        "with k heads in generation, and with none at all, knowledge keeps 74% of its chance-corrected accuracy",
        "84% of MMLU (raw); corrected for chance, 74%",
    ),
    "needle-in-generation": ("hiding the needle in generation destroys retrieval", "yes"),
    "context-somewhere": (
        "hiding the context but the needle in prefill only, or in generation only, leaves retrieval alive; in both it "
        "dies",
        "yes",
    ),
    "prefill-nonsense": (
        "hiding the needle, or all but the needle, in the prefill leaves nonsense, edited the paper's way",
        "yes",
    ),
}
"""What each claim says, and the paper's own value."""

BASE = Plan()
ABLATED = Plan(AblateHeads("all", during=Phase.ALL))


def without_classic(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes without the classic needle, which training may have held, where the folder has other needles.

    >>> without_classic([])
    []
    """
    others = {outcome.readings for outcome in outcomes if outcome.task == "needle" and not outcome.classic}
    return [outcome for outcome in outcomes if not (outcome.classic and outcome.readings in others)]


def needles(outcomes: Sequence[Outcome], plan: Plan, readings: int = 1) -> list[Outcome]:
    """The needle outcomes of a plan. The classic one, the same text in all its samples, counts only without others.

    >>> needles([], Plan())
    []
    """
    return [o for o in outcomes if o.task == "needle" and o.readings == readings and o.plan == plan]


def base_of(rows: Sequence[Outcome], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of the untouched model on the samples of ``rows``: a folder may hold other samples too.

    >>> base_of([], [])
    []
    """
    ids = {row.sample_id for row in rows}
    return [o for o in outcomes if o.plan == BASE and o.sample_id in ids]


def sweep_of(outcomes: Sequence[Outcome], choice: str) -> dict[int, list[Outcome]]:
    """The needle outcomes of a sweep in generation, by k.

    >>> sweep_of([], "random")
    {}
    """
    by_plan: dict[Plan, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.task == "needle" and outcome.readings == 1:
            by_plan[outcome.plan].append(outcome)
    by_k: dict[int, list[Outcome]] = defaultdict(list)
    for plan, found in by_plan.items():
        point = sweep_point(plan)
        if point is not None and point == Sweep(point.k, choice, Phase.GENERATION):
            by_k[point.k] += found
    return dict(sorted(by_k.items()))


def entropy_sweep(outcomes: Sequence[Outcome]) -> dict[int, list[Outcome]]:
    """The sweep by entropy if it goes from no head to all of them, else nothing: a few values of k are no sweep.

    >>> entropy_sweep([])
    {}
    """
    kept = sweep_of(outcomes, "entropy")
    return kept if len(kept) > 2 and list(kept) == list(range(len(kept))) else {}


def sparsest(kept: dict[int, list[Outcome]], base: Sequence[Outcome]) -> tuple[int, int]:
    """The smallest k of a sweep whose retention reaches ``KEPT`` (at worst all), and the k to report, at most half.

    Reported is the smallest k whose whole interval reaches it; where none does, the smallest whose rate does.

    Raises:
        ScoreError: the base retrieves nothing, so there is nothing to keep.
    """
    retentions, half = {k: retained(rows, base) for k, rows in kept.items()}, max(kept) // 2
    smallest = min((k for k, retention in retentions.items() if retention.value >= KEPT), default=max(kept))
    surely = [k for k in range(1, half + 1) if at_least(retentions[k], KEPT) == "holds"]
    return smallest, min(surely, default=max(1, min(smallest, half)))


def retained(rows: Sequence[Outcome], base: Sequence[Outcome], chance: float = 0.0) -> Interval:
    """What is left of base accuracy on the same samples, with the wider of two intervals.

    The paired bootstrap knows that the samples are the same, but is blind where all are right or all are wrong; the
    Wilson interval of the accuracy over base accuracy is not.

    Raises:
        ScoreError: no sample that both have, or a base too near chance.
    """
    shared, at_base = _paired(rows, base)
    paired, accuracy = bootstrap_retention([o.correct for o in shared], at_base, chance=chance), rate(shared)
    scale = fmean(at_base) - chance
    low, high = min(paired.low, (accuracy.low - chance) / scale), max(paired.high, (accuracy.high - chance) / scale)
    return Interval(paired.value, low, high, len(shared))


def against_base(rows: Sequence[Outcome], base: Sequence[Outcome]) -> str:
    """McNemar's exact test against the base on the same samples, in words.

    Raises:
        ScoreError: no sample that both have.
    """
    shared, at_base = _paired(rows, base)
    test = mcnemar(at_base, [o.correct for o in shared])
    return f"p = {test.p_value:.2g} ({test.only_first} lost, {test.only_second} won)"


def rate(outcomes: Sequence[Outcome]) -> Interval:
    """The share of right answers, with Wilson's interval.

    Raises:
        ScoreError: no outcomes.
    """
    return wilson(sum(outcome.correct for outcome in outcomes), len(outcomes))


def base_problem(base: Sequence[Outcome]) -> str:
    """Why what the untouched model retrieves does not allow a verdict; empty if it does.

    >>> base_problem([])
    'the untouched model was not run'
    """
    if not base:
        return "the untouched model was not run"
    right = fmean(outcome.correct for outcome in base)
    return (
        ""
        if right >= BASE_NEEDED
        else f"the untouched model gets {right:.0%} of the needles, {BASE_NEEDED:.0%} are needed"
    )


def at_most(interval: Interval, bar: float) -> Verdict:
    """Whether an interval lies at or below a bar.

    >>> at_most(Interval(0.0, 0.0, 0.04, 100), bar=0.05), at_most(Interval(0.0, 0.0, 0.08, 40), bar=0.05)
    ('holds', 'undecided')
    """
    return "holds" if interval.high <= bar else "fails" if interval.low > bar else "undecided"


def below(interval: Interval, bar: float) -> Verdict:
    """Whether an interval lies below a bar.

    >>> below(Interval(0.97, 0.95, 0.99, 100), bar=0.95)
    'fails'
    """
    return "holds" if interval.high < bar else "fails" if interval.low >= bar else "undecided"


def at_least(interval: Interval, bar: float) -> Verdict:
    """Whether an interval lies at or above a bar.

    >>> at_least(Interval(0.9, 0.8, 0.96, 100), bar=0.95)
    'undecided'
    """
    return "holds" if interval.low >= bar else "fails" if interval.high < bar else "undecided"


def all_of(*verdicts: Verdict) -> Verdict:
    """The verdict of a claim with several parts: one that fails is enough to fail it, and all must hold.

    >>> all_of("holds", "undecided"), all_of("holds", "undecided", "fails")
    ('undecided', 'fails')
    """
    return "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts else "holds"


def claim_of(id: str, rows: Sequence[Outcome], measured: Interval | None, verdict: Verdict, note: str) -> Claim:
    """A claim about the model of ``rows``, at least one, whose records (and the base's) are the evidence."""
    kind = "generate" if rows[0].task == "needle" else "loglikelihood"
    return conclude(
        id,
        STATEMENTS[id],
        verdict,
        measured,
        model=rows[0].model,
        n=len({row.sample_id for row in rows}),
        evidence=[f"{kind}:*:{plan.hash}*" for plan in dict.fromkeys([BASE, *(row.plan for row in rows)])],
        note=note,
    )


def _paired(rows: Sequence[Outcome], base: Sequence[Outcome]) -> tuple[list[Outcome], list[bool]]:
    """The rows whose sample the base has too, and whether the base was right about each."""
    correct = {outcome.sample_id: outcome.correct for outcome in base}
    shared = [outcome for outcome in rows if outcome.sample_id in correct]
    return shared, [correct[outcome.sample_id] for outcome in shared]
