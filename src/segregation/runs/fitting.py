"""What fits: rows that are decoded together and tokens that are read together, in the memory that is free."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

from segregation.errors import ModelError, PlanError
from segregation.models.attention import QUERY_CHUNK
from segregation.models.hybrid import HybridModel
from segregation.models.memory_needed import RESIDUAL, SCORE_COPIES, WIDEST, remembered

ROWS = 256
"""Rows decoded together when no batch size is given.

On a CPU, 64, 256 and 1,024 rows of the bundled models wrote 3,100 to 3,700, 4,000 to 4,400 and 4,400 to 4,900 tokens a
second; and with more rows there are fewer steps at which only some are left.
"""
WATCHED_ROWS = 64
"""The same where what rows do is held in memory until they are done."""
PADDING = 0.1
"""Share of padding up to which prompts are read together on a CPU."""
CPU_TOKENS = 2560
"""Tokens up to which a CPU reads prompts faster together.

Prompts of 24, 64, 200 and 512 tokens one by one: 3,300, 5,800, 9,500 and 10,200 tokens a second (tiny-recurrentgemma);
at most 640 together: 11,900, 11,400, 11,100 and 10,400; 2,560: 13,300, 12,700, 12,200 and 11,000; 5,120: no faster.
"""
SPARE = 0.5
"""Share of the free memory that forwards over prompts may take at once; the rest is for what is remembered."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a loaded model takes beside its weights; on each GPU, where it is spread over several.

    Attributes:
        row: the states of a row, which do not grow.
        token: keys and values of a token.
        reading: what a forward holds of each token that it reads.
        window: how many tokens back keys are kept; ``None`` is all.
    """

    row: int
    token: int
    reading: int
    window: int | None

    def of_row(self, tokens: int) -> int:
        """What is remembered of one row.

        >>> Needs(row=100, token=8, reading=50, window=None).of_row(10)
        180
        """
        return self.row + self.token * (tokens if self.window is None else min(tokens, self.window))


def on_cpu(model: HybridModel) -> bool:
    """Whether a model runs on a CPU, where reading is bound by arithmetic."""
    return model.device is None or model.device.type == "cpu"


_NEEDS: WeakKeyDictionary[nn.Module, Needs] = WeakKeyDictionary()


def needs(model: HybridModel) -> Needs:
    """What a model takes; found by feeding it three tokens, once."""
    module = model.hf_model
    if module not in _NEEDS:
        one, two = (remembered(model, 1, tokens) for tokens in (1, 2))
        size, head = (model.dtype or torch.float32).itemsize, module.get_output_embeddings()
        widths = [part.out_features for part in module.modules() if isinstance(part, nn.Linear) and part is not head]
        reading = (WIDEST * max(widths, default=model.d_model) + RESIDUAL * model.d_model) * size
        scores = model.n_heads * (SCORE_COPIES * QUERY_CHUNK + model.d_head) * 4
        shares = max(1, len(_gpus(model)))  # what is remembered lies with its layers, which are spread evenly
        _NEEDS[module] = Needs((2 * one - two) // shares, (two - one) // shares, reading + scores, model.window)
    return _NEEDS[module]


def free_bytes(model: HybridModel) -> int | None:
    """Memory that is left for a model where there is least, since each GPU reads its layers by itself.

    What is free on one of its GPUs, or all that the machine has; ``None`` if unknown.
    """
    if gpus := _gpus(model):
        return min(
            torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu) + torch.cuda.mem_get_info(gpu)[0]
            for gpu in gpus
        )
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus(model: HybridModel) -> list[torch.device]:
    devices = {parameter.device for parameter in model.hf_model.parameters()}
    return [device for device in devices if device.type == "cuda"]


def check_batch_size(batch_size: object) -> None:
    """Refuse a batch size that is none.

    Raises:
        PlanError: no whole number, or one below 1.

    >>> check_batch_size(None), check_batch_size(8)
    (None, None)
    """
    if batch_size is None or (isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size >= 1):
        return
    raise PlanError(f"batch_size must be a whole number of at least 1 row, got {batch_size!r}; leave it out for {ROWS}")


def fitting_batch_size(model: HybridModel, tokens: int, batch_size: int | None) -> int | None:
    """The batch size to run with: the given one, or fewer than ``ROWS`` rows where these would not fit.

    Args:
        model: what runs.
        tokens: of the longest row, new ones included.
        batch_size: what was asked for; ``None`` leaves it open.

    Raises:
        PlanError: no whole number of rows, or none.
        ModelError: the given batch, or one row alone, needs more memory than there is.
    """
    check_batch_size(batch_size)
    free = free_bytes(model)
    if free is None:
        return batch_size
    found = needs(model)
    row, reading = found.of_row(tokens), found.reading * tokens
    fit = max(0, free - reading) // max(1, row)
    if fit < 1:
        least = (free - found.row) // (found.reading + found.token)
        raise ModelError(
            f"one row of {tokens} tokens needs {_gb(row)} to remember and {_gb(reading)} to read, but {_gb(free)} are "
            f"free; shorten the prompt to about {max(0, least)} tokens, or load the model in a narrower dtype"
        )
    if batch_size is not None and batch_size > fit:
        raise ModelError(
            f"batch_size={batch_size} rows of {tokens} tokens need {_gb(batch_size * row)} to remember and "
            f"{_gb(reading)} to read, but {_gb(free)} are free; use batch_size={fit} or less, or shorter prompts"
        )
    if batch_size is None and (safe := max(1, fit // 4)) < ROWS:  # rows are copied from what their prompts left
        return safe
    return batch_size


def read_together(model: HybridModel, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Which prompts of these lengths are read in one padded forward, as their numbers, shortest first.

    On a CPU as many of about one length as ``CPU_TOKENS`` hold, where padding costs what text does; elsewhere as many
    as fit: 16 prompts of 256, 1,024 and 4,096 tokens were read 8.6, 2.7 and 1.2 times as fast together as one by one
    (RecurrentGemma-2B, H200).
    """
    budget, slack = (CPU_TOKENS, PADDING) if on_cpu(model) else (_tokens_that_fit(model), float("inf"))
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = group and (len(group) + 1) * lengths[number] > budget
        if group and (full or lengths[number] > (1 + slack) * lengths[group[0]]):
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _tokens_that_fit(model: HybridModel) -> float:
    free = free_bytes(model)
    return float("inf") if free is None else SPARE * free / max(1, needs(model).reading)


def _gb(n: int) -> str:
    return f"{n / 1e9:.2f} GB"
