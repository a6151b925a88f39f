"""The plans of a search for compensation: what attention may do, times what the recurrent layers read."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segregation.errors import PlanError
from segregation.interventions.head_rules import AblateHeads
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent
from segregation.interventions.rules import Plan, Rule
from segregation.interventions.token_rules import HideTokens

ATTENTION: Mapping[str, tuple[Rule, ...]] = {
    "untouched": (),
    "ablated in generation": (AblateHeads("all", during=Phase.GENERATION),),
    "ablated": (AblateHeads("all", during=Phase.ALL),),
    "needle hidden": (HideTokens("needle", during=Phase.ALL),),
}
"""What is done to attention: nothing; every head ablated, from the last prompt token on or throughout; or only the
needle hidden, throughout, which leaves attention to all other tokens alone."""

RECURRENCE: Mapping[str, tuple[Rule, ...]] = {
    "reads all": (),
    "skips distractors": (AblateRecurrent("skip", span="context", but="needle", during=Phase.PREFILL),),
    "skips the needle": (AblateRecurrent("skip", span="needle", during=Phase.PREFILL),),
}
"""What the recurrent layers read: everything; of the context nothing but the needle, which then has the state to
itself; or all but the needle, a control: nothing can then be known of it but through attention."""

CRIPPLED = tuple(name for name, rules in ATTENTION.items() if rules)
"""Settings of attention that keep it from reading the needle where the answer is written."""


@dataclass(frozen=True)
class Setting:
    """One combination.

    Attributes:
        attention: a key of ``ATTENTION``.
        recurrence: a key of ``RECURRENCE``.

    Raises:
        PlanError: another name.
    """

    attention: str = "untouched"
    recurrence: str = "reads all"

    def __post_init__(self) -> None:
        for what, known in (("attention", ATTENTION), ("recurrence", RECURRENCE)):
            if (name := getattr(self, what)) not in known:
                raise PlanError(f"Setting.{what} is one of {', '.join(known)}; got {name!r}")

    @property
    def plan(self) -> Plan:
        """The plan of this setting.

        >>> str(Setting("ablated in generation").plan)
        'AblateHeads(heads=all, during=LAST|DECODE)'
        """
        return Plan(*ATTENTION[self.attention], *RECURRENCE[self.recurrence])


SETTINGS = tuple(
    Setting(attention, recurrence) for attention in ATTENTION for recurrence in ("reads all", "skips distractors")
)
"""What every prompt is tried under."""

CONTROLS = tuple(Setting(attention, "skips the needle") for attention in ("untouched", "ablated"))
"""The recurrent layers do without the needle: with attention, and without, where nothing can know it."""


def possible(settings: Sequence[Setting], layer_types: Sequence[str]) -> list[Setting]:
    """The settings that act on nothing but layers that a model has.

    >>> [setting.recurrence for setting in possible(SETTINGS, ["recurrent", "recurrent"])]
    ['reads all', 'skips distractors']
    """
    return [
        setting
        for setting in settings
        if ("attention" in layer_types or not ATTENTION[setting.attention])
        and ("recurrent" in layer_types or not RECURRENCE[setting.recurrence])
    ]


@functools.cache
def setting_of(plan: Plan) -> Setting | None:
    """The setting of a plan, or ``None`` if it is none of them.

    >>> setting_of(Plan()), setting_of(Plan(AblateHeads(during=Phase.PREFILL)))
    (Setting(attention='untouched', recurrence='reads all'), None)
    """
    return next((setting for setting in (*SETTINGS, *CONTROLS) if setting.plan == plan), None)
