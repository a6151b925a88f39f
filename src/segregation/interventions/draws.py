"""Plans that keep heads at random: the control for any rule that chooses them."""

import math
import random
from collections.abc import Sequence

from segregation.errors import PlanError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import KeepHeads, Plan


def random_heads(
    attention_layers: Sequence[int], n_heads: int, k: int, n: int, *, during: Phase = Phase.ALL, seed: int = 0
) -> list[Plan]:
    """``n`` different plans, each keeping ``k`` random query heads of every attention layer.

    A draw does not depend on ``n``: more draws begin with the fewer.

    Raises:
        PlanError: ``k`` outside 1..n_heads-1 (nothing is random about none or all), or more draws than there are.

    >>> [len(plan.rules[0].heads) for plan in random_heads((2, 5), n_heads=8, k=3, n=2)]
    [6, 6]
    """
    if not 1 <= k < n_heads:
        raise PlanError(
            f"k random heads must be in 1..{n_heads - 1}, got {k}; none and all are AblateHeads() and Plan()"
        )
    if n > (possible := math.comb(n_heads, k) ** len(attention_layers)):
        raise PlanError(
            f"{k} of {n_heads} heads in {len(attention_layers)} layers can be drawn {possible} ways, not {n}"
        )
    rng = random.Random(f"{seed}/{k}/random heads")
    plans: dict[Plan, None] = {}
    while len(plans) < n:
        heads = tuple((layer, head) for layer in attention_layers for head in rng.sample(range(n_heads), k))
        plans[Plan(KeepHeads(heads, during=during))] = None
    return list(plans)
