"""The same sample with another answer in its needle: what the log-probability of the right one is compared with."""

import functools
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from segregation.errors import SampleError
from segregation.prompts.sample import Sample, Span
from segregation.prompts.tokens import Tokenizer, count_tokens
from segregation.zoo.needles import draw_needle

POOL = 600
"""Held-out needles drawn to take other answers from."""

COUNTED = 16
"""Answers of about as many characters whose tokens are counted, of each kind."""

NEARLY = 1
"""Tokens by which an answer may be longer or shorter if it follows the same word."""

FOIL = "/foil"
"""What the id of a foil ends in."""


@dataclass(frozen=True)
class Parts:
    """A needle in two parts.

    Attributes:
        opening: its first words, which the question has too.
        answer: the rest, which has no word of the question that the opening has not.
    """

    opening: str
    answer: str


def parts_of(sentence: str, question: str) -> Parts | None:
    """A needle that opens with words of its question, in two parts; ``None`` if it does not, or shares others with it.

    >>> parts_of("The door code of Zorb is 12.", "What is the door code of Zorb?")
    Parts(opening='The door code of Zorb is', answer=' 12.')
    >>> parts_of("There are 12 cats in Zorb.", "How many cats are there in Zorb?") is None
    True
    """
    asked = set(map(_bare, question.split()))
    words = sentence.split(" ")
    n_opening = next((i for i, word in enumerate(words) if _bare(word) not in asked), len(words))
    opening = {_bare(word) for word in words[:n_opening]}
    shared = {_bare(word) for word in words} & asked
    if not 0 < n_opening < len(words) or shared - opening:
        return None
    return Parts(" ".join(words[:n_opening]), " " + " ".join(words[n_opening:]))


def foils(tokenizer: Tokenizer, samples: Sequence[Sample], *, seed: int = 0) -> list[Sample]:
    """For each needle sample whose needle opens with words of its question, the same prompt with another answer in it.

    Every occurrence of the needle keeps its opening and gets the answer of another held-out needle, of as many tokens
    (or one more or less), and one that follows the same word if there is any. All else is the sample's: question,
    haystack, spans, and the target, which is now nowhere in the prompt. So ``ln p(target | sample) - ln p(target |
    foil)`` is what the answer in the context does for the target, whatever the question alone gives away. Metadata:
    ``foil_of`` is the sample's id, ``answer_tokens`` the tokens of the answer that was taken out.

    Args:
        tokenizer: counts the tokens.
        samples: from ``needle_grid``; those of which ``parts_of`` makes nothing have no foil.
        seed: draws the needles that the other answers are taken from.

    Raises:
        SampleError: a sample without a needle or a question.
    """
    pool = _answers(seed)
    made = []
    for sample in samples:
        for name in ("needle", "question"):
            if not sample.spans.get(name):
                raise SampleError(f"sample {sample.id!r} has no {name}; make foils of samples of needle_grid")
        if parts := parts_of(sample.target, sample.text_of("question")[0]):
            made.append(_foil(tokenizer, sample, parts, pool))
    return made


@functools.cache
def _answers(seed: int) -> tuple[Parts, ...]:
    """Held-out needles in parts."""
    rng = random.Random(f"{seed}/foils")
    drawn = (draw_needle(rng, "heldout") for _ in range(POOL))
    return tuple(parts for needle in drawn if (parts := parts_of(needle.sentence, needle.question)))


def _foil(tokenizer: Tokenizer, sample: Sample, parts: Parts, pool: Sequence[Parts]) -> Sample:
    n_tokens = count_tokens(tokenizer, parts.answer)
    last = parts.opening.rpartition(" ")[2]
    others = sorted(
        (one for one in pool if one.answer != parts.answer), key=lambda one: abs(len(one.answer) - len(parts.answer))
    )
    alike = [one for one in others if one.opening.rpartition(" ")[2] == last]

    def unlike(one: Parts) -> tuple[int, bool, int]:
        off = abs(count_tokens(tokenizer, one.answer) - n_tokens)
        return max(0, off - NEARLY), one not in alike, off

    other = min([*alike[:COUNTED], *others[:COUNTED]], key=unlike)
    sentence = parts.opening + other.answer
    needles = sample.spans["needle"]
    prompt, moved = _replaced(sample.prompt, needles, sentence)
    return replace(
        sample,
        id=f"{sample.id}{FOIL}",
        prompt=prompt,
        spans={name: tuple(map(moved, spans)) for name, spans in sample.spans.items()},
        metadata={**sample.metadata, "foil_of": sample.id, "answer_tokens": n_tokens},
    )


def _replaced(text: str, spans: Sequence[Span], new: str) -> tuple[str, Callable[[Span], Span]]:
    """The text with every one of these spans replaced, and where a span of the old text lies in it."""
    ends = [end for _, end in spans]
    gains = [len(new) - (end - start) for start, end in spans]
    pieces = [text[a:b] for a, b in zip([0, *ends], [*(start for start, _ in spans), len(text)], strict=True)]

    def moved(span: Span) -> Span:
        start, end = span
        return start + sum(gains[: bisect_right(ends, start)]), end + sum(gains[: bisect_right(ends, end)])

    return new.join(pieces), moved


def _bare(word: str) -> str:
    return "".join(filter(str.isalnum, word.lower()))
