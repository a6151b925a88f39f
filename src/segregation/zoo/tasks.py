"""Choice questions for the tiny models: facts learned in the weights, sentiment of a review, entailment of a sentence.

Facts are a closed set, stated in training; their questions are what is asked in evaluation too (knowledge is recalled, not
inferred). Reviews and premises are drawn from open sets split by their own text, as needles are.
"""

import functools
import random
from dataclasses import dataclass

from segregation.zoo.words import TOPICS, Split, coin_word, past, split_of


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
    """A premise and a hypothesis in the shape of RTE; the hypothesis follows, or changes one part of the premise.

    >>> entailment(random.Random(0), "heldout").choices
    (' yes', ' no')
    """
    while True:
        topic = rng.choice(TOPICS)
        agent, other, place = (coin_word(rng, split).capitalize() for _ in range(3))
        verb, wrong_verb = rng.sample(topic.verbs, 2)
        noun, wrong_noun = rng.sample(topic.nouns, 2)
        follows = rng.random() < 0.5
        premise = rng.choice(
            (
                f"{agent} and {other} {past(verb)} the {noun} in {place}.",
                f"In {place}, {agent} {past(verb)} the {noun} with {other}.",
                f"With the help of {other}, {agent} of {place} {past(verb)} the {noun}.",
            )
        )
        spot = rng.randrange(3)
        who = agent if follows or spot != 0 else coin_word(rng, split).capitalize()
        did = past(verb) if follows or spot != 1 else past(wrong_verb)
        what = noun if follows or spot != 2 else wrong_noun
        hypothesis = rng.choice((f"{who} {did} the {what}.", f"The {what} was {_participle(did)} by {who}."))
        text = f"{premise} {hypothesis}"
        if split_of(text) == split:
            context = f"Premise: {premise}\nHypothesis: {hypothesis}\nDoes it follow?"
            return Choice(context, (" yes", " no"), " yes" if follows else " no", text)


def _participle(past_tense: str) -> str:
    return {"wove": "woven", "hid": "hidden", "drove": "driven"}.get(past_tense, past_tense)
