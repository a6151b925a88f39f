"""Can this model be believed here? Checks on the loaded model, as data, and what is switched off where one fails."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from nnsight import save
from torch import Tensor

from segregation.errors import ModelError
from segregation.models.hybrid import HybridModel
from segregation.models.mixers import MixerCall

Switch = Literal["batching", "fork", ""]

SHORT, LONG = 5, 12
"""Tokens of the two rows the checks use, before the model's window where that is shorter."""


@dataclass(frozen=True)
class Check:
    """One check and its outcome.

    Attributes:
        name: what was checked.
        passed: whether ``measured`` is within ``tolerance`` (for an edit: beyond it).
        measured: the largest absolute difference found, in logits or as named.
        tolerance: the limit.
        switched_off: what is unsafe if this fails, and is then not done: ``batching`` or ``fork``.
    """

    name: str
    passed: bool
    measured: float
    tolerance: float
    switched_off: Switch = ""


def quick_checks(model: HybridModel) -> list[Check]:
    """The checks that every load runs: a few forwards over a dozen tokens."""
    return [check(model) for check in (_untouched, _edit_acts, _pattern_times_v, _no_leak, _padded_batch, _fork)]


def run_checks(model: HybridModel) -> list[Check]:
    """All checks."""
    return [*quick_checks(model), _eager_against_sdpa(model), _prefill_against_decode(model)]


def apply_checks(model: HybridModel, checks: Sequence[Check]) -> None:
    """Record the checks on the model and switch off what failed.

    Raises:
        ModelError: a check failed that nothing can be switched off for, so no number from this model could be believed.
    """
    failed = [check for check in checks if not check.passed]
    if fatal := [check for check in failed if not check.switched_off]:
        raise ModelError(
            f"{model.description.get('name', model.family.name)} fails its self-checks: "
            + "; ".join(f"{c.name} measured {c.measured:.2e}, tolerance {c.tolerance:.0e}" for c in fatal)
            + ". Load with self_checks=False only to find out why"
        )
    switched_off = {check.switched_off for check in failed}
    model.can_batch = "batching" not in switched_off
    model.can_fork = "fork" not in switched_off
    model.description["self_checks"] = [asdict(check) for check in checks]
    model.description["switched_off"] = sorted(switched_off)


def _tolerance(model: HybridModel) -> float:
    return 1e-4 if model.dtype == torch.float32 else 0.25


def _exact(model: HybridModel) -> float:
    """Nothing on a CPU; on other devices the order of a sum (experts are added up by atomics) may vary."""
    return 0.0 if model.device is not None and model.device.type == "cpu" else _tolerance(model)


def _ids(model: HybridModel) -> Tensor:
    """Two rows of fixed pseudo-random tokens that avoid the special ones."""
    generator = torch.Generator().manual_seed(0)
    low = min(8, model.d_vocab - 1)
    return torch.randint(low, model.d_vocab, (2, LONG), generator=generator).to(model.device)


def _logits(model: HybridModel, ids: Tensor, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model.trace(ids, trace=False, **kwargs).logits.float()


def _within(name: str, measured: Tensor | float, tolerance: float, switched_off: Switch = "") -> Check:
    value = float(measured)
    return Check(name, value <= tolerance, value, tolerance, switched_off)


def _untouched(model: HybridModel) -> Check:
    ids = _ids(model)[:1]
    with torch.no_grad(), model.trace(ids):
        for layer in model.attention_layers:
            z = model.out_proj(layer).input
            model.out_proj(layer).input = z
        traced = save(model.output.logits)
    model.reset()
    with torch.no_grad():
        plain = model.hf_model(ids).logits
    return _within("writing back what was read changes nothing", (traced - plain).abs().max(), _exact(model))


def _edit_acts(model: HybridModel) -> Check:
    """Ablate every head, and in a model without attention every mixer."""
    ids = _ids(model)[:1]
    with torch.no_grad(), model.trace(ids):
        for layer in model.attention_layers:
            model.out_proj(layer).input = torch.zeros_like(model.out_proj(layer).input)
        for layer in () if model.attention_layers else model.recurrent_layers:
            call = MixerCall.of(model.mixer(layer), model.family, layer)
            call.edit_output(torch.zeros_like)
        edited = save(model.output.logits.float())
    change = float((edited - _logits(model, ids)).abs().max())
    what = "head" if model.attention_layers else "mixer"
    return Check(f"ablating every {what} changes the logits (more than the tolerance)", change > 1e-7, change, 1e-7)


def _pattern_times_v(model: HybridModel) -> Check:
    ids = _ids(model)[:1]
    worst = torch.zeros((), device=model.device)
    with torch.no_grad():
        for layer in model.attention_layers:
            with model.trace(ids):
                expected = save(model.attention_call(layer).z().float())
                z = save(model.z(layer).float())
            worst = torch.maximum(worst, ((expected - z).abs().max() / z.abs().max().clamp(min=1)).to(worst.device))
    tolerance = 1e-5 if model.dtype == torch.float32 else 2e-2
    return _within("pattern @ v == z in every attention layer, relative", worst, tolerance)


def _no_leak(model: HybridModel) -> Check:
    ids = _ids(model)
    first, other = ids[:1, :1], ids[1:]
    runs = []
    with torch.no_grad():
        for prompt in (first, other, first):
            runs.append(model.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False))
            runs.append(_logits(model, prompt))
    tokens = (runs[0] != runs[4]).any().float()
    return _within(
        "no state leaks from run A to B to A", torch.maximum(tokens, (runs[1] - runs[5]).abs().max()), _exact(model)
    )


def _padded_batch(model: HybridModel) -> Check:
    ids = _ids(model)
    mask = torch.ones_like(ids)
    mask[1, : LONG - SHORT] = 0
    padded = _logits(model, ids, attention_mask=mask)
    single = _logits(model, ids[1:, LONG - SHORT :])
    worst = (padded[1:, LONG - SHORT :] - single).abs().max()
    return _within("a left-padded batch equals its rows alone", worst, _tolerance(model), "batching")


def _fork(model: HybridModel) -> Check:
    ids = _ids(model)[:1]
    whole = _logits(model, ids)[:, -1]
    outcomes = []
    with torch.no_grad():
        model.reset()
        cache = model.new_cache()
        model.hf_model(ids[:, :-1], past_key_values=cache, use_cache=True)
        prefix = model.remember(cache, torch.tensor([LONG - 1], device=ids.device))
        for _ in range(2):
            fork = prefix.select(torch.zeros(2, dtype=torch.long, device=ids.device))
            position = torch.full((2, 1), LONG - 1, device=ids.device)
            step = ids[:, -1:].expand(2, 1)
            logits = model.hf_model(step, past_key_values=model.recall(fork), position_ids=position).logits
            outcomes.append(logits[:, -1].float())
    model.reset()
    worst = torch.stack([(one - whole).abs().max() for one in outcomes]).max()
    return _within("two forks of a prefix equal one forward", worst, _tolerance(model), "fork")


def _eager_against_sdpa(model: HybridModel) -> Check:
    ids = _ids(model)[:1]
    used = model.attn_implementation or "sdpa"
    try:
        logits = {}
        for implementation in ("sdpa", "eager"):
            model.hf_model.set_attn_implementation(implementation)
            logits[implementation] = _logits(model, ids)
    finally:
        model.hf_model.set_attn_implementation(used)
    return _within("eager equals sdpa", (logits["eager"] - logits["sdpa"]).abs().max(), _tolerance(model))


def _prefill_against_decode(model: HybridModel) -> Check:
    ids = _ids(model)[:1]
    whole = _logits(model, ids)
    steps: list[Tensor] = []
    with torch.no_grad():
        model.reset()
        cache = model.new_cache()
        for i in range(LONG):
            position = torch.full((1, 1), i, device=ids.device)
            token = ids[:, i : i + 1]
            steps.append(model.hf_model(token, past_key_values=cache, position_ids=position, use_cache=True).logits)
    model.reset()
    stepwise = torch.cat(steps, dim=1).float()
    return _within("one forward equals one token at a time", (whole - stepwise).abs().max(), _tolerance(model))
