"""Plans written into a trace: the one place that edits activations.

Compiled plans are stored on a copy of the model by NNsight's ``edit()``: every later ``trace`` and ``generate`` of the
copy replays them step by step, before the user's own block, so what a user reads is already edited and plans stack.
A batch whose rows have different plans is one table with a row each, which lets one prefill be shared by many plans.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.tracer import InterleavingTracer
from torch import Tensor

from segregation.errors import PlanError
from segregation.interventions.heads import SCORES, SIGN, ablate, keep_top
from segregation.interventions.patching import Patched, patch_memory
from segregation.interventions.phase import PHASES, acting, phase_numbers
from segregation.interventions.recurrent_apply import edit_mixer, mixer_edits
from segregation.interventions.recurrent_tables import named_tokens
from segregation.interventions.rules import Plan
from segregation.interventions.tables import Compiled, LayerTable, compile_plans
from segregation.interventions.token_edits import TokenEdit, edits_of_layers, lookup
from segregation.models.attention import QUERY_CHUNK, AttentionCall
from segregation.models.channels import ATTENTION_CHANNELS, RECURRENT_CHANNELS
from segregation.models.entropy_attention import NAME, Asked, ask
from segregation.models.entropy_blocks import measure_in_blocks, measures_in_blocks
from segregation.models.entropy_chunks import Measure
from segregation.models.hybrid import HybridModel
from segregation.models.positions import MixerEdit, PatternEdit, Run, cache_of, forward_arguments, token_positions
from segregation.prompts.spans import TokenSpans
from segregation.shapes import HeadScores, Positions, PromptLengths


def enter(model: HybridModel, *plans: Plan) -> HybridModel:
    """A copy of the model on which the plan acts; with several plans, the i-th acts on row i of every batch.

    Raises:
        PlanError: a rule that is impossible on this model.
    """
    compiled = compile_plans(model, plans)
    if not compiled.layers:
        return cast(HybridModel, model._shallow_copy())
    editing: Any = model.edit()
    with editing as (tracer, edited):
        _follow(tracer, edited, compiled)
    return edited


def _follow(tracer: InterleavingTracer, model: HybridModel, compiled: Compiled) -> None:
    """Edit every forward of the run, anchored on the model's own input; returns when the run is over."""
    forward: Any = model
    lookups: list[Tensor] | None = None
    named: list[Tensor | None] | None = None
    own: list[TokenSpans | None] = []
    block = object()
    devices = {layer: _device(model, layer) for group in compiled.tokens for layer in group.acts}
    for _ in tracer.iter[:]:
        try:
            args, kwargs = forward.inputs
        except OutOfOrderError:
            return  # the run made no further step
        arguments = forward_arguments(model.hf_model, args, kwargs)
        positions, cache = token_positions(arguments), cache_of(arguments)
        lengths = _prompt_lengths(model.run.prompt_lengths, positions)
        phases = phase_numbers(positions, lengths)
        present = phases.flatten().bincount(minlength=PHASES + 1).tolist()
        first = _first_rows(model.run, len(phases))
        plan_of = _plan_of(compiled.plans, first, len(phases) if model.run.rows is None else None)
        edits: Mapping[int, TokenEdit] = {}
        mixers: Mapping[int, MixerEdit] = {}
        patched: Mapping[int, Sequence[Patched]] = {}
        if lookups is None or named is None:
            spans = model.run.spans or [None] * len(phases)
            own = [spans[row] for row in _first_of(first, len(spans)).tolist()]
            lookups = [lookup(group, plan_of, own, lengths) for group in compiled.tokens]
            named = named_tokens(compiled.recurrent, plan_of, own, lengths)
        if compiled.recurrent:
            patched = patch_memory(model, compiled.recurrent, own, plan_of, first, positions, lengths, cache)
            mixers = mixer_edits(compiled.recurrent, named, plan_of, first, positions, phases, lengths, present)
            model.run.mixers[block] = mixers
        if compiled.tokens:
            made = edits_of_layers(compiled.tokens, lookups, plan_of, first, positions, phases, lengths, present)
            # moved before any layer runs: blocks that stack read one another's edits, and find them by identity
            edits = {layer: edit.to(devices[layer]) for layer, edit in made.items()}
            model.run.edits[block] = edits
        for layer, part in model.in_order(compiled.layers):
            channels = ATTENTION_CHANNELS if part == "attention" else RECURRENT_CHANNELS
            written = [one for one in patched.get(layer, ()) if one.channel in channels]
            if part == "recurrent":
                if layer in mixers or written:
                    edit_mixer(model, layer, mixers.get(layer, MixerEdit()), written, cache, positions.shape[1])
                continue
            edit, table = edits.get(layer), compiled.heads.get(layer)
            scores = table.scores_at(present) if table else ()
            # the call is read once, before anything later in the layer
            calls = [model.attention_call(layer)] if edit or scores or written else []
            for one in written:
                read = calls[0].key if one.channel == "keys" else calls[0].value
                one.check(layer, read[:, :, : -positions.shape[1]])
            if edit:
                _edit_tokens(model, layer, edit, calls[0])
            if table:
                ranked = _ranked(model, layer, scores, calls[0], _span(phases, table.edited)) if scores else {}
                _edit_heads(model, layer, table, phases, present, plan_of[:, None], ranked)


def _device(model: HybridModel, layer: int) -> torch.device:
    """Where a layer's attention runs, which differs between layers of a model over several GPUs."""
    return next(model.out_proj(layer)._module.parameters()).device


def _prompt_lengths(lengths: Int[Tensor, " prompt"] | None, positions: Positions) -> PromptLengths:
    """The prompt length of every row; several continuations of one prompt (beams, drawn ones) lie side by side."""
    if lengths is None:
        return positions.amax(-1) + 1
    return lengths.repeat_interleave(max(1, len(positions) // len(lengths)))


def _first_rows(run: Run, batch: int) -> Int[Tensor, " batch"]:
    """Which row of those that the run began with each row of the batch is."""
    device = None if run.prompt_lengths is None else run.prompt_lengths.device
    return torch.arange(batch, device=device) if run.rows is None else run.rows


def _first_of(rows: Int[Tensor, " batch"], spans: int) -> Int[Tensor, " batch"]:
    """Whose spans each row has: several continuations of one prompt lie side by side."""
    return rows // max(1, len(rows) // spans)


def _plan_of(plans: int, first: Int[Tensor, " batch"], batch: int | None) -> Int[Tensor, " batch"]:
    """The plan of each row; ``batch`` is the number of rows where all of them are still running."""
    if plans == 1:
        return torch.zeros_like(first)
    if batch is not None and batch != plans:
        raise PlanError(f"there are plans for {plans} rows, but the batch has {batch}; give one plan per row")
    return first


def _edit_tokens(model: HybridModel, layer: int, edit: TokenEdit, call: AttentionCall) -> None:
    """Recompute what attention returns in the rows whose pattern the edit changes; all others stay bit for bit."""
    edits = model.run.edits_of(layer)
    before = edits[: edits.index(edit)]
    edit.prepare(call, before)
    masks = [one for one in (*before, edit) if isinstance(one, TokenEdit) and one.masks]
    columns = edit.columns
    output, weights = model.attention_output(layer)
    output, weights = output.clone(), None if weights is None else weights.clone()
    for start in range(columns.start, columns.stop, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, columns.stop)
        first_key = call.first_key(start)
        if len(masks) == len(before) + 1:
            left = call.visible(start, stop)
            for one in masks[:-1]:
                left, _ = one.mask(left, start, first_key)
            left, changed = edit.mask(left, start, first_key)
            pattern = call.masked_band(left, start, stop)
        else:
            logs, visible = call.edited_log_band(before, start, stop)
            logs, changed = edit.edit(logs, visible, start, first_key)
            pattern = logs.exp()
        mixed = call.mix(pattern, start).to(output)
        output[:, start:stop] = torch.where(changed.transpose(1, 2)[..., None], mixed, output[:, start:stop])
        if weights is not None:
            kept = weights[:, :, start:stop, first_key:]
            weights[:, :, start:stop, first_key:] = torch.where(changed[..., None], pattern.to(kept), kept)
    model.set_attention_output(layer, output, weights)


def _edit_heads(
    model: HybridModel,
    layer: int,
    table: LayerTable,
    phases: Int[Tensor, "batch pos"],
    present: Sequence[int],
    rows: Int[Tensor, "batch 1"],
    scores: Mapping[str, Callable[[int, int], HeadScores]],
) -> None:
    """Do what the table says about the phases that are present, of which ``present`` counts the positions.

    ``scores`` gives, by name, those of the queries from one position to another, once attention has run.
    """
    if acting(present, table.edited):
        at = _span(phases, table.edited)
        part = phases[:, at]
        projection = model.out_proj(layer)
        (z, *rest), kwargs = projection.inputs  # attention has run, and has measured what it was asked to
        keep = [table.heads[part, rows].to(z.device)] if acting(present, table.named) else []
        for name, score in scores.items():
            keep.append(keep_top(score(at.start, at.stop), table.top[name][part, rows].to(z.device)).transpose(1, 2))
        stay = functools.reduce(torch.logical_and, keep)
        edited = ablate(z[:, at].unflatten(-1, (model.n_heads, -1)), stay).flatten(-2)
        projection.inputs = (_put(z, at, edited), *rest), kwargs
    if acting(present, table.bypassed):
        attention = model.attention(layer)
        output, *weights = attention.output
        stays = table.mixer[phases, rows].to(output.device)
        attention.output = (output.masked_fill(~stays[..., None], 0), *weights)


def _ranked(
    model: HybridModel, layer: int, scores: Sequence[str], call: AttentionCall, at: slice
) -> Mapping[str, Callable[[int, int], HeadScores]]:
    """How to get each score: from attention itself where it measures rows as it runs, or else from its inputs.

    Attention knows nothing of rules about tokens; and a token fed alone has one row, which is cheap to compute again.
    """
    edits = model.run.edits_of(layer)
    ways: dict[str, Callable[[int, int], HeadScores]] = {
        score: functools.partial(head_scores, call, score, edits=edits) for score in scores
    }
    measures: list[Measure] = [score for score in SIGN if score in scores]
    if model.hf_model.config._attn_implementation == NAME and measures and not edits and call.query.shape[2] > 1:
        operation = getattr(model.attention(layer).source, model.family.attention_call)
        asked = ask(operation, measures, at.start, at.stop)
        ways |= {measure: functools.partial(_measured, asked, measure) for measure in measures}
    return ways


def _measured(asked: Asked, measure: Measure, start: int, stop: int) -> HeadScores:
    return SIGN[measure] * asked.rows(measure, start, stop)


def head_scores(
    call: AttentionCall, score: str, start: int, stop: int, edits: Sequence[PatternEdit] = ()
) -> HeadScores:
    """The scores of the queries ``start..stop``, a chunk of queries at a time, so that no full pattern is held.

    Computed in fp32 from the pattern as rules about tokens left it, but ``paper_entropy`` from a pattern rounded to the
    model's dtype, as its source does.
    """
    measure: Measure | None = next((one for one in SIGN if one == score), None)
    if measure and not edits and call.query.shape[2] > 1 and measures_in_blocks(call):
        return SIGN[measure] * measure_in_blocks(call, start, stop, measure)
    return scores_of_rows(call, score, start, stop, edits)


def scores_of_rows(
    call: AttentionCall, score: str, start: int, stop: int, edits: Sequence[PatternEdit] = ()
) -> HeadScores:
    """``head_scores`` from rows of the pattern, which any score, rule and mask allows."""
    chunks = []
    for first in range(start, stop, QUERY_CHUNK):
        pattern = call.edited_band(edits, first, min(first + QUERY_CHUNK, stop))
        if score == "paper_entropy":
            pattern = pattern.to(call.query.dtype)
        chunks.append(SCORES[score](pattern).float())
    return torch.cat(chunks, dim=-1)


def _span(phases: Int[Tensor, "batch pos"], acts: Sequence[bool]) -> slice:
    """The smallest run of columns with every position of an acting phase in it."""
    if phases.shape[1] == 1:
        return slice(0, 1)
    columns = torch.tensor(acts, device=phases.device)[phases].any(0).nonzero().flatten()
    return slice(int(columns[0]), int(columns[-1]) + 1)


def _put(whole: Tensor, at: slice, part: Tensor) -> Tensor:
    if part.shape == whole.shape:
        return part
    whole = whole.clone()
    whole[:, at] = part
    return whole
