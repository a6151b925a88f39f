"""The patch beside the probe: what one run remembers some tokens after its needle, put into a run with another needle.

Both runs read the same haystack, with needles that differ in one word. After the patch the model reads the rest of the
prompt and answers. If what was exchanged carries the needle, the answer is the other run's; if it does not, the run's
own. (Interchange interventions: Geiger et al. 2021)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from segregation.errors import ModelError, SampleError
from segregation.interventions.rules import Plan
from segregation.models.channels import ATTENTION_CHANNELS, RECURRENT_CHANNELS, Channel
from segregation.models.hybrid import HybridModel
from segregation.probes.features import aligned
from segregation.prompts.sample import Sample
from segregation.runs.fork import Fork, fork
from segregation.runs.generate import write_from
from segregation.runs.launch import Row
from segregation.runs.loglikelihood import score_from
from segregation.scores.retrieval import exact

Exchanged = Literal["nothing", "states", "keys_values"]
"""What is taken from the other run: nothing, recurrent and convolution states, or keys and values; of all layers."""

CHANNELS: Mapping[Exchanged, tuple[Channel, ...]] = {
    "nothing": (),
    "states": RECURRENT_CHANNELS,
    "keys_values": ATTENTION_CHANNELS,
}
ROWS = 256
"""Rows (a sample and what is exchanged) read together when no batch size is given."""


@dataclass(frozen=True)
class Answer:
    """What a run answered, and how probable both needles were as the answer.

    Attributes:
        text: written greedily.
        own: whether the needle of the run's own prompt is in it, whole.
        other: whether the needle of the other run's prompt is.
        own_loglikelihood: ln p of the own needle's sentence after the prompt, in nats.
        other_loglikelihood: ln p of the other's.
    """

    text: str
    own: bool
    other: bool
    own_loglikelihood: float
    other_loglikelihood: float


@dataclass(frozen=True)
class Interchange:
    """One run with another run's memory, in each way.

    Attributes:
        sample: whose prompt was read.
        other: whose memory was put in.
        distance: after how many tokens since the needle's last one, which has distance 0.
        answers: by what was exchanged.
    """

    sample: Sample
    other: Sample
    distance: int
    answers: Mapping[Exchanged, Answer]


def exchangeable(model: HybridModel) -> tuple[Exchanged, ...]:
    """What can be exchanged in a model: nothing, states if it is recurrent anywhere, keys and values if it attends."""
    states: tuple[Exchanged, ...] = ("states",) if model.recurrent_layers else ()
    keys_values: tuple[Exchanged, ...] = ("keys_values",) if model.attention_layers else ()
    return ("nothing", *states, *keys_values)


def partners(samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """For each haystack, two of its needles, one after the other; the first is another one from haystack to haystack.

    Raises:
        SampleError: a haystack that is read with one needle only.
    """
    by_haystack: dict[object, list[Sample]] = {}
    for sample in samples:
        if sample.metadata.get("about") == "needle":
            by_haystack.setdefault(sample.metadata["haystack"], []).append(sample)
    if lonely := [group[0].id for group in by_haystack.values() if len(group) < 2]:
        raise SampleError(f"an interchange needs two needles in one haystack, {lonely[0]!r} is alone in its own")
    return [
        (group[number % len(group)], group[(number + 1) % len(group)])
        for number, group in enumerate(by_haystack.values())
    ]


def interchange(
    model: HybridModel,
    pairs: Sequence[tuple[Sample, Sample]],
    distance: int,
    ways: Sequence[Exchanged],
    *,
    max_new_tokens: int = 40,
    batch_size: int | None = None,
) -> list[Interchange]:
    """Read each pair's first prompt with what its second left in memory ``distance`` tokens after the needle.

    The exchange comes after the token at that distance, so what is read later sees the other run's memory of everything
    up to it.

    Args:
        model: the model; plans that it carries act.
        pairs: whose prompt is read, and whose memory is put in: samples of ``ProbeSamples`` in one haystack.
        distance: tokens since the needle's end; the prompt goes on after it.
        ways: what is exchanged, each in runs of its own; ``exchangeable`` says what a model has.
        max_new_tokens: of the answer.
        batch_size: rows (a sample and what is exchanged) read together.

    Raises:
        ModelError: something to exchange that the model has not, or a model whose checks switched forks off, as one
            memory is gone on from in several ways.
        SampleError: prompts of several lengths, prompts of a pair that differ after the needle, or a distance outside.
    """
    if not ways or set(ways) - set(exchangeable(model)):
        raise ModelError(
            f"{model.description.get('name', model.family.name)} can exchange {exchangeable(model)}, got {tuple(ways)}"
        )
    size = max(1, (batch_size or ROWS) // len(ways)) if model.can_batch else 1
    return [
        found
        for start in range(0, len(pairs), size)
        for found in _interchange(model, pairs[start : start + size], distance, ways, max_new_tokens)
    ]


def _interchange(
    model: HybridModel,
    pairs: Sequence[tuple[Sample, Sample]],
    distance: int,
    ways: Sequence[Exchanged],
    max_new_tokens: int,
) -> list[Interchange]:
    samples = list({sample.id: sample for pair in pairs for sample in pair}.values())
    place = {sample.id: number for number, sample in enumerate(samples)}
    tokens, end = aligned(model, samples)
    own, other = ([place[pair[side].id] for pair in pairs] for side in (0, 1))
    after = end + 1 + distance
    if not 0 <= distance < tokens.shape[1] - 1 - end:
        raise SampleError(
            f"the exchange comes after the needle's end, token {end} of {tokens.shape[1]}, and before the last, so the "
            f"distance lies in 0..{tokens.shape[1] - 2 - end}, got {distance}"
        )
    if (tokens[own, end + 1 :] != tokens[other, end + 1 :]).any():
        raise SampleError("two runs that exchange memories read the same after their needles; ProbeSamples makes such")
    mixed = fork(model, samples, after).mixed(
        {
            channel: [row for way in ways for row in (other if channel in CHANNELS[way] else own)]
            for channel in (*ATTENTION_CHANNELS, *RECURRENT_CHANNELS)
        }
    )
    rest = tokens[own * len(ways), after:-1]
    ready = mixed.read_on(rest) if rest.shape[1] else mixed
    sentences = [[pair[side].target for pair in pairs] * len(ways) for side in (0, 1)]
    texts = _greedy(ready, max_new_tokens)
    scores = [_scores(ready, of) for of in sentences]
    answers = [
        Answer(text, exact(text, sentences[0][i]), exact(text, sentences[1][i]), scores[0][i], scores[1][i])
        for i, text in enumerate(texts)
    ]
    by_way = {way: answers[number * len(pairs) :][: len(pairs)] for number, way in enumerate(ways)}
    return [
        Interchange(*pair, distance, {way: by_way[way][number] for way in ways}) for number, pair in enumerate(pairs)
    ]


def _rows(ready: Fork) -> list[Row]:
    found = zip(ready.prompts, ready.spans, strict=True)
    return [Row(number, prompt, Plan(), spans) for number, (prompt, spans) in enumerate(found)]


def _greedy(ready: Fork, max_new_tokens: int) -> list[str]:
    """What each row goes on with, from a copy of its memory."""
    model, rows = ready.model, _rows(ready)
    with torch.no_grad():
        written = write_from(model, rows, ready.expand(range(len(rows))).memory, max_new_tokens)
    assert model.tokenizer is not None
    return [str(model.tokenizer.decode(list(tokens), skip_special_tokens=True)) for tokens in written]


def _scores(ready: Fork, continuations: Sequence[str]) -> list[float]:
    """ln p of each row's continuation, from a copy of its memory."""
    model, rows = ready.model, _rows(ready)
    tokens = [tuple(model.encode_continuation(text)) for text in continuations]
    with torch.no_grad():
        scored = score_from(model, rows, ready.expand(range(len(rows))).memory, tokens)
    return [one.loglikelihood for one in scored]
