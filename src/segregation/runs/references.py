"""Files that rules read, made from runs: what mixers put out over some samples, and what prompts left in memory."""

from collections.abc import Iterable
from pathlib import Path

import torch
from nnsight import save
from safetensors.torch import save_file
from torch import Tensor

from segregation.errors import PlanError, SampleError
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.models.stored import rows_of_memory, write_rows
from segregation.prompts.sample import Sample
from segregation.runs.generate import checked_spans, encode_checked, listed, whole_plan
from segregation.runs.launch import prefill

POOL = 4096
"""Outputs kept of each layer for ``"resample"``, when no number is given."""


def mixer_outputs(
    model: HybridModel, samples: Iterable[Sample], path: str | Path, *, pool: int = POOL, seed: int = 0
) -> None:
    """Write what every recurrent mixer adds to the residual over all positions of the samples' prompts.

    Per layer the mean over positions and samples, and ``pool`` outputs drawn from them without replacement (all of them
    where there are fewer), the same positions in every layer. ``AblateRecurrent("mean" or "resample", source=path)``
    reads it. Prompts are read one by one; plans that the model carries act.

    Args:
        model: the model.
        samples: the reference; take others than those that are scored.
        path: where the safetensors file goes.
        pool: outputs kept of each layer.
        seed: draws the positions.

    Raises:
        PlanError: a pool below 1, or a model without recurrent layers.
        SampleError: no sample, or a prompt that is too long.
    """
    chosen = listed(samples, Plan())[0]
    if pool < 1 or not model.recurrent_layers:
        raise PlanError(
            f"a pool of 1 or more outputs of each recurrent layer is kept, got {pool}, of a model with "
            f"{len(model.recurrent_layers)} such layers"
        )
    if not chosen:
        raise SampleError("a reference needs samples, got none")
    parts: dict[int, list[Tensor]] = {layer: [] for layer in model.recurrent_layers}
    for sample in chosen:
        encode_checked(model, sample, 0)
        for layer, output in _outputs(model, sample).items():
            parts[layer].append(output[0].float().cpu())
    found = {layer: torch.cat(outputs) for layer, outputs in parts.items()}
    positions = len(next(iter(found.values())))
    drawn = torch.randperm(positions, generator=torch.Generator().manual_seed(seed))[:pool]
    tensors = {f"{layer}/mean": whole.double().mean(0).float() for layer, whole in found.items()}
    tensors |= {f"{layer}/pool": whole[drawn].contiguous() for layer, whole in found.items()}
    save_file(tensors, str(path), {"positions": str(positions), "samples": str(len(chosen)), "seed": str(seed)})


def prompt_memories(
    model: HybridModel,
    samples: Iterable[Sample],
    path: str | Path,
    plan: Plan = Plan(),  # noqa: B008 (a frozen value)
) -> None:
    """Write what each sample's prompt but its last token leaves in the model's memory; ``PatchState`` reads it.

    A row is patched from the memory with its own sample id, so give the samples to read *from* the ids of those to
    patch *into*: ``dataclasses.replace(corrupt, id=clean.id)``. Prompts are read one by one.

    Args:
        model: the model; plans that it carries act.
        samples: whose prompts are read, each of two tokens or more.
        path: where the safetensors file goes.
        plan: what else acts on the prompts.

    Raises:
        SampleError: a prompt of one token, which leaves nothing, or the same id twice.
    """
    tensors: dict[str, Tensor] = {}
    lengths: dict[str, int] = {}
    acted = whole_plan(model, plan)
    for sample in listed(samples, Plan())[0]:
        prompt = encode_checked(model, sample, 0)
        if len(prompt) < 2 or sample.id in lengths:
            reason = "is there twice" if sample.id in lengths else f"has a prompt of {len(prompt)} token"
            raise SampleError(f"sample {sample.id!r} {reason}; a memory is of one prompt of two tokens or more")
        spans = checked_spans(model, sample, len(prompt), [acted])
        with torch.no_grad():
            memory = prefill(model, [prompt], [plan], [spans])
        tensors |= rows_of_memory(model, memory, [sample.id])
        lengths[sample.id] = len(prompt) - 1
    model.reset()
    write_rows(path, tensors, lengths)


def _outputs(model: HybridModel, sample: Sample) -> dict[int, Tensor]:
    """What every recurrent mixer puts out, read in one forward pass."""
    with torch.no_grad(), model.trace(sample):
        found = save([model.mixer(layer).output for layer in model.recurrent_layers])
    outputs = [output[0] if isinstance(output, tuple) else output for output in found]
    return dict(zip(model.recurrent_layers, outputs, strict=True))
