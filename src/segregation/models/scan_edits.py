"""How each kind of scan is let pass some tokens, or started from zero on the way, by what its operation is given."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segregation.models.delta import delta_rule
from segregation.models.family import Scan
from segregation.models.scans import mamba2_scan_from, selective_scan
from segregation.shapes import PositionMask

Watch = Callable[[Tensor | None], None]
"""What is shown a state, or ``None`` where there is none yet."""

_Mask = PositionMask | None


def edit_scan(
    scan: Scan | None, stepwise: bool, op: Any, skip: _Mask, reset: _Mask, watch: Watch, before: Tensor | None
) -> None:
    """Edit a scan under way: the state passes unchanged at ``skip``, and is set to zero before the tokens of ``reset``.

    Args:
        scan: which recurrence it is.
        stepwise: whether it reads one token after a filled cache.
        op: the operation, through NNsight.
        skip: at which tokens the state passes.
        reset: before which it is set to zero.
        watch: is shown the state that the scan goes on from, before that.
        before: the state that the cache keeps, from which a Mamba-1 scan over several tokens goes on.
    """
    if scan == "rg_lru":
        _edit_rg_lru(op, skip, reset, watch)
    elif scan in ("gated_delta", "kda"):
        _edit_delta(op, skip, reset, watch)
    elif stepwise:
        _edit_mamba_step(op, skip if scan == "mamba" else None, reset, watch)
    elif scan == "mamba":
        _edit_mamba(op, skip, reset, watch, before)
    else:
        _edit_mamba2(op, skip, reset, watch)


def _edit_rg_lru(op: Any, skip: _Mask, reset: _Mask, watch: Watch) -> None:
    args, kwargs = op.inputs
    watch(kwargs["recurrent_states"])
    kwargs = dict(kwargs)
    device = kwargs["hidden_states"].device
    if skip is not None:
        at = skip.to(device)[..., None]
        kwargs["hidden_states"] = kwargs["hidden_states"].masked_fill(at, 0)
        kwargs["recurrent_gate"] = kwargs["recurrent_gate"].masked_fill(at, 1)
    if reset is not None:
        kwargs["reset"] = kwargs["reset"] | reset.to(device)[..., None]
    op.inputs = args, kwargs


def _edit_delta(op: Any, skip: _Mask, reset: _Mask, watch: Watch) -> None:
    """At a token that is passed g = 0 and beta = 0; a reset is walked token by token, in rows that have one."""
    args, kwargs = op.inputs
    watch(kwargs["initial_state"])
    kwargs = dict(kwargs)
    if skip is not None:
        beta, g = kwargs["beta"], kwargs["g"]
        at = skip.to(beta.device)[..., None]
        kwargs["beta"] = beta.masked_fill(at, 0)
        kwargs["g"] = g.masked_fill(at.view(*at.shape, *[1] * (g.dim() - 3)), 0)
        op.inputs = args, kwargs
    if reset is None:
        return
    query, key, value = args
    reset = reset.to(query.device)
    outputs, state = delta_rule(query, key, value, kwargs["g"], kwargs["beta"], kwargs["initial_state"], reset)
    rows, (found, last) = reset.any(-1), op.output
    op.output = (_rows(rows, outputs, found), None if last is None else _rows(rows, state, last))


def _edit_mamba_step(op: Any, skip: _Mask, reset: _Mask, watch: Watch) -> None:
    (state, hidden_states, dt, *rest), kwargs = op.inputs
    watch(state)
    if reset is not None:
        state[reset[:, 0].to(state.device)] = 0  # in place: the update writes into this very tensor
    if skip is not None:
        dt = dt.masked_fill(skip.to(dt.device), -torch.inf)
        op.inputs = (state, hidden_states, dt, *rest), kwargs


def _edit_mamba2(op: Any, skip: _Mask, reset: _Mask, watch: Watch) -> None:
    """What closed the mixer's input made dt zero at the tokens of ``skip``, but where the scan clamps it from below."""
    args, kwargs = op.inputs
    watch(kwargs.get("initial_states"))
    passed = skip if kwargs.get("dt_limit", (0.0,))[0] > 0 else None
    walked = {
        name: mask.to(args[0].device) for name, mask in (("resets", reset), ("passed", passed)) if mask is not None
    }
    if walked:
        rows = functools.reduce(torch.logical_or, walked.values()).any(-1)
        _put(op, rows, mamba2_scan_from(*args, **kwargs, **walked))


def _edit_mamba(op: Any, skip: _Mask, reset: _Mask, watch: Watch, before: Tensor | None) -> None:
    (hidden_states, dt, *rest), kwargs = op.inputs
    watch(before)
    if skip is not None:
        dt = dt.masked_fill(skip.to(dt.device)[:, None, :], -torch.inf)
        op.inputs = (hidden_states, dt, *rest), kwargs
    if reset is None:
        return
    reset = reset.to(dt.device)
    _put(op, reset.any(-1), selective_scan(hidden_states, dt, *rest, **{**kwargs, "resets": reset, "initial": before}))


def _put(op: Any, rows: Tensor, scanned: Any) -> None:
    found = op.output
    op.output = (
        tuple(_rows(rows, new, old) for new, old in zip(scanned, found, strict=True))
        if isinstance(found, tuple)
        else _rows(rows, scanned, found)
    )


def _rows(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new rows where ``rows`` says so, the old ones elsewhere."""
    return torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new.to(old), old)
