"""The delta rule token by token, for what its form in chunks cannot do: set the state to zero on the way."""

import torch
from jaxtyping import Float
from torch import Tensor

from segregation.shapes import PositionMask

DeltaState = Float[Tensor, "batch head d_key d_value"]


def delta_rule(
    query: Float[Tensor, "batch pos group d_key"],
    key: Float[Tensor, "batch pos group d_key"],
    value: Float[Tensor, "batch pos head d_value"],
    g: Float[Tensor, "batch pos head *d_key"],
    beta: Float[Tensor, "batch pos head"],
    initial: DeltaState | None = None,
    resets: PositionMask | None = None,
) -> tuple[Float[Tensor, "batch pos head d_value"], DeltaState]:
    """S = exp(g_t) S, then S = S + beta_t k_t (v_t - S^T k_t)^T, y_t = S^T q_t / sqrt(d_key), with q and k normed.

    In fp32; all y_t and the last S. At the tokens of ``resets`` S is zero before that. (arXiv 2412.06464, eq. 10; with
    a g for each channel 2510.26692)

    >>> one = torch.ones(1, 2, 1, 1)
    >>> outputs, state = delta_rule(one, one, one, torch.zeros(1, 2, 1), one[..., 0])
    >>> [round(y, 4) for y in outputs.flatten().tolist()], round(state.item(), 4)  # what is known is not written again
    ([1.0, 1.0], 1.0)
    """
    repeats = value.shape[2] // key.shape[2]
    query, key = (_normed(t.float()).repeat_interleave(repeats, dim=2) for t in (query, key))
    value, beta, g = value.float(), beta.float(), g.float()
    g = g[..., None] if g.dim() == 3 else g
    batch, length, heads, width = value.shape
    state = value.new_zeros(batch, heads, key.shape[-1], width) if initial is None else initial.float()
    outputs: list[Tensor] = []
    for t in range(length):
        if resets is not None:
            state = state.masked_fill(resets[:, t, None, None, None], 0)
        state = state * g[:, t, ..., None].exp()
        known = (state * key[:, t, ..., None]).sum(-2)
        state = state + key[:, t, ..., None] * ((value[:, t] - known) * beta[:, t, :, None])[..., None, :]
        outputs.append((state * query[:, t, ..., None]).sum(-2) / key.shape[-1] ** 0.5)
    return torch.stack(outputs, dim=1), state


def _normed(vectors: Float[Tensor, "*rows d_key"]) -> Float[Tensor, "*rows d_key"]:
    return vectors * torch.rsqrt((vectors * vectors).sum(-1, keepdim=True) + 1e-6)
