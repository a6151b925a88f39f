import pytest
from hypothesis import given
from hypothesis import strategies as st

from segregation.errors import ScoreError
from segregation.runs.record import Record
from segregation.scores.retrieval import exact, normalise, retrieval_score, rubric, target_loglikelihood, token_recall
from segregation.zoo.needles import CLASSIC


def generated(text, target=CLASSIC.sentence, **changes):
    fields = {"sample_id": "a", "prompt_sha256": "", "plan": "{}", "plan_hash": "0", "prompt_tokens": 9}
    return Record(**{"kind": "generate", "target": target, "text": text, **fields, **changes})


@pytest.mark.parametrize(
    ("text", "points"),
    [
        (CLASSIC.sentence, 5),
        (f'Sure: "{CLASSIC.sentence.upper()}" And more.', 5),
        ("the best thing to do in san francisco\nis eat a sandwich,  and sit in dolores park on a sunny day", 5),
        ("", 0),
        ("The best thing to do in San Francisco is to walk.", 0),
        ("Eat a sandwich!", 1),
        ("Go to Dolores Park.", 0.5),
        ("sit in Dolores Park", 1),
        ("On a sunny day", 1),
        ("Eat a sandwich in Dolores Park on a sunny day.", 2.5),
        ("eat a sandwich and sit in Dolores Park on a sunny day.", 3),
        ("eat a sandwich. eat a sandwich. eat a sandwich.", 1),
        ("on a sunny-day", 0),  # punctuation is stripped, not replaced by a space
    ],
)
def test_the_papers_rubric(text, points):
    assert rubric(text) == points
    score = retrieval_score(generated(text))
    assert score.value == points / 5
    assert score.exact == (points == 5)
    assert score.answer == text


@given(before=st.text(), after=st.text())
def test_the_needle_in_any_text_is_exact(before, after):
    needle = "Ann's cat is called Zorbalax-7."
    score = retrieval_score(generated(f"{before} {needle} {after}", needle))
    assert score.exact
    assert score.value == score.token_recall == 1


@given(text=st.text())
def test_scores_lie_in_their_range_and_exact_means_full_recall(text):
    for target in (CLASSIC.sentence, "Ann has a cat."):
        score = retrieval_score(generated(text, target))
        assert 0 <= score.value <= 1
        assert 0 <= score.token_recall <= 1
        assert not score.exact or score.token_recall == 1
    assert normalise(normalise(text)) == normalise(text)


def test_other_needles_are_graded_by_token_recall():
    score = retrieval_score(generated("The cat has Ann", "Ann has a cat and a dog."))
    assert not score.exact
    assert score.value == score.token_recall == 3 / 7  # ann, has, cat of ann has a cat and a dog
    assert token_recall("a a a", "a cat a") == 2 / 3
    assert retrieval_score(generated("cat a has Ann", "Ann has a cat.")).exact is False


def test_exact_compares_whole_words():
    assert exact("the code is 12.", "The code is 12.")
    assert not exact("the code is 123", "The code is 12.")
    assert exact("«The code is 12»…", "the code is 12")


def test_a_needle_without_words_cannot_be_scored():
    with pytest.raises(ScoreError, match="letter or digit"):
        retrieval_score(generated("anything", "..."))


def test_records_of_another_kind_are_refused():
    scored = generated("", kind="loglikelihood", loglikelihoods=(-3.5,), token_counts=(4,))
    with pytest.raises(ScoreError, match="Use choice_accuracy or target_loglikelihood"):
        retrieval_score(scored)
    assert target_loglikelihood(scored) == -3.5
    with pytest.raises(ScoreError, match="generate record"):
        target_loglikelihood(generated("text"))


def test_the_target_of_a_choice_record_is_one_of_its_choices():
    fields = {"choices": (" no", " yes"), "loglikelihoods": (-1.0, -2.0), "token_counts": (1, 1)}
    assert target_loglikelihood(generated("", " yes", kind="loglikelihood", **fields)) == -2.0
