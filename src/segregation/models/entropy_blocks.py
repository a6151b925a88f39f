"""``entropy_attention`` on a CPU with numba: the keys in blocks as well, each score read and written once.

A running softmax (arXiv 1805.02867) lets blocks of scores stay in the CPU's cache however many keys there are. Beside
the largest score and the sum of exponentials it carries what entropy and norm are made of.
"""

# pyright: reportPossiblyUnboundVariable=false
import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segregation.models.attention import AttentionCall
from segregation.models.compiled_loops import F, compiled, exp, numba
from segregation.models.entropy_attention import HIDDEN, Measure, Mixed, RowMeasures, write_scores

SCORES = 2**19
"""Scores that are held at once, over the rows of a batch and their heads; 2 MB."""
KEYS, QUERIES, FEWEST = 512, 128, 16
"""The fewest keys in a block, and the most and the fewest queries, which the batch and the window bound further."""

if numba is not None:
    _HIDDEN = F(HIDDEN)
    _LAST, _REST, _SMALLEST = np.int32(31), np.int32(2**31 - 1), np.int32(-(2**31))

    def _largest_bits(bits):  # type: ignore
        """The largest of a line of floats, found by their bits: a maximum of floats is vectorised only without NaNs.

        With all bits but the sign flipped where that is set, whole numbers are in the order of the floats.
        """
        largest = _SMALLEST
        for i in range(bits.shape[0]):
            ordered = np.int32(bits[i] ^ ((bits[i] >> _LAST) & _REST))
            largest = ordered if ordered > largest else largest
        return np.int32(largest ^ ((largest >> _LAST) & _REST)).view(F)

    _largest = compiled(_largest_bits)

    def _exp_line(scores, largest):  # type: ignore
        """exp(s - m) in place of a line of scores, with the sums of it, of its squares, and of it times s - m."""
        total, squares, weighted = F(0.0), F(0.0), F(0.0)
        for i in range(scores.shape[0]):
            hidden = scores[i] <= _HIDDEN
            below = F(0.0) if hidden else scores[i] - largest
            e = F(0.0) if hidden else exp(below)
            scores[i] = e
            total += e
            squares += e * e
            weighted += e * below
        return total, squares, weighted

    _exponentials = compiled(_exp_line, "contract", "reassoc", "nsz")

    def _run_on(scores, bits, largest, total, squares, weighted, factor):  # type: ignore
        """Take another block into the sums of each row, which ``factor`` brings down to its new largest score."""
        for row in range(scores.shape[0]):
            found = _largest(bits[row])
            new = largest[row] if largest[row] >= found else found  # a NaN becomes the largest
            one, two, three = _exponentials(scores[row], new)
            lower = largest[row] - new
            down = F(math.exp(lower))
            weighted[row] = down * (weighted[row] + lower * total[row]) + three
            total[row] = down * total[row] + one
            squares[row] = down * down * squares[row] + two
            largest[row], factor[row] = new, down

    _take = compiled(_run_on)


class RunningSoftmax:
    """What is known of rows of scores of which some blocks were seen.

    With m the largest score, Z = sum(exp(s - m)) and p = exp(s - m) / Z, the entropy is ln Z - sum(p (s - m)).
    """

    def __init__(self, rows: int) -> None:
        """Rows that have seen no key."""
        self._state = torch.zeros(5, rows)
        self._state[0] = HIDDEN
        self._arrays = [one.numpy() for one in self._state]

    def take(self, scores: Float[Tensor, "rows src"]) -> Float[Tensor, "rows 1"]:
        """Put exp(s - m) in place of the next scores; what sums of earlier ones are to be multiplied by.

        >>> running, block = RunningSoftmax(1), torch.zeros(1, 2)
        >>> running.take(block), block, running.entropy()  # two keys alike: ln 2
        (tensor([[0.]]), tensor([[1., 1.]]), tensor([0.6931]))
        """
        _take(scores.numpy(), scores.view(torch.int32).numpy(), *self._arrays)
        return self._state[4, :, None]

    @property
    def total(self) -> Float[Tensor, " rows"]:
        """Z of each row; 1 where no key was seen, whose sums are all 0."""
        return torch.where(self._state[1] == 0, 1.0, self._state[1])

    def entropy(self) -> Float[Tensor, " rows"]:
        """In nats."""
        return self.total.log() - self._state[3] / self.total

    def l2(self) -> Float[Tensor, " rows"]:
        """The Euclidean norm of the pattern's row."""
        return self._state[2].sqrt() / self.total


def attend_in_blocks(
    call: AttentionCall, start: int = 0, stop: int = 0, measures: Iterable[Measure] = ()
) -> tuple[Mixed, dict[Measure, RowMeasures]]:
    """What ``entropy_attention.attend`` gives, with the same arguments.

    >>> q, kv = torch.zeros(1, 2, 4, 8), torch.ones(1, 1, 4, 8)
    >>> attend_in_blocks(AttentionCall(q, kv, kv, None, 1.0, None), 3, 4, ["entropy"])[1]["entropy"]  # ln 4
    tensor([[[1.3863],
             [1.3863]]])
    """
    batch, heads, queries, _ = call.query.shape
    kv, past = call.key.shape[1], call.key.shape[2] - queries
    output = call.value.new_empty(batch, queries, heads, call.value.shape[-1])
    found: dict[Measure, Tensor] = {one: torch.zeros(batch, heads, stop - start) for one in measures}
    step = _queries_at_once(call)
    room = torch.empty(batch * heads * step * _keys_at_once(call, step))  # one place for all blocks
    for first in range(0, queries, step):
        last = min(first + step, queries)
        rows = heads // kv * (last - first)  # of each key head
        running, mixed = RunningSoftmax(batch * kv * rows), torch.zeros(batch * kv, rows, output.shape[-1])
        begin, end, width = call.first_key(first), past + last, _keys_at_once(call, step)
        for left in range(begin, end, width):
            right = min(left + width, end)
            scores = room[: batch * kv * rows * (right - left)].view(batch * kv, rows, right - left)
            write_scores(call, first, last, left, scores)
            factor = running.take(scores.flatten(0, 1)).view(batch * kv, rows, 1)
            value = call.value[:, :, left:right].float()
            mixed.mul_(factor).baddbmm_(scores, value.reshape(batch * kv, *value.shape[2:]))
        mixed /= running.total.view(batch * kv, rows, 1)
        output[:, first:last] = mixed.view(batch, heads, last - first, -1).transpose(1, 2)
        wanted = slice(max(first, start), min(last, stop))
        for one in found if wanted.start < wanted.stop else ():
            values = (running.entropy() if one == "entropy" else running.l2()).view(batch, heads, last - first)
            own = values[..., wanted.start - first : wanted.stop - first]
            found[one][..., wanted.start - start : wanted.stop - start] = own
    return output, found


def _queries_at_once(call: AttentionCall) -> int:
    """Fewer where the batch is large, or where a window would be exceeded by much."""
    batch, heads, queries, _ = call.query.shape
    most = min(QUERIES, SCORES // (batch * heads * KEYS), queries if call.window is None else call.window // 8)
    return max(1, min(queries, max(FEWEST, most)))


def _keys_at_once(call: AttentionCall, queries: int) -> int:
    batch, heads = call.query.shape[:2]
    return max(KEYS, SCORES // (batch * heads * queries))
