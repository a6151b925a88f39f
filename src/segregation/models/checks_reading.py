"""Is what a trace reads what the model computes, and does the model compute on with what is written?"""

import operator

import torch
from nnsight import save

from segregation.models.checks_outcome import (
    LONG,
    Question,
    lacks_attention,
    lacks_state,
    logits,
    prompts,
    short_and_long,
    worst,
)
from segregation.models.hybrid import HybridModel
from segregation.models.mixers import MixerCall
from segregation.models.recurrence import states_after
from segregation.models.scan_inputs import ScanCall, as_held


def _identity(model: HybridModel) -> float:
    ids = prompts(model)[:1]
    with torch.no_grad(), model.trace(ids):
        for layer in model.attention_layers:
            z = model.out_proj(layer).input
            model.out_proj(layer).input = z
        traced = save(model.output.logits)
    model.reset()
    with torch.no_grad():
        plain = model.hf_model(ids).logits
    return float((traced - plain).abs().max())


def _ablated(model: HybridModel) -> float:
    """Ablate every head, and in a model without attention every mixer."""
    ids = prompts(model)[:1]
    with torch.no_grad(), model.trace(ids):
        for layer in model.attention_layers:
            model.out_proj(layer).input = torch.zeros_like(model.out_proj(layer).input)
        for layer in () if model.attention_layers else model.recurrent_layers:
            call = MixerCall.of(model.mixer(layer), model.family, layer)
            call.edit_output(torch.zeros_like)
        edited = save(model.output.logits.float())
    return float((edited - logits(model, ids)).abs().max())


def _pattern_times_v(model: HybridModel) -> float:
    """A family that gates attention's output makes z of it and the gate, so it is compared before the gate."""
    ids = prompts(model)[:1]
    gaps: list[float] = []
    with torch.no_grad():
        for layer in model.attention_layers:
            with model.trace(ids):
                expected = save(model.attention_call(layer).z().float())
                mixed = model.attention_output(layer)[0] if model.family.gated else model.z(layer)
                found = save(mixed.float())
            gaps.append(float((expected - found).abs().max() / found.abs().max().clamp(min=1)))
    return worst(gaps)


def _state(model: HybridModel) -> float:
    ids = prompts(model)[:1]
    gaps: list[float] = []
    with torch.no_grad():
        for layer in model.recurrent_layers:
            with model.trace(ids):
                walked = save(states_after(ScanCall.of(model, layer).recurrence(), [LONG - 1]))
            with model.trace(ids, use_cache=True):
                read = save(model.state(layer).recurrent)
            gap = (as_held(model, walked)[0].float() - read.float()).abs().max()
            gaps.append(float(gap / read.abs().max().clamp(min=1)))
    return worst(gaps)


def _eager_against_sdpa(model: HybridModel) -> float:
    ids, mask = short_and_long(model)
    used = model.attn_implementation or "sdpa"
    found = {}
    try:
        for implementation in ("sdpa", "eager"):
            model.hf_model.set_attn_implementation(implementation)
            found[implementation] = logits(model, ids, attention_mask=mask)
    finally:
        model.hf_model.set_attn_implementation(used)
    return float((found["eager"] - found["sdpa"]).abs()[mask.bool()].max())


QUICK = (
    Question("an identity edit changes nothing", _identity, "repeat", "refused"),
    Question("ablation changes the logits", _ablated, "some", "refused", passes=operator.gt),
    Question("pattern @ v equals z", _pattern_times_v, "part", "refused", lacks=lacks_attention),
)
SLOW = (
    Question("reading a state equals recomputing it", _state, "part", "refused", lacks=lacks_state),
    Question("eager equals sdpa, padding included", _eager_against_sdpa, "noise", "refused", lacks=lacks_attention),
)
