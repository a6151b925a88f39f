"""How the time and the memory of a prefill grow with its tokens T: exponents fitted to measurements, with intervals.

Run it with ``python -m benchmarks.scaling``: bundled architectures with random weights on a CPU, or any on a GPU with
``--device cuda``. One prompt; the plan keeps four heads of lowest entropy of each layer at every position. Ways:

- ``sdpa``: transformers' own attention, no plan (the base); all ways have this package's scans;
- ``eager``: transformers' attention with weights, no plan, up to ``--eager-up-to`` tokens;
- ``plan, one pass``: the plan where attention itself measures its rows (``models.entropy_attention``);
- ``plan, again``: the plan where heads are scored beside sdpa, from its queries and keys.

Memory is the most that one prefill adds, in a process of its own (resident, on a CPU) or of what torch has allocated on
the device. The exponent of the longest row of a way is of all its rows: the slope of the log of time or memory over the
log of T by least squares, with its 95% interval from the t distribution.
"""

import argparse
import ctypes
import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy import stats
from torch import Tensor

from benchmarks import by_hand
from benchmarks.published import PUBLISHED
from benchmarks.subjects import MODELS, Subject, subject
from benchmarks.timing import Timed, append, interleaved, table
from segregation.errors import SampleError
from segregation.interventions.rules import KeepTopHeads, Plan
from segregation.models.entropy_attention import NAME, use_entropy_attention

TOKENS = (256, 512, 1024, 2048, 4096)
WARM_UP = 16
"""Tokens of a prefill that comes before any that counts."""
M_MMAP_THRESHOLD, MAPPED_FROM = -3, 2**16
"""glibc's setting, and its value: larger blocks are given back as soon as they are freed."""
WAYS = {"sdpa": "sdpa", "eager": "eager", "plan, one pass": NAME, "plan, again": "sdpa"}
"""Each way's attention."""

Prefill = Callable[[Int[Tensor, "1 pos"]], object]


def prefills(subject: Subject) -> dict[str, Prefill]:
    """One forward with a cache, with the logits of the last token, in every way."""
    use_entropy_attention()
    edited = subject.model.intervene(Plan(KeepTopHeads(by_hand.KEPT)))

    def in_way(way: str, ids: Tensor) -> object:
        run: Any = functools.partial(edited.trace, trace=False) if way.startswith("plan") else subject.plain
        for config in (subject.plain.config, subject.model.hf_model.config):
            config._attn_implementation = WAYS[way]
        with torch.no_grad():
            return run(ids, use_cache=True, logits_to_keep=1).logits

    return {way: functools.partial(in_way, way) for way in WAYS}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """The slope of log value over log size, and its 95% interval.

    Raises:
        SampleError: fewer than three sizes, which leave no residual.

    >>> [round(number, 6) for number in exponent([1, 2, 4, 8], [3, 12, 48, 192])]
    [2.0, 2.0, 2.0]
    """
    if len(sizes) < 3:
        raise SampleError(f"an exponent with an interval needs at least 3 sizes, got {len(sizes)}")
    fit: Any = stats.linregress(np.log(sizes), np.log(values))
    half = float(stats.t.ppf(0.975, len(sizes) - 2)) * float(fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def added_memory(run: Prefill, ids: Int[Tensor, "1 pos"], device: str) -> float:
    """The most memory that a prefill adds, in MiB, once a prefill of ``WARM_UP`` tokens has run."""
    if device == "cuda":
        run(ids[:, :WARM_UP])
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(ids)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    context = multiprocessing.get_context("fork")  # the child starts with the model, and with no memory freed before
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_send_resident, args=(run, ids, send))
    child.start()
    send.close()
    added = receive.recv()
    child.join()
    return added


def _send_resident(run: Prefill, ids: Int[Tensor, "1 pos"], send: Any) -> None:
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
    run(ids[:, :WARM_UP])
    libc.malloc_trim(0)  # what is free is given back, so that taking it again counts
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest mark of resident memory starts anew
    before = _resident("VmRSS")
    run(ids)
    send.send((_resident("VmHWM") - before) / 1024)


def _resident(what: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what))


def measure(subject: Subject, lengths: Sequence[int], eager_up_to: int, rounds: int, device: str) -> list[Timed]:
    """Every way at every length, and the exponents of each way beside its longest."""
    runs = prefills(subject)
    ids = torch.randint(8, subject.model.d_vocab, (1, max(lengths)), device=device)
    held: dict[tuple[str, int], float] = {}
    found: list[tuple[int, Timed]] = []
    cases = {tokens: [way for way in WAYS if way != "eager" or tokens <= eager_up_to] for tokens in lengths}
    for tokens, ways in cases.items():  # before anything is timed, as a process that has freed memory takes less anew
        for way in ways:
            held[way, tokens] = added_memory(runs[way], ids[:, :tokens], device)
    for way in WAYS:
        runs[way](ids[:, :WARM_UP])
    for tokens, ways in cases.items():
        calls = {way: lambda way=way, tokens=tokens: runs[way](ids[:, :tokens]) for way in ways}
        rows = interleaved("scaling", f"{subject.name}, T = {tokens:,}", calls, "sdpa", rounds=rounds, warm_up=0)
        found += [(tokens, dataclasses.replace(row, notes={"MiB": held[row.way, tokens]})) for row in rows]
    return [
        dataclasses.replace(row, notes={**row.notes, **_exponents(own)}) if (tokens, row) == own[-1] else row
        for tokens, row in found
        for own in [[one for one in found if one[1].way == row.way]]
    ]


def _exponents(own: Sequence[tuple[int, Timed]]) -> dict[str, float]:
    if len(own) < 3:
        return {}
    sizes = [float(tokens) for tokens, _ in own]
    values = {"time": [row.seconds for _, row in own], "memory": [float(row.notes["MiB"]) for _, row in own]}
    notes = {}
    for what, measured in values.items():
        if min(measured) > 0:
            slope, low, high = exponent(sizes, measured)
            notes |= {f"{what} exponent": slope, f"{what} exponent low": low, f"{what} exponent high": high}
    return notes


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=(*MODELS, *PUBLISHED))
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--eager-up-to", type=int, default=4096, help="tokens; eager holds a full pattern")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        made = subject(name, device=options.device)
        rows = measure(made, options.tokens, options.eager_up_to, options.rounds, options.device)
        print(table(rows), flush=True)
        if options.out is not None:
            append(options.out, rows)


if __name__ == "__main__":
    main()
