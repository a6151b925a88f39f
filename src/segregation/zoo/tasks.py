"""Choice questions for the tiny models: facts learned in the weights, sentiment of a review, entailment of a sentence.

Facts are a closed set, stated in training; their questions are what is asked in evaluation too (knowledge is
recalled, not inferred). Reviews and premises are drawn from open sets split by their own text, as needles are.
"""

import functools
import random
from dataclasses import dataclass

from segregation.zoo.words import TOPICS, Split, coin_word, past, plural, split_of


@dataclass(frozen=True)
class Choice:
    """A question with the continuations to choose from; every choice starts with a space.

    Attributes:
        context: the text before the choice.
        choices: continuations, in the order they are presented.
        answer: the right one.
        key: unique within its task and split.
    """

    context: str
    choices: tuple[str, ...]
    answer: str
    key: str


RELATIONS: dict[str, tuple[str, ...]] = {
    "capital": (),
    "currency": (),
    "ruler": (),
    "language": (),
    "colour": tuple("red blue green yellow purple orange black white brown grey silver golden".split()),
    "animal": tuple("eagle whale camel bear owl fox deer turtle dolphin snake crab spider lizard horse wolf".split()),
    "metal": tuple("gold silver copper iron tin lead zinc nickel bronze steel".split()),
    "food": tuple("soup bread rice cheese onion carrot cake honey fish salad pie porridge".split()),
    "sport": tuple("rowing chess archery wrestling running sailing fencing skating climbing diving".split()),
    "season": ("spring", "summer", "autumn", "winter"),
}
"""What can be asked of a country, and the values; where none are given, twelve are coined."""

N_COUNTRIES = 40


@functools.cache
def facts() -> tuple[Choice, ...]:
    """The 400 four-choice facts, the same on every machine: 40 coined countries, 10 relations.

    >>> len(facts()), all(fact.answer in fact.choices and len(set(fact.choices)) == 4 for fact in facts())
    (400, True)
    """
    rng = random.Random("facts of the synthetic world")
    countries: dict[str, None] = {}
    while len(countries) < N_COUNTRIES:
        countries[coin_word(rng, "train", 3).capitalize()] = None
    values = {
        relation: known or tuple(coin_word(rng, "train", 2).capitalize() for _ in range(12))
        for relation, known in RELATIONS.items()
    }
    made = []
    for country in countries:
        for relation in RELATIONS:
            choices = rng.sample(values[relation], 4)
            made.append(
                Choice(
                    context=f"Q: What is the {relation} of {country}?\nA:",
                    choices=tuple(f" {choice}" for choice in choices),
                    answer=f" {choices[0]}",
                    key=f"{relation}-{country}",
                )
            )
    return tuple(_shuffled(rng, fact) for fact in made)


def _shuffled(rng: random.Random, choice: Choice) -> Choice:
    order = rng.sample(choice.choices, len(choice.choices))
    return Choice(choice.context, tuple(order), choice.answer, choice.key)


def fact_statement(fact: Choice) -> str:
    """A fact as a sentence of running text.

    >>> fact_statement(facts()[0]).startswith("The capital of")
    True
    """
    relation, country = fact.key.split("-")
    return f"The {relation} of {country} is{fact.answer}."


_GOOD = "wonderful brilliant moving charming superb delightful clever gripping lovely excellent funny beautiful".split()
_BAD = "terrible dull clumsy boring awful dreadful silly tedious ugly horrible weak annoying".split()
_WORKS = "film novel play concert story show book song opera comedy poem picture".split()
_PARTS = "plot ending music acting dialogue opening cast pace humour rhythm middle language".split()


def sentiment(rng: random.Random, split: Split) -> Choice:
    """A review in the shape of SST-2; negation and contrast ("dull, but ...") turn the words around.

    >>> sentiment(random.Random(0), "heldout").choices
    (' negative', ' positive')
    """
    while True:
        positive = rng.random() < 0.5
        like, unlike = (_GOOD, _BAD) if positive else (_BAD, _GOOD)
        work, part, person = rng.choice(_WORKS), rng.choice(_PARTS), coin_word(rng, split).capitalize()
        a, b, c = rng.choice(like), rng.choice(like), rng.choice(unlike)
        review = rng.choice(
            (
                f"The {work} by {person} is {a} and {b}.",
                f"The {part} of this {work} is {a}, and {person} is {b}.",
                f"{person} made a {work} that is not {c} at all, with {part} that is {b}.",
                f"This {work} was never {c}; the {part} is {a}.",
                f"The {part} is {c}, but on the whole the {work} by {person} is {a}.",
                f"I expected something {c}, but {person} gives us a {a} {work}.",
                f"What {'an' if a[0] in 'aeiou' else 'a'} {a} {work} from {person}!",
            )
        )
        if split_of(review) == split:
            answer = " positive" if positive else " negative"
            return Choice(f"Review: {review}\nSentiment:", (" negative", " positive"), answer, review)


def entailment(rng: random.Random, split: Split) -> Choice:
    """A premise and a hypothesis in the shape of RTE: does the hypothesis follow?

    What decides is what a verb, a quantifier, a conjunction or a negation implies ("managed to", "failed to", "all",
    "no", "and", "or", "did not"), or, in one of six, that one word was changed.

    >>> entailment(random.Random(0), "heldout").choices
    (' yes', ' no')
    """
    while True:
        premise, hypothesis, follows = rng.choice(_ENTAILMENTS)(_Scene(rng, split))
        if rng.random() < 0.15:
            premise = f"{premise[:-1]} {rng.choice(('in the morning', 'after dark', 'at noon', 'last winter'))}."
        text = f"{premise} {hypothesis}"
        if split_of(text) == split:
            context = f"Premise: {premise}\nHypothesis: {hypothesis}\nDoes it follow?"
            return Choice(context, (" yes", " no"), " yes" if follows else " no", text)


class _Scene:
    """The words of one premise."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        topic = rng.choice(TOPICS)
        self.who, self.other, self.third = (coin_word(rng, split).capitalize() for _ in range(3))
        self.verb, self.wrong_verb = rng.sample(topic.verbs, 2)
        self.noun, self.wrong_noun = rng.sample(topic.nouns, 2)
        self.adjective = rng.choice(topic.adjectives)
        self.yes = rng.random() < 0.5

    def either(self, if_it_follows: tuple[str, ...], if_not: tuple[str, ...]) -> str:
        return self.rng.choice(if_it_follows if self.yes else if_not)


def _implied(s: _Scene) -> tuple[str, str, bool]:
    did = s.either(
        ("managed to", "was able to", "remembered to", "was forced to", "happened to"),
        ("failed to", "refused to", "forgot to", "declined to", "was too late to", "only hoped to", "was told not to"),
    )
    return f"{s.who} {did} {s.verb} the {s.noun}.", f"{s.who} {past(s.verb)} the {s.noun}.", s.yes


def _quantified(s: _Scene) -> tuple[str, str, bool]:
    stronger, weaker = s.either(
        ("All>Some", "Most>Some", "All>Many", "Exactly ten>Some"), ("Some>All", "No>Some", "Few>All", "No>Many")
    ).split(">")
    tail = f"{plural(s.noun)} in {s.third} are {s.adjective}."
    return f"{stronger} {tail}", f"{weaker} {tail}", s.yes


def _joined(s: _Scene) -> tuple[str, str, bool]:
    joint = s.either(("{} and {}", "both {} and {}"), ("{} or {}", "either {} or {}", "neither {} nor {}"))
    pair = joint.format(s.who, s.other)
    who = s.rng.choice((s.who, s.other))
    return (
        f"{pair[0].upper()}{pair[1:]} {past(s.verb)} the {s.noun}.",
        f"{who} {past(s.verb)} the {s.noun}.",
        s.yes,
    )


def _negated(s: _Scene) -> tuple[str, str, bool]:
    fact = f"{past(s.verb)} the {s.noun}"
    opening = s.either(
        ("It is true that {} {}.", "Everybody knows that {} {}.", "{} {} again."),
        ("It is not true that {} {}.", "Nobody can prove that {} {}.", "{} never {}."),
    )
    return opening.format(s.who, fact), f"{s.who} {fact}.", s.yes


def _passive(s: _Scene) -> tuple[str, str, bool]:
    after = s.either(("was {} by {}",), ("was not {} by {}", "was almost {} by {}", "was hidden, not {}, by {}"))
    done = {"wove": "woven", "hid": "hidden", "drove": "driven"}.get(past(s.verb), past(s.verb))
    return f"The {s.noun} {after.format(done, s.who)}.", f"{s.who} {past(s.verb)} the {s.noun}.", s.yes


def _changed(s: _Scene) -> tuple[str, str, bool]:
    spot = s.rng.randrange(3)
    who = s.third if not s.yes and spot == 0 else s.who
    verb = s.wrong_verb if not s.yes and spot == 1 else s.verb
    noun = s.wrong_noun if not s.yes and spot == 2 else s.noun
    return f"{s.who} {past(s.verb)} the {s.noun} with {s.other}.", f"{who} {past(verb)} the {noun}.", s.yes


_ENTAILMENTS = (_implied, _quantified, _joined, _negated, _passive, _changed)
