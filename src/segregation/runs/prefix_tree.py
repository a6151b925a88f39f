"""Which tokens are read once for several prompts: a tree of pieces, each going on from the one before it.

Prompts that begin with the same tokens (one haystack with its needle at several depths, several questions about one
context, a context that is read twice beside the one that is read once) share the forward over those. A forward costs
something whatever its length, so a stretch is shared only where that saves more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

FORWARD = 64
"""What a forward costs beside its tokens, in tokens: 40 (RecurrentGemma) to 80 (Jamba), measured on a CPU."""

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Tokens that are read in one forward.

    Attributes:
        before: the piece that it goes on from; ``None`` starts from nothing.
        prompt: a prompt that has these tokens.
        start: where they begin in it.
        stop: where they end.
        ends: the prompts of which they are the last.
    """

    before: int | None
    prompt: int
    start: int
    stop: int
    ends: tuple[int, ...]


def prefix_tree(prompts: Sequence[Prompt], forward: int = FORWARD) -> list[Piece]:
    """The pieces that the prompts are read in; each comes after the one that it goes on from.

    A stretch of n tokens that m prompts have in common is a piece of its own where (m - 1) n is more than ``forward``.

    >>> for piece in prefix_tree([(1, 2, 3, 4), (1, 2, 3, 5, 6), (7, 8)], forward=2):
    ...     print(piece)
    Piece(before=None, prompt=0, start=0, stop=3, ends=())
    Piece(before=0, prompt=0, start=3, stop=4, ends=(0,))
    Piece(before=0, prompt=1, start=3, stop=5, ends=(1,))
    Piece(before=None, prompt=2, start=0, stop=2, ends=(2,))
    """
    pieces: list[Piece] = []
    todo: list[tuple[list[int], int | None, int]] = [(sorted(range(len(prompts)), key=prompts.__getitem__), None, 0)]
    while todo:
        rows, before, start = todo.pop()
        shared = _in_common(prompts[rows[0]], prompts[rows[-1]], start)
        ends = tuple(row for row in rows if len(prompts[row]) == shared)
        if len(ends) == len(rows) or (len(rows) - 1) * (shared - start) > forward:
            pieces.append(Piece(before, rows[0], start, shared, ends))
            before, start, rows = len(pieces) - 1, shared, rows[len(ends) :]
        ended = rows[: sum(len(prompts[row]) == shared for row in rows)]
        if ended:  # a short beginning of the others, which is read beside them
            pieces.append(Piece(before, ended[0], start, shared, tuple(ended)))
            rows = rows[len(ended) :]
        branches = [list(branch) for _, branch in groupby(rows, key=lambda row: prompts[row][shared])]
        todo += [(branch, before, start) for branch in reversed(branches)]
    return pieces


def tokens_read(pieces: Iterable[Piece]) -> int:
    """How many tokens go through the model.

    >>> tokens_read(prefix_tree([(1, 2, 3, 4), (1, 2, 3, 5)], forward=2))
    5
    """
    return sum(piece.stop - piece.start for piece in pieces)


def _in_common(one: Prompt, other: Prompt, start: int) -> int:
    """After how many tokens two prompts differ, which have the first ``start`` in common."""
    most = min(len(one), len(other))
    return next((at for at in range(start, most) if one[at] != other[at]), most)
