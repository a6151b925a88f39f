import pytest

from segregation.errors import SampleError
from segregation.prompts.foil import foils, parts_of
from segregation.prompts.needle import Needle, needle_grid
from segregation.prompts.sample import Sample
from segregation.prompts.tokens import count_tokens

DOOR = Needle("The door code of Zorb is 12345.", "What is the door code of Zorb?")


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("Ann was born in Zorb in 1234.", "Where was Ann born?", " in Zorb in 1234."),
        ("If you meet Ann at noon, hide!", "What should you do if you meet Ann at noon?", " hide!"),
        ("Zorbax gold key cat.", "Which sentence contains the word key?", None),  # opens with no word of it
        ("There are 12 cats in Zorb.", "How many cats are there in Zorb?", None),  # cats come after the answer
        ("What is Ann?", "What is Ann?", None),  # no answer
    ],
)
def test_a_needle_is_an_opening_from_its_question_and_an_answer(sentence, question, answer):
    parts = parts_of(sentence, question)
    assert (parts and parts.answer) == answer
    assert parts is None or parts.opening + parts.answer == sentence


@pytest.mark.parametrize("layout", [{"readings": 2}, {"copies": 3}, {"readings": 2, "copies": 2, "layout": "chat"}])
def test_a_foil_differs_from_its_sample_in_the_answer_alone(tokenizer, layout):
    samples = needle_grid(tokenizer, [200], [0, 60, 100], needles="synthetic", n_per_cell=4, **layout)
    by_id = {sample.id: sample for sample in samples}
    made = foils(tokenizer, samples)
    assert 4 < len(made) < len(samples)
    for foil in made:
        sample = by_id[foil.metadata["foil_of"]]
        (other,) = set(foil.text_of("needle"))
        parts = parts_of(sample.target, sample.text_of("question")[0])
        assert other.startswith(parts.opening + " ") and other != sample.target
        assert foil.target == sample.target and foil.target not in foil.prompt
        assert foil.prompt.replace(other, sample.target) == sample.prompt
        assert foil.metadata["answer_tokens"] == count_tokens(tokenizer, parts.answer)
        for name in ("question", "decoy"):
            assert foil.text_of(name) == sample.text_of(name)
        contexts = [text.replace(other, sample.target) for text in foil.text_of("context")]
        assert contexts == list(sample.text_of("context"))
    assert len({foil.id for foil in made} | set(by_id)) == len(made) + len(samples)


def test_answers_of_as_many_tokens_and_after_the_same_word_come_first(tokenizer):
    samples = needle_grid(tokenizer, [150], [50], needles=[DOOR], n_per_cell=3)
    for foil, sample in zip(foils(tokenizer, samples), samples, strict=True):
        assert abs(count_tokens(tokenizer, foil.prompt) - count_tokens(tokenizer, sample.prompt)) <= 1
        assert foil.text_of("needle")[0].startswith("The door code of Zorb is ")


def test_a_foil_depends_on_the_needle_not_on_its_place(tokenizer):
    near, far = (needle_grid(tokenizer, [200], [50], needles=[DOOR], copies=copies) for copies in (1, 2))
    assert foils(tokenizer, near)[0].text_of("needle")[0] == foils(tokenizer, far)[0].text_of("needle")[0]


def test_samples_without_a_needle_are_refused(tokenizer):
    with pytest.raises(SampleError, match="'a' has no needle; make foils of samples of needle_grid"):
        foils(tokenizer, [Sample(id="a", prompt="one two", target=" three")])
