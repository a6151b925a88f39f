"""Verdicts about what attention must see, on made-up runs whose truth is known."""

import pytest

from segregation.interventions.phase import Phase
from segregation.interventions.presets import PAPER_PHASES
from segregation.interventions.rules import Plan
from segregation.interventions.visibility import View
from segregation.prompts.sample import Sample
from segregation.runs.record import Record
from segregation.scores.claims import Claim
from segregation.scores.outcomes import outcomes
from segregation.scores.verdicts import decide
from tests.made_up import ABLATED, Right, classic, needles, recorded

SAMPLES = needles(lengths=range(100, 120))
NEEDLE = View("needle hidden", Phase.GENERATION).plan
DECOY = View("decoy hidden", Phase.GENERATION).plan
CONTEXT = {
    phase: View("context hidden, needle kept", phase).plan for phase in (Phase.PREFILL, Phase.GENERATION, Phase.ALL)
}
PAPER, DEFAULT = (
    {
        mode: View(mode, PAPER_PHASES["jamba"]["prefill"], semantics).plan
        for mode in ("needle hidden", "only the needle")
    }
    for semantics in ("paper", "default")
)


def spared(samples: list[Sample], n: int) -> set[str]:
    return {sample.id for sample in samples[:n]}


def unless(*dead: Plan, but: frozenset[str] | set[str] = frozenset()) -> Right:
    """A model that retrieves under every plan but these, and under these on the samples ``but``."""
    return lambda plan, sample: plan not in dead or sample.id in but


def decided(records: list[Record]) -> dict[str, Claim]:
    return {claim.id: claim for claim in decide(outcomes(records))}


def claim(plans: list[Plan], right: Right, **how: str) -> Claim:
    (only,) = decide(outcomes(recorded(SAMPLES, [Plan(), *plans], right, **how)))
    return only


def test_a_needle_that_must_be_seen_in_generation() -> None:
    found = claim([NEEDLE, DECOY], unless(NEEDLE))
    assert (found.id, found.verdict, found.measured, found.n) == ("needle-in-generation", "holds", 0, 100)
    assert "100% of base retrieval" in found.note
    assert found.evidence == tuple(f"generate:*:{plan.hash}*" for plan in (Plan(), NEEDLE, DECOY))
    assert claim([NEEDLE, DECOY], unless()).verdict == "fails"


@pytest.mark.parametrize(
    ("plans", "right", "why"),
    [
        ([NEEDLE, DECOY], unless(NEEDLE, but=spared(SAMPLES, 4)), "control: with a decoy"),  # 4% [2, 10]
        ([NEEDLE], unless(NEEDLE), "was not run"),
        ([NEEDLE, DECOY], unless(NEEDLE, DECOY), "hiding anything may do the same"),
        ([NEEDLE, DECOY], unless(Plan(), NEEDLE), "the untouched model gets 0%"),
    ],
)
def test_without_base_control_or_a_narrow_interval_it_is_undecided(plans: list[Plan], right: Right, why: str) -> None:
    found = claim(plans, right)
    assert found.verdict == "undecided" and why in found.note


def test_a_control_that_may_keep_retrieval_is_enough() -> None:
    """A decoy that costs 5 of 100 needles: its interval has the bar in it."""
    lost = spared(SAMPLES, 5)
    found = claim([NEEDLE, DECOY], lambda plan, sample: plan != NEEDLE and (plan != DECOY or sample.id not in lost))
    assert found.verdict == "holds" and "95% of base retrieval" in found.note


@pytest.mark.parametrize(
    ("dead", "but", "verdict"),
    [
        ((CONTEXT[Phase.ALL],), 0, "holds"),
        ((), 0, "fails"),
        ((CONTEXT[Phase.ALL], CONTEXT[Phase.PREFILL]), 0, "fails"),
        ((CONTEXT[Phase.ALL], CONTEXT[Phase.GENERATION]), 0, "fails"),
        ((CONTEXT[Phase.ALL],), 4, "undecided"),
    ],
)
def test_a_context_that_must_be_seen_somewhere(dead: tuple[Plan, ...], but: int, verdict: str) -> None:
    found = claim(list(CONTEXT.values()), unless(*dead, but=spared(SAMPLES, but)))
    assert (found.id, found.verdict) == ("context-somewhere", verdict)
    assert found.measured == (but / 100 if dead else 1)
    assert all(name in found.note for name in ("in prefill", "in generation", "in all phases"))


def test_a_context_hidden_in_one_phase_is_alive_at_half_of_base_retrieval() -> None:
    dead = CONTEXT[Phase.ALL], CONTEXT[Phase.PREFILL]
    by_share = {}
    for n in (45, 65):
        in_prefill = spared(SAMPLES, n)
        by_share[n] = claim(
            list(CONTEXT.values()),
            lambda plan, sample, kept=in_prefill: plan not in dead or (plan == dead[1] and sample.id in kept),
        )
    assert by_share[65].verdict == "holds" and "in prefill 65% [55, 74]" in by_share[65].note
    assert by_share[45].verdict == "undecided"


@pytest.mark.parametrize("there", list(CONTEXT))
def test_a_context_hidden_in_some_phases_only_decides_nothing(there: Phase) -> None:
    found = claim([CONTEXT[there]], unless(CONTEXT[Phase.ALL]))
    assert found.verdict == "undecided" and "not run" in found.note
    assert (found.measured is None) == (there is not Phase.ALL)


def test_nonsense_the_papers_way_that_goes_away_with_ours() -> None:
    plans = [*PAPER.values(), *DEFAULT.values()]
    found = claim(plans, unless(*PAPER.values()), family="jamba")
    assert (found.id, found.verdict, found.measured) == ("prefill-nonsense", "holds", 0)
    assert "mean score" in found.note and "so edited, it fails" in found.note
    assert "so edited, it holds" in claim(plans, unless(*plans), family="jamba").note
    assert claim(plans, unless(), family="jamba").verdict == "fails"
    one = claim(plans, unless(PAPER["needle hidden"]), family="jamba")
    assert one.verdict == "fails" and one.measured == 1  # the larger rate of the two


def test_nonsense_needs_both_manipulations_and_a_base() -> None:
    one = claim([PAPER["needle hidden"]], unless(PAPER["needle hidden"]), family="jamba")
    assert one.verdict == "undecided" and "not run: only the needle" in one.note
    paper_only = claim(list(PAPER.values()), unless(*PAPER.values()), family="jamba")
    assert paper_only.verdict == "holds" and "was not run" in paper_only.note
    assert claim(list(PAPER.values()), lambda plan, sample: False, family="jamba").verdict == "undecided"


@pytest.mark.parametrize("family", ["", "recurrentgemma", "other"])
def test_the_prefill_is_that_of_the_family(family: str) -> None:
    """Jamba's prefill has the last prompt token in it; the same plans are no such claim about another family."""
    rows = recorded(SAMPLES[:5], [Plan(), *PAPER.values()], unless(), family=family)
    assert decide(outcomes(rows)) == []


def test_the_classic_needle_counts_only_where_it_is_alone() -> None:
    known = classic(needles(lengths=range(100, 104)))
    rows = recorded(SAMPLES, [Plan(), NEEDLE, DECOY], unless(NEEDLE))
    both = decided([*rows, *recorded(known, [Plan(), NEEDLE, DECOY], unless(Plan()))])["needle-in-generation"]
    assert (both.verdict, both.n) == ("holds", 100)
    alone = decided(recorded(known, [Plan(), NEEDLE, DECOY], unless(NEEDLE)))["needle-in-generation"]
    assert (alone.verdict, alone.n) == ("undecided", 20)


def test_each_claim_has_its_own_samples_as_base() -> None:
    """In one folder: a map on long contexts, where the model retrieves nothing, and an ablation on short ones."""
    long, short = needles(lengths=range(900, 920)), SAMPLES
    rows = recorded(long, [Plan(), NEEDLE, DECOY], lambda plan, sample: False)
    rows += recorded(short, [Plan(), ABLATED], unless(ABLATED))
    claims = decided(rows)
    assert "the untouched model gets 0%" in claims["needle-in-generation"].note
    assert "facts under the same ablation, was not run" in claims["ablation"].note


def test_nonsense_needs_both_manipulations_on_enough_samples() -> None:
    """2 of 100 and 0 of 5: neither interval may be left out, and that of the five is wide."""
    few = SAMPLES[:5]
    mostly = unless(*PAPER.values(), but=spared(SAMPLES, 0))
    hidden, only = PAPER.values()
    records = [
        *recorded(SAMPLES, [Plan(), hidden], mostly, family="jamba"),
        *recorded(few, [only], mostly, family="jamba"),
    ]
    assert decided(records)["prefill-nonsense"].verdict == "undecided"
    records += recorded(SAMPLES[5:], [only], mostly, family="jamba")
    assert decided(records)["prefill-nonsense"].verdict == "holds"


def test_a_control_on_other_samples_is_none() -> None:
    others = needles(lengths=range(200, 220))
    dead = unless(NEEDLE)
    records = [*recorded(SAMPLES, [Plan(), NEEDLE], dead), *recorded(others, [Plan(), DECOY], dead)]
    found = decided(records)["needle-in-generation"]
    assert found.verdict == "undecided" and "was not run on its samples" in found.note
