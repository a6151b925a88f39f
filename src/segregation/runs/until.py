"""Greedy generation of token rows, each up to texts that end it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segregation.models.hybrid import HybridModel
from segregation.runs.launch import Prefills, Row, batches, run_rows

LOOK_BACK = 2
"""Tokens decoded beyond those of a stop, since generation may split its text otherwise."""


@dataclass(frozen=True)
class Ending:
    """Where a row ends, besides at the model's end-of-sequence token.

    Attributes:
        limit: new tokens, at most.
        stops: texts after which it ends; each stays in the tokens, special tokens included.
    """

    limit: int
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """The new tokens of a row, up to and with what ended it."""

    row: Row
    tokens: tuple[int, ...]


def write_rows(
    model: HybridModel, rows: Sequence[Row], endings: Sequence[Ending], batch_size: int | None = None
) -> Iterator[Written]:
    """Continue token rows greedily; nothing is checked here but the batch size.

    Args:
        model: the model; plans it already carries act as well.
        rows: the prompts with their plans; a row's ``index`` says which ending is its own.
        endings: where each row ends.
        batch_size: rows run together.

    Raises:
        PlanError: a batch size below 1.
    """
    prefills = Prefills(model)
    look_back = {
        stop: len(model.encode_continuation(stop)) + LOOK_BACK for ending in endings for stop in ending.stops if stop
    }
    for batch in batches(model, rows, batch_size):
        with torch.inference_mode():
            written = _write(model, prefills, batch, endings, look_back)
        yield from written


def _write(
    model: HybridModel,
    prefills: Prefills,
    batch: Sequence[Row],
    endings: Sequence[Ending],
    look_back: Mapping[str, int],
) -> list[Written]:
    rows, memory = prefills.of(batch)
    asked = [endings[row.index] for row in rows]
    tokens: list[list[int]] = [[] for _ in rows]
    assert model.tokenizer is not None
    decode = model.tokenizer.decode

    def ended(row: int) -> bool:
        new, ending = tokens[row], asked[row]
        if len(new) == ending.limit or new[-1] in model.end_tokens:
            return True
        return any(stop in decode(new[-look_back[stop] :]) for stop in ending.stops if stop)

    def step(running: Tensor, _number: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        best, here = logits.argmax(-1), running.tolist()
        for row, token in zip(here, best.tolist(), strict=True):
            tokens[row].append(token)
        return best, torch.tensor([ended(row) for row in here], device=logits.device)

    run_rows(model, rows, memory, max(ending.limit for ending in asked), step)
    written = {row.index: Written(row, tuple(new)) for row, new in zip(rows, tokens, strict=True)}
    return [written[row.index] for row in batch]
