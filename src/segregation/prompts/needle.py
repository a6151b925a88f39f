"""Needle-in-a-haystack samples over a grid of context lengths and depths, with the depth that was really reached."""

import hashlib
import itertools
import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from segregation.errors import SampleError
from segregation.prompts.haystack import Haystack, HaystackName, named
from segregation.prompts.placement import Placed, place
from segregation.prompts.render import BLOCK, base_prompt, chat_prompt
from segregation.prompts.sample import Metadata, Sample, Span
from segregation.prompts.tokens import Tokenizer, count_tokens
from segregation.zoo.needles import CLASSIC, Needle, draw_needle

__all__ = ["CLASSIC", "PAPER_BUFFER", "PAPER_DEPTHS", "PAPER_LENGTHS", "Needle", "needle_grid", "sigmoid_depths"]

PAPER_LENGTHS = (250, 677, 1105, 1532, 1959, 2387, 2814, 3241, 3669, 4096)
"""Context lengths of arXiv 2510.19861, in tokens: round(linspace(250, 4096, 10))."""
PAPER_DEPTHS = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
"""Depths of arXiv 2510.19861, in percent: round(linspace(0, 100, 10))."""
PAPER_BUFFER = 200
"""Tokens of each context length that arXiv 2510.19861 keeps free for question and answer."""

NeedleName = Literal["classic", "synthetic"]
Layout = Literal["base", "chat"]
Preset = Literal["paper"]

_ASK = BLOCK.partition("{context}")[2].partition("{question}")[0]


def sigmoid_depths(n: int = 10) -> tuple[float, ...]:
    """Depths in percent that crowd at both ends: 100 / (1 + math.exp(-0.1 (x - 50))) for n evenly spaced x in 0..100.

    >>> [round(depth, 1) for depth in sigmoid_depths(3)]
    [0.7, 50.0, 99.3]
    """
    if n < 2:
        raise SampleError(f"sigmoid depths need at least 2 points, got {n}")
    return tuple(100 / (1 + math.exp(-0.1 * (100 * i / (n - 1) - 50))) for i in range(n))


DRAWS = 300
"""Synthetic needles drawn to find one that is short enough."""


def needle_grid(
    tokenizer: Tokenizer,
    context_lengths: Sequence[int] = PAPER_LENGTHS,
    depth_percents: Sequence[float | int] = PAPER_DEPTHS,
    *,
    seed: int = 0,
    needles: NeedleName | Sequence[Needle] = "classic",
    haystack: HaystackName | Haystack = "synthetic",
    layout: Layout = "base",
    readings: int = 1,
    copies: int = 1,
    n_per_cell: int = 1,
    max_needle_tokens: int | None = None,
    preset: Preset | None = None,
) -> list[Sample]:
    """One sample for every context length, depth and repetition, in that order.

    A sample depends on its own cell and the seed alone: a larger grid contains the smaller one, the layout and the
    number of readings change the prompt around the context but neither context nor needle, and more copies of the
    needle stand in the same haystack. Prompts carry no beginning-of-sequence text. Spans: ``needle``, ``context``,
    ``question`` and ``decoy`` (a stretch of haystack of as many characters as the needle, for controls), every
    occurrence. ``distance`` in the metadata counts the tokens from the end of the last needle to the last question.

    Args:
        tokenizer: counts the tokens; any fast tokenizer of transformers.
        context_lengths: tokens of haystack plus needle.
        depth_percents: where the needle goes, 0..100; of several copies, where the last one goes.
        seed: draws each sample's haystack and needle.
        needles: "classic" (San Francisco), "synthetic" (a held-out needle per sample), or needles of your own, taken in
            turn within a cell.
        haystack: "synthetic", "python-reference", or one made by ``segregation.prompts.haystack``.
        layout: prompt for a "base" or a "chat" model.
        readings: how often the context is read; 2 is "just read twice".
        copies: how often the needle stands in the context, whose length stays the same. Of n copies the i-th goes to
            i / n of the depth: they are spread evenly, and none is nearer to the question than a lone needle.
        n_per_cell: samples per length and depth.
        max_needle_tokens: the longest synthetic needle; those of the zoo have 13 to 55 tokens.
        preset: "paper" keeps 200 tokens of each context length free, as arXiv 2510.19861 does.

    Raises:
        SampleError: a value out of range, a context too short for its needle, an empty or absent needle.
    """
    _check_grid(context_lengths, depth_percents, needles, n_per_cell, copies, preset, layout)
    source = haystack if isinstance(haystack, Haystack) else named(haystack)
    samples = []
    lengths = [int(length) for length in context_lengths]  # plain numbers, whatever kind came in
    depths = [int(depth) if depth == int(depth) else float(depth) for depth in depth_percents]
    for length, depth, repetition in itertools.product(lengths, depths, range(n_per_cell)):
        cell = f"{seed}/{length}/{depth:g}"
        needle = _pick(needles, cell, repetition, tokenizer, max_needle_tokens)
        budget = length - (PAPER_BUFFER if preset == "paper" else 0)
        text = _enough(tokenizer, source, f"{cell}/{repetition}/{source.name}", budget)
        placed = place(tokenizer, text, needle.sentence, max_tokens=budget, depth_percent=depth, copies=copies)
        name = needle_id(needle)
        samples.append(
            _sample(
                tokenizer,
                placed,
                needle,
                layout,
                readings,
                id="/".join(
                    [source.name, name, f"{length}-tokens", f"{depth:g}%", f"{layout}-x{readings}", f"seed-{seed}"]
                    + ([f"{copies}-copies"] if copies > 1 else [])
                    + ([preset] if preset else [])
                    + [str(repetition)]
                ),
                metadata={
                    "task": "needle",
                    "context_length": length,
                    "context_tokens": placed.tokens,
                    "depth_percent": depth,
                    "measured_depth": placed.measured_depth,
                    "needle": name,
                    "haystack": source.name,
                    "layout": layout,
                    "readings": readings,
                    "copies": copies,
                    "seed": seed,
                    "repetition": repetition,
                    "preset": preset,
                },
            )
        )
    return samples


def needle_id(needle: Needle) -> str:
    """ "classic", or eight hexadecimal digits of the needle's own text.

    >>> needle_id(CLASSIC), needle_id(Needle("Ann has a cat.", "What has Ann?"))
    ('classic', '93459994')
    """
    if (needle.sentence, needle.question) == (CLASSIC.sentence, CLASSIC.question):
        return "classic"
    return hashlib.sha256(f"{needle.sentence}\n{needle.question}".encode()).hexdigest()[:8]


def _sample(
    tokenizer: Tokenizer, placed: Placed, needle: Needle, layout: Layout, readings: int, *, id: str, metadata: Metadata
) -> Sample:
    if layout == "chat":
        prompt = chat_prompt(tokenizer, placed.context, needle.question, readings=readings)
    else:
        prompt = base_prompt(placed.context, needle.question, readings=readings)
    contexts = _occurrences(prompt, placed.context)
    if len(contexts) != readings:
        raise SampleError(
            f"the context should stand in the prompt {readings} time(s), unchanged; it is there {len(contexts)} times "
            f"(sample {id!r}): this tokenizer's chat template changes the text of a turn"
        )
    begin, stop = _decoy(placed)
    spans = {
        "context": contexts,
        "needle": tuple((first + start, first + end) for first, _ in contexts for start, end in placed.needles),
        "decoy": tuple((first + begin, first + stop) for first, _ in contexts),
        "question": tuple((after + len(_ASK), after + len(_ASK) + len(needle.question)) for _, after in contexts),
    }
    distance = count_tokens(tokenizer, prompt[spans["needle"][-1][1] : spans["question"][-1][0]])
    metadata = {**metadata, "distance": distance}
    sample = Sample(id=id, prompt=prompt, target=needle.sentence, spans=spans, metadata=metadata)
    for name, text in (("needle", needle.sentence), ("question", needle.question)):
        if set(sample.text_of(name)) != {text}:
            raise SampleError(f"the {name} {text!r} is not where it was put (sample {id!r}): {sample.text_of(name)}")
    return sample


def _decoy(placed: Placed) -> Span:
    """As many characters as the needle's (fewer if there are not as many), amid the longest stretch of haystack."""
    needles = placed.needles
    stretches = list(pairwise([0, *(edge for needle in needles for edge in needle), len(placed.context)]))[::2]
    low, high = max(reversed(stretches), key=lambda stretch: stretch[1] - stretch[0])
    width = min(needles[0][1] - needles[0][0], high - low)
    middle = (low + high - width) // 2
    return middle, middle + width


def _occurrences(text: str, part: str) -> tuple[Span, ...]:
    starts = [-1]
    while (start := text.find(part, starts[-1] + 1)) >= 0:
        starts.append(start)
    return tuple((start, start + len(part)) for start in starts[1:])


def _pick(
    needles: NeedleName | Sequence[Needle], cell: str, repetition: int, tokenizer: Tokenizer, max_tokens: int | None
) -> Needle:
    if needles == "classic":
        return CLASSIC
    if isinstance(needles, str):
        rng = random.Random(f"{cell}/{repetition}/needle")
        drawn = (draw_needle(rng, "heldout") for _ in range(DRAWS))
        for needle in drawn:
            if max_tokens is None or count_tokens(tokenizer, needle.sentence) <= max_tokens:
                return needle
        raise SampleError(
            f"none of {DRAWS} synthetic needles has at most max_needle_tokens={max_tokens} tokens with this tokenizer; "
            "raise it, or give None"
        )
    first = random.Random(f"{cell}/needle").randrange(len(needles))
    return needles[(first + repetition) % len(needles)]


def _enough(tokenizer: Tokenizer, source: Haystack, seed: str, n_tokens: int) -> str:
    """At least ``n_tokens`` tokens of haystack; more characters only make the same text longer."""
    n_characters = max(1, 6 * n_tokens)
    while count_tokens(tokenizer, text := source.text(random.Random(seed), n_characters)) < n_tokens:
        n_characters *= 2
    return text


def _check_grid(
    context_lengths: Sequence[int],
    depth_percents: Sequence[float | int],
    needles: NeedleName | Sequence[Needle],
    n_per_cell: int,
    copies: int,
    preset: Preset | None,
    layout: Layout,
) -> None:
    for name, values in (("context_lengths", context_lengths), ("depth_percents", depth_percents)):
        if not len(values) or len(set(values)) < len(values):
            raise SampleError(f"{name} must name at least one value, each once, got {list(values)}")
    if bad := [length for length in context_lengths if length != int(length)]:
        raise SampleError(f"context_lengths count tokens, whole numbers, got {bad}")
    if bad := [depth for depth in depth_percents if not 0 <= depth <= 100]:
        raise SampleError(f"depth_percents lie in 0 (start) .. 100 (end), got {bad}")
    if n_per_cell < 1:
        raise SampleError(f"n_per_cell must be at least 1, got {n_per_cell}")
    if copies < 1:
        raise SampleError(f"copies counts how often the needle stands in the context, at least 1, got {copies}")
    if layout not in get_args(Layout):
        raise SampleError(f"layout is one of {get_args(Layout)}, got {layout!r}")
    if preset is not None and preset not in get_args(Preset):
        raise SampleError(f"preset is None or one of {get_args(Preset)}, got {preset!r}")
    if isinstance(needles, str):
        if needles not in get_args(NeedleName):
            raise SampleError(f"needles are one of {get_args(NeedleName)} or a sequence of Needle, got {needles!r}")
        return
    if not needles:
        raise SampleError('needles is an empty sequence; give at least one Needle, or "classic" or "synthetic"')
    for needle in needles:
        if not any(map(str.isalnum, needle.sentence)) or "\n" in needle.sentence.strip() or not needle.question.strip():
            raise SampleError(f"a needle is one line with a word in it, and a question, got {needle!r}")
        if needle.sentence != needle.sentence.strip():
            raise SampleError(f"a needle's sentence has no spaces or newlines around it, got {needle.sentence!r}")
