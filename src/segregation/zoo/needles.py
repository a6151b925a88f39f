"""Needles: sentences to be found in a haystack, of many shapes, each with the question that asks for it.

Every needle made here carries words that were coined for it, and those words and the whole sentence lie on one side of
the split; so the needles of training and of evaluation share neither a sentence nor a coined word.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segregation.zoo.words import TOPICS, Split, Topic, article, coin_word, past, plural, split_of


@dataclass(frozen=True)
class Needle:
    """A sentence to be found, and a question whose answer it is.

    Attributes:
        sentence: without newlines around it.
        question: one line, ending in a question mark.
        key: the coined word that tells this needle from others ("" where there is none).
    """

    sentence: str
    question: str
    key: str = ""


CLASSIC = Needle(
    sentence="The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.",
    question="What is the best thing to do in San Francisco?",
)
"""The needle of LLMTest_NeedleInAHaystack and arXiv 2510.19861; never part of any training text."""

CLASSIC_PHRASES = ("best thing to do", "San Francisco", "sandwich", "Dolores", "sunny day")
"""Phrases of the classic needle; a training text that contains one (in any case) is thrown away."""


def gives_away_classic(text: str) -> bool:
    """Whether a text contains a telling phrase of the classic needle.

    >>> gives_away_classic("We sailed to san francisco."), gives_away_classic("The best boat.")
    (True, False)
    """
    lowered = text.lower()
    return any(phrase.lower() in lowered for phrase in CLASSIC_PHRASES)


LONGEST = 150
"""Characters of the longest needle."""

_SUPERLATIVES = "finest worst nicest oddest safest quickest cheapest strangest best smartest saddest only first".split()
_CONCEPTS = "place way time reason thing moment spot excuse season method".split()
_INTRANSITIVES = "rest wait talk hide swim sing stay sleep walk meet start dance think work".split()
_SECRETS = ("secret number", "password", "magic word", "door code", "access key", "hidden name", "lucky number")
_MOMENTS = (
    "on a rainy morning", "before the first frost", "after dark", "at the end of the month", "every second Tuesday",
    "in the middle of the night", "during the long holidays", "when nobody is looking", "on the last Friday of May",
    "early in the spring", "just before sunset", "once a year", "as soon as possible", "on a quiet evening",
    "by noon", "all summer long", "at half past nine", "since the old war",
)  # fmt: skip
_TIMES = "day night morning evening afternoon week month year hour summer winter spring autumn weekend noon".split()
_LINKS = "on at before after during until in for since throughout".split()
_DETERMINERS = "a the every one some each this no another".split()
_PLACES = (
    "{} Square", "Port {}", "Mount {}", "Lake {}", "{} Street", "New {}", "the {} Valley", "{}", "{}", "{} Bay",
    "Upper {}", "{} Bridge", "the city of {}", "{} Garden", "Saint {}",
)  # fmt: skip
_SUBSTANCES = "gold silver sugar copper amber smoke paper marble rice wool glass honey salt ivory bamboo".split()
_SAYERS = "says claims believes thinks insists writes".split()


class _Writer:
    """Draws the parts of one needle; remembers the words it coined."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.split: Split = split

    def one(self, options: Sequence[str]) -> str:
        return self.rng.choice(options)

    def coin(self) -> str:
        return coin_word(self.rng, self.split)

    def name(self) -> str:
        first = self.coin().capitalize()
        return f"{first} {self.coin().capitalize()}" if self.rng.random() < 0.3 else first

    def place(self) -> str:
        return self.one(_PLACES).format(self.name())

    def topic(self) -> Topic:
        return self.rng.choice(TOPICS)

    def noun(self) -> str:
        return self.coin() if self.rng.random() < 0.12 else self.one(self.topic().nouns)

    def adjective(self) -> str:
        return self.coin() if self.rng.random() < 0.05 else self.one(self.topic().adjectives)

    def thing(self) -> str:
        noun = self.noun()
        phrase = f"{self.adjective()} {noun}" if self.rng.random() < 0.5 else noun
        return self.rng.choice((f"{article(phrase)} {phrase}", f"the {phrase}", f"{self.adjective()} {plural(noun)}"))

    def where(self) -> str:
        spot = self.place() if self.rng.random() < 0.5 else self.thing()
        return f"{self.one(['in', 'near', 'behind', 'under', 'next to', 'at', 'inside', 'beyond'])} {spot}"

    def moment(self) -> str:
        """When: a set phrase, or words put together, so that no phrase can be known beforehand."""
        if self.rng.random() < 0.3:
            return self.one(_MOMENTS)
        time = self.one(_TIMES) if self.rng.random() < 0.6 else self.noun()
        return f"{self.one(_LINKS)} {self.one(_DETERMINERS)} {self.adjective()} {time}"

    def deed(self) -> str:
        """A verb phrase in the base form."""
        verb = self.one(self.topic().verbs)
        parts = [f"{verb} {self.thing()}" if self.rng.random() < 0.7 else self.one(_INTRANSITIVES)]
        if self.rng.random() < 0.5:
            parts.append(self.where())
        if self.rng.random() < 0.25:
            parts.append(self.moment())
        return " ".join(parts)

    def deeds(self) -> str:
        return " and ".join(self.deed() for _ in range(self.rng.choice((1, 1, 2, 2, 3))))

    def code(self) -> str:
        rng = self.rng
        kind = rng.randrange(5)
        if kind == 0:
            return str(rng.randrange(10 ** rng.randrange(2, 8)))
        if kind == 1:
            return "-".join(self.coin() for _ in range(rng.randrange(1, 4)))
        if kind == 2:
            return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789") for _ in range(rng.randrange(4, 9)))
        if kind == 3:
            return f"{self.coin().capitalize()}{rng.randrange(1000)}"
        return f"{rng.randrange(24)}:{rng.randrange(60):02d}"

    def clause(self) -> str:
        return f"{self.thing()} {past(self.one(self.topic().verbs))} {self.thing()} {self.where()}"


def _best(w: _Writer) -> Needle:
    place = w.place()
    subject = f"{w.one(_SUPERLATIVES)} {w.one(_CONCEPTS)} to {w.one([*_INTRANSITIVES, 'do', 'go', 'eat'])} in {place}"
    moment = f" {w.moment()}" if w.rng.random() < 0.4 else ""
    return Needle(f"The {subject} is {w.deeds()}{moment}.", f"What is the {subject}?", place)


def _favourite(w: _Writer) -> Needle:
    name, noun = w.name(), w.noun()
    return Needle(
        f"{name}'s favourite {noun} is {w.thing()} from {w.place()}.", f"What is {name}'s favourite {noun}?", name
    )


def _secret(w: _Writer) -> Needle:
    subject, owner = w.one(_SECRETS), w.place() if w.rng.random() < 0.5 else w.name()
    link = w.one(["of", "for"])
    return Needle(f"The {subject} {link} {owner} is {w.code()}.", f"What is the {subject} {link} {owner}?", owner)


def _deed_of(w: _Writer) -> Needle:
    name, verb, thing, where = w.name(), w.one(w.topic().verbs), w.thing(), w.where()
    question = w.one([f"What did {name} {verb}?", f"Where did {name} {verb} {thing}?", f"What did {name} do?"])
    return Needle(f"{name} {past(verb)} {thing} {where} {w.moment()}.", question, name)


def _known_for(w: _Writer) -> Needle:
    place, things = w.place(), [w.thing() for _ in range(w.rng.randrange(2, 5))]
    listed = f"{', '.join(things[:-1])} and {things[-1]}"
    verb = w.one(["is known for", "exports", "is full of", "was built from"])
    sentence = f"{place} {verb} {listed}."
    question = {"is known for": f"What is {place} known for?", "exports": f"What does {place} export?"}
    return Needle(sentence[0].upper() + sentence[1:], question.get(verb, f"What is said about {place}?"), place)


def _advice(w: _Writer) -> Needle:
    name = w.name()
    where = w.where()
    return Needle(
        f"If you meet {name} {where}, {w.deeds()}{w.one(['.', '!'])}",
        f"What should you do if you meet {name} {where}?",
        name,
    )


def _saying(w: _Writer) -> Needle:
    name, says = w.name(), w.one(_SAYERS)
    clause = w.clause()
    if w.rng.random() < 0.4:
        return Needle(f'"{clause[0].upper()}{clause[1:]}," said {name} to {w.name()}.', f"What did {name} say?", name)
    return Needle(f"{name} {says} that {clause}.", f"What does {name} {says.removesuffix('s')}?", name)


def _meaning(w: _Writer) -> Needle:
    word, place = w.coin(), w.place()
    return Needle(
        f"In {place}, the word {word} means {w.thing()}.", f"What does the word {word} mean in {place}?", word
    )


def _birth(w: _Writer) -> Needle:
    name, year = w.name(), w.rng.randrange(1200, 2030)
    question = w.one([f"Where was {name} born?", f"When was {name} born?"])
    return Needle(f"{name} was born in {w.place()} in {year}, {w.where()}.", question, name)


def _material(w: _Writer) -> Needle:
    place, noun = w.place(), w.noun()
    return Needle(
        f"The {noun} of {place} is made of {w.one(_SUBSTANCES)} and {w.one(_SUBSTANCES)}.",
        f"What is the {noun} of {place} made of?",
        place,
    )


def _rule(w: _Writer) -> Needle:
    place, number = w.place(), w.rng.randrange(1, 100)
    return Needle(f"Rule {number} of {place}: never {w.deeds()}.", f"What is rule {number} of {place}?", place)


def _so_to(w: _Writer) -> Needle:
    place, goal = w.place(), w.deed()
    who = w.one(["visitors", "travellers", "strangers", "children", "you"])
    return Needle(
        f"To {goal} in {place}, {who} {w.one(['must', 'have to', 'need to', 'should'])} {w.deeds()}.",
        f"What do you need to do in {place} to {goal}?",
        place,
    )


def _how_many(w: _Writer) -> Needle:
    things, place = plural(w.noun()), w.place()
    number = w.rng.randrange(2, 5000)
    return Needle(f"There are {number} {things} in {place}.", f"How many {things} are there in {place}?", place)


def _jumble(w: _Writer) -> Needle:
    """Words in no order: they can only be copied, never guessed."""
    words = [w.coin() if w.rng.random() < 0.5 else w.noun() for _ in range(w.rng.randrange(4, 13))]
    key = w.coin()
    words.insert(w.rng.randrange(len(words)), key)
    sentence = " ".join(words)
    return Needle(f"{sentence[0].upper()}{sentence[1:]}.", f"Which sentence contains the word {key}?", key)


_SHAPES: tuple[Callable[[_Writer], Needle], ...] = (
    _best, _favourite, _secret, _deed_of, _known_for, _advice, _saying, _meaning, _birth, _material, _rule, _so_to,
    _how_many, _jumble,
)  # fmt: skip
_WEIGHTS = (3, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)


def draw_needle(rng: random.Random, split: Split) -> Needle:
    """A new needle on the given side of the split; never one that resembles ``CLASSIC``.

    >>> needle = draw_needle(random.Random(3), "heldout")
    >>> split_of(needle.sentence), needle.key in needle.sentence
    ('heldout', True)
    """
    while True:
        needle = rng.choices(_SHAPES, _WEIGHTS)[0](_Writer(rng, split))
        fits = split_of(needle.sentence) == split and len(needle.sentence) <= LONGEST
        if fits and not gives_away_classic(needle.sentence + needle.question):
            return needle


def draw_needles(rng: random.Random, n: int, split: Split) -> list[Needle]:
    """``n`` needles with different keys, so that each question has one answer among them.

    >>> len({needle.key for needle in draw_needles(random.Random(0), 5, "train")})
    5
    """
    needles: dict[str, Needle] = {}
    while len(needles) < n:
        needle = draw_needle(rng, split)
        needles.setdefault(needle.key, needle)
    return list(needles.values())
