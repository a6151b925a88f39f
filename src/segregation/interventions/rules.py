"""What an intervention does, as plain data: rules with a phase each, and plans made of rules."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from segregation.errors import PlanError
from segregation.interventions.phase import Phase

if TYPE_CHECKING:
    from segregation.models.hybrid import HybridModel

Head = tuple[int, int]
"""(layer, head): the absolute layer index and the query head in it."""

HeadScore = Literal["entropy", "l2", "paper_entropy"]


def _check_phase(during: Phase) -> None:
    if not isinstance(during, Phase) or not during:
        raise PlanError(f"during must be a non-empty Phase, got {during!r}; use for example Phase.GENERATION")


def _check_heads(heads: tuple[Head, ...]) -> tuple[Head, ...]:
    checked = tuple(sorted({(int(layer), int(head)) for layer, head in heads}))
    for layer, head in checked:
        if layer < 0 or head < 0:
            raise PlanError(f"heads are (layer, head) pairs counted from 0, got ({layer}, {head})")
    return checked


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
        _check_phase(self.during)

    def __str__(self) -> str:
        return _describe(self)


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
            object.__setattr__(self, "heads", _check_heads(self.heads))
            if not self.heads:
                raise PlanError('AblateHeads.heads is empty; name (layer, head) pairs, or pass "all"')
        _check_phase(self.during)

    def __str__(self) -> str:
        return _describe(self)


@dataclass(frozen=True)
class KeepHeads:
    """Set z of every query head but the named ones to zero, in every attention layer.

    >>> KeepHeads(heads=((2, 5), (2, 1))).heads
    ((2, 1), (2, 5))
    """

    heads: tuple[Head, ...]
    during: Phase = Phase.ALL

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", _check_heads(self.heads))
        _check_phase(self.during)

    def __str__(self) -> str:
        return _describe(self)


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
        if self.layers != "all":
            object.__setattr__(self, "layers", tuple(sorted({int(layer) for layer in self.layers})))
            if not self.layers or min(self.layers) < 0:
                raise PlanError(f'AblateMixer.layers must name layers counted from 0, or be "all"; got {self.layers!r}')
        _check_phase(self.during)

    def __str__(self) -> str:
        return _describe(self)


Rule = KeepTopHeads | AblateHeads | KeepHeads | AblateMixer
RULES: Mapping[str, type[Rule]] = {rule.__name__: rule for rule in get_args(Rule)}


@dataclass(frozen=True)
class Plan:
    """The rules of one run, applied in order. ``Plan()`` changes nothing.

    >>> plan = Plan(KeepTopHeads(k=2, during=Phase.GENERATION))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    >>> str(Plan())
    'base'
    """

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        for rule in rules:
            if not isinstance(rule, tuple(RULES.values())):
                raise PlanError(f"a plan is made of rules ({', '.join(RULES)}), got {rule!r}")
        object.__setattr__(self, "rules", tuple(rules))

    @property
    def during(self) -> Phase:
        """The union of the phases its rules act on."""
        phase = Phase(0)
        for rule in self.rules:
            phase |= rule.during
        return phase

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are the same for equal plans, on every machine and Python."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return " + ".join(map(str, self.rules)) or "base"

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces.

        >>> Plan(AblateHeads(during=Phase.DECODE)).to_json()
        '{"rules":[{"during":"DECODE","heads":"all","rule":"AblateHeads"}]}'
        """
        rules = [{"rule": type(rule).__name__, **_plain(rule)} for rule in self.rules]
        return json.dumps({"rules": rules}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read ``to_json`` back.

        Raises:
            PlanError: not JSON, an unknown rule, or a field the rule does not have.
        """
        try:
            objects = json.loads(text)["rules"]
            return cls(*[_rule_from(dict(obj)) for obj in objects])
        except PlanError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(
                f'a plan in JSON is {{"rules": [{{"rule": NAME, ...}}]}}, got {text[:120]!r} ({error})'
            ) from error

    def enter(self, model: "HybridModel") -> "HybridModel":
        """The model with this plan stored on it; ``model.intervene(plan)`` calls this."""
        from segregation.interventions.apply import enter  # the one writer into a trace; needs nnsight

        return enter(model, self)


def _plain(rule: Rule) -> dict[str, Any]:
    plain = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    plain["during"] = str(plain["during"])
    return plain


def _rule_from(obj: dict[str, Any]) -> Rule:
    name = obj.pop("rule")
    if name not in RULES:
        raise PlanError(f"a rule is one of {', '.join(RULES)}, got {name!r}")
    known = {field.name for field in dataclasses.fields(RULES[name])}
    if unknown := set(obj) - known:
        raise PlanError(f"{name} has the fields {sorted(known)}, not {sorted(unknown)}")
    if "during" in obj:
        obj["during"] = Phase.parse(obj["during"])
    if isinstance(obj.get("heads"), list):
        obj["heads"] = tuple((layer, head) for layer, head in obj["heads"])
    if isinstance(obj.get("layers"), list):
        obj["layers"] = tuple(obj["layers"])
    return RULES[name](**obj)


def _describe(rule: Rule) -> str:
    fields = ", ".join(
        f"{name}={[list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value}"
        for name, value in _plain(rule).items()
    )
    return f"{type(rule).__name__}({fields})"
