"""What the zoo is judged on is apart from what it was trained on."""

import random

import pytest

from segregation.zoo import reference, tasks
from segregation.zoo.language import write_document
from segregation.zoo.needles import CLASSIC, CLASSIC_PHRASES, draw_needle, draw_needles, gives_away_classic
from segregation.zoo.words import coin_word, split_of

N = 500


def test_coined_words_lie_on_the_side_they_were_asked_for() -> None:
    rng = random.Random(0)
    for split in ("train", "heldout"):
        assert {split_of(coin_word(rng, split)) for _ in range(N)} == {split}


def test_needles_of_the_two_sides_share_no_sentence_and_no_key() -> None:
    rng = random.Random(0)
    train = [draw_needle(rng, "train") for _ in range(N)]
    heldout = [draw_needle(rng, "heldout") for _ in range(N)]
    assert {split_of(needle.sentence) for needle in train} == {"train"}
    assert {split_of(needle.sentence) for needle in heldout} == {"heldout"}
    assert {n.key for n in train}.isdisjoint(n.key for n in heldout)
    assert all(needle.key for needle in train + heldout)


def test_the_coined_words_of_heldout_needles_are_heldout() -> None:
    rng = random.Random(1)
    for needle in (draw_needle(rng, "heldout") for _ in range(N)):
        coined = [word for word in needle.key.lower().split() if split_of(word) == "heldout"]
        assert coined, needle


def test_documents_reviews_and_premises_lie_on_their_side() -> None:
    rng = random.Random(2)
    for split in ("train", "heldout"):
        assert all(split_of(write_document(rng, split).text) == split for _ in range(50))
        assert all(split_of(tasks.sentiment(rng, split).key) == split for _ in range(300))
        assert all(split_of(tasks.entailment(rng, split).key) == split for _ in range(300))


def test_reference_paragraphs_are_on_one_side_only() -> None:
    train, heldout = reference.paragraphs("train"), reference.paragraphs("heldout")
    assert set(train).isdisjoint(heldout)
    assert sum(map(len, heldout)) > 50_000
    assert sum(map(len, train)) > 30_000


@pytest.mark.parametrize("phrase", CLASSIC_PHRASES)
def test_every_phrase_of_the_classic_needle_gives_it_away(phrase: str) -> None:
    assert phrase in CLASSIC.sentence
    assert gives_away_classic(f"... {phrase.upper()} ...")


def test_needles_drawn_together_have_different_keys() -> None:
    needles = draw_needles(random.Random(3), 40, "heldout")
    assert len({needle.key for needle in needles}) == 40
    assert all(needle.key.lower() in needle.sentence.lower() for needle in needles)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_tasks_are_balanced_and_answerable(split: str) -> None:
    rng = random.Random(4)
    for draw in (tasks.sentiment, tasks.entailment):
        items = [draw(rng, split) for _ in range(600)]
        share = sum(item.answer == item.choices[0] for item in items) / len(items)
        assert 0.4 < share < 0.6
        assert all(item.answer in item.choices for item in items)


def test_facts_state_each_country_and_relation_once() -> None:
    facts = tasks.facts()
    assert len({fact.key for fact in facts}) == len(facts) == 400
    positions = [fact.choices.index(fact.answer) for fact in facts]
    assert all(60 < positions.count(place) < 140 for place in range(4))
