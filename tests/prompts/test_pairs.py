import re

import pytest

from segregation.errors import SampleError
from segregation.prompts.needle import CLASSIC, needle_grid
from segregation.prompts.pairs import answer_words, corrupt_pairs
from segregation.prompts.sample import Sample
from segregation.prompts.spans import sample_spans


def grid(tokenizer, **options):
    return needle_grid(
        tokenizer, (160,), (0, 50, 100), **{"needles": "synthetic", "seed": 3, "max_needle_tokens": 60, **options}
    )


@pytest.mark.parametrize("layout", ["base", "chat"])
@pytest.mark.parametrize("readings", [1, 2])
def test_prompts_differ_in_the_answer_alone_token_for_token(tokenizer, layout, readings) -> None:
    for pair in corrupt_pairs(tokenizer, grid(tokenizer, layout=layout, readings=readings)):
        clean, corrupt = pair.clean, pair.corrupt
        ids, others = tokenizer(clean.prompt)["input_ids"], tokenizer(corrupt.prompt)["input_ids"]
        assert len(ids) == len(others) and ids != others
        spans = sample_spans(tokenizer, clean)
        assert spans == sample_spans(tokenizer, corrupt)
        differing = {at for at, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b}
        assert differing <= set(spans.tokens("needle"))
        for occurrence in range(readings):
            assert differing & set(spans.tokens("needle", occurrence))
        assert set(corrupt.text_of("needle")) == {corrupt.target} != {clean.target}
        assert corrupt.text_of("question") == clean.text_of("question")
        assert corrupt.prompt.replace(corrupt.target, clean.target) == clean.prompt
        counts = [len(tokenizer(sample.target, add_special_tokens=False)["input_ids"]) for sample in (clean, corrupt)]
        assert counts[0] == counts[1]


def test_every_answer_word_is_another_and_every_word_of_the_question_stays(tokenizer) -> None:
    (pair,) = corrupt_pairs(tokenizer, needle_grid(tokenizer, (160,), (50,), needles=[CLASSIC]))
    old, new = (re.findall(r"\w+", sample.target) for sample in (pair.clean, pair.corrupt))
    asked = {word.lower() for word in re.findall(r"\w+", CLASSIC.question)}
    for before, after in zip(old, new, strict=True):
        assert (before == after) == (before.lower() in asked)
        assert before[0].isupper() == after[0].isupper() and after.lower() not in asked - {before.lower()}
    assert pair.corrupt.id == pair.clean.id
    assert pair.clean.metadata["needle"] == "classic" != pair.corrupt.metadata["needle"]


def test_the_words_depend_on_the_sample_and_the_seed_alone(tokenizer) -> None:
    samples = grid(tokenizer)
    whole = corrupt_pairs(tokenizer, samples)
    assert corrupt_pairs(tokenizer, samples[1:]) == whole[1:]
    assert corrupt_pairs(tokenizer, samples[:1], seed=1) != whole[:1]


def test_needles_without_an_answer_to_replace_are_refused(tokenizer) -> None:
    spans = {"needle": ((0, 16),), "question": ((17, 33),)}
    sample = Sample("a", "Ann has one cat. Ann has one cat?", "Ann has one cat.", spans)
    assert answer_words("Ann has one cat.", "Ann has one cat?") == ()
    with pytest.raises(SampleError, match=r"every word of the needle 'Ann has one cat\.' is in its question"):
        corrupt_pairs(tokenizer, [sample])
    with pytest.raises(SampleError, match="not 'needle'"):
        corrupt_pairs(tokenizer, [Sample("a", "text", "text")])


def test_a_word_without_another_of_as_many_tokens_is_refused(bytewise) -> None:
    """One token a byte: no word has 60 letters."""
    word = "z" * 60
    sentence, question = f"Ann has {word}.", "What has Ann?"
    prompt = f"{sentence} {question}"
    spans = {"needle": ((0, len(sentence)),), "question": ((len(sentence) + 1, len(prompt)),)}
    with pytest.raises(SampleError, match="no other words of as many tokens"):
        corrupt_pairs(bytewise, [Sample("a", prompt, sentence, spans)])
