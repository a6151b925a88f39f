"""Rules about what attention may see: which keys a row of the pattern keeps, as plain data."""

import re
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from segregation.errors import PlanError
from segregation.interventions.head_rules import Head, check_heads, check_layers, check_phase, describe
from segregation.interventions.phase import Phase

EVERYWHERE: tuple[str, ...] = ("prompt", "new", "everything")
"""Spans that every sample has: its prompt, the tokens after it, and both."""

_SPAN = re.compile(r"[A-Za-z_][\w-]*(\+[A-Za-z_][\w-]*)*")

_QUIET = frozenset({"but", "occurrence", "layers", "heads", "renormalize", "causal", "summed_over"})

Occurrence = int | Literal["all"]


@runtime_checkable
class Spanned(Protocol):
    """A rule about spans, whatever it does to their tokens."""

    @property
    def span(self) -> str:
        """Spans joined by ``+``."""
        ...

    @property
    def but(self) -> str | None:
        """Spans that are excepted."""
        ...

    @property
    def occurrence(self) -> Occurrence:
        """Which occurrence of ``span``."""
        ...

    @property
    def during(self) -> Phase:
        """The positions it acts on."""
        ...


@dataclass(frozen=True)
class _OnSpan:
    """The fields of every rule about a span, as ``HideTokens`` explains them; never used by itself."""

    span: str
    but: str | None = None
    occurrence: Occurrence = "all"
    during: Phase = Phase.ALL
    layers: tuple[int, ...] | Literal["all"] = "all"
    heads: tuple[Head, ...] | Literal["all"] = "all"
    renormalize: bool = True
    causal: bool = True

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        return describe(self, _QUIET)


@dataclass(frozen=True)
class HideTokens(_OnSpan):
    """Attention cannot see a span: p_N = 0 for its tokens N, in the rows of ``during``.

    By default a row is renormalised to 1 where a visible key is left, and untouched where none is. Only attention is
    edited: the recurrent layers read every token.

    Attributes:
        span: name of a span of the sample (``"needle"``, ``"question"``, ``"context"``), or ``"prompt"``, ``"new"``
            (the tokens after the prompt), ``"everything"``; several joined by ``+``.
        but: spans that stay visible, as in ``HideTokens("context", but="needle")``.
        occurrence: which occurrence of ``span``, counted from 0, or ``"all"``; just-read-twice has two.
        during: the rows (positions that attend) it acts on.
        layers: absolute indices of attention layers, or ``"all"``.
        heads: (layer, head) pairs, or ``"all"`` query heads of ``layers``.
        renormalize: scale what is left of a row to 1.
        causal: leave rows alone that see no token that the rule keeps; where it is off, every row of ``PREFILL`` is
            edited, those before the span too, as in the code of arXiv 2510.19861.

    Raises:
        PlanError: an ill-formed span, an occurrence below 0, or both layers and heads.

    >>> str(HideTokens("needle", during=Phase.GENERATION))
    'HideTokens(span=needle, during=LAST|DECODE)'
    """


@dataclass(frozen=True)
class OnlyTokens(_OnSpan):
    """Attention sees nothing but a span: p = 0 for all other keys. Attributes and errors as in ``HideTokens``.

    >>> OnlyTokens("needle+question", during=Phase.DECODE).occurrence
    'all'
    """


@dataclass(frozen=True)
class BalanceTokens(_OnSpan):
    """Attention sees nothing but a span, every token of it equally: p_N = (sum over N of p) / n on each.

    n counts the span's visible tokens (with ``causal`` off, in ``PREFILL``, those still to come there too).
    Renormalised, as it is by default, each weight is 1 / n. All else is as in ``HideTokens``.

    Attributes:
        summed_over: ``"row"``, or ``"prefill"``: in ``PREFILL`` the sum also runs over all rows of ``PREFILL``, as in
            the code of arXiv 2510.19861.

    Raises:
        PlanError: a sum over many rows that is renormalised.
    """

    summed_over: Literal["row", "prefill"] = "row"


@dataclass(frozen=True)
class HideAll:
    """Attention sees nothing: p = 0, so that z of the head is zero, as when the head is ablated.

    >>> str(HideAll(during=Phase.PREFILL))
    'HideAll(during=PREFILL)'
    """

    during: Phase = Phase.ALL
    layers: tuple[int, ...] | Literal["all"] = "all"
    heads: tuple[Head, ...] | Literal["all"] = "all"

    def __post_init__(self) -> None:
        _check_place(self)

    def __str__(self) -> str:
        return describe(self, _QUIET)


SpanRule = HideTokens | OnlyTokens | BalanceTokens
TokenRule = SpanRule | HideAll


def spans_named(rule: Spanned | HideAll) -> tuple[str, ...]:
    """The spans a rule names that a sample must have.

    >>> spans_named(HideTokens("context+new", but="needle"))
    ('context', 'needle')
    """
    if isinstance(rule, HideAll):
        return ()
    names = [*rule.span.split("+"), *(rule.but.split("+") if rule.but else ())]
    return tuple(name for name in dict.fromkeys(names) if name not in EVERYWHERE)


def check_span(rule: Spanned) -> set[str]:
    """The spans that a rule names and does not except, once they are well formed and may have a token.

    Raises:
        PlanError: an ill-formed span, an occurrence below 0, or a rule that can name no token.

    >>> sorted(check_span(HideTokens("context+question", but="needle")))
    ['context', 'question']
    """
    name = type(rule).__name__
    for field, text in (("span", rule.span), ("but", rule.but)):
        if not (isinstance(text, str) and _SPAN.fullmatch(text)) and not (field == "but" and text is None):
            raise PlanError(
                f'{name}.{field} must be the name of a span ("needle", "context", "question", "prompt", "new", '
                f'"everything"), or several joined by "+"; got {text!r}'
            )
    if rule.occurrence != "all" and (
        isinstance(rule.occurrence, bool) or not isinstance(rule.occurrence, int) or rule.occurrence < 0
    ):
        raise PlanError(f'{name}.occurrence must be counted from 0, or be "all", got {rule.occurrence!r}')
    check_phase(rule.during)
    named = set(rule.span.split("+")) - set((rule.but or "").split("+"))
    if not named or (named == {"new"} and Phase.DECODE not in rule.during):
        raise PlanError(
            f"{rule} names no token in {rule.during}: "
            + ("but takes away all of span" if not named else "the new tokens come in DECODE")
        )
    return named


def _check(rule: _OnSpan) -> None:
    name = type(rule).__name__
    for field, value in (("renormalize", rule.renormalize), ("causal", rule.causal)):
        if not isinstance(value, bool):
            raise PlanError(f"{name}.{field} must be true or false, got {value!r}")
    if isinstance(rule, BalanceTokens):
        if rule.summed_over not in ("row", "prefill"):
            raise PlanError(f'BalanceTokens.summed_over must be "row" or "prefill", got {rule.summed_over!r}')
        if rule.summed_over == "prefill" and rule.renormalize:
            raise PlanError(
                'BalanceTokens(summed_over="prefill") gives each row the sum of many, so it cannot be renormalised; '
                "use renormalize=False with it"
            )
    _check_place(rule)
    named = check_span(rule)
    everything = {"everything"} if Phase.DECODE in rule.during else {"everything", "prompt"}
    if isinstance(rule, HideTokens) and named & everything and not rule.but:
        raise PlanError(f"{rule} leaves nothing to see, and such rows are left alone; use HideAll() to hide everything")


def _check_place(rule: _OnSpan | HideAll) -> None:
    name = type(rule).__name__
    check_phase(rule.during)
    object.__setattr__(rule, "layers", check_layers(name, rule.layers))
    if rule.heads != "all":
        if rule.layers != "all":
            raise PlanError(
                f"{name}.heads are (layer, head) pairs, so they name their layers themselves; "
                f'got layers {rule.layers} as well: leave layers at "all"'
            )
        object.__setattr__(rule, "heads", check_heads(rule.heads))
        if not rule.heads:
            raise PlanError(f'{name}.heads is empty; name (layer, head) pairs, or pass "all"')
