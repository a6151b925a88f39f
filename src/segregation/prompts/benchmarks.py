"""Choice tasks of the bundled models as samples: facts known from training, sentiment of a review, entailment."""

import random
from collections.abc import Callable

from segregation.errors import SampleError
from segregation.prompts.sample import Sample
from segregation.zoo import tasks
from segregation.zoo.words import Split


def facts(n: int | None = None, *, seed: int = 0) -> list[Sample]:
    """Four-choice questions about the 40 countries that the bundled models learned (shape of MMLU).

    Args:
        n: how many, drawn with the seed; ``None`` for all 400.
        seed: of the draw.

    Raises:
        SampleError: ``n`` outside 1..400.

    >>> sample = facts(1)[0]
    >>> len(sample.choices), sample.metadata["chance"]
    (4, 0.25)
    """
    known = tasks.facts()
    if n is not None and not 1 <= n <= len(known):
        raise SampleError(f"there are {len(known)} facts; n must be in 1..{len(known)} or None, got {n}")
    chosen = known if n is None else random.Random(f"{seed}/facts").sample(known, n)
    return [_sample("facts", fact.key, fact) for fact in chosen]


def sentiment(n: int, *, seed: int = 0, split: Split = "heldout") -> list[Sample]:
    """``n`` different reviews, positive or negative (shape of SST-2).

    >>> sentiment(2)[0].choices
    (' negative', ' positive')
    """
    return _drawn("sentiment", tasks.sentiment, n, seed, split)


def entailment(n: int, *, seed: int = 0, split: Split = "heldout") -> list[Sample]:
    """``n`` different pairs of premise and hypothesis (shape of RTE).

    >>> entailment(2)[1].choices
    (' yes', ' no')
    """
    return _drawn("entailment", tasks.entailment, n, seed, split)


def _drawn(
    task: str, draw: Callable[[random.Random, Split], tasks.Choice], n: int, seed: int, split: Split
) -> list[Sample]:
    if n < 1:
        raise SampleError(f"n must be at least 1, got {n}")
    rng = random.Random(f"{seed}/{task}/{split}")
    items: dict[str, tasks.Choice] = {}
    while len(items) < n:
        item = draw(rng, split)
        items.setdefault(item.key, item)
    return [_sample(task, f"{split}/seed-{seed}/{position}", item) for position, item in enumerate(items.values())]


def _sample(task: str, name: str, item: tasks.Choice) -> Sample:
    return Sample(
        id=f"{task}/{name}",
        prompt=item.context,
        target=item.answer,
        choices=item.choices,
        metadata={"task": task, "chance": 1 / len(item.choices)},
    )
