"""Prompts for probes: needles that differ in one word, at one token position, each in many haystacks.

Every haystack is read with each of a few needles about one subject, which differ in one coined word and have as many
tokens. So two prompts of a haystack differ in the tokens of that word alone, and any two prompts have their needle,
their question and their end at the same positions. In some of them a decoy takes the needle's place: the same sentence
about another subject, which is not asked for.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segregation.errors import SampleError
from segregation.prompts.grid import haystack_of
from segregation.prompts.render import base_prompt
from segregation.prompts.sample import Sample
from segregation.prompts.tokens import Tokenizer, count_tokens, token_spans, tokens_of
from segregation.zoo.needles import Needle
from segregation.zoo.words import coin_word, split_of

Target = Literal["identity", "presence"]
"""What a probe tells: which of the needles was read, or whether it was a needle or a decoy."""

DRAWS = 20_000
"""Sentences drawn to find needles and decoys of one length in tokens."""
ATTEMPTS = 50
"""Texts drawn for a haystack to find one that puts needle and end where they belong."""
_STEPS = 12
_SENTENCE_END = re.compile(r"[.!?](?=\s)")


@dataclass(frozen=True)
class ProbeSamples:
    """Which prompts to make.

    A block is a part of the haystacks with a part of the needles and decoys that no other block has. Presence is told
    from prompts of haystack and needle in the same block, with blocks as the groups of the folds; identity from every
    needle in every haystack, with haystacks as the groups.

    Attributes:
        needles: how many needles (K); a guess is right in 1/K.
        haystacks: how many haystacks.
        blocks: how many blocks; both numbers above are multiples of it.
        before: position of the needle's first token in the prompt.
        after: tokens of haystack after the needle, at least; probes reach no further.
        haystack: "synthetic", "python-reference", "folder:PATH" with .txt files, or "dataset:NAME".
        seed: draws needles, decoys and haystacks.

    Raises:
        SampleError: fewer than 2 needles or blocks, or numbers that blocks do not divide.
    """

    needles: int = 8
    haystacks: int = 32
    blocks: int = 4
    before: int = 48
    after: int = 256
    haystack: str = "synthetic"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.needles < 2 or self.blocks < 2 or self.needles % self.blocks or self.haystacks % self.blocks:
            raise SampleError(
                f"there are 2 needles and 2 blocks or more, and as many needles, and haystacks, in each block; got "
                f"{self.needles} needles and {self.haystacks} haystacks in {self.blocks} blocks"
            )

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """Every haystack with every needle, and with the decoys of its block; all prompts have one length in tokens.

        Raises:
            SampleError: a tokenizer with which sentences or haystacks of one length in tokens cannot be found.
        """
        needles, decoys = exchangeable_needles(tokenizer, self.needles, self.seed)
        n_tokens = count_tokens(tokenizer, needles[0].sentence)
        end = self.before + n_tokens - 1
        total = end + 1 + self.after + count_tokens(tokenizer, base_prompt("", needles[0].question))
        samples: list[Sample] = []
        for number in range(self.haystacks):
            block = number % self.blocks
            own = [(needle, "needle", word) for word, needle in enumerate(needles)]
            own += [(decoy, "decoy", word) for word, decoy in enumerate(decoys) if word % self.blocks == block]
            texts = self._texts(tokenizer, number, [needle for needle, _, _ in own], end, total)
            for (needle, about, word), (prompt, span) in zip(own, texts, strict=True):
                samples.append(
                    Sample(
                        id=f"{self.haystack}-{number}/{about}-{word}/{self.before}+{self.after}/seed-{self.seed}",
                        prompt=prompt,
                        target=needle.sentence,
                        spans={"needle": (span,)},
                        metadata={
                            "task": "state-probe",
                            "haystack": number,
                            "about": about,
                            "word": word,
                            "block": block,
                            "needle_end": end,
                        },
                    )
                )
        return samples

    def _texts(
        self, tokenizer: Tokenizer, number: int, needles: Sequence[Needle], end: int, total: int
    ) -> list[tuple[str, tuple[int, int]]]:
        """One haystack with each sentence in its place: prompts, and where the sentence stands in them."""
        source = haystack_of(self.haystack)
        question = needles[0].question
        for attempt in range(ATTEMPTS):
            rng = random.Random(f"{self.seed}/{number}/{attempt}/{source.name}")
            text = source.text(rng, 12 * (self.before + self.after))
            found = _fitted(tokenizer, text, needles[0], question, end, total)
            if found is None:
                continue
            texts = [_prompt(*found, needle.sentence, question) for needle in needles]
            if _alike(tokenizer, texts):
                return texts
        raise SampleError(
            f"none of {ATTEMPTS} texts of {source.name!r} puts the needle's end at token {end} and the prompt's at "
            f"{total - 1} with this tokenizer, whatever needle it holds; use another haystack, seed or place"
        )


@dataclass(frozen=True)
class Labelled:
    """What a probe is told about some of the samples.

    Attributes:
        rows: which samples, by their place in the list.
        labels: of each of them, what the probe is to tell.
        groups: of each of them, what must not be in train and test at once.
    """

    rows: tuple[int, ...]
    labels: tuple[int, ...]
    groups: tuple[int, ...]


def labelled(samples: Sequence[Sample], target: Target) -> Labelled:
    """The samples that a target is told from, with labels and groups: haystacks for identity, blocks for presence.

    Raises:
        SampleError: samples that ``ProbeSamples`` did not make.
    """
    found: list[tuple[int, int, int]] = []
    for sample in samples:
        if sample.metadata.get("task") != "state-probe":
            raise SampleError(f"sample {sample.id!r} was not made by ProbeSamples, so it has no labels; make it there")
    blocks = 1 + max((int(sample.metadata["block"] or 0) for sample in samples), default=0)
    for row, sample in enumerate(samples):
        haystack, word, block = (int(sample.metadata[name] or 0) for name in ("haystack", "word", "block"))
        is_needle = sample.metadata["about"] == "needle"
        if target == "identity" and is_needle:
            found.append((row, word, haystack))
        elif target == "presence" and word % blocks == block:
            found.append((row, int(is_needle), block))
    rows, labels, groups = zip(*found, strict=True)
    return Labelled(rows, labels, groups)


def exchangeable_needles(tokenizer: Tokenizer, n: int, seed: int = 0) -> tuple[list[Needle], list[Needle]]:
    """``n`` needles about one subject, and as many decoys, each about another with a needle's word; all of one length.

    "The magic word of SUBJECT is WORD.", subject and word coined, on the held-out side of the split.

    Raises:
        SampleError: not enough of them with the same number of tokens among those drawn.
    """
    rng = random.Random(f"{seed}/needles")
    subject = coin_word(rng, "heldout").capitalize()
    by_length: dict[int, dict[str, Needle]] = {}
    for _ in range(DRAWS):
        word = coin_word(rng, "heldout")
        needle = _needle(subject, word)
        if split_of(needle.sentence) != "heldout":
            continue
        length = count_tokens(tokenizer, needle.sentence)
        alike = by_length.setdefault(length, {})
        alike[word] = needle
        if len(alike) < n:
            continue
        decoys: dict[str, Needle] = {}
        for word in alike:
            decoys |= _decoy(tokenizer, rng, word, length, {subject, *decoys})
        return list(alike.values()), list(decoys.values())
    raise SampleError(f"of {DRAWS} needles drawn, no {n} have the same number of tokens with this tokenizer; use fewer")


def _decoy(tokenizer: Tokenizer, rng: random.Random, word: str, length: int, taken: set[str]) -> dict[str, Needle]:
    for _ in range(DRAWS):
        other = coin_word(rng, "heldout").capitalize()
        decoy = _needle(other, word)
        fits = split_of(decoy.sentence) == "heldout" and count_tokens(tokenizer, decoy.sentence) == length
        if fits and other not in taken:
            return {other: decoy}
    raise SampleError(f"of {DRAWS} decoys drawn for the word {word!r}, none has {length} tokens; use another seed")


def _needle(subject: str, word: str) -> Needle:
    about = f"magic word of {subject}"
    return Needle(f"The {about} is {word}.", f"What is the {about}?", subject)


def _prompt(lead: str, tail: str, sentence: str, question: str) -> tuple[str, tuple[int, int]]:
    prompt = base_prompt(f"{lead}\n{sentence}\n{tail}", question)
    start = prompt.index(lead) + len(lead) + 1
    return prompt, (start, start + len(sentence))


def _fitted(
    tokenizer: Tokenizer, text: str, needle: Needle, question: str, end: int, total: int
) -> tuple[str, str] | None:
    """The text before and after a sentence end, cut so that the needle ends, and the prompt ends, where they belong."""
    spans = token_spans(tokenizer, text)
    ahead = 2 * end  # more tokens than the text before the needle needs
    split = next((m.end() for m in _SENTENCE_END.finditer(text) if m.end() > spans[min(ahead, len(spans) - 1)][0]), 0)
    lead = [start for start, _ in spans if start < split]
    tail = [stop for start, stop in spans if start >= split]
    n_lead, n_tail = end, total - end
    for _ in range(_STEPS):
        if not (0 < n_lead <= len(lead) and 0 < n_tail <= len(tail)):
            return None
        before, after = text[lead[-n_lead] : split].lstrip(), text[split : tail[n_tail - 1]].lstrip()
        prompt, span = _prompt(before, after, needle.sentence, question)
        tokens = token_spans(tokenizer, prompt, add_special_tokens=True)
        found = tokens_of(tokens, span)[-1]
        if (found, len(tokens)) == (end, total):
            return before, after
        n_lead += end - found
        n_tail += (total - len(tokens)) - (end - found)
    return None


def _alike(tokenizer: Tokenizer, texts: Sequence[tuple[str, tuple[int, int]]]) -> bool:
    """Whether prompts differ in the tokens of their sentence alone, which stand at the same positions in all."""
    found = set()
    for prompt, span in texts:
        ids = list(tokenizer(prompt)["input_ids"])
        inside = tokens_of(token_spans(tokenizer, prompt, add_special_tokens=True), span)
        found.add((inside, tuple(ids[: inside[0]]), tuple(ids[inside[-1] + 1 :])))
    return len(found) == 1
