"""Where a rule about tokens has nothing to act on, because its span left the attention window."""

from segregation.interventions.phase import PHASES
from segregation.interventions.resolve import members
from segregation.interventions.rules import Plan
from segregation.interventions.token_rules import BalanceTokens, HideTokens, OnlyTokens
from segregation.prompts.spans import TokenSpans


def beyond_window(
    plan: Plan, spans: TokenSpans | None, window: int | None, prompt_tokens: int, tokens: int
) -> dict[str, int]:
    """Per span that a rule names, at how many of the rows it acts on every token of it was behind the window.

    Args:
        plan: what acted.
        spans: the spans of the sample.
        window: how many keys back a query sees, itself included; ``None`` is all.
        prompt_tokens: tokens of the prompt.
        tokens: positions that the model read, the prompt's and those after it.

    >>> from segregation.interventions.phase import Phase
    >>> spans = TokenSpans("a", (("needle", ((2, 3),)),))
    >>> beyond_window(Plan(HideTokens("needle", during=Phase.GENERATION)), spans, 8, 10, 14)
    {'needle': 3}
    """
    counts: dict[str, int] = {}
    if window is None:
        return counts
    edges = (0, max(prompt_tokens - 1, 0), prompt_tokens, max(tokens, prompt_tokens))
    for rule in plan.rules:
        if not isinstance(rule, HideTokens | OnlyTokens | BalanceTokens):
            continue
        named, new = members(rule, spans, prompt_tokens)
        if new or not named:
            continue
        behind = max(named) + window  # the first row that sees none of them
        rows = sum(
            max(0, edges[phase + 1] - max(edges[phase], behind))
            for phase in range(PHASES)
            if phase in rule.during.numbers
        )
        if rows:
            counts[rule.span] = max(rows, counts.get(rule.span, 0))
    return counts
