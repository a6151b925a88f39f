"""One recurrence for all three scans: what it was given over some tokens, and the state it walks through.

With the factor a_t of the state before, what token t writes (w_t along the key B_t), and the read-out C_t,

    h_t = a_t h_{t-1} + w_t B_t^T,   y_t = h_t C_t,   a_t = exp(rate step_t), and 0 at a reset.

- RG-LRU: a head is a channel, d_head = d_state = 1, B = C = 1, step = ln a and rate = 1; w = sqrt(1 - a^2) i x, without
  the root at a reset. (arXiv 2402.19427, eq. 4)
- Mamba-1: a head is a channel, d_head = 1; step = dt, rate = A, w = dt x. (arXiv 2312.00752, alg. 2)
- Mamba-2: step = dt, rate = A, w = dt x; heads share the keys and read-outs of a group. (arXiv 2405.21060)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segregation.shapes import PositionMask

HeldState = Float[Tensor, "batch head d_head d_state"]


@dataclass(frozen=True, eq=False)
class Recurrence:
    """What the scan of one layer was given in one forward pass, in fp32 (``step`` of an RG-LRU in fp64, as it is ln a).

    Attributes:
        step: step_t of each head.
        rate: A of each head and number of its state; one number where all have the same.
        reset: before which tokens the state is set to zero.
        write: w_t.
        keys: B_t of each group of heads.
        reads: C_t of each group of heads.
        skip: D x_t, which is added to y_t past the state; ``None`` for RG-LRU.
        gate: by what y_t + D x_t is multiplied inside the scan; ``None`` where the gate comes after it.
        initial: the state before the first token; ``None`` is zero.
    """

    step: Float[Tensor, "batch pos head"]
    rate: Float[Tensor, " head #d_state"]
    reset: PositionMask
    write: Float[Tensor, "batch pos head d_head"]
    keys: Float[Tensor, "batch pos group d_state"]
    reads: Float[Tensor, "batch pos group d_state"]
    skip: Float[Tensor, "batch pos head d_head"] | None = None
    gate: Float[Tensor, "batch pos head d_head"] | None = None
    initial: HeldState | None = None

    @property
    def begins(self) -> bool:
        """Whether the state before the first token is zero, so that the tokens here are all that it comes from."""
        return self.initial is None or not bool(self.initial.any())

    def decay(self, pos: int) -> Float[Tensor, "batch head #d_state"]:
        """a_t of one token."""
        decay = (self.rate * self.step[:, pos, :, None]).exp().to(self.write.dtype)
        return decay.masked_fill(self.reset[:, pos, None, None], 0)

    def key(self, pos: int) -> Float[Tensor, "batch head d_state"]:
        """B_t of one token, by head."""
        return self._by_head(self.keys[:, pos])

    def read(self, pos: int) -> Float[Tensor, "batch head d_state"]:
        """C_t of one token, by head."""
        return self._by_head(self.reads[:, pos])

    def _by_head(self, of_group: Float[Tensor, "batch group d_state"]) -> Float[Tensor, "batch head d_state"]:
        return of_group.repeat_interleave(self.step.shape[2] // of_group.shape[1], dim=1)


def walk(recurrence: Recurrence, writers: PositionMask | None = None) -> Iterator[HeldState]:
    """h_t after every token, in order; with ``writers``, as if only those tokens wrote.

    The recurrence is linear, so the states of disjoint sets of writers (and of ``initial``) add up to the state.

    >>> ones = torch.ones(1, 3, 1, 1)
    >>> halving = Recurrence(torch.full((1, 3, 1), 0.5).log(), torch.ones(1, 1), ones[..., 0, 0] < 0, ones, ones, ones)
    >>> [state.item() for state in walk(halving)]
    [1.0, 1.5, 1.75]
    """
    batch, length, heads, d_head = recurrence.write.shape
    state = recurrence.initial
    if state is None:
        state = recurrence.write.new_zeros(batch, heads, d_head, recurrence.keys.shape[-1])
    for pos in range(length):
        write = recurrence.write[:, pos]
        if writers is not None:
            write = write.masked_fill(~writers[:, pos, None, None], 0)
        state = recurrence.decay(pos)[:, :, None] * state + write[..., None] * recurrence.key(pos)[:, :, None]
        yield state


def outputs(
    recurrence: Recurrence, writers: PositionMask | None = None
) -> tuple[Float[Tensor, "batch pos head d_head"], HeldState]:
    """All y_t, and the last state; with ``writers``, what comes from those tokens (and from ``initial``) alone."""
    found: list[Tensor] = []
    state = recurrence.initial
    for pos, state in enumerate(walk(recurrence, writers)):
        found.append((state * recurrence.read(pos)[:, :, None]).sum(-1))
    assert state is not None
    return torch.stack(found, dim=1), state


def states_after(recurrence: Recurrence, columns: Sequence[int]) -> Float[Tensor, "column batch head d_head d_state"]:
    """The state after each of these tokens, which are given in order."""
    wanted = set(columns)
    return torch.stack([state for pos, state in enumerate(walk(recurrence)) if pos in wanted])
