"""Deciding whether anything that was tried brings the recurrent layers to retrieve where attention cannot."""

from collections import defaultdict
from collections.abc import Sequence

from segregation.interventions.compensation import CRIPPLED, Setting, setting_of
from segregation.scores.claims import Claim, Verdict, conclude
from segregation.scores.compensation import Prompting, prompting_of
from segregation.scores.deciding import BASE, GONE, all_of, at_least, at_most, base_of, base_problem, rate, retained
from segregation.scores.outcomes import Outcome
from segregation.scores.statistics import Interval

ALIVE = 0.5
"""At least this share of base retrieval must be left with attention, once recurrent layers skip the distractors."""

STATEMENTS: dict[str, tuple[str, str | None]] = {
    "compensation": (
        "where attention is ablated or cannot see the needle, nothing tried on the prompt or on the state restores "
        "retrieval: at most 5% in the best case",
        "no compensatory mechanism",
    ),
}
"""What the claim says, and the paper's own words."""


def compensation(outcomes: Sequence[Outcome]) -> Claim | None:
    """Nothing tried on prompt or state restores retrieval without attention to the needle (at most 5% is retrieved).

    ``measured`` is the best of the cases in which everything on the prompt is tried at once (the context read again,
    several needles in it, the last right before the question), over the ways to keep attention from the needle, with
    the distractors in the state or not; all of them must lie at or below 5%. Every other prompting is tried on fewer
    samples: a rate above 5% leaves the claim undecided, a whole interval above it fails it. Control: with attention
    left alone, recurrent layers that skip the distractors keep half of base retrieval, so that skipping is not what
    breaks the model.
    """
    cells: dict[tuple[Setting, Prompting], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        setting = setting_of(outcome.plan)
        if outcome.task == "needle" and setting is not None:
            cells[setting, prompting_of(outcome)].append(outcome)
    tried = {
        cell: rows
        for cell, rows in cells.items()
        if cell[0].attention in CRIPPLED and cell[0].recurrence != "skips the needle"
    }
    best_case = {cell: rows for cell, rows in tried.items() if cell[1].together}
    if not any(setting.recurrence == "skips distractors" for setting, _ in best_case):
        return None
    rows = [row for group in best_case.values() for row in group]
    (setting, _), best_rows = max(best_case.items(), key=lambda case: rate(case[1]).value)
    best = rate(best_rows)
    base = base_of(rows, outcomes)
    problem = base_problem(base)
    skipping = [o for o in outcomes if o.plan == Setting(recurrence="skips distractors").plan]
    skipping = [o for o in skipping if o.sample_id in {row.sample_id for row in rows}]
    if not problem and not skipping:
        problem = "its control, attention left alone and distractors skipped, was not run on its samples"
    if problem:
        return _claim(rows, best, "undecided", problem)
    control = retained(skipping, base)
    elsewhere = {cell: rate(group) for cell, group in tried.items() if cell not in best_case}
    verdicts: list[Verdict] = [at_most(rate(group), GONE) for group in best_case.values()]
    restored: list[Verdict] = [at_most(interval, GONE) for interval in elsewhere.values() if interval.value > GONE]
    verdict = all_of(*verdicts, *restored)
    where = f"best with attention {setting.attention} and recurrent layers that {_reading(setting)}"
    note = (
        f"{where if best.value else 'none in any of the best cases'}; "
        f"{len(elsewhere)} other cases retrieve at most {max((i.value for i in elsewhere.values()), default=0):.0%}; "
        f"control: with attention left alone, distractors skipped, {control.value:.0%} of base retrieval is kept "
        f"(n = {control.n})"
    )
    if verdict == "holds" and at_least(control, ALIVE) != "holds":
        verdict, note = "undecided", f"skipping the distractors may break the model by itself; {note}"
    evidence = [row for (setting, _), group in tried.items() for row in group]
    return _claim([*evidence, *skipping], best, verdict, note)


def _reading(setting: Setting) -> str:
    return {"reads all": "read everything", "skips distractors": "skip the distractors"}[setting.recurrence]


def _claim(rows: Sequence[Outcome], measured: Interval, verdict: Verdict, note: str) -> Claim:
    return conclude(
        "compensation",
        STATEMENTS["compensation"],
        verdict,
        measured,
        model=rows[0].model,
        n=measured.n,
        evidence=[f"generate:*:{plan.hash}*" for plan in dict.fromkeys([BASE, *(row.plan for row in rows)])],
        note=note,
    )
