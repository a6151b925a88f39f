"""The model card of a model of the zoo, written from what its training and its evaluation left behind."""

from collections.abc import Mapping
from typing import Any

_TEMPLATE = """---
license: mit
language: en
library_name: transformers
tags: [{tag}, {family}, segregation]
---
# {name}

{what}

## Training
| | |
|---|---|
| data | {data} |
| tokens | {tokens:,} ({steps:,} steps of {batch} x {length}) |
| time and device | {seconds:.0f} s on {device} |
| optimiser | AdamW, betas {betas} |
| learning rate | {lr:g}; warm-up over {warmup} steps, linear to 0 over the last {decay:.0%} |
| seed | {seed} |
| versions | {versions} |
| weights | bf16 safetensors, sha256 `{weights_sha256}` |

The stream of training data depends on the number of loader processes ({workers}), and GPU sums on their order: another
run gives another model, to be measured anew.

Runs made on the way: {attempts}

## Held-out figures
By `python -m segregation.zoo.evaluate {name}` (fp32, CPU). Needles and haystacks lie on the held-out side of a fixed
split: a text or coined word is held out where the CRC-32 of its lower-case form is divisible by 5; a topic of the
Python reference where the character codes of its name add up to an odd number. The classic San Francisco
needle, its question and their telling phrases occur in no training text.

| gate | measured | bound | n | 95% interval |
|---|---|---|---|---|
{gates}

Exact retrieval, by context length and by depth (in %):

| gate | {lengths} | {depths} |
|---|{bars}
{parts}
"""


_HYBRID = """A tiny hybrid ({parameters:.2f} M parameters, {family}), trained from scratch by `python -m segregation.zoo.train` so
that experiments on attention and recurrence need no download. It opens with plain
`AutoModelForCausalLM.from_pretrained`. It finds sentences in a context and copies them, answers questions about a
made-up world, and judges reviews and entailments of a synthetic language. It is no use for anything else."""  # noqa: E501

_CONTROL = """A control beside [`{control_of}`](../{control_of}/README.md) ({parameters:.2f} M parameters, {family}): every mixer is of
one kind, all else, seed and stream of data are as in it. It is trained from scratch by `python -m segregation.zoo.train`
and opens with plain `AutoModelForCausalLM.from_pretrained`. A control need not pass the gates below: they say what a
model with this kind of mixer alone reaches. It is no use for anything else."""  # noqa: E501


def render(training: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The card in markdown, from ``training.json`` and ``gates.json``."""
    recipe, gates = training["recipe"], figures["gates"]
    cells = [gate for gate in gates if gate["by_length"]]
    lengths, depths = list(cells[0]["by_length"]), list(cells[0]["by_depth"])
    kind = {"tag": "control", "what": _CONTROL} if "control_of" in training else {"tag": "hybrid", "what": _HYBRID}
    return _TEMPLATE.format(
        tag=kind["tag"],
        what=kind["what"].format(family=recipe["family"], **training),
        **{key: recipe[key] for key in ("name", "family", "batch", "length", "lr", "warmup", "decay", "betas", "seed")},
        **{key: value for key, value in training.items() if key not in ("recipe", "attempts", "control_of")},
        attempts="".join(f"\n- {attempt}" for attempt in training["attempts"]),
        weights_sha256=figures["weights_sha256"],
        gates="\n".join(_gate(gate) for gate in gates),
        lengths=" | ".join(f"{length} tokens" for length in lengths),
        depths=" | ".join(f"{depth}%" for depth in depths),
        bars="---|" * (len(lengths) + len(depths)),
        parts="\n".join(
            f"| {gate['name']} | "
            + " | ".join(f"{rate:.3f}" for rate in [*gate["by_length"].values(), *gate["by_depth"].values()])
            + " |"
            for gate in cells
        ),
    )


def _gate(gate: Mapping[str, Any]) -> str:
    interval = "-" if gate["interval"] is None else "{:.3f} .. {:.3f}".format(*gate["interval"])
    if gate["name"] == "language":
        name, bound = "language: nats per token above the generator's", f"at most {gate['bound']}"
    else:
        name, bound = gate["name"], f"at least {gate['bound']}"
    return f"| {name} | {gate['measured']:.3f} | {bound} | {gate['n']} | {interval} |"
