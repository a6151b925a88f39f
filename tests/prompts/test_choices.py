import pytest

from segregation.errors import SampleError
from segregation.prompts.choices import Question, check_num_fewshot, choice_sample, drawn

QUESTION = Question("Is it raining?\nAnswer:", ("no", "yes"), 1)
SHOTS = [Question("Is it late?\nAnswer:", ("no", "yes"), 0)]
TEXT = "Look.\n\nIs it late?\nAnswer: no\n\nIs it raining?\nAnswer:"


def test_a_base_prompt_ends_without_a_space_and_its_choices_begin_with_one(tokenizer):
    sample = choice_sample(tokenizer, QUESTION, id="a", metadata={"task": "t"}, header="Look.\n\n", shots=SHOTS)
    assert (sample.id, sample.prompt, sample.choices, sample.target) == ("a/base/1-shot", TEXT, (" no", " yes"), " yes")
    assert sample.metadata == {"task": "t", "chance": 0.5, "num_fewshot": 1, "layout": "base"}


def test_a_chat_prompt_is_one_user_turn_without_the_bos_that_encoding_adds(tokenizer):
    sample = choice_sample(tokenizer, QUESTION, id="a", metadata={}, layout="chat", header="Look.\n\n", shots=SHOTS)
    assert sample.prompt == f"<|user|>\n{TEXT}\n<|assistant|>\n"
    assert (sample.id, sample.choices, sample.target) == ("a/chat/1-shot", ("no", "yes"), "yes")
    assert tokenizer(sample.prompt)["input_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("layout", ["base", "chat"])
def test_tokenised_apart_prompt_and_choice_are_what_they_are_together(tokenizer, layout):
    sample = choice_sample(tokenizer, QUESTION, id="a", metadata={}, layout=layout, shots=SHOTS)
    for choice in sample.choices:
        apart = tokenizer(sample.prompt)["input_ids"] + tokenizer(choice, add_special_tokens=False)["input_ids"]
        assert apart == tokenizer(sample.prompt + choice)["input_ids"]


def test_a_tokenizer_without_a_chat_template_is_refused(bytewise):
    with pytest.raises(SampleError, match='use layout="base"'):
        choice_sample(bytewise, QUESTION, id="a", metadata={}, layout="chat")


@pytest.mark.parametrize("answer", [-1, 2])
def test_a_hidden_label_is_refused(answer):
    with pytest.raises(SampleError, match=rf"in 0\.\.1, got {answer}"):
        Question("a", ("no", "yes"), answer)


def test_draws_are_seeded_different_and_in_range():
    assert list(drawn(9, None, draw="a")) == list(range(9))
    some = drawn(100, 40, draw="a")
    assert len(set(some)) == 40 and set(some) <= set(range(100))
    assert some == drawn(100, 40, draw="a") != drawn(100, 40, draw="b")
    for n in (0, 10, -1):
        with pytest.raises(SampleError, match=r"1\.\.9"):
            drawn(9, n, draw="a")


def test_few_shots_beyond_what_there_is_are_refused():
    check_num_fewshot(3, 3, "train")
    for number in (-1, 4):
        with pytest.raises(SampleError, match=rf"0\.\.3 \(the rows of train\), got {number}"):
            check_num_fewshot(number, 3, "train")
