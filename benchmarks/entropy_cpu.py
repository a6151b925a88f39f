"""Which form of attention that returns the entropy of its rows is best on a CPU: one call, timed, at sizes of layers.

Run it with ``python -m benchmarks.entropy_cpu``; inputs are random. Compared with attention without entropy (``sdpa``):

- ``blocks``: ``models.entropy_blocks``, keys in blocks, whose loops run in one thread;
- ``chunks``: ``models.entropy_chunks``, in PyTorch operations, some queries at a time;

and without an output, for heads that are scored beside sdpa, ``score, blocks`` with ``score, rows`` of the pattern,
some queries at a time. ``threads`` are torch's.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.timing import Timed, append, interleaved, table
from segregation.interventions.apply import scores_of_rows
from segregation.models.attention import AttentionCall
from segregation.models.entropy_blocks import attend_in_blocks, measure_in_blocks
from segregation.models.entropy_chunks import attend

LAYERS = ((8, 2, 32), (16, 4, 64), (32, 8, 128), (10, 1, 256))
"""Query heads, key heads and head size: bundled models, a small one, Jamba Mini, RecurrentGemma-2B."""


def measure(layer: tuple[int, int, int], tokens: int, threads: int, rounds: int) -> Iterator[Timed]:
    """With an output compared with sdpa, and without one with rows of the pattern."""
    heads, kv, d_head = layer
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, tokens, d_head) for n in (heads, kv, kv))
    call = AttentionCall(query, key, value, None, d_head**-0.5, None)
    keys, values = (one.repeat_interleave(heads // kv, 1) for one in (key, value))
    case = f"{heads} heads, {kv} of keys, of {d_head}; {tokens:,} tokens; threads: {threads}"

    def by_blocks() -> torch.Tensor:
        return attend_in_blocks(call, 0, tokens, ["entropy"])[1]["entropy"]

    def by_chunks() -> torch.Tensor:
        return attend(call, 0, tokens, ["entropy"])[1]["entropy"]

    forms: dict[str, Callable[[], object]] = {
        "sdpa": lambda: scaled_dot_product_attention(query, keys, values, is_causal=True),
        "blocks": by_blocks,
        "chunks": by_chunks,
    }
    apart = {"nats apart": float((by_blocks() - by_chunks()).abs().max())}
    yield from interleaved("entropy_cpu", case, forms, "sdpa", rounds=rounds, notes={"blocks": apart})
    scores: dict[str, Callable[[], object]] = {
        "score, rows": lambda: scores_of_rows(call, "entropy", 0, tokens),
        "score, blocks": lambda: measure_in_blocks(call, 0, tokens, "entropy"),
    }
    yield from interleaved("entropy_cpu", case, scores, "score, rows", rounds=rounds)


def main() -> None:
    """Print a table, and append its rows to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=(16, 64, 256, 1024))
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    options = parser.parse_args()
    with torch.inference_mode():
        for layer, (tokens, threads) in product(LAYERS, product(options.tokens, options.threads)):
            rows = list(measure(layer, tokens, threads, options.rounds))
            if options.out is not None:
                append(options.out, rows)
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
