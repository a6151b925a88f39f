"""What the same ablation costs in pyvene and TransformerLens, where their logits are those of hooks by hand.

Run it with ``python -m benchmarks.peers --peers FOLDER`` after ``pip install --target FOLDER --no-deps pyvene
transformer_lens``; neither is a dependency, and the row of the base says which could be imported. One plan is compared,
zeroing one head everywhere, since it is the one that they can do (``NOT_TIMED`` says why not the others). Models and
prompts are those of ``overhead``, but every way has transformers' own scans: pyvene takes all hooks off a module before
it runs, and with them those that hand over to this package's scans.
"""

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import by_hand
from benchmarks.overhead import BASE, NEW_TOKENS, TOLERANCE, Output, Way, generated, plain_generate
from benchmarks.subjects import MODELS, Prompts, Subject, needle_prompts, subject
from benchmarks.timing import Timed, append, interleaved, table
from segregation.models.source import WEIGHTS

PROMPT, BATCH = 128, 1

NOT_TIMED = {
    "pyvene, keep 4 heads; pyvene, hide the needle": "an intervention is given one tensor of one module; attention "
    "weights are no module's tensor, and the keys of earlier tokens lie in the cache",
    "TransformerLens, tiny-recurrentgemma": "its adapter has hooks at the borders of layers only, none at heads",
    "TransformerLens, keep 4 heads": "hook_pattern runs after the output projection has read z",
    "TransformerLens, hide the needle": "it warns that edits at hook_attn_scores and hook_pattern are discarded, since "
    "transformers' own attention has already run",
}
"""What is not timed, and why; found with pyvene 0.1.8 and transformer_lens 4.3.0."""


class CannotDo(Exception):
    """A package has no place for the edit in this model."""


def pyvene(subject: Subject, prompts: Prompts) -> Way:
    """A function on the input of the output projection."""
    package: Any = importlib.import_module("pyvene")
    place, d_head = subject.heads[0], subject.model.d_head

    def zero(z: Tensor, _source: None) -> Tensor:
        z[..., :d_head] = 0  # it is a copy
        return z

    path = place.attention.replace(f".{place.layer}.", f"[{place.layer}].")
    edited = package.IntervenableModel(
        {"component": f"{path}.{place.out_proj}.input", "intervention": zero}, model=subject.another()
    )

    def generate(ids: Tensor, **options: Any) -> Any:
        # without locations this flag means every step, the prompt included
        return edited.generate({"input_ids": ids}, intervene_on_prompt=True, **options)[1]

    return generated(generate, prompts.ids)


def transformer_lens(subject: Subject, prompts: Prompts) -> Way:
    """A hook on z; its bridge makes attention eager."""
    package: Any = importlib.import_module("transformer_lens.model_bridge")
    bridge = package.TransformerBridge.boot_transformers(
        str(WEIGHTS / subject.name), hf_model=subject.another(), tokenizer=subject.model.tokenizer, device="cpu"
    )
    name = f"blocks.{subject.heads[0].layer}.attn.hook_z"
    if name not in bridge.hook_dict:
        raise CannotDo(f"no {name}")

    def zero(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 0] = 0
        return z

    def run(new: int) -> Output:
        with bridge.hooks(fwd_hooks=[(name, zero)]):
            options = {"max_new_tokens": new, "stop_at_eos": False, "do_sample": False, "verbose": False}
            return Output.of(bridge.generate(prompts.ids, **options, output_logits=True).logits)

    return run


PEERS: Mapping[str, Callable[[Subject, Prompts], Way]] = {"pyvene": pyvene, "transformer_lens": transformer_lens}


def measure(subject: Subject, prompt: int, batch: int, new: int, rounds: int) -> list[Timed]:
    """This package, hooks by hand, and every peer that can be imported and gives the same logits."""
    prompts = needle_prompts(subject, prompt, batch)
    by_hand.check(subject, prompts, new)
    plan = by_hand.plans(subject)[by_hand.ZERO]
    eager = subject.another()
    eager.set_attn_implementation("eager")
    hooked = by_hand.with_hooks(subject.another(), subject.heads, by_hand.ZERO, prompts)
    ways: dict[str, Way] = {
        BASE: generated(plain_generate(subject.plain), prompts.ids),
        "plain, eager": generated(plain_generate(eager), prompts.ids),
        "by hand": generated(plain_generate(hooked), prompts.ids),
        "ours": generated(subject.model.intervene(plan).generate, list(prompts.samples)),
    }
    reference = ways["by hand"](new)
    said: dict[str, float | str] = {}
    notes: dict[str, dict[str, float | str]] = {BASE: said}
    for name, make in PEERS.items():
        try:
            way = make(subject, prompts)
        except ImportError as error:
            said[name] = f"cannot be imported ({error})"
            continue
        except CannotDo as error:
            said[name] = str(error)
            continue
        away = way(new).away(reference)
        if away > TOLERANCE:
            said[name] = f"gives other logits (by {away:.2g})"
            continue
        ways[name] = way
        notes[name] = {"logits off by": away, "version": importlib.metadata.version(name)}
    return interleaved(
        "peers",
        f"{subject.name}, {by_hand.ZERO}, {prompt} x {batch}",
        {name: lambda way=way: way(new) for name, way in ways.items()},
        BASE,
        rounds=rounds,
        notes=notes,
    )


def main() -> None:
    """Print a table for each model, and what is not timed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--peers", type=Path, help="a folder with pyvene and transformer_lens")
    parser.add_argument("--prompt", type=int, default=PROMPT)
    parser.add_argument("--new", type=int, default=NEW_TOKENS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peers is not None:
        sys.path.append(str(options.peers))
    with torch.no_grad():
        for name in options.models:
            rows = measure(subject(name, "transformers"), options.prompt, BATCH, options.new, options.rounds)
            print(table(rows), flush=True)
            if options.out is not None:
                append(options.out, rows)
    print(*(f"- {what}: {why}." for what, why in NOT_TIMED.items()), sep="\n")


if __name__ == "__main__":
    main()
