"""Attention with entropies on a CPU with numba: the keys in blocks as well, each score read and written once.

A running softmax (arXiv 1805.02867) lets blocks of scores stay in the CPU's cache however many keys there are. Beside
the largest score and the sum of exponentials it carries what entropy and norm are made of.
"""

# pyright: reportPossiblyUnboundVariable=false
import collections
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segregation.models.attention import AttentionCall
from segregation.models.compiled_loops import F, available, compiled, empty, exp, numba
from segregation.models.entropy_chunks import HIDDEN, Measure, Mixed, RowMeasures, put_rows, to_be_written, write_scores
from segregation.models.gradients import needs_grad

SCORES = 2**19
"""How many scores are to be held at once, over the rows of a batch and their heads: 2 MB, which a cache holds."""
KEYS, QUERIES, FEWEST = 512, 128, 16
"""The fewest keys in a block, and the most and the fewest queries, which the batch and the window bound further.

Where batch times heads is over 64, ``KEYS`` times ``FEWEST`` scores of each are more than ``SCORES``.
"""

FEWEST_KEYS, MOST_THREADS = 64, 2
"""From how many keys on, and up to how many threads of torch, blocks are taken rather than the forms in PyTorch.

With fewer keys a call of numba takes longer than what it saves; its loops run in one thread, so that attention in
PyTorch wins where that has many. In docs/benchmarks.md blocks take 0.7 to 1.31 times as long as
chunks do, the latter where heads are wide.
"""

if numba is not None:
    _HIDDEN = F(HIDDEN)
    _LAST, _REST = np.int32(31), np.int32(2**31 - 1)
    _SMALLEST = np.int32(np.float32(-np.inf).view(np.int32) ^ _REST)

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
        largest, self._sum, self._squares, self._weighted, self._factor = state = empty(5, rows).zero_().unbind()
        largest.fill_(HIDDEN)
        self._arrays = [one.numpy() for one in state]

    def take(self, scores: Float[Tensor, "rows src"]) -> Float[Tensor, "rows 1"]:
        """Put exp(s - m) in place of the next scores; what sums of earlier ones are to be multiplied by.

        >>> running, block = RunningSoftmax(1), torch.zeros(1, 2)
        >>> running.take(block), block, running.measured("entropy")  # two keys alike: ln 2
        (tensor([[0.]]), tensor([[1., 1.]]), tensor([0.6931]))
        """
        _take(scores.numpy(), scores.view(torch.int32).numpy(), *self._arrays)
        return self._factor[:, None]

    @property
    def total(self) -> Float[Tensor, " rows"]:
        """Z of each row; 1 where no key was seen (or all that were score under -1e30), whose sums are all 0.

        >>> RunningSoftmax(2).total
        tensor([1., 1.])
        """
        return torch.where(self._sum == 0, 1.0, self._sum)

    def measured(self, measure: Measure) -> Float[Tensor, " rows"]:
        """The entropy of the rows of the pattern, in nats, or their Euclidean norm.

        >>> RunningSoftmax(2).measured("l2")
        tensor([0., 0.])
        """
        if measure == "l2":
            return self._squares.sqrt() / self.total
        return self.total.log() - self._weighted / self.total


def attend_in_blocks(
    call: AttentionCall, start: int = 0, stop: int = 0, measures: Iterable[Measure] = ()
) -> tuple[Mixed, dict[Measure, RowMeasures]]:
    """What ``entropy_chunks.attend`` gives, with the same arguments.

    >>> q, kv = torch.zeros(1, 2, 4, 8), torch.ones(1, 1, 4, 8)
    >>> attend_in_blocks(AttentionCall(q, kv, kv, None, 1.0, None), 3, 4, ["entropy"])[1]["entropy"]  # ln 4
    tensor([[[1.3863],
             [1.3863]]])
    """
    batch, heads, queries, _ = call.query.shape
    kv = call.key.shape[1]
    output, found = to_be_written(call, stop - start, measures)
    for first, last, running, blocks in _runs(call, 0, queries):
        mixed = empty(batch * kv, heads // kv * (last - first), output.shape[-1]).zero_()
        for keys, scores, factor in blocks:
            value = call.value[:, :, keys].float()
            mixed.mul_(factor).baddbmm_(scores, value.reshape(batch * kv, *value.shape[2:]))
        mixed /= running.total.view(*mixed.shape[:2], 1)
        output[:, first:last] = mixed.view(batch, heads, last - first, -1).transpose(1, 2)
        for one, rows in found.items():
            put_rows(rows, start, running.measured(one).view(batch, heads, last - first), first)
    return output, found


def attends_in_blocks(call: AttentionCall) -> bool:
    """Whether ``attend_in_blocks`` is the form to take: where numba runs, from 64 keys on, in one thread or two.

    >>> short = torch.zeros(1, 1, 2, 8)
    >>> attends_in_blocks(AttentionCall(short, short, short, None, 1.0, None))
    False
    """
    long = call.key.shape[2] >= FEWEST_KEYS and torch.get_num_threads() <= MOST_THREADS
    return long and available(call.query, call.key, call.value, call.mask)


def measures_in_blocks(call: AttentionCall) -> bool:
    """Whether ``measure_in_blocks`` is: with numba, from 64 keys on, without gradients, and under no additive mask.

    Where it is not, rows of the pattern are made and measured in PyTorch, which took up to 12 times as long for 1,024
    tokens (docs/benchmarks.md). The masks of an eager model are additive.

    >>> short = torch.zeros(1, 1, 2, 8)
    >>> measures_in_blocks(AttentionCall(short, short, short, None, 1.0, None))
    False
    """
    if call.key.shape[2] < FEWEST_KEYS or (call.mask is not None and call.mask.dtype != torch.bool):
        return False
    return available(call.query, call.key, call.mask) and not needs_grad(call.query, call.key)


def measure_in_blocks(call: AttentionCall, start: int, stop: int, measure: Measure) -> RowMeasures:
    """What the queries ``start..stop`` measure, without the output; a mask with four dimensions must be boolean.

    >>> q, k = torch.zeros(1, 2, 4, 8), torch.ones(1, 1, 4, 8)
    >>> measure_in_blocks(AttentionCall(q, k, k, None, 1.0, None), 1, 3, "l2")[0, 0]  # roots of 1/2 and 1/3
    tensor([0.7071, 0.5774])
    """
    found = empty(*call.query.shape[:2], stop - start)
    for first, last, running, blocks in _runs(call, start, stop):
        collections.deque(blocks, maxlen=0)
        put_rows(found, start, running.measured(measure).view(*found.shape[:2], last - first), first)
    return found


Block = tuple[slice, Float[Tensor, "rows dest src"], Float[Tensor, "rows dest 1"]]
"""Some keys, ``exp(s - m)`` of them for the rows of each key head, and the factor of what was summed before."""


def _runs(call: AttentionCall, start: int, stop: int) -> Iterator[tuple[int, int, RunningSoftmax, Iterator[Block]]]:
    """The queries ``start..stop``, some at a time, with the blocks of their keys; each block is gone after its turn."""
    batch, heads, queries, _ = call.query.shape
    kv, past = call.key.shape[1], call.key.shape[2] - queries
    step = min(_queries_at_once(call), max(1, stop - start))
    width = _keys_at_once(call, step)
    room = empty(batch * heads * step * width)

    def blocks(first: int, last: int, running: RunningSoftmax) -> Iterator[Block]:
        end = past + last
        if call.mask is not None and call.mask.dim() == 4 and call.mask[..., first:last, end:].any():
            end = call.key.shape[2]  # somebody's own mask, which lets a query see later keys
        for left in range(call.first_key(first), end, width):
            right = min(left + width, end)
            shape = batch * kv, heads // kv * (last - first), right - left
            scores = room[: math.prod(shape)].view(shape)
            write_scores(call, first, last, left, scores)
            yield slice(left, right), scores, running.take(scores.flatten(0, 1)).view(*shape[:2], 1)

    for first in range(start, stop, step):
        last = min(first + step, stop)
        running = RunningSoftmax(batch * heads * (last - first))
        yield first, last, running, blocks(first, last, running)


def _queries_at_once(call: AttentionCall) -> int:
    """Fewer where the batch is large, or where a window would be exceeded by much."""
    batch, heads, queries, _ = call.query.shape
    most = min(QUERIES, SCORES // max(1, batch * heads * KEYS), queries if call.window is None else call.window // 8)
    return max(1, min(queries, max(FEWEST, most)))


def _keys_at_once(call: AttentionCall, queries: int) -> int:
    batch, heads = call.query.shape[:2]
    return min(call.key.shape[2], max(KEYS, SCORES // max(1, batch * heads * queries)))
