"""Deciding the claims about the route of the needle: which memory carries it from the context to the answer."""

from collections.abc import Sequence

import numpy as np

from segregation.errors import ScoreError
from segregation.interventions.rules import Plan
from segregation.runs.record import Record
from segregation.scores.claims import Claim, Verdict, conclude
from segregation.scores.deciding import BASE_NEEDED, GONE, KEPT, all_of, at_least, at_most
from segregation.scores.routes import (
    ATTENTION,
    CHANNELS,
    MEASURE,
    RECURRENCE,
    RouteTable,
    recovery,
    route_tables,
    segregation_index,
)
from segregation.scores.statistics import Interval

DECIDING = "question"
"""The border that the verdicts are about: all of the context is read, and nothing of the question."""
SEGREGATED = 0.5
"""A route index from here on says that attention is the route."""

_KINDS = {"KV cache": ATTENTION, "recurrent state": RECURRENCE}

ROUTE_STATEMENTS: dict[str, tuple[str, str | None]] = {
    "state-only": (
        "the recurrent state alone does not bring the needle back against another run's KV cache; the KV cache alone "
        "does, against another run's state",
        "no compensatory mechanism",
    ),
    "segregation-index": (
        "attention, not the recurrent state, is the route from the context to the answer: the route index is at least "
        "0.5",
        None,
    ),
}
"""What each claim says, and the paper's own value."""


def route_claims(records: Sequence[Record]) -> list[Claim]:
    """The claims about routes, for every model that has route measurements of the untouched model at the question.

    >>> route_claims([])
    []
    """
    tables = [table for table in route_tables(records) if table.plan_hash == Plan().hash]
    claims = []
    for table in tables:
        if table.border == DECIDING:
            others = [other for other in tables if other.model == table.model and other.border != DECIDING]
            claims += [claim for claim in (state_only(table, others), route_index(table, others)) if claim is not None]
    return claims


def state_only(table: RouteTable, others: Sequence[RouteTable] = ()) -> Claim | None:
    """With the state alone from the clean run at most 5% comes back, and with the KV cache alone at least 95% does.

    ``measured`` is the recovery of the state alone, in exact retrieval of the clean needle; the note has that of the KV
    cache, what the other borders give, and how often the state alone leaves the other run's needle to be written: a
    state that holds the needle and is overruled does that too, so the claim is about what prevails. (``compensation``
    asks a state that nothing overrules.) Controls: the clean and the corrupt run write their own needles, and their
    states differ. A model without one of the two has nothing to say here.
    """
    if set(table.channels) != set(CHANNELS):
        return None
    if problem := _problem(table):
        return _claim("state-only", table, None, "undecided", problem)
    state, kv = recovery(table, RECURRENCE), recovery(table, ATTENTION)
    verdict = all_of(at_most(state, GONE), at_least(kv, KEPT))
    overruled = table.worth(RECURRENCE, "corrupt_exact").mean()
    parts = [f"recovery at the border {DECIDING!r}: state alone {state.percent}, KV cache alone {kv.percent}"]
    parts += [
        f"at {other.border!r}: {recovery(other, RECURRENCE).percent} and {recovery(other, ATTENTION).percent}"
        for other in others
        if not _problem(other)
    ]
    parts.append(f"with the state alone the other run's needle is written in {overruled:.0%}")
    return _claim("state-only", table, state, verdict, f"{'; '.join(parts)}; {_controls(table)}")


def route_index(table: RouteTable, others: Sequence[RouteTable] = ()) -> Claim:
    """The route index, rec(KV only) - rec(state only) in exact retrieval of the clean needle, is at least 0.5.

    Controls: the clean and the corrupt run, all channels and none, write their own needles.
    """
    if problem := _problem(table):
        return _claim("segregation-index", table, None, "undecided", problem)
    index = segregation_index(table)
    parts = [f"route index at the border {DECIDING!r}"]
    parts += [f"at {other.border!r} {segregation_index(other).plain}" for other in others if not _problem(other)]
    if absent := [kind for kind, of in _KINDS.items() if not set(of) & set(table.channels)]:
        parts.append(f"this model has no {absent[0]}, which therefore carries nothing")
    note = f"{'; '.join(parts)}; {_controls(table)}"
    return _claim("segregation-index", table, index, at_least(index, SEGREGATED), note)


def _problem(table: RouteTable) -> str:
    """Why the two runs by themselves do not allow a verdict; empty if they do."""
    own = {"clean": table.worth(CHANNELS, "clean_exact"), "corrupt": table.worth((), "corrupt_exact")}
    for of, exact in own.items():
        if (right := exact.mean()) < BASE_NEEDED:
            return f"the {of} run writes {right:.0%} of its own needles, {BASE_NEEDED:.0%} are needed"
    there = [table.changes[channel] for channel in RECURRENCE if channel in table.changes]
    if there and (same := int((np.max(there, axis=0) == 0).sum())):
        return f"in {same} of {table.n} samples both runs leave the same state, so nothing could come back with it"
    try:
        recovery(table, ATTENTION)
    except ScoreError as error:
        return str(error)
    return ""


def _controls(table: RouteTable) -> str:
    clean, corrupt = table.worth(CHANNELS, "clean_exact").mean(), table.worth((), "corrupt_exact").mean()
    return f"control: the clean run writes {clean:.0%} of its own needles, the corrupt run {corrupt:.0%}"


def _claim(id: str, table: RouteTable, measured: Interval | None, verdict: Verdict, note: str) -> Claim:
    return conclude(
        id,
        ROUTE_STATEMENTS[id],
        verdict,
        measured,
        model=table.model,
        n=table.n,
        evidence=[f"measurement:*:{table.plan_hash}:border=*:measure={MEASURE}"],
        note=note,
    )
