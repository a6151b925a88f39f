"""Rows, onsets and the claim of a search for compensation, on made-up records whose truth is known."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from segregation.errors import ScoreError
from segregation.interventions.compensation import CONTROLS, SETTINGS, Setting
from segregation.interventions.rules import Plan
from segregation.prompts.sample import Sample
from segregation.runs.record import Record
from segregation.scores.claims import Claim
from segregation.scores.compensation import Onset, Prompting, compensation_rows, helping, onsets, prompting_of
from segregation.scores.compensation_claims import compensation
from segregation.scores.outcomes import outcomes
from tests.made_up import Right, recorded

ABLATED, SKIPPING = Setting("ablated"), Setting("ablated", "skips distractors")
PLAIN, FOUR, NEAR = Prompting(168, 50), Prompting(168, 50, copies=4), Prompting(48, 100)
TOGETHER = Prompting(96, 100, readings=2, copies=4)
ANSWER = 5
"""Tokens of every answer."""

Gain = Callable[[Setting, Prompting, int], float]
"""Nats per token that the answer of the i-th sample gains."""


def samples(prompting: Prompting, n: int = 20) -> list[Sample]:
    return [
        Sample(
            id=f"{prompting}/{i}",
            prompt=f"{prompting}: {i}",
            target=f"Needle {i} is red.",
            metadata={
                "task": "needle",
                "context_length": prompting.context_length,
                "depth_percent": prompting.depth_percent,
                "readings": prompting.readings,
                "copies": prompting.copies,
                "distance": 8 if prompting.depth_percent == 100 else 90,
                "haystack": "synthetic",
                "needle": f"{i}",
                "seed": 0,
                "repetition": i,
            },
        )
        for i in range(n)
    ]


def scored(prompting: Prompting, settings: list[Setting], gain: Gain, n: int = 20) -> list[Record]:
    """A target's log-likelihood in its own prompt and in that of its foil."""
    records = []
    for i, sample in enumerate(samples(prompting, n)):
        foil = replace(
            sample,
            id=f"{sample.id}/foil",
            prompt=f"{sample.prompt}, foil",
            metadata={**sample.metadata, "foil_of": sample.id, "answer_tokens": ANSWER},
        )
        for setting in settings:
            own = -7.0 + ANSWER * gain(setting, prompting, i)
            for one, value in ((sample, own), (foil, -7.0)):
                plan = {"plan": setting.plan.to_json(), "plan_hash": setting.plan.hash}
                outcome = {"kind": "loglikelihood", "loglikelihoods": (value,), "token_counts": (9,)}
                records.append(Record.of(one, prompt_tokens=9, **plan, **outcome))
    return records


def generated(prompting: Prompting, settings: list[Setting], right: Right, n: int = 20) -> list[Record]:
    return recorded(samples(prompting, n), [setting.plan for setting in settings], right)


def attention_only(plan: Plan, sample: Sample) -> bool:
    """Retrieves wherever attention is left alone and recurrent layers read the needle."""
    return plan in (Setting().plan, Setting(recurrence="skips distractors").plan)


def test_rows_hold_rates_and_gains_per_token_of_the_answer() -> None:
    gain: Gain = lambda setting, prompting, i: 2.0 if i % 2 else 1.0  # noqa: E731
    records = generated(PLAIN, [Setting(), ABLATED], attention_only) + scored(PLAIN, [ABLATED], gain)
    untouched, ablated = compensation_rows(records)
    assert (untouched.setting, untouched.prompting, untouched.distance) == (Setting(), PLAIN, 90)
    assert (untouched.exact.value, untouched.exact.n, untouched.gain) == (1.0, 20, None)
    assert ablated.exact.value == 0 and ablated.gain is not None
    assert sorted(ablated.gains) == pytest.approx([1.0] * 10 + [2.0] * 10)
    assert ablated.gain.value == pytest.approx(1.5)
    assert 1.2 < ablated.gain.low < 1.5 < ablated.gain.high < 1.8
    assert ablated.exact_over_plain is None and ablated.gain_over_plain is None


def test_more_copies_are_compared_with_one_on_the_same_needles() -> None:
    """Every gain is larger by exactly 0.5, so the paired difference is known without any doubt; unpaired it is not."""
    gain: Gain = lambda setting, prompting, i: i + (0.5 if prompting.copies > 1 else 0.0)  # noqa: E731
    records = [
        record
        for prompting in (FOUR, PLAIN)
        for record in [
            *generated(prompting, [ABLATED], lambda plan, sample: sample.metadata["copies"] == 4),
            *scored(prompting, [ABLATED], gain),
        ]
    ]
    four, _ = compensation_rows(records)
    assert four.exact_over_plain is not None and four.gain_over_plain is not None
    assert (four.exact_over_plain.only_first, four.exact_over_plain.only_second) == (20, 0)
    assert (four.gain_over_plain.low, four.gain_over_plain.high) == pytest.approx((0.5, 0.5))


def test_skipping_distractors_is_compared_with_reading_all() -> None:
    records = generated(PLAIN, [ABLATED, SKIPPING], lambda plan, sample: plan == SKIPPING.plan)
    reading, skipping = compensation_rows(records)
    assert reading.exact_over_plain is None
    assert skipping.exact_over_plain is not None and skipping.exact_over_plain.only_first == 20


def test_onsets_are_the_fewest_copies_and_the_largest_distance_that_help() -> None:
    def gain(setting: Setting, prompting: Prompting, i: int) -> float:
        helped = prompting.copies > 1 if setting == ABLATED else prompting == NEAR
        return (1.0 if helped else 0.0) + (-1) ** i * 0.1

    rows = compensation_rows(
        record
        for prompting in (PLAIN, replace(FOUR, copies=2), FOUR, NEAR)
        for record in [
            *generated(prompting, [ABLATED, SKIPPING, Setting()], lambda plan, sample: False),
            *scored(prompting, [ABLATED, SKIPPING, Setting()], gain),
        ]
    )
    assert onsets(rows) == [Onset(ABLATED, 2, None), Onset(SKIPPING, 1, 8.0)]


def test_an_onset_by_retrieval_alone_and_none_at_all() -> None:
    rows = compensation_rows(generated(NEAR, [ABLATED], lambda plan, sample: True))
    assert onsets(rows) == [Onset(ABLATED, 1, 8.0)]
    assert onsets(compensation_rows(generated(NEAR, [ABLATED], lambda plan, sample: False))) == [
        Onset(ABLATED, None, None)
    ]


def test_a_model_without_attention_is_looked_at_as_it_is() -> None:
    settings = [Setting(), Setting(recurrence="skips distractors"), CONTROLS[0]]
    rows = compensation_rows(generated(NEAR, settings, lambda plan, sample: plan == Plan()))
    assert onsets(rows) == [Onset(Setting(), 1, 8.0), Onset(settings[1], None, None)]


def test_many_tests_ask_for_more() -> None:
    """A gain that one test calls above 0 is not enough among the forty rows of a search."""

    def gains(setting: Setting, prompting: Prompting, i: int) -> float:
        positive = i not in (3, 8, 13, 15) if prompting == NEAR else i % 2 == 0  # near: p = 0.019 by itself
        return (1 if positive else -1) * (0.5 + i / 1000)

    alone = compensation_rows([*generated(NEAR, [ABLATED], attention_only), *scored(NEAR, [ABLATED], gains)])
    assert onsets(alone)[0].distance == 8
    others = [replace(NEAR, context_length=length) for length in range(49, 88)]
    many = [
        record
        for prompting in (NEAR, *others)
        for record in [*generated(prompting, [ABLATED], attention_only), *scored(prompting, [ABLATED], gains)]
    ]
    assert onsets(compensation_rows(many)) == [Onset(ABLATED, None, None)]


def test_what_helps_is_what_benjamini_and_hochberg_say() -> None:
    """Worked by hand: p of n gains that are all positive is 2 / 2^n; two tests a row, those of retrieval all 1."""
    sizes = (5, 7, 8, 12)
    where = [replace(NEAR, context_length=length) for length in range(50, 54)]
    rows = compensation_rows(
        record
        for prompting, size in zip(where, sizes, strict=True)
        for record in [
            *generated(prompting, [ABLATED], attention_only, n=size),
            *scored(prompting, [ABLATED], lambda setting, prompting, i: 1.0 + i, n=size),
        ]
    )
    ranked = sorted(2 / 2**size for size in sizes)
    below = max(i for i in range(1, 5) if ranked[i - 1] <= i / 8 * 0.05)
    assert [row in helping(rows) for row in rows] == [2 / 2**size <= ranked[below - 1] for size in sizes]
    assert helping(rows) == rows[1:] and helping([]) == []


def test_float_noise_is_no_gain() -> None:
    """Twenty gains of one sign, each of a hundred-thousandth of a nat."""
    noise: Gain = lambda setting, prompting, i: 1e-5 * (1 + i / 20)  # noqa: E731
    (row,) = compensation_rows([*generated(NEAR, [ABLATED], attention_only), *scored(NEAR, [ABLATED], noise)])
    assert row.gain is not None and row.gain.low > 0
    assert helping([row]) == []


def test_a_foil_without_its_sample_is_refused() -> None:
    half = [r for r in scored(PLAIN, [ABLATED], lambda s, p, i: 0.0) if "foil_of" in r.metadata]
    with pytest.raises(ScoreError, match="was scored under a plan that its sample was not"):
        compensation_rows(half)


def test_records_of_other_runs_are_left_alone() -> None:
    old = [replace(r, metadata={"task": "needle"}) for r in generated(PLAIN, [Setting(), ABLATED], attention_only)]
    assert compensation_rows(old) == []


ALL = [*SETTINGS]


def run(right: Right, *, n: int = 80, settings: list[Setting] = ALL, few: Right | None = None) -> list[Record]:
    sweeps = [
        record
        for prompting in (PLAIN, FOUR, NEAR)
        for record in generated(prompting, [*settings, *CONTROLS], few or right, n=16)
    ]
    return [*sweeps, *generated(TOGETHER, settings, right, n=n)]


def claim(records: list[Record]) -> Claim:
    found = compensation(outcomes(records))
    assert found is not None
    return found


def test_nothing_that_helps_holds_on_enough_samples() -> None:
    found = claim(run(attention_only))
    assert (found.id, found.verdict, found.measured, found.n) == ("compensation", "holds", 0, 80)
    assert found.ci_high is not None and found.ci_high < 0.05
    assert "100% of base retrieval is kept (n = 80)" in found.note and "18 other cases" in found.note
    assert f"generate:*:{SKIPPING.plan.hash}*" in found.evidence
    assert claim(run(attention_only, n=30)).verdict == "undecided"


def test_one_case_that_is_restored_fails_it() -> None:
    best = claim(run(lambda plan, sample: attention_only(plan, sample) or plan == SKIPPING.plan))
    assert (best.verdict, best.measured) == ("fails", 1.0)
    assert "best with attention ablated and recurrent layers that skip the distractors" in best.note

    def near_only(plan: Plan, sample: Sample) -> bool:
        return attention_only(plan, sample) or (plan == ABLATED.plan and sample.metadata["context_length"] == 48)

    elsewhere = claim(run(attention_only, few=near_only))
    assert (elsewhere.verdict, elsewhere.measured) == ("fails", 0.0)
    assert "retrieve at most 100%" in elsewhere.note


def test_a_few_hits_elsewhere_leave_it_undecided() -> None:
    def two_of_16(plan: Plan, sample: Sample) -> bool:
        return attention_only(plan, sample) or (plan == ABLATED.plan and int(str(sample.metadata["repetition"])) < 2)

    assert claim(run(attention_only, few=two_of_16)).verdict == "undecided"


def test_a_control_that_may_keep_less_than_half_leaves_it_undecided() -> None:
    def skipping_hurts(plan: Plan, sample: Sample) -> bool:
        kept = plan == Plan() or int(str(sample.metadata["repetition"])) % 2 == 0
        return attention_only(plan, sample) and kept

    assert claim(run(skipping_hurts)).verdict == "undecided"


def test_ranks_decide_whether_the_answer_gains() -> None:
    """One large gain among small losses is no help, however large its mean."""
    row = compensation_rows(generated(PLAIN, [ABLATED], attention_only, n=16))[0]
    assert helping([replace(row, gains=(*[-0.1] * 11, 5.0))]) == []
    assert helping([replace(row, gains=(*[0.1] * 11, 5.0))]) != []


@pytest.mark.parametrize(
    ("right", "settings", "why"),
    [
        (lambda plan, sample: False, ALL, "the untouched model gets 0%"),
        (attention_only, ALL[2:], "the untouched model was not run"),
        (attention_only, [ALL[0], *ALL[2:]], "its control, attention left alone and distractors skipped, was not run"),
        (lambda plan, sample: plan == Plan(), ALL, "skipping the distractors may break the model by itself"),
    ],
)
def test_without_base_or_control_it_is_undecided(right: Right, settings: list[Setting], why: str) -> None:
    found = claim(run(right, settings=settings))
    assert found.verdict == "undecided" and why in found.note


def test_other_runs_and_models_of_one_kind_make_no_claim() -> None:
    assert compensation(outcomes(generated(PLAIN, ALL, attention_only))) is None
    recurrent = [Setting(), Setting(recurrence="skips distractors")]
    assert compensation(outcomes(run(attention_only, settings=recurrent))) is None


def test_a_prompting_is_read_from_the_metadata() -> None:
    (one,) = outcomes(generated(TOGETHER, [Setting()], attention_only, n=1))
    assert prompting_of(one) == TOGETHER and TOGETHER.together and TOGETHER.plain == Prompting(96, 100)
