"""What plans and phases are called in figures and tables: short words that a reader without the code understands."""

from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, AblateMixer, KeepHeads, KeepTopHeads, Plan, Rule

_PHASES = {
    Phase.PREFILL: "prefill",
    Phase.LAST: "the last prompt token",
    Phase.DECODE: "the new tokens",
    Phase.GENERATION: "generation",
    Phase.ALL: "all phases",
}


def phase_name(during: Phase) -> str:
    """A phase in words.

    >>> phase_name(Phase.GENERATION), phase_name(Phase.PREFILL | Phase.LAST)
    ('generation', 'prefill + the last prompt token')
    """
    parts = [phase for phase in (Phase.PREFILL, Phase.LAST, Phase.DECODE) if phase in during]
    return _PHASES.get(during) or " + ".join(_PHASES[part] for part in parts)


def plan_name(plan: Plan) -> str:
    """A plan in words.

    >>> plan_name(Plan()), plan_name(Plan(AblateHeads(during=Phase.PREFILL)))
    ('base', 'all heads ablated in prefill')
    >>> plan_name(Plan(KeepTopHeads(k=2, during=Phase.GENERATION)))
    'top 2 heads by entropy in generation'
    """
    return " and ".join(map(_rule_name, plan.rules)) or "base"


def _rule_name(rule: Rule) -> str:
    during = f"in {phase_name(rule.during)}"
    match rule:
        case KeepTopHeads(k=k, score=score):
            return f"top {k} heads by {score} {during}"
        case AblateHeads(heads="all"):
            return f"all heads ablated {during}"
        case AblateHeads(heads=heads):
            return f"{len(heads)} named heads ablated {during}"
        case KeepHeads(heads=heads):
            return f"{len(heads)} named heads kept {during}"
        case AblateMixer(layers=layers):
            return f"attention of {'all' if layers == 'all' else len(layers)} layers removed {during}"
