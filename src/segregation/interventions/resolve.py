"""Which tokens of a row the rules of a plan name, and whether together they leave any."""

from collections.abc import Sequence
from itertools import combinations, permutations

from segregation.errors import PlanError, SampleError
from segregation.interventions.contradictions import differ, same_place
from segregation.interventions.patch_source import check_patch
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, PatchState
from segregation.interventions.rules import Plan, Rule
from segregation.interventions.token_rules import (
    EVERYWHERE,
    BalanceTokens,
    HideAll,
    HideTokens,
    OnlyTokens,
    Spanned,
    SpanRule,
    TokenRule,
    spans_named,
)
from segregation.prompts.spans import TokenSpans


def spans_of_rule(rule: Rule) -> tuple[str, ...]:
    """The spans that any rule names and a sample must have.

    >>> spans_of_rule(AblateRecurrent("skip", span="context", but="needle"))
    ('context', 'needle')
    """
    return spans_named(rule) if isinstance(rule, SpanRule | AblateRecurrent) else ()


def members(rule: Spanned | HideAll, spans: TokenSpans | None, prompt_length: int) -> tuple[set[int], bool]:
    """The prompt positions that a rule names for one row, and whether it names the new ones.

    Raises:
        SampleError: a span that the row does not have, or an occurrence of it.

    >>> from segregation.interventions.token_rules import HideTokens
    >>> spans = TokenSpans("a", (("context", ((1, 2, 3),)), ("needle", ((2,),))))
    >>> members(HideTokens("context+new", but="needle"), spans, 6)
    ({1, 3}, True)
    """
    if isinstance(rule, HideAll):
        return set(), False
    if spans_named(rule) and spans is None:
        raise SampleError(
            f"{rule} names the span {spans_named(rule)[0]!r}, but the row it should act on is not a Sample, which has "
            f"spans; pass a Sample, or use one of the spans {', '.join(EVERYWHERE)}"
        )
    names = rule.span.split("+")
    but = rule.but.split("+") if rule.but else []
    occurrence = None if rule.occurrence == "all" else rule.occurrence

    def positions(chosen: Sequence[str], occurrence: int | None) -> set[int]:
        found: set[int] = set()
        for name in chosen:
            if name in ("prompt", "everything"):
                found |= set(range(prompt_length))
            elif name != "new":
                assert spans is not None
                tokens = spans.tokens(name, occurrence)
                if max(tokens, default=0) >= prompt_length:
                    raise SampleError(
                        f"{name!r} of sample {spans.sample_id!r} reaches token {max(tokens)}, but the prompt has "
                        f"{prompt_length} tokens; a span lies within the prompt, so give prompt_lengths that hold it"
                    )
                found |= set(tokens)
        return found

    new = bool({"new", "everything"} & set(names)) and not {"new", "everything"} & set(but)
    return positions(names, occurrence) - positions(but, None), new


def check_resolved(plan: Plan, spans: TokenSpans | None, prompt_length: int) -> None:
    """Refuse rules that together leave attention nothing of what one of them keeps, or a mixer two outputs at a token.

    Raises:
        SampleError: a span that the row does not have, or an occurrence of it.
        PlanError: a rule hides every token that another one keeps, or names none of this row.
    """
    _check_recurrent(plan, spans, prompt_length)
    for rule in plan.rules:
        if isinstance(rule, PatchState):
            check_patch(rule, spans, prompt_length)
    named = {rule: members(rule, spans, prompt_length) for rule in plan.rules if isinstance(rule, TokenRule)}
    for rule, (tokens, new) in named.items():
        if not tokens and not new and not isinstance(rule, HideAll):
            raise PlanError(f"{rule} names no token of this prompt: but takes away all of span; leave the rule out")
    for hide, keep in permutations(named, 2):
        both = hide.during & keep.during
        if not (isinstance(hide, HideTokens) and isinstance(keep, OnlyTokens | BalanceTokens) and both):
            continue
        (hidden, hides_new), (kept, keeps_new) = named[hide], named[keep]
        if same_place(hide, keep) and kept <= hidden and (hides_new or not keeps_new):
            raise PlanError(
                f"{hide} and {keep} contradict each other in {both}: every token that one keeps is hidden by the "
                "other. Leave one of them out, or give them different phases"
            )


def _check_recurrent(plan: Plan, spans: TokenSpans | None, prompt_length: int) -> None:
    rules = [rule for rule in plan.rules if isinstance(rule, AblateRecurrent)]
    named = {rule: members(rule, spans, prompt_length) for rule in rules}
    for rule, (tokens, new) in named.items():
        if not tokens and not new:
            raise PlanError(f"{rule} names no token of this prompt: but takes away all of span; leave the rule out")
        read = {Phase.LAST if token == prompt_length - 1 else Phase.PREFILL for token in tokens}
        if not any(phase in rule.during for phase in read | ({Phase.DECODE} if new else set())):
            raise PlanError(
                f"{rule} acts nowhere: the mixer reads the tokens of {rule.span!r} in "
                f"{' and '.join(sorted(map(str, read)))} alone. Give it a phase in which they are read"
            )
    for one, other in combinations(named, 2):
        (tokens, new), (others, others_new) = named[one], named[other]
        both = one.during & other.during
        if both and differ(one, other) and (tokens & others or (new and others_new)):
            raise PlanError(
                f"{one} and {other} contradict each other in {both}: they name {len(tokens & others)} tokens of the "
                "prompt in common, and the mixer has one output there. Leave one of them out, or part their spans"
            )
