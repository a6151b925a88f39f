"""What a mixer of each scan does, as a plain loop over tokens that may skip some or forget the state before some."""

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from segregation.models.hybrid import HybridModel


def plain_mixer(model: HybridModel, skip: Tensor | None = None, reset: Tensor | None = None):
    """A forward hook that puts the outcome of the loop in the place of a mixer's output; of a batch of one row."""
    loop = {"rg_lru": _rg_lru, "mamba": _mamba, "mamba2": _mamba2}[model.family.scan]

    def hook(module, args, kwargs, output):
        x = args[0] if args else kwargs["hidden_states"]
        assert len(x) == 1
        skips = [False] * x.shape[1] if skip is None else skip[0].tolist()
        resets = [False] * x.shape[1] if reset is None else reset[0].tolist()
        out = loop(module, x[0], skips, resets)[None]
        return (out, *output[1:]) if isinstance(output, tuple) else out

    return hook


def _conv(inputs: Tensor, weight: Tensor, bias: Tensor, t: int, skips) -> Tensor:
    """The convolution at t over inputs [pos width], zeros where a token is skipped."""
    taps = weight.shape[-1]
    out = bias.clone()
    for k in range(taps):
        s = t - taps + 1 + k
        if s >= 0 and not skips[s]:
            out = out + weight[:, 0, k] * inputs[s]
    return out


def _rg_lru(block, x: Tensor, skips, resets) -> Tensor:
    lru, inputs, gate = block.rg_lru, block.linear_x(x), block.act_fn(block.linear_y(x))
    heads, h = lru.num_attention_heads, torch.zeros(inputs.shape[1])
    outputs = []
    for t in range(len(x)):
        if skips[t]:
            outputs.append(torch.zeros(x.shape[1]))
            continue
        u = _conv(inputs, block.conv_1d.weight, block.conv_1d.bias, t, skips)
        parts = u.view(heads, 1, -1)
        i = (parts @ lru.input_gate_weight + lru.input_gate_bias[:, None]).sigmoid().flatten()
        r = (parts @ lru.recurrent_gate_weight + lru.recurrent_gate_bias[:, None]).sigmoid().flatten()
        log_a = -8 * r * softplus(lru.recurrent_param)
        scale = torch.ones(()) if t == 0 else (1 - torch.exp(2 * log_a)).sqrt()
        h = (0 if t == 0 or resets[t] else torch.exp(log_a) * h) + scale * i * u
        outputs.append(block.linear_out(h * gate[t]))
    return torch.stack(outputs)


def _mamba(block, x: Tensor, skips, resets) -> Tensor:
    inputs, gate = block.in_proj(x).chunk(2, dim=-1)
    a = -block.A_log.exp()
    h, outputs = torch.zeros_like(a), []
    for t in range(len(x)):
        if skips[t]:
            outputs.append(torch.zeros(x.shape[1]))
            continue
        u = silu(_conv(inputs, block.conv1d.weight, block.conv1d.bias, t, skips))
        dt, b, c = block.x_proj(u).split([block.time_step_rank, block.ssm_state_size, block.ssm_state_size])
        dt = softplus(block.dt_proj(block.dt_layernorm(dt)))[:, None]
        b, c = block.b_layernorm(b), block.c_layernorm(c)
        h = (0 if resets[t] else torch.exp(a * dt) * h) + dt * b[None] * u[:, None]
        outputs.append(block.out_proj((h @ c + block.D * u) * silu(gate[t])))
    return torch.stack(outputs)


def _mamba2(block, x: Tensor, skips, resets) -> Tensor:
    inner, groups, d_state = block.intermediate_size, block.n_groups, block.ssm_state_size
    gate, inputs, dts = block.in_proj(x).split([inner, block.conv_dim, block.num_heads], dim=-1)
    a, h, outputs = -block.A_log.exp(), torch.zeros(block.num_heads, block.head_dim, d_state), []
    for t in range(len(x)):
        if skips[t]:
            outputs.append(torch.zeros(x.shape[1]))
            continue
        u = silu(_conv(inputs, block.conv1d.weight, block.conv1d.bias, t, skips))
        u, b, c = u.split([inner, groups * d_state, groups * d_state])
        u = u.view(block.num_heads, block.head_dim)
        b, c = (part.view(groups, d_state).repeat_interleave(block.num_heads // groups, 0) for part in (b, c))
        dt = softplus(dts[t] + block.dt_bias)
        decay = torch.zeros(()) if resets[t] else torch.exp(a * dt)[:, None, None]
        h = decay * h + (dt[:, None] * u)[..., None] * b[:, None]
        y = (h @ c[..., None])[..., 0] + block.D[:, None] * u
        outputs.append(block.out_proj(block.norm(y.flatten()[None], gate[t][None])[0]))
    return torch.stack(outputs)
