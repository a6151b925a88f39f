"""Rules about attention heads and attention mixers: which of them act, as plain data."""

import dataclasses
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal, get_args

from segregation.errors import PlanError
from segregation.interventions.phase import Phase

Head = tuple[int, int]
"""(layer, head): the absolute layer index and the query head in it."""

HeadScore = Literal["entropy", "l2", "paper_entropy"]


def check_phase(during: Phase) -> None:
    """Refuse what is no phase.

    Raises:
        PlanError: not a ``Phase``, or an empty one.
    """
    if not isinstance(during, Phase) or not during:
        raise PlanError(f"during must be a non-empty Phase, got {during!r}; use for example Phase.GENERATION")


def check_heads(heads: Any) -> tuple[Head, ...]:
    """Heads in order, each once.

    Raises:
        PlanError: something else than (layer, head) pairs, or a layer or head below 0.
    """
    try:
        checked = tuple(sorted({(int(layer), int(head)) for layer, head in heads}))
    except (TypeError, ValueError) as error:
        raise PlanError(f"heads are a tuple of (layer, head) pairs, such as ((2, 0), (2, 3)), got {heads!r}") from error
    for layer, head in checked:
        if layer < 0 or head < 0:
            raise PlanError(f"heads are (layer, head) pairs counted from 0, got ({layer}, {head})")
    return checked


def check_layers(rule: str, layers: Any) -> tuple[int, ...] | Literal["all"]:
    """Layers in order, each once.

    Raises:
        PlanError: something else than layers, none, or one below 0.
    """
    if layers == "all":
        return "all"
    try:
        checked = tuple(sorted({int(layer) for layer in layers}))
    except (TypeError, ValueError) as error:
        raise PlanError(f'{rule}.layers is a tuple of layers, such as (2, 5), or "all"; got {layers!r}') from error
    if not checked or checked[0] < 0:
        raise PlanError(f'{rule}.layers must name layers counted from 0, or be "all"; got {layers!r}')
    return checked


def plain(rule: Any) -> dict[str, Any]:
    """A rule's fields by name, as JSON has them."""
    fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    fields["during"] = str(fields["during"])
    return fields


def describe(rule: Any, quiet: Container[str] = ()) -> str:
    """A rule in one line, without those of the ``quiet`` fields that are at their default."""
    at_default = {field.name for field in dataclasses.fields(rule) if getattr(rule, field.name) == field.default}
    fields = ", ".join(
        f"{name}={[list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value}"
        for name, value in plain(rule).items()
        if name not in quiet or name not in at_default
    )
    return f"{type(rule).__name__}({fields})"


@dataclass(frozen=True)
class KeepTopHeads:
    """Keep the k best-scoring query heads per sample and position; set z of the others to zero.

    Attributes:
        k: how many heads of each attention layer to keep, 0..n_heads.
        score: ``"entropy"`` (low is good), ``"l2"`` (norm of the pattern row, high is good), or ``"paper_entropy"``
            (arXiv 2510.19861's code: ``sum (p + 1e-12) log2 (p + 1e-12)`` in the model's dtype; ties often in bf16).
        during: the positions it acts on.

    Ties go to the lowest head index. Kept heads are not rescaled. (arXiv 2510.19861, section on sparsification)

    >>> str(KeepTopHeads(k=2, during=Phase.GENERATION))
    'KeepTopHeads(k=2, score=entropy, during=LAST|DECODE)'
    """

    k: int
    score: HeadScore = "entropy"
    during: Phase = Phase.ALL

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 0:
            raise PlanError(f"KeepTopHeads.k must be an integer in 0..n_heads, got {self.k!r}")
        if self.score not in get_args(HeadScore):
            raise PlanError(f"KeepTopHeads.score must be one of {get_args(HeadScore)}, got {self.score!r}")
        check_phase(self.during)

    def __str__(self) -> str:
        return describe(self)


@dataclass(frozen=True)
class AblateHeads:
    """Set z of the named query heads to zero (``heads="all"``: of every head of every attention layer).

    >>> str(AblateHeads())
    'AblateHeads(heads=all, during=PREFILL|LAST|DECODE)'
    """

    heads: tuple[Head, ...] | Literal["all"] = "all"
    during: Phase = Phase.ALL

    def __post_init__(self) -> None:
        if self.heads != "all":
            object.__setattr__(self, "heads", check_heads(self.heads))
            if not self.heads:
                raise PlanError('AblateHeads.heads is empty; name (layer, head) pairs, or pass "all"')
        check_phase(self.during)

    def __str__(self) -> str:
        return describe(self)


@dataclass(frozen=True)
class KeepHeads:
    """Set z of every query head but the named ones to zero, in every attention layer.

    >>> KeepHeads(heads=((2, 5), (2, 1))).heads
    ((2, 1), (2, 5))
    """

    heads: tuple[Head, ...]
    during: Phase = Phase.ALL

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", check_heads(self.heads))
        check_phase(self.during)

    def __str__(self) -> str:
        return describe(self)


@dataclass(frozen=True)
class AblateMixer:
    """Set the whole output of attention layers to zero, the output projection's bias included.

    With a biased projection (RecurrentGemma) this is more than ``AblateHeads("all")``, which leaves the bias.

    Attributes:
        layers: absolute indices of attention layers, or ``"all"`` of them.
        during: the positions it acts on.

    >>> str(AblateMixer(layers=(2,)))
    'AblateMixer(layers=[2], during=PREFILL|LAST|DECODE)'
    """

    layers: tuple[int, ...] | Literal["all"] = "all"
    during: Phase = Phase.ALL

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers("AblateMixer", self.layers))
        check_phase(self.during)

    def __str__(self) -> str:
        return describe(self)
