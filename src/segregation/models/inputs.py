"""What is handed over to be read: samples, whose spans rules about tokens name, or token ids."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segregation.errors import ModelError
from segregation.prompts.sample import Sample
from segregation.prompts.spans import TokenSpans, sample_spans


def as_text(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs with samples replaced by their prompts, alone or in a list.

    >>> as_text(([Sample("a", "one", "two"), "three"],))
    (['one', 'three'],)
    """

    def text(value: Any) -> Any:
        return value.prompt if isinstance(value, Sample) else value

    return tuple([text(one) for one in value] if isinstance(value, list) else text(value) for value in inputs)


def spans_of(tokenizer: Any, inputs: tuple[Any, ...]) -> list[TokenSpans | None]:
    """The spans of every row, ``None`` for one that is no sample; nothing where none is.

    >>> spans_of(None, ("text",))
    []
    """
    rows = [row for value in inputs for row in (value if isinstance(value, list) else [value])]
    if not any(isinstance(row, Sample) for row in rows):
        return []
    return [sample_spans(tokenizer, row) if isinstance(row, Sample) else None for row in rows]


def check_token_ids(tokens: object, rows: int, d_vocab: int) -> None:
    """Refuse what is no tensor of token ids, batch by pos, with one token or more in each of so many rows.

    Raises:
        ModelError: with what was got.

    >>> check_token_ids(torch.tensor([[5, 9]]), rows=1, d_vocab=10)
    """
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ModelError(
            f"tokens are a tensor of whole numbers, torch.int64 or torch.int32, batch by pos; got {got}. For token ids "
            "in lists, write torch.tensor(ids)"
        )
    if tokens.ndim != 2 or len(tokens) != rows or not tokens.shape[1]:
        raise ModelError(
            f"here are {rows} rows, each of which goes on with one token or more: a tensor of ({rows}, n) token ids; "
            f"got one of {tuple(tokens.shape)}. Give each row as many tokens, those that come next in it"
        )
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high >= d_vocab:
        raise ModelError(
            f"the token ids of this model are 0 to {d_vocab - 1}; got {low} to {high}. Take them from its own tokenizer"
        )


def check_rows(rows: Any, n_rows: int) -> list[int]:
    """The rows of a batch that are listed, as plain numbers.

    Raises:
        ModelError: no rows, or a row that there is not.

    >>> check_rows([torch.tensor(1), 0], n_rows=2)
    [1, 0]
    """
    given: Sequence[Any] = rows if isinstance(rows, Sequence) and not isinstance(rows, str | bytes) else ()
    try:
        found = [operator.index(row) for row in given if not isinstance(row, bool)]
    except TypeError:
        found = []
    if not found or len(found) < len(given) or not all(0 <= row < n_rows for row in found):
        raise ModelError(f"here are the rows 0..{n_rows - 1}, got {rows!r}; give a list of one or more of them")
    return found
