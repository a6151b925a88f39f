"""What the entropy of every head at every position costs in a whole prefill on a CPU: ratios of interleaved medians.

Run it with ``python -m benchmarks.entropy``; it prints one JSON line per model and length, and a Markdown table at the
end. Models have random weights. With ``--scans ours``, this package's own scans, recurrence is fast, and attention
weighs as much as it can; with ``--scans transformers`` the base is what transformers does by itself. Ways:

- ``sdpa``: transformers' own attention, no entropy (the base);
- ``one pass``: ``models.entropy_attention``, with the entropy of every head at every position;
- ``again``: sdpa, and beside it entropies from its queries and keys: in blocks of keys, or of rows of the pattern;
- ``eager``: transformers' eager attention, and the entropy of the weights that it returns.

Memory is the highest that the process held above what it held before the prefill, each way in a process of its own.
Errors are against fp64, over all layers, at rows spread over the prompt.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import error
from segregation.interventions.apply import head_scores
from segregation.interventions.heads import entropy
from segregation.models.attention import AttentionCall
from segregation.models.entropy_attention import Asked, attention, padding, use_entropy_attention
from segregation.models.hybrid import HybridModel
from segregation.models.source import WEIGHTS

WAYS = ("sdpa", "one pass", "again", "eager")

_WIDTHS = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "recurrentgemma": {
        **{"model_type": "recurrent_gemma", **_WIDTHS, "num_hidden_layers": 9},
        **{"num_key_value_heads": 1, "attention_window_size": 512},
    },
    "jamba": {
        **{"model_type": "jamba", **_WIDTHS, "num_hidden_layers": 8, "num_key_value_heads": 2},
        **{"attn_layer_period": 4, "attn_layer_offset": 2, "num_experts": 4},
    },
}
"""Random models of more width than the bundled ones."""
MODELS = (*SIZES, "tiny-recurrentgemma", "tiny-jamba")


def build(name: str, dtype: torch.dtype, scans: str) -> Any:
    """A transformers model with random weights, of these sizes or of a bundled model's."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    at = WEIGHTS / (name if name not in SIZES else MODELS[-1])
    config = AutoConfig.for_model(**SIZES[name]) if name in SIZES else AutoConfig.from_pretrained(at)
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    if scans == "ours":
        HybridModel(module, AutoTokenizer.from_pretrained(at), {"name": name})  # which puts them in place
    return module


@dataclass
class Seen:
    """What the attention calls of one prefill left: their entropies, and what they were given if that is kept."""

    keep: bool = False
    found: list[Tensor] = field(default_factory=list)
    calls: list[AttentionCall] = field(default_factory=list)


SEEN = Seen()


def measured(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """This package's attention, asked for the entropy of every row."""
    asked = Asked(0, query.shape[2], {"entropy"})
    output, weights = attention(module, query, *args, **kwargs, asked=asked)
    _leave(asked.found["entropy"], query, *args, **kwargs)
    return output, weights


def computed_again(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """transformers' sdpa, and the pattern once more from its inputs."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output, _ = sdpa_attention_forward(module, query, *args, **kwargs)
    call = AttentionCall.of((module, query, *args), kwargs)
    _leave(-head_scores(call, "entropy", 0, query.shape[2]), query, *args, **kwargs)
    return output, None


def with_weights(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """transformers' eager attention, and the entropy of its weights."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, weights = eager(module, query, *args, **kwargs)
    _leave(entropy(weights), query, *args, **kwargs)
    return output, weights


def _leave(found: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> None:
    SEEN.found.append(found)
    if SEEN.keep:
        SEEN.calls.append(AttentionCall(query, key, value, None, kwargs["scaling"], kwargs.get("sliding_window")))


def register() -> None:
    """Make the ways known to transformers under their names."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

    use_entropy_attention()
    for name, function, mask in (
        ("one pass", measured, padding),
        ("again", computed_again, sdpa_mask),
        ("eager", with_weights, eager_mask),
    ):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, mask)


def prefill(module: Any, ids: Tensor, way: str) -> None:
    """One forward pass over the prompt, with the logits of its last token."""
    module.config._attn_implementation = way
    SEEN.found.clear()
    SEEN.calls.clear()
    with torch.no_grad():
        module(ids, logits_to_keep=1, use_cache=True)


def time_ways(
    name: str, tokens: int, ways: tuple[str, ...], dtype: torch.dtype, scans: str, rounds: int
) -> dict[str, Any]:
    """Median seconds of every way, median ratio to sdpa within a round with its quartiles, and errors."""
    module = build(name, dtype, scans)
    ids = torch.randint(8, module.config.vocab_size, (1, tokens))
    errors = {}
    for way in ways[1:]:
        SEEN.keep = True
        prefill(module, ids, way)
        errors[way] = max(error(call, found) for call, found in zip(SEEN.calls, SEEN.found, strict=True))
    SEEN.keep = False
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(rounds):
        for way in ways if round_number % 2 else ways[::-1]:
            start = time.perf_counter()
            prefill(module, ids, way)
            seconds[way].append(time.perf_counter() - start)
    ratios = {way: [own / base for own, base in zip(seconds[way], seconds["sdpa"], strict=True)] for way in ways}
    quartiles = {way: statistics.quantiles(ratios[way], n=4, method="inclusive") for way in ways}
    return {
        **{"model": name, "tokens": tokens, "dtype": str(dtype).removeprefix("torch."), "scans": scans},
        "seconds": {way: round(statistics.median(values), 4) for way, values in seconds.items()},
        "ratio": {way: [round(value, 3) for value in values] for way, values in quartiles.items()},
        "error": {way: float(f"{value:.2g}") for way, value in errors.items()},
    }


def peak(name: str, tokens: int, way: str, dtype: torch.dtype, scans: str) -> float:
    """The most memory that one prefill adds to this process, in MiB."""
    register()
    module = build(name, dtype, scans)
    ids = torch.randint(8, module.config.vocab_size, (1, tokens))
    prefill(module, ids[:, :64], way)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest mark of resident memory starts anew
    before = _resident("VmRSS")
    prefill(module, ids, way)
    return (_resident("VmHWM") - before) / 1024


def _resident(what: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what))


def _peaks(name: str, tokens: int, ways: tuple[str, ...], dtype: str, scans: str) -> Iterator[tuple[str, float]]:
    for way in ways:
        command = [sys.executable, "-m", "benchmarks.entropy", "--peak", way, "--models", name, "--scans", scans]
        done = subprocess.run(
            [*command, "--tokens", str(tokens), "--dtype", dtype, "--scans", scans],
            capture_output=True,
            text=True,
            check=True,
        )
        yield way, round(float(done.stdout.split()[-1]), 1)


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table of records: ratios with their quartiles, memory, errors."""
    lines = [
        "| model | tokens | sdpa s | " + " | ".join(f"{way} / sdpa" for way in WAYS[1:]) + " | MiB | error, nats |"
    ]
    lines.append("|---" * (len(WAYS) + 4) + "|")
    for one in records:
        ratios = ["{1:.2f} ({0:.2f}-{2:.2f})".format(*one["ratio"][w]) if w in one["ratio"] else "-" for w in WAYS[1:]]
        held = ", ".join(f"{way} {value:.0f}" for way, value in one["MiB"].items())
        wrong = ", ".join(f"{way} {value:.1g}" for way, value in one["error"].items())
        cells = [
            f"{one['model']}, {one['dtype']}, scans: {one['scans']}",
            f"{one['tokens']:,}",
            f"{one['seconds']['sdpa']:.2f}",
            *ratios,
        ]
        lines.append("| " + " | ".join([*cells, held, wrong]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print a record per model and length, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="sdpa is the base, and always runs")
    parser.add_argument("--eager-up-to", type=int, default=4096, help="tokens; eager holds a full pattern")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--scans", default="ours", choices=("ours", "transformers"), help="of the recurrent layers")
    parser.add_argument("--peak", choices=WAYS, help="only print the memory that this way adds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, options.dtype)
    if options.peak:
        print(peak(options.models[0], options.tokens[0], options.peak, dtype, options.scans))
        return
    register()
    records = []
    for name, tokens in product(options.models, options.tokens):
        asked = ("sdpa", *options.ways)
        ways = tuple(way for way in WAYS if way in asked and (way != "eager" or tokens <= options.eager_up_to))
        record = time_ways(name, tokens, ways, dtype, options.scans, options.rounds)
        records.append({**record, "MiB": dict(_peaks(name, tokens, ways, options.dtype, options.scans))})
        print(json.dumps(records[-1]), flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
