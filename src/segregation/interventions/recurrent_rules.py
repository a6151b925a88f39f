"""Rules about recurrent layers: what they write, what they emit and what they remember, as plain data."""

from dataclasses import dataclass
from typing import Literal, get_args

from segregation.errors import PlanError
from segregation.interventions.head_rules import check_layers, check_phase, describe
from segregation.interventions.phase import Phase
from segregation.interventions.sources import fill_source
from segregation.interventions.token_rules import Occurrence, check_span
from segregation.models.channels import Channel

Ablation = Literal["zero", "skip", "mean", "resample"]

_QUIET = frozenset({"span", "but", "occurrence", "layers", "source", "sha256", "seed"})


@dataclass(frozen=True)
class AblateRecurrent:
    """Replace what recurrent mixers add to the residual, or let them skip tokens.

    At the tokens of ``span`` that are in ``during``, of the recurrent layers named:

    - ``"zero"``: the mixer's output is zero; its state goes on being written.
    - ``"skip"``: it neither writes nor emits. The state stays as it is (h_t = h_{t-1}), the output is zero, and the
      convolution sees zeros there, as it sees padding.
    - ``"mean"``: the output is the mean output of a reference.
    - ``"resample"``: the output is that at another position of a reference, drawn by ``seed`` and the position alone.

    Attributes:
        value: one of these.
        layers: absolute indices of recurrent layers, or ``"all"`` of them.
        span: the tokens, by name, as in ``HideTokens``; ``AblateRecurrent("skip", span="context", but="needle")`` lets
            nothing of the context but the needle into the state.
        but: spans that are left alone.
        occurrence: which occurrence of ``span``, counted from 0, or ``"all"``.
        source: for ``"mean"`` and ``"resample"``, the file of the reference, which ``mixer_outputs`` writes.
        sha256: of that file; filled in when left out.
        seed: for ``"resample"``.
        during: the positions it acts on.

    Raises:
        PlanError: an unknown value, a reference that is missing or not used, a file that cannot be read, or a span that
            is ill formed or names no token.

    >>> str(AblateRecurrent("skip", span="context", but="needle", during=Phase.PREFILL))
    'AblateRecurrent(value=skip, span=context, but=needle, during=PREFILL)'
    """

    value: Ablation = "zero"
    layers: tuple[int, ...] | Literal["all"] = "all"
    span: str = "everything"
    but: str | None = None
    occurrence: Occurrence = "all"
    source: str = ""
    sha256: str = ""
    seed: int = 0
    during: Phase = Phase.ALL

    def __post_init__(self) -> None:
        if self.value not in get_args(Ablation):
            raise PlanError(f"AblateRecurrent.value must be one of {get_args(Ablation)}, got {self.value!r}")
        check_phase(self.during)
        object.__setattr__(self, "layers", check_layers("AblateRecurrent", self.layers))
        fill_source(self)
        referred = self.value in ("mean", "resample")
        if referred and not self.source:
            raise PlanError(
                f'AblateRecurrent("{self.value}") needs a reference: write one with mixer_outputs(model, samples, '
                "path), and name its path as source"
            )
        if not referred and (self.source or self.sha256):
            raise PlanError(
                f'AblateRecurrent("{self.value}") reads no reference, got source {self.source!r}; leave it out'
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or (self.seed and self.value != "resample"):
            raise PlanError(f'AblateRecurrent.seed is an integer, for "resample" only; got {self.seed!r}')
        check_span(self)

    def __str__(self) -> str:
        return _described(self)


@dataclass(frozen=True)
class ResetState:
    """Set the recurrent state to zero before every ``every``-th position: a_p = 0 where p > 0 and p % every = 0.

    What the token at p writes is as computed; the convolution, and the attention layers, are left alone. A run of at
    most ``every`` positions is untouched, bit for bit.

    Attributes:
        every: tokens between two resets.
        layers: absolute indices of recurrent layers, or ``"all"`` of them.
        during: the positions before which it acts.

    Raises:
        PlanError: a number of tokens below 1.

    >>> str(ResetState(every=64, during=Phase.PREFILL))
    'ResetState(every=64, during=PREFILL)'
    """

    every: int
    layers: tuple[int, ...] | Literal["all"] = "all"
    during: Phase = Phase.ALL

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise PlanError(f"ResetState.every is a number of tokens, 1 or more; got {self.every!r}")
        object.__setattr__(self, "layers", check_layers("ResetState", self.layers))
        check_phase(self.during)

    def __str__(self) -> str:
        return _described(self)


@dataclass(frozen=True)
class PatchState:
    """Put another run's memory in the place of a row's own, before the first position of ``during`` is read.

    Attributes:
        source: the file of that memory, which ``save_memory`` writes: one for each sample id.
        channel: ``"recurrent"`` or ``"conv"`` states of recurrent layers, ``"keys"`` or ``"values"`` of attention
            layers; the latter two must come from as many tokens as the row has read.
        layers: absolute indices of layers with that channel, or ``"all"`` of them.
        sha256: of the file; filled in when left out.
        during: ``LAST`` in it: before the last prompt token; ``DECODE`` alone: before the first new one. That position
            must start a forward, as it does in ``sg.generate`` and ``sg.loglikelihood``.

    Raises:
        PlanError: an unknown channel, a file that cannot be read, or ``PREFILL``, before which nothing is remembered.
    """

    source: str
    channel: Channel = "recurrent"
    layers: tuple[int, ...] | Literal["all"] = "all"
    sha256: str = ""
    during: Phase = Phase.GENERATION

    def __post_init__(self) -> None:
        if self.channel not in get_args(Channel):
            raise PlanError(f"PatchState.channel must be one of {get_args(Channel)}, got {self.channel!r}")
        object.__setattr__(self, "layers", check_layers("PatchState", self.layers))
        check_phase(self.during)
        if Phase.PREFILL in self.during:
            raise PlanError(
                f"PatchState acts before the first position of {self.during}, which is 0, where nothing is remembered; "
                "use during=Phase.GENERATION (before the last prompt token) or Phase.DECODE (before the first new one)"
            )
        fill_source(self)
        if not self.source:
            raise PlanError("PatchState.source is empty; write a file with save_memory, and name its path")

    def __str__(self) -> str:
        return _described(self)


RecurrentRule = AblateRecurrent | ResetState | PatchState


def _described(rule: AblateRecurrent | ResetState | PatchState) -> str:
    """A rule in one line, with the first digits of a hash."""
    sha256 = "" if isinstance(rule, ResetState) else rule.sha256
    return describe(rule, _QUIET).replace(sha256, sha256[:12])
