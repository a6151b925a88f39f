import pytest

from segregation.errors import SampleError
from segregation.prompts import benchmarks
from segregation.prompts.sample import Sample
from segregation.zoo.words import split_of


def test_every_fact_is_a_four_choice_sample_with_an_id_of_its_own():
    samples = benchmarks.facts()
    assert len({sample.id for sample in samples}) == 400
    for sample in samples:
        assert sample.target in sample.choices
        assert len(sample.choices) == 4
        assert sample.metadata == {"task": "facts", "chance": 0.25}
        assert sample.prompt.endswith("A:")
        assert all(choice.startswith(" ") for choice in sample.choices)


def test_some_facts_are_a_seeded_draw_of_all():
    some = benchmarks.facts(20, seed=3)
    assert some == benchmarks.facts(20, seed=3)
    assert some != benchmarks.facts(20, seed=4)
    assert all(sample in benchmarks.facts() for sample in some)


@pytest.mark.parametrize("task", ["sentiment", "entailment"])
def test_drawn_tasks_are_held_out_and_different(task):
    samples = getattr(benchmarks, task)(60, seed=1)
    assert len({sample.prompt for sample in samples}) == len({sample.id for sample in samples}) == 60
    assert samples == getattr(benchmarks, task)(60, seed=1)
    assert {sample.target for sample in samples} == set(samples[0].choices)
    assert samples[0].metadata == {"task": task, "chance": 0.5}
    if task == "sentiment":
        reviews = [sample.prompt.removeprefix("Review: ").removesuffix("\nSentiment:") for sample in samples]
        assert all(split_of(review) == "heldout" for review in reviews)


@pytest.mark.parametrize("n", [0, 401])
def test_more_facts_than_there_are_is_refused(n):
    with pytest.raises(SampleError, match=r"1\.\.400"):
        benchmarks.facts(n)


def test_a_sample_with_a_choice_twice_is_refused():
    with pytest.raises(SampleError, match="different and not empty"):
        Sample(id="a", prompt="one", target=" x", choices=(" x", " x"))
