"""What a sweep over k costs when prompts are read once, against one prompt under one plan at a time.

Run it with ``python -m benchmarks.sweep``. The sweep keeps k = 0..n_heads heads of lowest entropy in generation, over
prompts of one length, on the bundled hybrids. The ways:

- ``one by one``: what a script does: transformers' own module with its eager attention, which gives the weights, an
  attention function that zeroes the other heads at the newest token, and ``generate`` for every prompt and k;
- ``traced``: ``model.intervene(plan).generate`` for every prompt and k;
- ``sg.generate``: all prompts and plans handed over at once.

Each is called once before, on a prompt or two. Tokens are compared row by row with those of ``one by one``. Beside the
time that passed stands that of the processor, which tells more where others use it as well.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import eager_mask

import segregation as sg
from benchmarks.timing import append, interleaved, table
from segregation.models.source import WEIGHTS

MODELS = ("tiny-recurrentgemma", "tiny-jamba")
_Rows = dict[tuple[int, int], tuple[int, ...]]


def top_heads_by_hand(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Eager attention whose newest query keeps the ``module.config.kept_heads`` heads of lowest entropy."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, weights = eager(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    pattern = weights[:, :, -1].float()
    entropy = -(pattern * pattern.clamp(min=1e-30).log()).sum(-1)
    dropped = entropy.argsort(dim=-1, stable=True)[:, module.config.kept_heads :]
    output[:, -1].scatter_(1, dropped[..., None].expand(-1, -1, output.shape[-1]), 0)
    return output, weights


def measure(name: str, prompts: int, tokens: int, new: int, rounds: int, path: Path | None) -> str:
    """Time the three ways on one model; the table of it."""
    AttentionInterface.register("top_heads_by_hand", top_heads_by_hand)
    AttentionMaskInterface.register("top_heads_by_hand", eager_mask)
    model = sg.load_model(name)
    stock: Any = AutoModelForCausalLM.from_pretrained(
        WEIGHTS / name, attn_implementation="top_heads_by_hand", dtype=model.dtype
    ).eval()
    stock.generation_config.eos_token_id = model.hf_model.generation_config.eos_token_id = None
    grid = sg.needle_grid(model.tokenizer, context_lengths=(tokens,), depth_percents=range(0, 100, 100 // prompts))
    samples = grid[:prompts]
    plans = [sg.Plan(sg.KeepTopHeads(k, during=sg.Phase.GENERATION)) for k in range(model.n_heads + 1)]
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    found: dict[str, _Rows] = {}
    processor: dict[str, float] = {}

    def one_by_one() -> None:
        found["one by one"] = {}
        for i, sample in enumerate(samples):
            ids = torch.tensor([model.encode(sample)])
            for k in range(len(plans)):
                stock.config.kept_heads = k
                for block in stock.modules():  # RecurrentGemma keeps states on its modules from one run to the next
                    if hasattr(block, "recurrent_states"):
                        block.recurrent_states = None
                    if hasattr(block, "conv1d_state"):
                        block.conv1d_state = None
                out = stock.generate(ids, **options)
                found["one by one"][i, k] = tuple(out[0, ids.shape[1] :].tolist())

    def traced() -> None:
        found["traced"] = {}
        for k, plan in enumerate(plans):
            edited = model.intervene(plan)
            for i, sample in enumerate(samples):
                out = edited.generate(sample, **options)
                found["traced"][i, k] = tuple(out[0, len(model.encode(sample)) :].tolist())

    def together() -> None:
        records = list(sg.generate(model, samples, plans, max_new_tokens=new, batch_size=len(samples) * len(plans)))
        found["sg.generate"] = {divmod(number, len(plans)): record.tokens for number, record in enumerate(records)}

    with torch.no_grad():
        stock.config.kept_heads = 1  # first calls compile and look things up, which is no part of a sweep
        stock.generate(torch.tensor([model.encode(samples[0])]), max_new_tokens=2)
        model.intervene(plans[1]).generate(samples[0], max_new_tokens=2)
        list(sg.generate(model, samples[:2], plans[:2], max_new_tokens=2))
        rows = interleaved(
            "sweep",
            f"{name}, k = 0..{model.n_heads}, {len(samples)} prompts of {tokens} tokens, {new} new",
            {
                label: functools.partial(_timed, label, way, processor)
                for label, way in (("one by one", one_by_one), ("traced", traced), ("sg.generate", together))
            },
            "one by one",
            rounds=rounds,
            warm_up=0,
        )
    base = found["one by one"]
    for row in rows:
        same = sum(tokens == base[key] for key, tokens in found[row.way].items())
        notes: dict[str, float | str] = row.notes  # type: ignore[assignment]
        notes |= {"rows equal": f"{same} of {len(base)}", "processor seconds": processor[row.way]}
        notes["processor speed-up"] = processor["one by one"] / processor[row.way]
    if path is not None:
        append(path, rows)
    return table(rows)


def _timed(name: str, way: Callable[[], None], processor: dict[str, float]) -> None:
    """Run a way, and note the processor's seconds that it took last."""
    start = time.process_time()
    way()
    processor[name] = time.process_time() - start


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=900, help="of haystack and needle; the prompt is some longer")
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.models:
        print(measure(name, options.prompts, options.tokens, options.new, options.rounds, options.out), flush=True)


if __name__ == "__main__":
    main()
