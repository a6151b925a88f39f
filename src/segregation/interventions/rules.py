"""Plans: what one run does to the model, as rules in order; plain data with a JSON form and a hash."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from segregation.errors import PlanError
from segregation.interventions.contradictions import check_rules
from segregation.interventions.head_rules import AblateHeads, AblateMixer, KeepHeads, KeepTopHeads, plain
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, PatchState, ResetState
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, OnlyTokens

if TYPE_CHECKING:
    from segregation.models.hybrid import HybridModel

Rule = (
    KeepTopHeads | AblateHeads | KeepHeads | AblateMixer | HideTokens | OnlyTokens | BalanceTokens | HideAll
    | AblateRecurrent | ResetState | PatchState
)  # fmt: skip
RULES: Mapping[str, type[Rule]] = {rule.__name__: rule for rule in get_args(Rule)}


@dataclass(frozen=True)
class Plan:
    """The rules of one run, applied in order. ``Plan()`` changes nothing.

    >>> plan = Plan(KeepTopHeads(k=2, during=Phase.GENERATION))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    >>> str(Plan())
    'base'

    Raises:
        PlanError: something that is no rule, or two rules that contradict each other on the same positions.
    """

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        for rule in rules:
            if not isinstance(rule, tuple(RULES.values())):
                raise PlanError(f"a plan is made of rules ({', '.join(RULES)}), got {rule!r}")
        check_rules(rules)
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
        rules = [{"rule": type(rule).__name__, **plain(rule)} for rule in self.rules]
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

    @classmethod
    def from_file(cls, path: str | Path) -> "Plan":
        """Read the plan of a JSON file, which holds what ``to_json`` writes.

        Raises:
            PlanError: a file that cannot be read, or holds no plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise PlanError(f"the plan {str(path)!r} cannot be read ({reason}); name a JSON file") from error
        return cls.from_json(text)

    def enter(self, model: "HybridModel") -> "HybridModel":
        """The model with this plan stored on it; ``model.intervene(plan)`` calls this.

        Raises:
            PlanError: a rule that is impossible on this model, or contradicts one that the model carries.
        """
        check_rules([*(rule for plan in model.carried if isinstance(plan, Plan) for rule in plan.rules), *self.rules])
        from segregation.interventions.apply import enter  # the one writer into a trace; needs nnsight

        return enter(model, self)


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
