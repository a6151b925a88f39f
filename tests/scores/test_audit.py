import json

import pytest

from segregation.errors import ScoreError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, Plan
from segregation.runs.record import Record
from segregation.scores.audit import retrieval_finding, target_finding, with_plan, write_findings

NEEDLE = "Ann has a cat."
THEIRS, OURS = Plan(AblateHeads(during=Phase.PREFILL)), Plan(AblateHeads(during=Phase.DECODE))


def record(number: int, plan: Plan, *, right: bool = True, per_token: float | None = None) -> Record:
    scored = {"loglikelihoods": (4 * per_token,), "token_counts": (4,)} if per_token is not None else {}
    return Record(
        kind="loglikelihood" if scored else "generate",
        sample_id=str(number),
        prompt_sha256=f"{number}",
        target=NEEDLE,
        plan=plan.to_json(),
        plan_hash=plan.hash,
        prompt_tokens=9,
        text=NEEDLE if right else "",
        **scored,
    )


def test_retrieval_both_ways():
    theirs = [record(i, THEIRS, right=i < 2) for i in range(8)]
    ours = [record(i, OURS, right=i > 0) for i in range(8)]
    found = retrieval_finding("a", "m", ("one", theirs), ("other", ours))
    assert (found.at_theirs.value, found.at_ours.value, found.at_ours.n) == (0.25, 0.875, 8)
    assert "7 of 8 samples differ, McNemar p = 0.12" in found.note  # 1 against 6 of 7: 2 (1 + 7) / 2^7


def test_log_probabilities_are_per_token():
    theirs = [record(i, THEIRS, per_token=-2.0 - i) for i in range(3)]
    ours = [record(i, OURS, per_token=-1.0 - i) for i in range(3)]
    found = target_finding("a", "m", ("one", theirs), ("other", ours))
    assert found.at_theirs.value == pytest.approx(-3)
    assert found.at_ours.value == pytest.approx(-2)
    assert "-1.000 [-1.000, -1.000]" in found.note


def test_only_the_same_samples_are_compared():
    with pytest.raises(ScoreError, match="one plan only"):
        retrieval_finding("a", "m", ("one", [record(0, THEIRS)]), ("other", [record(1, OURS)]))


def test_records_are_chosen_by_kind_plan_and_sample(tmp_path):
    records = [record(0, THEIRS), record(0, OURS), record(1, OURS), record(0, OURS, per_token=-1.0)]
    assert with_plan(records, OURS, "generate", {"0"}) == [records[1]]
    found = retrieval_finding("a", "m", ("one", [records[0]]), ("other", [records[1]]))
    write_findings([found], tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text())[0]["at_ours"]["value"] == 1.0
