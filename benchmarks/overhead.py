"""What a sparsified, traced ``generate`` costs over plain transformers: ratios of interleaved medians.

Run it with ``python -m benchmarks.overhead``. Every round runs each way once on the same batch, so that a
slow moment of the machine hits all; a ratio is the median over rounds of (way / plain) within a round. The ways:

- ``plain``: transformers' own ``generate``, on a module that NNsight has never touched, with our CPU scan (the base);
- ``untouched``: the same with transformers' own scan;
- ``traced``: the same batch in ``model.intervene(KeepTopHeads(k=4, entropy, GENERATION)).generate``;
- ``runs.generate``: our batched runner under the same plan, per-prompt prefill and merged caches included;
- ``8 plans, each``: the runner under k = 0..7 at once, per plan.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import (
    GenerationMixin,
    JambaConfig,
    JambaForCausalLM,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)
from transformers.models.jamba import modeling_jamba

from segregation.interventions.phase import Phase
from segregation.interventions.rules import KeepTopHeads, Plan
from segregation.models.hybrid import HybridModel
from segregation.models.scans import use_rg_lru_scan
from segregation.runs.launch import Prefills, Row, run_rows

NEW_TOKENS = 32
REPORTED = ("untouched", "traced", "runs.generate", "8 plans, each")


def recurrentgemma() -> PreTrainedModel:
    """Nine layers, 256 wide, window 1152; random weights."""
    return RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            num_hidden_layers=9,
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=512,
            num_attention_heads=8,
            num_key_value_heads=1,
            attention_window_size=1152,
            eos_token_id=None,
        )
    ).eval()


def jamba() -> PreTrainedModel:
    """Eight layers, 256 wide, four experts; random weights."""
    return JambaForCausalLM(
        JambaConfig(
            num_hidden_layers=8,
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=512,
            num_attention_heads=8,
            num_key_value_heads=2,
            attn_layer_period=4,
            attn_layer_offset=2,
            num_experts=4,
            eos_token_id=None,
        )
    ).eval()


def runner(model: HybridModel, ids: torch.Tensor, plans: list[Plan]) -> Callable[[], object]:
    """All prompts under all plans through the batched runner."""

    def step(_running: torch.Tensor, _number: int, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best = logits.argmax(-1)
        return best, torch.zeros_like(best, dtype=torch.bool)

    def run() -> None:
        prompts = [tuple(prompt) for prompt in ids.tolist()]
        rows = [
            Row(i * len(plans) + j, prompt, plan) for i, prompt in enumerate(prompts) for j, plan in enumerate(plans)
        ]
        ordered, memory = Prefills(model).of(rows)
        run_rows(model, ordered, memory, NEW_TOKENS, step)

    return run


def original_scan(run: Callable[[], object]) -> None:
    """Run with transformers' own Mamba scan in place of ours."""
    ours = modeling_jamba.mamba_selective_scan
    modeling_jamba.mamba_selective_scan = getattr(ours, "__wrapped__", ours)
    try:
        run()
    finally:
        modeling_jamba.mamba_selective_scan = ours


def measure(module: PreTrainedModel, tokenizer: object, prompt: int, batch: int, rounds: int) -> dict[str, float]:
    """Median ratio of every way to plain ``generate``."""
    plain, untouched = copy.deepcopy(module), copy.deepcopy(module)
    use_rg_lru_scan(unit for unit in plain.modules() if hasattr(unit, "_rnn_scan"))
    model = HybridModel(module, tokenizer, {"name": "random"})  # type: ignore[arg-type]
    plan = Plan(KeepTopHeads(4, during=Phase.GENERATION))
    edited = model.intervene(plan)
    ids = torch.randint(8, 4096, (batch, prompt))
    transformers_generate = cast(Any, GenerationMixin).generate
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    sweep = [Plan(KeepTopHeads(k, during=Phase.GENERATION)) for k in range(8)]
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: transformers_generate(plain, ids, **options),
        "untouched": lambda: original_scan(lambda: transformers_generate(untouched, ids, **options)),
        "traced": lambda: edited.generate(ids, **options),
        "runs.generate": runner(model, ids, [plan]),
        "8 plans, each": runner(model, ids, sweep),
    }
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for round_number in range(rounds + 1):
            seconds = {}
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name] = time.perf_counter() - start
            seconds["8 plans, each"] /= len(sweep)
            if round_number:  # the first round warms up
                for name in ways:
                    ratios[name].append(seconds[name] / seconds["plain"])
    return {name: statistics.median(values) for name, values in ratios.items()}


def main() -> None:
    """Print one line per family, prompt length and batch size."""
    from transformers import AutoTokenizer

    from segregation.models.load import WEIGHTS, bundled_models

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads; 1 where a neighbour may be busy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / bundled_models()[0])
    print(f"{'family':15} {'prompt':>6} {'batch':>5}  " + "  ".join(f"{name:>14}" for name in REPORTED))
    for build in (recurrentgemma, jamba):
        for prompt, batch in ((512, 1), (512, 4), (1024, 4)):
            found = measure(build(), tokenizer, prompt, batch, options.rounds)
            print(
                f"{build.__name__:15} {prompt:6} {batch:5}  " + "  ".join(f"{found[name]:14.2f}" for name in REPORTED),
                flush=True,
            )


if __name__ == "__main__":
    main()
