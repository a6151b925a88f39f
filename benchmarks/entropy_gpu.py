"""Which form of attention that returns the entropy of its rows is best on a GPU: one call, timed, at real sizes.

Run it on a CUDA device with ``python -m benchmarks.entropy_gpu``; it prints one JSON line per call and form, and a
Markdown table at the end. Weights and inputs are random. Forms:

- ``sdpa``: transformers' own attention without entropy (the base), with the mask that it is given there;
- ``kernel``: ``models.entropy_kernel``, one pass;
- ``chunks``: ``models.entropy_chunks.attend``, the same in PyTorch operations, some queries at a time;
- ``flex``: compiled FlexAttention with its log-sum-exp, and a second pass with keys for values, which gives the mean
  score; the entropy is the difference of the two;
- ``eager``: a full pattern.

A form that does not fit the device says so. Errors are against fp64, at rows spread over the prompt.
"""

import argparse
import functools
import json
import statistics
from collections.abc import Callable, Mapping
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import error
from segregation.interventions.heads import entropy
from segregation.models.attention import AttentionCall
from segregation.models.entropy_chunks import attend
from segregation.models.entropy_kernel import attend_on_gpu

CALLS: Mapping[str, tuple[int, int, int, int | None]] = {
    "recurrentgemma-2b": (10, 1, 256, 2048),
    "jamba-mini": (32, 8, 128, None),
}
"""Query heads, key heads, head size and window of one layer."""


def sdpa(call: AttentionCall) -> tuple[Tensor, None]:
    """Output only; with a window transformers builds a full mask, which is counted."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    module: Any = SimpleNamespace(num_key_value_groups=call.query.shape[1] // call.key.shape[1], is_causal=True)
    mask = None if call.window is None else call.visible(0, call.query.shape[2])
    return sdpa_attention_forward(module, call.query, call.key, call.value, mask, scaling=call.scaling)[0], None


def by_kernel(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """One launch."""
    output, found = attend_on_gpu(call, 0, call.query.shape[2], ["entropy"])
    return output, found["entropy"]


def by_chunks(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """PyTorch operations."""
    output, found = attend(call, 0, call.query.shape[2], ["entropy"])
    return output, found["entropy"]


@functools.cache
def _flex(window: int | None, tokens: int) -> tuple[Callable[..., Any], Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(_batch: Tensor, _head: Tensor, dest: Tensor, src: Tensor) -> Tensor:
        return (dest >= src) & (dest - src < (window or tokens))

    mask = create_block_mask(seen, None, None, tokens, tokens, device="cuda", _compile=True)
    return torch.compile(flex_attention), mask


def by_flex(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Two passes; the mean score is taken in fp32 from keys that were mixed in the model's dtype."""
    function, mask = _flex(call.window, call.query.shape[2])
    options = {"block_mask": mask, "scale": call.scaling, "enable_gqa": True}
    output, total = function(call.query, call.key, call.value, return_lse=True, **options)
    mixed = function(call.query, call.key, call.key, **options)
    return output.transpose(1, 2), total - (call.query.float() * mixed.float()).sum(-1) * call.scaling


def eager(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """A full pattern, in fp32."""
    pattern = call.pattern()
    return call.mix(pattern[..., call.first_key(0) :], 0), entropy(pattern)


FORMS: Mapping[str, Callable[[AttentionCall], tuple[Tensor, Tensor | None]]] = {
    "sdpa": sdpa,
    "kernel": by_kernel,
    "chunks": by_chunks,
    "flex": by_flex,
    "eager": eager,
}


def measure(call: AttentionCall, form: str, rounds: int) -> dict[str, Any]:
    """Median milliseconds, the memory it adds beside its inputs, and the largest error of output and entropy."""
    run = FORMS[form]
    try:
        output, found = run(call)
        tokens = call.query.shape[2]
        last = max(0, tokens - 64)
        query, key, value = (one.float() for one in (call.query[:, :, last:], call.key, call.value))
        tail = AttentionCall(query, key, value, None, call.scaling, call.window)
        away = float((output[:, last:].float() - attend(tail)[0]).abs().max())
        wrong = None if found is None else error(call, found)
        del output, found
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(call)
        held = (torch.cuda.max_memory_allocated() - before) / 2**20
        times = []
        for _ in range(rounds):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run(call)
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
    except torch.OutOfMemoryError:
        return {"form": form, "fits": False}
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    rounded = {"ms": round(median, 3), "quartiles": [round(low, 3), round(high, 3)], "MiB": round(held, 1)}
    return {"form": form, "fits": True, **rounded, "output error": away, "entropy error": wrong}


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table of records."""
    columns = ("layer", "dtype", "tokens", "form", "ms", "MiB", "output error", "entropy error, nats")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for one in records:
        cells = [one["layer"], one["dtype"], f"{one['tokens']:,}", one["form"]]
        if one["fits"]:
            wrong = "-" if one["entropy error"] is None else f"{one['entropy error']:.1e}"
            cells += [f"{one['ms']:.2f}", f"{one['MiB']:.0f}", f"{one['output error']:.1e}", wrong]
        else:
            cells += ["does not fit", "-", "-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print a record per layer, dtype, length and form, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=list(CALLS), choices=CALLS)
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096, 16384, 32768, 131072])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=("bfloat16", "float32"))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    options = parser.parse_args()
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}))
    records = []
    for layer, dtype, tokens in product(options.layers, options.dtypes, options.tokens):
        heads, kv, width, window = CALLS[layer]
        torch.manual_seed(0)
        query, key, value = (
            torch.randn(1, one, tokens, width, device="cuda", dtype=getattr(torch, dtype)) for one in (heads, kv, kv)
        )
        call = AttentionCall(query, key, value, None, width**-0.5, window)
        for form in options.forms:
            with torch.no_grad():
                found = measure(call, form, options.rounds)
            torch.cuda.empty_cache()
            records.append({"layer": layer, "dtype": dtype, "tokens": tokens, **found})
            print(json.dumps(records[-1]), flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
