"""How fast RecurrentGemma 2B reads and writes on a GPU, how near to its memory bandwidth, and where the time goes.

Run it on a CUDA device with ``python -m benchmarks.speed_gpu``: random weights in bf16, one prompt, greedy. A prefill
is what passes until the first new token's logits are there, a step what passes from one token's to the next. Ways:

- ``plain``: transformers' own ``generate``, on modules that NNsight has never touched, with this package's scans;
- ``stock``: the same with transformers' own scans, up to ``--stock-up-to`` tokens;
- ``no plan``: this package's model;
- ``keep 4 heads``: the same under a plan that keeps four heads of lowest entropy at every position, with the attention
  that measures its rows as it runs.

The least that a step must move is every weight once (the embedding is also the output projection) and what the model
remembers. That over the step's time is compared with the bandwidth of a copy measured in the same run, and with that
of the device's data sheet. ``kernels_by_part`` tells where GPU time goes, in a run of its own that is profiled (not of
``stock``, whose scan has too many kernels); the rest of the time, as it is without the profiler, the GPU is idle.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks import by_hand
from benchmarks.kernels_by_part import mark_moment, marked, moments, seconds_of_parts, traced
from benchmarks.overhead import plain_generate
from benchmarks.published import PUBLISHED, build, word_tokenizer
from benchmarks.subjects import Subject, subject_of
from benchmarks.timing import Timed, append, compared, load_now, table
from segregation.interventions.rules import KeepTopHeads, Plan
from segregation.models.entropy_attention import NAME, use_entropy_attention

MODEL = "google/recurrentgemma-2b"
TOKENS = (1024, 4096, 16_384, 32_768)
BASE = "plain"
PROFILED_STEPS = 8
DATA_SHEET: Mapping[str, float] = {"H200": 4.8e12, "H100 80GB HBM3": 3.35e12}
"""Bytes a second by what the device's name contains, from NVIDIA's data sheets of H200 and H100 SXM."""
COPIED = 2**30
"""Bytes of the copy that measures bandwidth; it reads and writes as many."""


@dataclass
class Stamps(LogitsProcessor):
    """Notes when the logits of each new token are there, and leaves them as they are."""

    at: list[float] = field(default_factory=list)

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """Wait for the device, and note the time."""
        _wait()
        mark_moment()
        self.at.append(time.perf_counter())
        return scores


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


Way = Callable[[Tensor, int], tuple[float, float]]
"""Ids and new tokens -> seconds of the prefill, and of a step (the median)."""


def stamped(generate: Callable[..., Any]) -> Way:
    """Time the parts of a ``generate`` of transformers' form."""

    def run(ids: Tensor, new: int) -> tuple[float, float]:
        stamps = Stamps()
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "disable_compile": True}
        _wait()
        start = time.perf_counter()
        generate(ids, **options, logits_processor=LogitsProcessorList([stamps]))
        steps = [after - before for before, after in zip(stamps.at, stamps.at[1:], strict=False)]
        return stamps.at[0] - start, statistics.median(steps)

    return run


def ways(subject: Subject) -> dict[str, tuple[Way, nn.Module]]:
    """Every way, and the module that it runs; only the plan's attention measures its rows."""
    use_entropy_attention()
    module = subject.model.hf_model
    edited = subject.model.intervene(Plan(KeepTopHeads(by_hand.KEPT)))

    def under(attention: str, generate: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any, **options: Any) -> Any:
            module.config._attn_implementation = attention
            return generate(*inputs, **options)

        return run

    return {
        BASE: (stamped(plain_generate(subject.plain)), subject.plain),
        "stock": (stamped(plain_generate(subject.stock)), subject.stock),
        "no plan": (stamped(under("sdpa", subject.model.generate)), module),
        by_hand.KEEP: (stamped(under(NAME, edited.generate)), module),
    }


def remembered(module: nn.Module, cache: Any) -> int:
    """Bytes of a cache and of the states that lie on modules."""
    holders = [*cache.layers, *module.modules()]
    return sum(one.numel() * one.element_size() for holder in holders for one in vars(holder).values()
               if isinstance(one, Tensor) and one.is_floating_point())  # fmt: skip


def moved_in_a_step(subject: Subject, ids: Tensor) -> int:
    """The least bytes that a decode step after this prompt moves: weights, each once, and what is remembered."""
    weights = sum(one.numel() * one.element_size() for one in subject.plain.parameters())
    options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True}
    cache = plain_generate(subject.plain)(ids, **options).past_key_values
    return weights + remembered(subject.plain, cache)


def copy_bandwidth(device: str, size: int = COPIED) -> float:
    """Bytes a second of a copy on the device, read and written ones: the median of ten."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(11):
        _wait()
        start = time.perf_counter()
        target.copy_(source)
        _wait()
        seconds.append(time.perf_counter() - start)
    return 2 * size / statistics.median(seconds[1:])


def bandwidth_notes(moved: int, step: float, copied: float, device: str) -> dict[str, float | str]:
    """What a step moves, and its share of the bandwidth of a copy and of the data sheet's.

    >>> bandwidth_notes(6_000_000_000, 0.0025, 4.0e12, "NVIDIA H200")
    {'GB a step': 6.0, 'of the copy bandwidth': 0.6, 'of the data sheet': 0.5}
    """
    notes: dict[str, float | str] = {"GB a step": moved / 1e9, "of the copy bandwidth": moved / step / copied}
    for name, sheet in DATA_SHEET.items():
        if name in device:
            notes["of the data sheet"] = moved / step / sheet
    return notes


def parts(module: nn.Module, subject: Subject) -> dict[str, list[nn.Module]]:
    """The modules of each kind of a RecurrentGemma."""
    attention = {place.attention for place in subject.heads}
    found: dict[str, list[nn.Module]] = {}
    for path, one in module.named_modules():
        last = path.rpartition(".")[2]
        kinds = {"rg_lru": "RG-LRU", "mlp_block": "MLP", "lm_head": "lm_head",
                 "temporal_block": "attention" if path in attention else "recurrent block around it"}  # fmt: skip
        if last in kinds:
            found.setdefault(kinds[last], []).append(one)
    return found


def where(way: Way, module: nn.Module, subject: Subject, ids: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """GPU seconds by part, in the prefill and in one step."""
    cuda = [ProfilerActivity.CUDA] if ids.is_cuda else []
    with marked(parts(module, subject)):
        events = traced(lambda: way(ids, PROFILED_STEPS + 1), [ProfilerActivity.CPU, *cuda])
    at = moments(events)
    steps = seconds_of_parts(events, at[0], at[-1])
    return seconds_of_parts(events, 0.0, at[0]), {part: took / PROFILED_STEPS for part, took in steps.items()}


def shares(by_part: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Each part's share of the time, and that in which the GPU is idle; nothing where no kernel ran.

    >>> shares({"MLP": 0.5, "rest": 0.25}, 1.0)
    {'share MLP': 0.5, 'share rest': 0.25, 'share GPU idle': 0.25}
    """
    if not by_part:
        return {}
    found = {f"share {part}": took / seconds for part, took in sorted(by_part.items())}
    return {**found, "share GPU idle": 1 - sum(by_part.values()) / seconds}


def measure(subject: Subject, ids: Tensor, new: int, rounds: int, names: Sequence[str], copied: float) -> list[Timed]:
    """Prefill and steps of these ways after one prompt."""
    device = torch.cuda.get_device_name() if ids.is_cuda else "CPU"
    found = {name: pair for name, pair in ways(subject).items() if name in names}
    load, tokens = load_now(), ids.shape[1]
    prefills: dict[str, list[float]] = {name: [] for name in found}
    steps: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, (way, _) in found.items():
            prefill, step = way(ids, new)
            if number:  # the first round warms up
                prefills[name].append(prefill)
                steps[name].append(step)
    moved = moved_in_a_step(subject, ids)
    notes: dict[str, tuple[dict[str, float | str], dict[str, float | str]]] = {}
    for name, (way, module) in found.items():
        prefill, step = statistics.median(prefills[name]), statistics.median(steps[name])
        in_prefill, in_step = where(way, module, subject, ids) if name != "stock" else ({}, {})
        notes[name] = (
            {"tokens a second": tokens / prefill, **shares(in_prefill, prefill)},
            {"tokens a second": 1 / step, **bandwidth_notes(moved, step, copied, device), **shares(in_step, step)},
        )
    cases = (f"{device}, prefill, T = {tokens:,}", f"{device}, a step, T = {tokens:,}")
    return [
        row
        for number, (case, seconds) in enumerate(zip(cases, (prefills, steps), strict=True))
        for row in compared("speed_gpu", case, seconds, BASE, load=load,
                            notes={name: both[number] for name, both in notes.items()})
    ]  # fmt: skip


def main() -> None:
    """Print a table for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--new", type=int, default=33, help="new tokens, of which all but the first take a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stock-up-to", type=int, default=4096, help="tokens; its scan is a Python loop over them")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    options = parser.parse_args()
    published, device = PUBLISHED[MODEL], "cpu" if options.smoke else "cuda"
    config = published.config(**{**published.fields, **(published.tiny if options.smoke else {})})
    made = subject_of(MODEL, build(config, device), word_tokenizer(config), "fast")
    with torch.no_grad():
        copied = copy_bandwidth(device, 2**24 if options.smoke else COPIED)
        print(f"copy bandwidth: {copied / 1e12:.3g} TB/s")
        for tokens in options.tokens:
            ids = torch.randint(8, config.vocab_size, (1, tokens), device=device)
            names = [BASE, *(["stock"] if tokens <= options.stock_up_to else []), "no plan", by_hand.KEEP]
            rows = measure(made, ids, options.new, options.rounds, names, copied)
            print(table(rows), flush=True)
            if options.out is not None:
                append(options.out, rows)


if __name__ == "__main__":
    main()
