import pytest

from segregation.errors import ScoreError
from segregation.runs.record import Record
from segregation.scores.choice import choice_accuracy


def scored(choices, loglikelihoods, target, **changes):
    fields = {"sample_id": "a", "prompt_sha256": "", "plan": "{}", "plan_hash": "0", "prompt_tokens": 9}
    outcome = {"choices": choices, "loglikelihoods": loglikelihoods, "token_counts": (1,) * len(loglikelihoods)}
    return Record(**{"kind": "loglikelihood", "target": target, **fields, **outcome, **changes})


@pytest.mark.parametrize(
    ("choices", "loglikelihoods", "target", "acc", "acc_norm"),
    [
        ((" a", " b"), (-1.0, -2.0), " a", True, True),
        ((" a", " b"), (-1.0, -2.0), " b", False, False),
        ((" ab", " abcdefgh"), (-2.0, -4.0), " ab", True, False),  # -1 and -0.5 per character
        ((" ab", " abcdefgh"), (-2.0, -4.0), " abcdefgh", False, True),
        ((" a", " bb"), (-2.0, -3.9), " bb", False, True),  # with the space counted: -1.0 against -1.3
        (("ab", " cd"), (-2.0, -2.0), "ab", True, True),  # ties go to the first
        ((" ü", " abc"), (-3.0, -6.0), " abc", False, True),  # characters, not bytes: -3 against -2
    ],
)
def test_accuracies_are_lm_evals(choices, loglikelihoods, target, acc, acc_norm):
    score = choice_accuracy(scored(choices, loglikelihoods, target))
    assert (score.acc, score.acc_norm) == (acc, acc_norm)
    assert (score.answer == target, score.answer_norm == target) == (acc, acc_norm)


def test_records_without_choices_are_refused():
    with pytest.raises(ScoreError, match="0 choices"):
        choice_accuracy(scored((), (-1.0,), "x"))
    with pytest.raises(ScoreError, match="generate record"):
        choice_accuracy(scored(("x",), (), "x", kind="generate"))
    with pytest.raises(ScoreError, match="characters"):
        choice_accuracy(scored((" ", " x"), (-1.0, -2.0), " x"))
