"""Ablations of attention heads and of recurrent mixers that can be compared: as many components, or as much harm."""

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal, TypeVar

import numpy as np

from segregation.errors import PlanError
from segregation.interventions.draws import random_heads
from segregation.interventions.head_rules import Head
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, Ablation
from segregation.interventions.rules import AblateHeads, KeepHeads, Plan

Side = Literal["attention", "recurrent", "both"]
AnyItem = TypeVar("AnyItem")

TOLERANCE = 0.1
"""How far apart the harm of two ablations may be for them to count as equally harmful."""
ROOM = 0.2
"""Harm from 0 and from 1 below which an ablation is not compared: it leaves nothing, or nothing to see."""
PHASES = (Phase.PREFILL, Phase.LAST, Phase.GENERATION)
"""The phases, beside all of them, in which whole sides are candidates."""


@dataclass(frozen=True)
class Match:
    """Two ablations that do nearly the same harm.

    Attributes:
        attention: of attention heads.
        recurrent: of recurrent mixers.
        attention_harm: of the first, where the match was made.
        recurrent_harm: of the second.
    """

    attention: Plan
    recurrent: Plan
    attention_harm: float
    recurrent_harm: float

    @property
    def both(self) -> Plan:
        """Both ablations at once."""
        return Plan(*self.attention.rules, *self.recurrent.rules)


def side_of(plan: Plan) -> Side | None:
    """Which side a plan ablates, if it does nothing else.

    >>> side_of(Plan(AblateRecurrent(layers=(1,)))), side_of(Plan(AblateHeads(), AblateRecurrent())), side_of(Plan())
    ('recurrent', 'both', None)
    """
    heads = [isinstance(rule, AblateHeads) for rule in plan.rules]
    mixers = [isinstance(rule, AblateRecurrent) and rule.span == "everything" for rule in plan.rules]
    if not heads or not all(a or b for a, b in zip(heads, mixers, strict=True)):
        return None
    return "attention" if all(heads) else "recurrent" if all(mixers) else "both"


def set_name(plan: Plan) -> str:
    """What a plan of one side ablates, in words.

    >>> set_name(Plan(AblateHeads(((2, 0), (2, 5), (6, 1))))), set_name(Plan(AblateRecurrent(during=Phase.LAST)))
    ('heads 2.0 2.5 6.1', 'all mixers in LAST')
    """
    return " and ".join(_rule_name(rule) for rule in plan.rules if isinstance(rule, AblateHeads | AblateRecurrent))


def head_sets(attention_layers: Sequence[int], n_heads: int, *, draws: int = 4, seed: int = 0) -> list[Plan]:
    """Candidates of the attention side: all heads, those of each layer, and random ones, as many in every layer.

    All heads are ablated in all phases and in each of ``PHASES``, the others in all phases. At random five, six
    and seven eighths of the heads of every layer are ablated, ``draws`` times each.

    >>> len(head_sets((2, 6), n_heads=8))
    18
    >>> head_sets((), n_heads=8)
    []
    """
    if not attention_layers:
        return []
    whole = [Plan(AblateHeads(during=during)) for during in (Phase.ALL, *PHASES)]
    layers = [Plan(AblateHeads(_heads(layer, n_heads))) for layer in attention_layers] if attention_layers[1:] else []
    kept = sorted({n_heads - max(1, n_heads * eighths // 8) for eighths in (5, 6, 7)} & set(range(1, n_heads)))
    drawn = [plan for k in kept for plan in _drawn(attention_layers, n_heads, k, draws, seed)]
    return list(dict.fromkeys([*whole, *layers, *drawn]))


def mixer_sets(
    recurrent_layers: Sequence[int], values: Mapping[Ablation, str], *, draws: int = 12, seed: int = 0
) -> list[Plan]:
    """Candidates of the recurrent side: all mixers, each of them, and random pairs.

    By the first of the ``values``, all mixers are ablated in all phases and in each of ``PHASES``, and the pairs in all
    phases; each mixer is, in all phases, by every value.

    Args:
        recurrent_layers: the layers that there are.
        values: what an output is replaced by, with the file that it needs, or ``""``.
        draws: how many pairs, at most.
        seed: draws the pairs.

    >>> len(mixer_sets((0, 1, 3), {"zero": ""}, draws=2))
    9
    """
    if not recurrent_layers or not values:
        return []
    first: Ablation = next(iter(values))
    pairs = list(combinations(recurrent_layers, 2)) if recurrent_layers[2:] else []
    pairs = random.Random(f"{seed}/random mixers").sample(pairs, min(draws, len(pairs)))
    singles = [(layer,) for layer in recurrent_layers] if recurrent_layers[1:] else []
    whole = [Plan(AblateRecurrent(first, source=values[first], during=during)) for during in (Phase.ALL, *PHASES)]
    sets: list[tuple[Ablation, tuple[int, ...]]] = [(value, layers) for layers in singles for value in values]
    sets.extend((first, layers) for layers in pairs)
    return whole + [Plan(AblateRecurrent(value, layers=layers, source=values[value])) for value, layers in sets]


def match_harm(
    attention: Mapping[Plan, float],
    recurrent: Mapping[Plan, float],
    *,
    tolerance: float = TOLERANCE,
    room: float = ROOM,
) -> list[Match]:
    """As many pairs of equally harmful ablations as there are, and of those ways to pair the one with the least gaps.

    A set of heads, or of mixers, enters one pair only, whatever its mixers are replaced by and when: two ways to ablate
    the same layer are no two sets. Harm alone decides, not what is harmed.

    Args:
        attention: harm, 0 to 1, of each candidate of the attention side.
        recurrent: the same of the recurrent side.
        tolerance: the largest gap in a pair.
        room: harm below it, or above 1 - room, is not compared.

    >>> one, other = Plan(AblateHeads()), Plan(AblateRecurrent(layers=(1,)))
    >>> [match.recurrent == other for match in match_harm({one: 0.5}, {other: 0.45, Plan(AblateRecurrent()): 1.0})]
    [True]
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = _by_set(attention, room), _by_set(recurrent, room)
    if not rows or not columns:
        return []
    gaps = np.full((len(rows), len(columns)), np.inf)
    best: dict[tuple[int, int], Match] = {}
    for i, these in enumerate(rows):
        for j, those in enumerate(columns):
            ways = [(a, s) for a in these for s in those]
            a, s = min(ways, key=lambda way: abs(attention[way[0]] - recurrent[way[1]]))
            best[i, j] = Match(a, s, attention[a], recurrent[s])
            gaps[i, j] = abs(attention[a] - recurrent[s])
    allowed = gaps <= tolerance + 1e-9
    chosen = linear_sum_assignment(np.where(allowed, gaps, float(gaps.size + 1)))
    return [best[i, j] for i, j in zip(*(side.tolist() for side in chosen), strict=True) if allowed[i, j]]


def dealt(
    match: Match, attention_layers: Sequence[int], n_heads: int, recurrent_layers: Sequence[int], *, seed: int
) -> tuple[Plan, Plan]:
    """A random counterpart of a match: as many components, drawn at random, and dealt to two sides whatever their kind.

    From each attention layer as many heads are drawn as the match ablates there, and as many recurrent mixers as it
    ablates; half of the heads and half of the mixers, an odd one by a coin, go to either side. They are ablated as in
    the match. Between two such sides no difference is expected, in whatever way attention and recurrence differ.

    Raises:
        PlanError: a match of one head and one mixer, which cannot be dealt but by kind.

    >>> match = Match(Plan(AblateHeads(((2, 0), (2, 1)))), Plan(AblateRecurrent(layers=(1, 3))), 0.5, 0.5)
    >>> [[len(rule.heads if isinstance(rule, AblateHeads) else rule.layers) for rule in side.rules]
    ...  for side in dealt(match, (2,), 8, (0, 1, 3, 4), seed=0)]
    [[1, 1], [1, 1]]
    """
    (head_rule,), (mixer_rule,) = match.attention.rules, match.recurrent.rules
    assert isinstance(head_rule, AblateHeads)
    assert isinstance(mixer_rule, AblateRecurrent)
    everything = [head for layer in attention_layers for head in _heads(layer, n_heads)]
    counts = Counter(layer for layer, _ in (everything if head_rule.heads == "all" else head_rule.heads))
    n_mixers = len(recurrent_layers) if mixer_rule.layers == "all" else len(mixer_rule.layers)
    if counts.total() == n_mixers == 1:
        raise PlanError(
            f"sides of both kinds need more than one head and one mixer, got {set_name(match.attention)} and "
            f"{set_name(match.recurrent)}; leave this match without a random counterpart"
        )
    rng = random.Random(f"{seed}/dealt")
    while True:
        heads = [head for layer, n in counts.items() for head in rng.sample(_heads(layer, n_heads), n)]
        halves = zip(_halves(heads, rng), _halves(rng.sample(list(recurrent_layers), n_mixers), rng), strict=True)
        sides = [_plan(a, s, head_rule, mixer_rule) for a, s in halves]
        if all(side.rules for side in sides):
            return sides[0], sides[1]


def _rule_name(rule: AblateHeads | AblateRecurrent) -> str:
    when = "" if rule.during == Phase.ALL else f" in {rule.during}"
    if isinstance(rule, AblateRecurrent):
        what = "all mixers" if rule.layers == "all" else f"mixer{'s' * (len(rule.layers) > 1)} {_listed(rule.layers)}"
        return what + ("" if rule.value == "zero" else f" ({rule.value})") + when
    if rule.heads == "all":
        return "all heads" + when
    counts = Counter(layer for layer, _ in rule.heads)
    if len(rule.heads) <= 4:
        return "heads " + " ".join(f"{layer}.{head}" for layer, head in rule.heads) + when
    each = " each" * (len(counts) > 1)
    return f"{min(counts.values())} heads{each} of layer{'s' * (len(counts) > 1)} {_listed(tuple(counts))}" + when


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))


def _plan(heads: list[Head], layers: list[int], like: AblateHeads, like_mixers: AblateRecurrent) -> Plan:
    ablated = [AblateHeads(tuple(heads), like.during)] if heads else []
    mixers = [dataclasses.replace(like_mixers, layers=tuple(layers))] if layers else []
    return Plan(*ablated, *mixers)


def _halves(items: list[AnyItem], rng: random.Random) -> tuple[list[AnyItem], list[AnyItem]]:
    """Two random halves; the odd one goes to either side by a coin."""
    rng.shuffle(items)
    middle = (len(items) + rng.randrange(2)) // 2
    return items[:middle], items[middle:]


def _heads(layer: int, n_heads: int) -> tuple[Head, ...]:
    return tuple((layer, head) for head in range(n_heads))


def _drawn(layers: Sequence[int], n_heads: int, kept: int, draws: int, seed: int) -> list[Plan]:
    """Plans that ablate the heads which random plans would keep the others of."""
    possible = min(draws, comb(n_heads, kept) ** len(layers))
    rules = [plan.rules[0] for plan in random_heads(layers, n_heads, kept, possible, seed=seed)]
    every = {head for layer in layers for head in _heads(layer, n_heads)}
    return [Plan(AblateHeads(tuple(every - set(rule.heads)))) for rule in rules if isinstance(rule, KeepHeads)]


def _by_set(harm: Mapping[Plan, float], room: float) -> list[list[Plan]]:
    """The plans whose harm leaves room, those of one set together."""
    sets: dict[object, list[Plan]] = {}
    for plan, value in harm.items():
        if room <= value <= 1 - room:
            named = tuple(getattr(rule, "heads" if isinstance(rule, AblateHeads) else "layers") for rule in plan.rules)
            sets.setdefault(named, []).append(plan)
    return list(sets.values())
