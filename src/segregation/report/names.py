"""What plans and phases are called in figures and tables: short words that a reader without the code understands."""

from segregation.interventions.phase import Phase
from segregation.interventions.presets import paper
from segregation.interventions.recurrent_rules import AblateRecurrent, PatchState, ResetState
from segregation.interventions.rules import AblateHeads, AblateMixer, KeepHeads, KeepTopHeads, Plan, Rule
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, Occurrence, OnlyTokens, TokenRule

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
    >>> plan_name(Plan(HideTokens("context", but="needle", during=Phase.PREFILL)))
    'context hidden, needle kept, in prefill'
    >>> plan_name(Plan(paper(OnlyTokens("needle", during=Phase.GENERATION))))
    "only the needle in generation, the paper's way"
    >>> plan_name(Plan(AblateRecurrent("skip", span="context", but="needle", during=Phase.PREFILL)))
    'recurrence skips the context but the needle in prefill'
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
        case AblateRecurrent(value="skip"):
            return f"recurrence{_of_layers(rule)} skips {_tokens_of(rule) or 'every token'} {during}"
        case AblateRecurrent(value=value):
            what = {"zero": "ablated", "mean": "at its mean", "resample": "resampled"}[value]
            tokens = _tokens_of(rule)
            return f"recurrence{_of_layers(rule)} {what}{' at ' if tokens else ''}{tokens} {during}"
        case ResetState(every=every):
            return f"state{_of_layers(rule)} reset every {every} tokens {during}"
        case PatchState(channel=channel, sha256=sha256):
            return f"{channel}{_of_layers(rule)} patched from {sha256[:6]} before {phase_name(rule.during)}"
        case HideTokens() | OnlyTokens() | BalanceTokens() | HideAll():
            what = f"{seen_name(rule)}{_copy(rule)}{_where(rule)}"
            return f"{what}{',' if ',' in what else ''} {during}{_how(rule)}"


def _tokens_of(rule: AblateRecurrent) -> str:
    span, but = rule.span.replace("+", " and "), (rule.but or "").replace("+", " and ")
    if span == "everything" and not but:
        return ""
    copy = "" if rule.occurrence == "all" else f" ({copy_name(rule.occurrence)})"
    return f"the {span}{copy}" + (f" but the {but}" if but else "")


def _of_layers(rule: AblateRecurrent | ResetState | PatchState) -> str:
    return "" if rule.layers == "all" else f" of {len(rule.layers)} layers"


def copy_name(occurrence: Occurrence) -> str:
    """Which occurrence of a span, in words.

    >>> copy_name(1), copy_name("all")
    ('second copy', 'all copies')
    """
    if occurrence == "all":
        return "all copies"
    return f"{('first', 'second', 'third')[occurrence] if occurrence < 3 else f'{occurrence + 1}th'} copy"


def seen_name(rule: TokenRule) -> str:
    """What attention sees under a rule, in words; not when, nor how.

    >>> seen_name(HideTokens("context", but="needle"))
    'context hidden, needle kept'
    """
    if isinstance(rule, HideAll):
        return "everything hidden"
    span, but = rule.span.replace("+", " and "), (rule.but or "").replace("+", " and ")
    match rule:
        case HideTokens():
            return f"{span} hidden" + (f", {but} kept" if but else "")
        case OnlyTokens():
            return f"only the {span}" + (f" without the {but}" if but else "")
        case BalanceTokens():
            return f"only the {span}" + (f" without the {but}" if but else "") + ", balanced"


def _copy(rule: TokenRule) -> str:
    """Which occurrence, where it is not all of them and the paper's way does not say so already."""
    if isinstance(rule, HideAll) or rule.occurrence == "all" or rule == paper(rule):
        return ""
    return f" ({copy_name(rule.occurrence)})"


def _where(rule: TokenRule) -> str:
    if rule.heads != "all":
        return f" for {len(rule.heads)} named heads"
    return "" if rule.layers == "all" else f" for {len(rule.layers)} layers"


def _how(rule: TokenRule) -> str:
    """What a rule does otherwise than by default."""
    if isinstance(rule, HideAll):
        return ""
    if rule == paper(rule):
        return ", the paper's way"
    return ("" if rule.renormalize else ", not renormalised") + ("" if rule.causal else ", rows with nothing left too")
