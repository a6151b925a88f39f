"""How much faster the scans are than transformers' own, alone and inside whole prefills: ratios within one process.

Run it with ``python -m benchmarks.scans``: on a CPU by default, on a GPU with ``--device cuda``. Every round runs each
form once, one after the other; a speed-up is the median over rounds of (transformers' own / form) within a round, with
the least and the most beside it. On a CPU the time is that of the process, so that neighbours are not counted. One JSON
line a case goes to stdout as it is done, and a Markdown table comes last. Weights are random.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.jamba import modeling_jamba
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

from segregation.models.hybrid import HybridModel
from segregation.models.scan_choice import use_scans
from segregation.models.scan_linear import linear_scan, scan_in_two_levels
from segregation.models.scan_mamba import fast_selective_scan, selective_scan_in_blocks
from segregation.models.scans import rg_lru_scan, selective_scan
from segregation.models.source import WEIGHTS

RG_LRU = ((1, 256, 512), (1, 256, 2048), (1, 256, 8192), (4, 256, 1024), (1, 1024, 2048), (1, 2560, 2048))
"""Rows, width (256: the bundled model; 2,560: RecurrentGemma-2B) and tokens."""

MAMBA = ((1, 512, 1024), (1, 512, 4096), (4, 512, 512), (1, 2048, 1024), (1, 8192, 256))
"""Rows, width (512: the bundled model; 8,192: Jamba Mini) and tokens; a state of 16 numbers a channel."""

PREFILLS = (("tiny-recurrentgemma", 1024), ("tiny-recurrentgemma", 4096), ("tiny-jamba", 1024), ("tiny-jamba", 4096))
"""Bundled models (their configs) and tokens."""

Forms = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Measured:
    """One form against transformers' own in one case.

    Attributes:
        case: what was run.
        form: which form.
        reference_ms: median time of transformers' own, in milliseconds.
        speedup: median over rounds of transformers' own time / this form's.
        least: the least over rounds.
        most: the most over rounds.
        error: largest difference of an output to transformers' own in fp64, over the largest of those outputs.
        reference_error: the same of transformers' own in fp32.
        load: the machine's load average over one minute; ``None`` on a GPU.
    """

    case: str
    form: str
    reference_ms: float
    speedup: float
    least: float
    most: float
    error: float | None
    reference_error: float | None
    load: float | None


def rg_lru(rows: int, width: int, tokens: int, device: str) -> tuple[Forms, Tensor]:
    """The forms of one RG-LRU scan from a state that is not zero, with resets, and what fp64 gives."""
    x, a = torch.randn(rows, tokens, width, device=device), torch.rand(rows, tokens, width, device=device)
    reset, state = torch.rand(rows, tokens, 1, device=device) < 0.01, torch.randn(rows, width, device=device)
    own: Any = RecurrentGemmaRglru._rnn_scan
    forms: dict[str, Callable[[], Any]] = {
        "transformers": lambda: own(None, x, a, reset, state)[0],
        "audit": lambda: rg_lru_scan(x, a, reset, state)[0],
        "fast": lambda: linear_scan(a, x, reset[..., 0], state),
    }
    if device == "cpu":
        forms["fast, without numba"] = lambda: scan_in_two_levels(a, x, reset[..., 0], state)
    return forms, own(None, x.double(), a.double(), reset, state.double(), acc_dtype=torch.float64)[0]


def mamba(rows: int, width: int, tokens: int, device: str) -> tuple[Forms, Tensor]:
    """The forms of one Mamba-1 scan with steps, skip and gate, and what fp64 gives."""
    x, z = (torch.randn(rows, tokens, width, device=device).mT for _ in range(2))
    keys, reads = (torch.randn(rows, tokens, 16, device=device).mT for _ in range(2))
    dt, bias, skip = torch.randn(rows, width, tokens, device=device), *torch.randn(2, width, device=device)
    rate = -torch.rand(width, 16, device=device) * 4
    options = {"D": skip, "z": z, "delta_bias": bias, "delta_softplus": True}
    own: Any = _own_mamba()
    forms: dict[str, Callable[[], Any]] = {
        "transformers": lambda: own(x, dt, rate, keys, reads, **options),
        "audit": lambda: selective_scan(x, dt, rate, keys, reads, **options),
        "fast": lambda: fast_selective_scan(x, dt, rate, keys, reads, **options),
    }
    if device == "cpu":
        forms["fast, without numba"] = lambda: selective_scan_in_blocks(x, dt, rate, keys, reads, **options)
    return forms, _mamba_in_fp64(x, dt, rate, keys, reads, skip, z, bias)


def prefill(name: str, tokens: int, device: str) -> Forms:
    """One forward with a cache over a prompt: on a module that was never wrapped, and on a model in each form."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(WEIGHTS / name)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / name)
    ids = torch.randint(8, 4000, (1, tokens), device=device)
    plain, model = copy.deepcopy(module), HybridModel(module, tokenizer)

    def in_form(form: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            use_scans(model, form)
            return model.trace(ids, trace=False, use_cache=True, logits_to_keep=1).logits

        return run

    return {
        "transformers": lambda: _stock(plain, ids),
        "audit": in_form("audit"),
        "fast": in_form("fast"),
    }


def measure(case: str, forms: Forms, exact: Tensor | None, rounds: int, device: str) -> Iterator[Measured]:
    """Run every form once a round, and compare; one round before them warms up and gives the errors."""
    first = {name: run() for name, run in forms.items()}
    errors = {name: None if exact is None else _error(output, exact) for name, output in first.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, run in forms.items():
            times[name].append(_seconds(run, device))
    for form in list(forms)[1:]:
        ratios = [own / ours for own, ours in zip(times["transformers"], times[form], strict=True)]
        yield Measured(
            case=case,
            form=form,
            reference_ms=round(1e3 * statistics.median(times["transformers"]), 3),
            speedup=round(statistics.median(ratios), 2),
            least=round(min(ratios), 2),
            most=round(max(ratios), 2),
            error=errors[form],
            reference_error=errors["transformers"],
            load=round(os.getloadavg()[0], 2) if device == "cpu" else None,
        )


def table(found: Sequence[Measured]) -> str:
    """What was measured, as a Markdown table."""
    lines = [
        "| case | form | transformers, ms | speed-up (least-most) | error / transformers' own | load |",
        "|-" * 6 + "|",
    ]
    for m in found:
        error = "" if m.error is None else f"{m.error:.1e} / {m.reference_error:.1e}"
        load = "" if m.load is None else f"{m.load}"
        lines.append(
            f"| {m.case} | {m.form} | {m.reference_ms} | {m.speedup} ({m.least}-{m.most}) | {error} | {load} |"
        )
    return "\n".join(lines)


def _stock(module: nn.Module, ids: Tensor) -> Tensor:
    ours, modeling_jamba.mamba_selective_scan = modeling_jamba.mamba_selective_scan, _own_mamba()
    try:
        return module(ids, use_cache=True, logits_to_keep=1).logits
    finally:
        modeling_jamba.mamba_selective_scan = ours


def _own_mamba() -> Any:
    """transformers' PyTorch scan, under whatever wraps it."""
    scan: Any = modeling_jamba.mamba_selective_scan
    while hasattr(scan, "__wrapped__"):
        scan = scan.__wrapped__
    return scan


def _mamba_in_fp64(x: Tensor, dt: Tensor, rate: Tensor, keys: Tensor, reads: Tensor, *rest: Tensor) -> Tensor:
    x, dt, rate, keys, reads, skip, z, bias = (t.double() for t in (x, dt, rate, keys, reads, *rest))
    step = nn.functional.softplus(dt + bias[:, None])
    state, outputs = x.new_zeros(*x.shape[:2], rate.shape[1]), []
    for t in range(x.shape[2]):
        state = (rate * step[:, :, t, None]).exp() * state + (step * x)[:, :, t, None] * keys[:, None, :, t]
        outputs.append((state * reads[:, None, :, t]).sum(-1))
    return (torch.stack(outputs, dim=-1) + x * skip[:, None]) * nn.functional.silu(z)


def _error(output: Any, exact: Tensor) -> float:
    return float((output.double() - exact).abs().max() / exact.abs().max())


def _seconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print one JSON line for each case and form, and the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: list[Measured] = []

    def run(case: str, forms: Forms, exact: Tensor | None = None) -> None:
        for measured in measure(case, forms, exact, options.rounds, options.device):
            found.append(measured)
            print(json.dumps(asdict(measured)), flush=True)

    with torch.no_grad():
        for make, sizes in ((rg_lru, RG_LRU), (mamba, MAMBA)):
            for rows, width, tokens in sizes:
                run(f"{make.__name__} {rows} x {width}, T = {tokens}", *make(rows, width, tokens, options.device))
        for name, tokens in PREFILLS:
            run(f"prefill {name}, T = {tokens}", prefill(name, tokens, options.device))
    print(table(found))


if __name__ == "__main__":
    main()
