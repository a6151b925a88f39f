"""What the recurrence of a mixer is given in one forward pass, read where its scan is called, through NNsight.

The same view for all three scans (``Recurrence``), in a forward over many tokens and in one over a single token after a
filled cache. Rules of a plan have acted on it when this is read after they were entered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu, softplus

from segregation.errors import ModelError
from segregation.models.hybrid import HybridModel
from segregation.models.mixers import MixerCall
from segregation.models.positions import Run
from segregation.models.recurrence import HeldState, Recurrence
from segregation.shapes import PositionMask


@dataclass(frozen=True, eq=False)
class ScanCall:
    """The call of one layer's scan that is under way; its methods must be called in the order they stand in.

    Attributes:
        call: the mixer's call.
        run: the run it is part of.
        layer: absolute index of the layer.
    """

    call: MixerCall
    run: Run
    layer: int

    @classmethod
    def of(cls, model: HybridModel, layer: int) -> "ScanCall":
        """The call under way of a recurrent layer.

        Raises:
            ModelError: no such layer, one without a recurrent mixer, or a family whose scan is no linear recurrence.
        """
        check_recurrence(model)
        return cls(MixerCall.of(model.mixer(layer), model.family, layer), model.run, layer)

    def conv_inputs(self) -> Float[Tensor, "batch pos width"]:
        """What the short convolution reads, token by token; not for a single token after a filled cache."""
        if self.call.family.scan == "rg_lru":
            return self.call.mixer.linear_x.output
        module, projected = self.call.mixer._module, self.call.mixer.in_proj.output
        if self.call.family.conv_multiplier:
            projected = projected * getattr(module, self.call.family.conv_multiplier)
        start = 0 if self.call.family.scan == "mamba" else module.intermediate_size
        return projected[..., start : start + (module.intermediate_size if start == 0 else module.conv_dim)]

    def recurrence(self) -> Recurrence:
        """What the scan is given; its tensors are copies, or made for it alone."""
        args, kwargs = self.call.scan.inputs
        if self.call.family.scan == "mamba" and not self.call.stepwise:
            kwargs = {**kwargs, "initial": self.call.before}  # it comes from the cache, past the operation's arguments
        read = _READERS[self.call.family.scan, self.call.stepwise]
        return read(args, kwargs, self._reset)

    def emitted(self) -> Float[Tensor, "batch pos head d_head"]:
        """What the scan returns: y_t + D x_t, times the gate where it is applied inside the scan."""
        output = self.call.scan.output
        return self._by_token(output[0] if isinstance(output, tuple) else output)

    def emit(self, emitted: Float[Tensor, "batch pos head d_head"]) -> None:
        """Let the scan return something else; the state stays as it is."""
        output = self.call.scan.output
        first, *rest = output if isinstance(output, tuple) else (output,)
        by_channel = emitted.flatten(2) if self.call.family.scan != "mamba2" else emitted
        if self.call.stepwise:
            by_channel = by_channel[:, 0]
        elif self.call.family.scan == "mamba":
            by_channel = by_channel.transpose(1, 2)
        new = by_channel.to(first)
        self.call.scan.output = (new, *rest) if isinstance(output, tuple) else new

    def _by_token(self, output: Tensor) -> Tensor:
        if self.call.stepwise:
            output = output[:, None]
        elif self.call.family.scan == "mamba":
            output = output.transpose(1, 2)
        return output if self.call.family.scan == "mamba2" else output[..., None]

    def _reset(self, own: PositionMask) -> PositionMask:
        for edit in self.run.mixer_edits_of(self.layer):  # known once the scan's inputs have been waited for
            own = own if edit.reset is None else own | edit.reset.to(own.device)
        return own


def check_recurrence(model: HybridModel) -> None:
    """Refuse a model whose mixers cannot be read as the linear recurrence of ``models.recurrence``.

    Raises:
        ModelError: its family, and why.
    """
    if "recurrence" in model.family.cannot:
        name = model.description.get("name", model.family.name)
        raise ModelError(
            f"the recurrent layers of {name} cannot be taken apart token by token: "
            f"{model.family.cannot['recurrence']}. "
            "States after any token are those of sg.fork(...), read_on and remembered"
        )


Read = Callable[[Sequence[Any], Mapping[str, Any], Callable[[PositionMask], PositionMask]], Recurrence]


def taps(model: HybridModel, layer: int) -> int:
    """How many tokens the buffer of a layer's short convolution holds: its width, in an RG-LRU block one less."""
    module = model.mixer(layer)._module
    return module.conv1d_width - 1 if model.family.scan == "rg_lru" else module.conv_kernel_size


def conv_width(model: HybridModel, layer: int) -> int:
    """How many tokens a layer's short convolution reads, its own included; 1 where it has none."""
    if "conv" in model.family.cannot:
        return 1
    module = model.mixer(layer)._module
    return module.conv1d_width if model.family.scan == "rg_lru" else module.conv_kernel_size


def scan_sizes(model: HybridModel, layer: int) -> tuple[int, int, int]:
    """Heads, d_head and d_state of a layer's recurrence, as ``Recurrence`` counts them.

    Raises:
        ModelError: no such layer, or one of attention.
    """
    check_recurrence(model)
    module = model.mixer(layer)._module
    if model.family.scan == "rg_lru":
        return module.lru_width, 1, 1
    if model.family.scan == "mamba":
        return module.intermediate_size, 1, module.ssm_state_size
    return module.num_heads, module.head_dim, module.ssm_state_size


def as_held(model: HybridModel, state: Float[Tensor, "*rows head d_head d_state"]) -> Float[Tensor, "..."]:
    """A state in the shape in which the model holds it: by channel, and by number of the state where it has several."""
    if model.family.scan == "mamba2":
        return state
    return state[..., 0, 0] if model.family.scan == "rg_lru" else state[..., 0, :]


def _rg_lru(args: Sequence[Any], kwargs: Mapping[str, Any], reset: Callable[..., PositionMask]) -> Recurrence:
    write, state = kwargs["hidden_states"].float()[..., None], kwargs["recurrent_states"]
    ones = write.new_ones(()).expand(*write.shape[:2], 1, 1)
    return Recurrence(
        step=kwargs["recurrent_gate"].double().log(),
        rate=write.new_ones(write.shape[2], 1),
        reset=reset(kwargs["reset"][..., 0].expand(write.shape[:2])),
        write=write.clone(),
        keys=ones,
        reads=ones,
        initial=None if state is None else state.float()[..., None, None].clone(),
    )


def _mamba(args: Sequence[Any], kwargs: Mapping[str, Any], reset: Callable[..., PositionMask]) -> Recurrence:
    hidden_states, dt, rate, keys, reads = args[:5]
    x, z, state = hidden_states.float().transpose(1, 2), kwargs.get("z"), kwargs["initial"]
    dt = _steps(dt.transpose(1, 2), kwargs.get("delta_bias"), kwargs.get("delta_softplus"))
    return _mamba_recurrence(
        x, dt, rate, keys.transpose(1, 2), reads.transpose(1, 2), kwargs.get("D"),
        None if z is None else z.transpose(1, 2), reset, None if state is None else state.float()[:, :, None].clone(),
    )  # fmt: skip


def _mamba_step(args: Sequence[Any], kwargs: Mapping[str, Any], reset: Callable[..., PositionMask]) -> Recurrence:
    state, x, dt, rate, keys, reads, *rest = args
    skip, z = rest[0] if rest else kwargs.get("D"), kwargs.get("z")
    dt = _steps(dt, kwargs.get("dt_bias"), kwargs.get("dt_softplus"))
    return _mamba_recurrence(
        x.float()[:, None], dt[:, None], rate, keys[:, None], reads[:, None], skip,
        None if z is None else z[:, None], reset, state.float()[:, :, None].clone(),
    )  # fmt: skip


def _mamba_recurrence(
    x: Float[Tensor, "batch pos width"],
    dt: Float[Tensor, "batch pos width"],
    rate: Float[Tensor, "width d_state"],
    keys: Float[Tensor, "batch pos d_state"],
    reads: Float[Tensor, "batch pos d_state"],
    skip: Float[Tensor, " width"] | None,
    z: Float[Tensor, "batch pos width"] | None,
    reset: Callable[..., PositionMask],
    initial: HeldState | None,
) -> Recurrence:
    return Recurrence(
        step=dt,
        rate=rate.float(),
        reset=reset(torch.zeros(dt.shape[:2], dtype=torch.bool, device=dt.device)),
        write=(dt * x)[..., None],
        keys=keys.float()[:, :, None].clone(),
        reads=reads.float()[:, :, None].clone(),
        skip=None if skip is None else (x * skip.float())[..., None],
        gate=None if z is None else silu(z.float())[..., None],
        initial=initial,
    )


def _mamba2(args: Sequence[Any], kwargs: Mapping[str, Any], reset: Callable[..., PositionMask]) -> Recurrence:
    hidden_states, dt, rate, keys, reads = args[:5]
    passed = dt == -torch.inf  # what a rule makes of tokens that the state is to pass, whatever the clamp
    dt = _steps(dt, kwargs.get("dt_bias"), kwargs.get("dt_softplus")).clamp(*kwargs.get("dt_limit", (0.0, torch.inf)))
    dt = dt.masked_fill(passed, 0)
    state = kwargs.get("initial_states")
    return _mamba2_recurrence(
        hidden_states.float(), dt, rate, keys, reads, kwargs.get("D"), reset,
        None if state is None else state.float().clone(),
    )  # fmt: skip


def _mamba2_step(args: Sequence[Any], kwargs: Mapping[str, Any], reset: Callable[..., PositionMask]) -> Recurrence:
    state, x, dt, rate, keys, reads, *rest = args
    skip, bias, z = rest[0] if rest else kwargs.get("D"), kwargs.get("dt_bias"), kwargs.get("z")
    dt = _steps(
        dt[..., 0], None if bias is None else bias[:, 0], kwargs.get("dt_softplus")
    )  # the same in all of a head
    return _mamba2_recurrence(
        x.float()[:, None], dt[:, None], rate[:, 0, 0], keys[:, None], reads[:, None],
        None if skip is None else skip[:, 0], reset, state.float().clone(),
        None if z is None else silu(z.float())[:, None],
    )  # fmt: skip


def _mamba2_recurrence(
    x: Float[Tensor, "batch pos head d_head"],
    dt: Float[Tensor, "batch pos head"],
    rate: Float[Tensor, " head"],
    keys: Float[Tensor, "batch pos group d_state"],
    reads: Float[Tensor, "batch pos group d_state"],
    skip: Float[Tensor, " head"] | None,
    reset: Callable[..., PositionMask],
    initial: HeldState | None,
    gate: Float[Tensor, "batch pos head d_head"] | None = None,
) -> Recurrence:
    return Recurrence(
        step=dt,
        rate=rate.float()[:, None],
        reset=reset(torch.zeros(dt.shape[:2], dtype=torch.bool, device=dt.device)),
        write=dt[..., None] * x,
        keys=keys.float().clone(),
        reads=reads.float().clone(),
        skip=None if skip is None else x * skip.float()[..., None],
        gate=gate,
        initial=initial,
    )


def _steps(dt: Tensor, bias: Tensor | None, is_softplus: bool | None) -> Tensor:
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    return (softplus(dt) if is_softplus else dt).float()


_READERS: Mapping[tuple[str | None, bool], Read] = {
    ("rg_lru", False): _rg_lru,
    ("mamba", False): _mamba,
    ("mamba", True): _mamba_step,
    ("mamba2", False): _mamba2,
    ("mamba2", True): _mamba2_step,
}
