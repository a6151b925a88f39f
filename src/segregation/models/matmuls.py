"""Matrix products on a CPU through oneDNN, where torch calls a library that leaves AVX-512 unused.

torch multiplies fp32 matrices by MKL, which runs at half speed on CPUs that have AVX-512 and are not Intel's: on an AMD
EPYC of family 26 it reached 115 GFLOP/s a core, and oneDNN, which torch ships as well, 250. Both compute in fp32; what
they give differs by rounding. Whether oneDNN is used depends on the CPU, and stands in the model's description; single
products stay with torch where they are of few rows, or where derivatives are taken otherwise than by ``backward``.
"""

import functools
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segregation.errors import ModelError
from segregation.models.gradients import needs_grad, transformed

Matmuls = Literal["fast", "transformers"]
"""The forms to choose from: by whichever library is faster here, or as transformers calls torch."""

HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this build of torch has the operation."""
LEAST = 16
"""Rows of fewer than this are multiplied by torch: a call of oneDNN takes 10 microseconds more."""
EXPERTS = "segregation"
"""What our experts are called in transformers' registry."""


def check_matmuls(matmuls: str) -> None:
    """Refuse what is no form.

    Raises:
        ModelError: with the forms there are.
    """
    if matmuls not in get_args(Matmuls):
        raise ModelError(f"matmuls must be one of {', '.join(map(repr, get_args(Matmuls)))}, got {matmuls!r}")


@functools.cache
def helps() -> bool:
    """Whether oneDNN is the faster here: AVX-512 on a CPU that is not Intel's, and torch with both libraries."""
    cpu = Path("/proc/cpuinfo")
    return (
        torch.backends.mkl.is_available()
        and HAS_ONEDNN
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpu.exists()
        and "GenuineIntel" not in cpu.read_text()
    )


def use_matmuls(module: nn.Module, matmuls: Matmuls) -> str:
    """Let the linear layers and experts of a model on a CPU multiply in a form; the library that does it.

    Only layers that are plainly ``nn.Linear`` in fp32, and experts without biases or other particulars.
    """
    if matmuls == "transformers" or not helps() or module.device.type != "cpu" or module.dtype != torch.float32:
        return "torch"
    for part in module.modules():
        if type(part) is nn.Linear and type(part.weight) is nn.Parameter:
            part.__class__ = Linear
    config: Any = module.config
    experts = [part for part in module.modules() if hasattr(part, "_apply_gate")]
    if experts and all(map(_plain, experts)):
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(EXPERTS, run_experts)
        config._experts_implementation = EXPERTS
    return "onednn"


class Linear(nn.Linear):
    """A linear layer whose product oneDNN computes."""

    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """``input @ weight.T + bias``."""
        return linear(input, self.weight, self.bias)


def linear(
    inputs: Float[Tensor, "*batch d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "*batch d_out"]:
    """``inputs @ weight.T + bias`` by oneDNN, with gradients; by torch where that has to be.

    That is for few rows, in a build without oneDNN, on another device or in another dtype, under autocast, and under
    ``torch.func`` or forward-mode derivatives.

    >>> linear(torch.ones(32, 2), torch.tensor([[1.0, 2.0]]))[0].item()
    3.0
    """
    few = inputs.numel() < LEAST * weight.shape[1] or not HAS_ONEDNN
    other = inputs.device.type != "cpu" or not inputs.dtype == weight.dtype == torch.float32
    if few or other or torch.is_autocast_enabled("cpu") or transformed():
        return functional.linear(inputs, weight, bias)
    if needs_grad(inputs, weight, bias):
        return _Linear.apply(inputs, weight, bias)  # type: ignore[no-any-return]
    return _multiply(inputs, weight, bias)


def run_experts(
    experts: Any,
    hidden_states: Float[Tensor, "pos d_model"],
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Float[Tensor, "pos d_model"]:
    """What the chosen experts give each token, weighted and added up, one expert after the other."""
    output = torch.zeros_like(hidden_states)
    for number in range(experts.num_experts):
        token, choice = torch.where(top_k_index == number)
        if not len(token):
            continue
        hidden = experts._apply_gate(linear(hidden_states[token], experts.gate_up_proj[number]))
        hidden = linear(hidden, experts.down_proj[number]) * top_k_weights[token, choice, None]
        output = output.index_add(0, token, hidden.to(output.dtype))
    return output


def _plain(experts: Any) -> bool:
    particulars = ("has_bias", "has_post_expert_norm", "is_transposed", "_is_expert_parallel")
    return bool(experts.has_gate) and not any(getattr(experts, name) for name in particulars)


def _multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.contiguous()  # it reads the bias as if it were
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """The same with a gradient that torch computes, so that what runs forward does not depend on who wants one."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.has_bias = bias is not None
        return _multiply(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inputs, weight), grad = ctx.saved_tensors, grads[0]
        rows = grad.flatten(0, -2)
        to_inputs = grad @ weight if ctx.needs_input_grad[0] else None
        to_weight = rows.T @ inputs.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return to_inputs, to_weight, rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
