"""The synthetic language: seeded documents about one topic each, with the information they carry in nats.

A document is a few paragraphs about a topic, told about two people. Every choice the generator makes is counted, so
``nats / tokens`` is an upper bound on the entropy rate per token that a language model of it can reach.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from segregation.zoo.words import TOPICS, Split, Topic, article, coin_word, past, plural, split_of, third_person

T = TypeVar("T")

N_NAMES = 400
"""How many first names the language has; documents pick two of them."""

PLACES = ("near", "behind", "beside", "under", "above", "opposite")
MOMENTS = (
    "in the morning", "at noon", "after dark", "before dawn", "every evening", "at the end of the week", "last winter",
    "on the first day of spring", "during the night", "once a month",
)  # fmt: skip
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "twenty", "forty")


@dataclass(frozen=True)
class Document:
    """A text and the information in it.

    Attributes:
        text: paragraphs joined by a blank line, without a newline at either end.
        nats: minus the natural logarithm of the probability of the choices that made it.
    """

    text: str
    nats: float


def _names() -> tuple[str, ...]:
    rng = random.Random("names of the synthetic language")
    names: dict[str, None] = {}
    while len(names) < N_NAMES:
        names[coin_word(rng, "train", rng.choice((2, 2, 3))).capitalize()] = None
    return tuple(names)


NAMES = _names()


class _Teller:
    """A source of choices that counts their information, for one document."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.nats = 0.0
        self.topic: Topic = self.pick(TOPICS)
        self._people: dict[int, str] = {}

    def pick(self, options: Sequence[T]) -> T:
        self.nats += math.log(len(options))
        return options[int(self.rng.random() * len(options))]

    def chance(self, probability: float) -> bool:
        yes = self.rng.random() < probability
        self.nats -= math.log(probability if yes else 1 - probability)
        return yes

    def noun(self) -> str:
        return self.pick(self.topic.nouns)

    def adjective(self) -> str:
        return self.pick(self.topic.adjectives)

    def verb(self) -> str:
        return self.pick(self.topic.verbs)

    def person(self) -> str:
        return self.one_of_two(0 if self.chance(0.6) else 1)

    def one_of_two(self, index: int) -> str:
        """The document's first or second person, drawn when first mentioned."""
        if index not in self._people:
            self._people[index] = self.pick(NAMES)
        return self._people[index]

    def described(self, noun: str) -> str:
        return f"{self.adjective()} {noun}" if self.chance(0.4) else noun

    def definite(self) -> str:
        return "the " + self.described(self.noun())

    def indefinite(self) -> str:
        phrase = self.described(self.noun())
        return f"{article(phrase)} {phrase}"

    def plurals(self) -> str:
        return self.described(plural(self.noun()))

    def sentence(self) -> str:
        text = _SENTENCES[self.pick(range(len(_SENTENCES)))](self)
        return text[0].upper() + text[1:]

    def paragraph(self) -> str:
        sentences = [self.sentence(), self.sentence()]
        while len(sentences) < 8 and self.chance(0.7):
            sentences.append(self.sentence())
        return " ".join(sentences)

    def document(self) -> str:
        paragraphs = [f"This is a story about the {self.topic.name}. {self.paragraph()}"]
        while len(paragraphs) < 8 and self.chance(0.7):
            paragraphs.append(self.paragraph())
        return "\n\n".join(paragraphs)


_SENTENCES = (
    lambda t: f"{t.definite()} {third_person(t.verb())} {t.definite()}.",
    lambda t: f"{t.plurals()} {t.verb()} {t.definite()} {t.pick(MOMENTS)}.",
    lambda t: f"{t.person()} {past(t.verb())} {t.indefinite()} {t.pick(PLACES)} {t.definite()}.",
    lambda t: f"{t.pick(MOMENTS)}, {t.person()} {past(t.verb())} {t.pick(NUMBERS)} {t.plurals()}.",
    lambda t: f"{t.definite()} is {t.adjective()}, but {t.definite()} is {t.adjective()}.",
    lambda t: f"{t.plurals()} are {t.adjective()} and {t.adjective()}.",
    lambda t: f"there are {t.pick(NUMBERS)} {t.plurals()} {t.pick(PLACES)} {t.definite()}.",
    lambda t: f"{t.person()} wants to {t.verb()} {t.definite()}.",
    lambda t: f"when {t.definite()} is {t.adjective()}, {t.plurals()} {t.verb()} {t.indefinite()}.",
    lambda t: f"{t.one_of_two(0)} and {t.one_of_two(1)} {t.verb()} {t.definite()} together.",
    lambda t: f'"{t.definite().capitalize()} is too {t.adjective()}," said {t.person()}.',
    lambda t: f"nobody {third_person(t.verb())} {t.plurals()} without {t.indefinite()}.",
    lambda t: f"why does {t.definite()} {t.verb()} {t.plurals()}?",
    lambda t: f"{t.person()} had {t.indefinite()}, {t.indefinite()} and {t.indefinite()}.",
    lambda t: f"if {t.definite()} {third_person(t.verb())} {t.definite()}, {t.person()} will {t.verb()} it.",
    lambda t: f"{t.person()} never {past(t.verb())} {t.plurals()} {t.pick(MOMENTS)}.",
)


def write_document(rng: random.Random, split: Split) -> Document:
    """A new document on the given side of the split (decided by its own text, so that the sides never share one).

    >>> document = write_document(random.Random(0), "heldout")
    >>> document.text[:29], split_of(document.text)
    ('This is a story about the far', 'heldout')
    """
    while True:
        teller = _Teller(rng)
        text = teller.document()
        if split_of(text) == split:
            return Document(text, teller.nats)
