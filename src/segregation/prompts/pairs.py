"""Clean and corrupt samples: the same prompt, token for token, but that the needle says something else."""

import functools
import random
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

from segregation.errors import SampleError
from segregation.prompts.needle import Needle, needle_id
from segregation.prompts.sample import Sample, Span
from segregation.prompts.spans import sample_spans
from segregation.prompts.tokens import Tokenizer, count_tokens
from segregation.zoo.words import TOPICS, coin_word

DRAWS = 400
"""Words drawn to find one of as many tokens."""
ATTEMPTS = 8
"""Corrupt prompts drawn to find one that tokenises like the clean one."""

_WORD = re.compile(r"\w+")
_SMALL = (
    "the a an this that these those every each some any no one two three his her its their our my your he she it they "
    "we you i in on at by of to for from with near under over and or but as if when where there here all is was are "
    "were has had did do can will not only after before until"
).split()
_KNOWN = tuple(word for topic in TOPICS for word in (*topic.nouns, *topic.verbs, *topic.adjectives))


@dataclass(frozen=True)
class Pair:
    """Two samples whose prompts differ in the needle's answer words only, which stand at the same token positions.

    Attributes:
        clean: the sample as it was.
        corrupt: the other; it has the id of the clean one, so that ``PatchState`` finds the one's memory for the other,
            and its own needle as the target.
    """

    clean: Sample
    corrupt: Sample


def corrupt_pairs(tokenizer: Tokenizer, samples: Iterable[Sample], *, seed: int = 0) -> list[Pair]:
    """Each sample beside one whose needle gives another answer, in words of as many tokens.

    Answer words are those of the needle that do not occur in the question. Every one of them is replaced, in every
    occurrence of the needle, by another word, known or coined, with the same first letter's case. Whole
    prompts are tokenised again: the two have as many tokens, every span takes the same ones, and all tokens outside the
    needle are equal; the two targets have as many tokens too.

    Args:
        tokenizer: of the model that is to read them.
        samples: needle samples, with the spans ``needle`` and ``question``.
        seed: draws the other words; with the sample's id, alone.

    Raises:
        SampleError: a sample without these spans, a needle without an answer word, or one whose words cannot be
            replaced by others of as many tokens.
    """
    return [Pair(sample, _corrupt(tokenizer, sample, random.Random(f"{seed}/{sample.id}"))) for sample in samples]


def answer_words(sentence: str, question: str) -> tuple[Span, ...]:
    """Where the words of a sentence stand that its question does not have, in characters.

    >>> answer_words("Ann has a red cat.", "What has Ann?")
    ((8, 9), (10, 13), (14, 17))
    """
    asked = {word.lower() for word in _WORD.findall(question)}
    return tuple(found.span() for found in _WORD.finditer(sentence) if found.group().lower() not in asked)


def _corrupt(tokenizer: Tokenizer, sample: Sample, rng: random.Random) -> Sample:
    sentence, question = sample.text_of("needle")[0], sample.text_of("question")[0]
    words = answer_words(sentence, question)
    if not words:
        raise SampleError(
            f"sample {sample.id!r}: every word of the needle {sentence!r} is in its question {question!r}, so there is "
            "no answer to replace; use another needle"
        )
    for _ in range(ATTEMPTS):
        other = _replaced(tokenizer, sample, sentence, words, rng)
        if other is not None and _alike(tokenizer, sample, other):
            return other
    raise SampleError(
        f"sample {sample.id!r}: no other words of as many tokens were found for the answer of {sentence!r} "
        f"({ATTEMPTS} attempts); use another needle or seed"
    )


def _replaced(
    tokenizer: Tokenizer, sample: Sample, sentence: str, words: Sequence[Span], rng: random.Random
) -> Sample | None:
    """The sample with other answer words, not yet checked; ``None`` where a word found no other of as many tokens."""
    taken = {word.lower() for word in _WORD.findall(f"{sentence} {sample.text_of('question')[0]}")}
    others: dict[str, str] = {}
    new, shift = sentence, 0
    for start, end in words:
        old, before, after = sentence[start:end], new[: start + shift], new[end + shift :]
        fits = functools.partial(_fits, tokenizer, before, after, count_tokens(tokenizer, new))
        word = others.get(old, "")  # a word that comes again is replaced by the same one
        if not (word and fits(word)):
            drawn = _draws(rng, taken | set(others.values()), capital=old[0].isupper())
            word = next((word for word in drawn if fits(word)), None)
        if word is None:
            return None
        others[old] = word
        new, shift = before + word + after, shift + len(word) - len(old)
    needles = sample.spans["needle"]
    prompt = sample.prompt
    for start, end in sorted(needles, reverse=True):
        prompt = prompt[:start] + new + prompt[end:]

    def moved(at: int) -> int:
        return at + (len(new) - len(sentence)) * sum(end <= at for _, end in needles)

    return replace(
        sample,
        prompt=prompt,
        target=new,
        spans={name: tuple((moved(a), moved(b)) for a, b in parts) for name, parts in sample.spans.items()},
        metadata={
            **sample.metadata,
            "needle": needle_id(Needle(new, sample.text_of("question")[0])),
            "corrupt": True,
        },
    )


def _draws(rng: random.Random, taken: Set[str], *, capital: bool) -> Iterator[str]:
    """Words that are not taken, at most ``DRAWS`` of them."""
    for _ in range(DRAWS):
        kind = rng.random()
        word = rng.choice(_SMALL if kind < 0.2 else _KNOWN) if kind < 0.5 else coin_word(rng, "heldout")
        word += coin_word(rng, "heldout") if kind > 0.8 else ""  # words of many tokens are rare
        word = word.capitalize() if capital else word
        if not {word, word.lower()} & taken:
            yield word


def _fits(tokenizer: Tokenizer, before: str, after: str, n_tokens: int, word: str) -> bool:
    """Whether a text has this number of tokens with a word in its place."""
    return count_tokens(tokenizer, before + word + after) == n_tokens


def _alike(tokenizer: Tokenizer, clean: Sample, corrupt: Sample) -> bool:
    """Whether the two prompts differ in tokens of the needle only, with every span at the same ones."""
    ids, others = (tokenizer(sample.prompt)["input_ids"] for sample in (clean, corrupt))
    if len(ids) != len(others) or count_tokens(tokenizer, clean.target) != count_tokens(tokenizer, corrupt.target):
        return False
    spans = sample_spans(tokenizer, clean)
    differing = {at for at, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b}
    return spans == sample_spans(tokenizer, corrupt) and bool(differing) and differing <= set(spans.tokens("needle"))
