"""The same attention as ``entropy_chunks.attend`` in one pass on a GPU, as a Triton kernel.

Each program holds some queries of one head and walks over the keys that they can reach. Beside the running maximum m
and sum Z of e = exp(s - m) it carries sum e (s - m) and sum e^2; when m rises to m', with r = exp(m - m'), they become
r (sum e (s - m) + (m - m') Z) and r^2 sum e^2. Products of bf16 are exact in fp32, so scores are fp32 in any dtype; the
weights are rounded to the values' dtype before they are multiplied, as in every fused attention.
"""

# pyright: reportPossiblyUnboundVariable=false, reportOptionalMemberAccess=false, reportMissingImports=false

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor

from segregation.models.attention import AttentionCall
from segregation.models.entropy_chunks import HIDDEN, Measure, Mixed, RowMeasures

try:
    import triton
    import triton.language as tl
except ImportError:  # torch without a GPU: nothing here is called
    triton = None

LOG2_E = 1.4426950408889634

if triton is not None:

    def _attend(  # type: ignore
        q, k, v, mask, out, entropy, norm,
        q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, mask_batch, out_batch, out_row,
        heads, group, queries, keys, d_head, d_value, scale, window, first, rows, hidden,
        MASKED: tl.constexpr, MEASURED: tl.constexpr,
        BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr, WIDE_V: tl.constexpr,
    ):  # fmt: skip
        # scores are in units of ln 2, which exp2 wants
        batch = (tl.program_id(1) // heads).to(tl.int64)
        head = (tl.program_id(1) % heads).to(tl.int64)
        row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        column = tl.arange(0, WIDE)
        column_v = tl.arange(0, WIDE_V)
        lane = tl.arange(0, BLOCK_K)
        dest = row + (keys - queries)
        inside = row < queries
        query_at = q + batch * q_batch + head * q_head + row[:, None].to(tl.int64) * q_row + column[None, :]
        query = tl.load(query_at, mask=inside[:, None] & (column < d_head)[None, :], other=0.0)
        k_of = k + batch * k_batch + (head // group) * k_head
        v_of = v + batch * v_batch + (head // group) * v_head
        largest = tl.full((BLOCK_Q,), hidden, tl.float32)
        total = tl.zeros((BLOCK_Q,), tl.float32)
        moment = tl.zeros((BLOCK_Q,), tl.float32)
        square = tl.zeros((BLOCK_Q,), tl.float32)
        mixed = tl.zeros((BLOCK_Q, WIDE_V), tl.float32)
        reach = keys - queries + tl.program_id(0) * BLOCK_Q
        begin = tl.maximum(reach - window + 1, 0) // BLOCK_K * BLOCK_K
        end = tl.minimum(reach + BLOCK_Q, keys)
        for start in range(begin, end, BLOCK_K):
            src = start + lane
            there = src < keys
            key_at = k_of + src[None, :].to(tl.int64) * k_row + column[:, None]
            key = tl.load(key_at, mask=there[None, :] & (column < d_head)[:, None], other=0.0)
            score = tl.dot(query, key, input_precision="ieee") * scale
            seen = (src[None, :] <= dest[:, None]) & (src[None, :] > dest[:, None] - window)
            if MASKED:
                real = tl.load(mask + batch * mask_batch + src, mask=there, other=0)
                seen = seen & (real != 0)[None, :]
            score = tl.where(seen, score, hidden)
            above = tl.maximum(largest, tl.max(score, 1))
            score -= above[:, None]
            weight = tl.where(seen, tl.exp2(score), 0.0)
            shrink = tl.exp2(largest - above)
            if MEASURED:
                moment = shrink * (moment + (largest - above) * total) + tl.sum(weight * score, 1)
                square = shrink * shrink * square + tl.sum(weight * weight, 1)
            total = shrink * total + tl.sum(weight, 1)
            value_at = v_of + src[:, None].to(tl.int64) * v_row + column_v[None, :]
            value = tl.load(value_at, mask=there[:, None] & (column_v < d_value)[None, :], other=0.0)
            mixed = mixed * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
            largest = above
        safe = tl.where(total > 0, total, 1.0)  # a row that sees no key is zero in everything
        out_at = out + batch * out_batch + row[:, None].to(tl.int64) * out_row + head * d_value + column_v[None, :]
        mixed = mixed / safe[:, None]
        tl.store(out_at, mixed.to(out.dtype.element_ty), mask=inside[:, None] & (column_v < d_value)[None, :])
        if MEASURED:
            slot = tl.program_id(1).to(tl.int64) * rows + row - first
            wanted = (row >= first) & (row < first + rows)
            tl.store(entropy + slot, (tl.log2(safe) - moment / safe) * 0.6931471805599453, mask=wanted)
            tl.store(norm + slot, tl.sqrt(square) / safe, mask=wanted)

    # jit reads the function's own globals, which a type-checking import hook would hide behind its wrapper
    _kernel = triton.jit(inspect.unwrap(_attend))


def attend_on_gpu(
    call: AttentionCall, start: int = 0, stop: int = 0, measures: Iterable[Measure] = ()
) -> tuple[Mixed, dict[Measure, RowMeasures]]:
    """What ``attend`` gives, in one launch."""
    query, key, value = (one if one.stride(-1) == 1 else one.contiguous() for one in (call.query, call.key, call.value))
    batch, heads, queries, d_head = query.shape
    kv, keys, d_value = key.shape[1], key.shape[2], value.shape[-1]
    output = value.new_empty(batch, queries, heads, d_value)
    entropy, norm = query.new_empty(2, batch, heads, stop - start, dtype=torch.float32)
    mask = None if call.mask is None else call.mask.contiguous().view(torch.uint8)
    wide, wide_v = (max(16, triton.next_power_of_2(one)) for one in (d_head, d_value))
    block_q, block_k, warps, stages = _blocks(wide * query.element_size())
    with torch.cuda.device(query.device):
        _kernel[(triton.cdiv(queries, block_q), batch * heads)](
            *(query, key, value, query if mask is None else mask, output, entropy, norm),
            *(stride for one in (query, key, value) for stride in one.stride()[:3]),
            *(0 if mask is None else mask.stride(0), output.stride(0), output.stride(1)),
            *(heads, heads // kv, queries, keys, d_head, d_value, call.scaling * LOG2_E),
            *(keys if call.window is None else call.window, start, stop - start, HIDDEN),
            MASKED=mask is not None,
            MEASURED=stop > start,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            WIDE=wide,
            WIDE_V=wide_v,
            num_warps=warps,
            num_stages=stages,
        )
    found: dict[Measure, Tensor] = {"entropy": entropy, "l2": norm}
    return output, {one: found[one] for one in measures}


def _blocks(row_bytes: int) -> tuple[int, int, int, int]:
    """Queries and keys held at once, warps and stages, by the bytes of a row: what is held must fit shared memory."""
    return (128, 64, 8, 2) if row_bytes <= 256 else (64, 32, 4, 2) if row_bytes <= 512 else (32, 32, 4, 1)
