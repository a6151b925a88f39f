"""May prompts share a batch in this sweep? Measured on a few of its own prompts, along the way that its rows will go.

Rows of a batch are read in padded prefills, what the model remembers of them is merged with the keys of shorter prompts
padded at the left, and they go on together under a mask. Each of these steps can be wrong for a family, a kernel or a
dtype that is right elsewhere. So the sweep's shortest and longest prompts, and the two that differ least in length
(which a CPU reads together), run alone and together through ``runs.launch``, and the logits are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from segregation.errors import RecordError
from segregation.interventions.rules import Plan
from segregation.models.checks_outcome import float_noise
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs.launch import Prefills, Prompt, Row, run_rows

Mode = Literal["batched", "bucketed", "single"]
"""Prompts of any lengths share a batch; only those of one length do; none do."""

TOKENS, NEW = 1024, 4
"""Tokens of a prompt that are read at most (longer ones are all cut in proportion), and new tokens that follow."""


@dataclass(frozen=True)
class Measured:
    """How far rows of one batch are from the same rows alone.

    Attributes:
        prompt_tokens: the prompts' lengths.
        worst: the largest absolute difference of two logits, over all rows and ``NEW`` tokens; both runs are fed the
            tokens that the row alone prefers.
        tokens_differ: how many of all these tokens greedy decoding in the batch would have chosen otherwise.
    """

    prompt_tokens: tuple[int, ...]
    worst: float
    tokens_differ: int


@dataclass(frozen=True)
class Batching:
    """Which prompts may share a batch in a sweep, and why; stands in its manifest.

    Attributes:
        mode: which may.
        why: the reason.
        tolerance: the most that ``worst`` may be: float noise of the model's dtype.
        padded: measured on prompts of different lengths; ``None`` where there are none, or nothing was measured.
        equal: measured on prompts of one length (cut to the shortest); ``None`` where nothing was measured.
    """

    mode: Mode
    why: str
    tolerance: float | None = None
    padded: Measured | None = None
    equal: Measured | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Batching":
        """What ``to_dict`` gave.

        Raises:
            RecordError: something else.

        >>> one = Batching("single", "forking is off")
        >>> Batching.from_dict(one.to_dict()) == one
        True
        """
        try:
            parts = {
                name: None
                if given[name] is None
                else Measured(**{**given[name], "prompt_tokens": tuple(given[name]["prompt_tokens"])})
                for name in ("padded", "equal")
            }
            made = cls(**{**given, **parts})
            if made.mode not in get_args(Mode):
                raise ValueError(f"mode {made.mode!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"batching in a manifest holds mode ({', '.join(get_args(Mode))}), why and what was measured; got "
                f"{given!r:.200} ({error}). Restore the manifest, or start a run under another name"
            ) from error
        return made


def measure_batching(model: HybridModel, samples: Sequence[Sample]) -> Batching:
    """Choose how rows of these samples may run together: as many as can, where every row gets what it gets alone.

    Args:
        model: loaded, with what its self-checks switched off. One that carries plans is not measured, since these may
            name spans that a cut prompt lacks; its self-checks decide.
        samples: those of the sweep.
    """
    if not model.can_fork:
        return Batching("single", "the model's self-checks switched forking off")
    if model.carried:
        return Batching("batched" if model.can_batch else "single", "not measured, as the model carries a plan")
    most = TOKENS if model.max_positions is None else min(TOKENS, model.max_positions - NEW)
    prompts = chosen_prompts([tuple(model.encode(sample)) for sample in samples], most)
    shortest = min(map(len, prompts))
    cut = list(dict.fromkeys(prompt[:shortest] for prompt in prompts))
    with torch.no_grad():
        equal, spread = _measure(model, cut if len(cut) > 1 else cut * 2)
        padded = _measure(model, prompts)[0] if len({len(prompt) for prompt in prompts}) > 1 else None
    tolerance = float_noise(model.dtype, spread, model.device)
    mode, why = _choose(model, equal, padded, tolerance)
    return Batching(mode, why, tolerance, padded, equal)


def _choose(model: HybridModel, equal: Measured, padded: Measured | None, tolerance: float) -> tuple[Mode, str]:
    if not equal.worst <= tolerance:
        return "single", "a batch of equal lengths does not give each row what it gives alone"
    if padded is not None and not padded.worst <= tolerance:
        return "bucketed", "a batch of different lengths does not give each row what it gives alone"
    if not model.can_batch:
        return "bucketed", "the model's self-checks switched padded batches off"
    return "batched", "every row of a batch gets what it gets alone"


def chosen_prompts(prompts: Sequence[Prompt], most: int = TOKENS) -> list[Prompt]:
    """The shortest prompt, the longest, and the two of different lengths that differ least, each length once.

    Where one has more than ``most`` tokens, all are cut in proportion. Prompts of one token, which have no prefill,
    count only where there are no others.

    >>> [len(prompt) for prompt in chosen_prompts([(7,) * n for n in (9, 40, 1, 38, 90, 9)])]
    [9, 38, 40, 90]
    """
    by_length = {len(prompt): prompt for prompt in prompts}
    lengths = sorted(n for n in by_length if n > 1) or [1]
    nearest = min(pairwise(lengths), key=lambda pair: pair[1] / pair[0], default=())
    wanted = sorted({lengths[0], lengths[-1], *nearest})
    scale = min(1.0, most / lengths[-1])
    return [by_length[n][: max(min(n, 2), int(n * scale))] for n in wanted]


def of_one_length(model: HybridModel, samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples in groups of one prompt length in tokens, shortest first, in their order otherwise."""
    lengths = {id(sample): len(model.encode(sample)) for sample in samples}
    ordered = sorted(samples, key=lambda sample: lengths[id(sample)])
    return [list(group) for _, group in groupby(ordered, key=lambda sample: lengths[id(sample)])]


def _measure(model: HybridModel, prompts: Sequence[Prompt]) -> tuple[Measured, float]:
    """What a batch of these prompts is off by, and the standard deviation of the logits."""
    alone = [_run(model, [prompt], None)[0] for prompt in prompts]
    tokens = [logits.argmax(-1) for logits in alone]
    together = _run(model, prompts, tokens)
    gaps = [(one - other).abs().max() for one, other in zip(alone, together, strict=True)]
    differ = [(logits.argmax(-1) != own).sum() for logits, own in zip(together, tokens, strict=True)]
    measured = Measured(tuple(map(len, prompts)), float(torch.stack(gaps).max()), int(torch.stack(differ).sum()))
    return measured, float(torch.cat(alone).std())


def _run(model: HybridModel, prompts: Sequence[Prompt], tokens: Sequence[Tensor] | None) -> list[Tensor]:
    """The logits (``new d_vocab``, fp32) after each prompt, fed these tokens, or those that it prefers itself."""
    rows, memory = Prefills(model).of([Row(i, prompt, Plan()) for i, prompt in enumerate(prompts)])
    found: list[Tensor] = []

    def step(running: Tensor, number: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        found.append(logits.float())
        best = logits.argmax(-1) if tokens is None else torch.stack([tokens[row.index][number] for row in rows])
        return best, torch.full_like(running, number + 1 == NEW, dtype=torch.bool)

    run_rows(model, rows, memory, NEW, step)
    by_row = torch.stack(found, dim=1)
    place = {row.index: number for number, row in enumerate(rows)}
    return [by_row[place[index]] for index in range(len(prompts))]
