import dataclasses
from io import StringIO

from rich.console import Console, RenderableType

from segregation.interventions.phase import Phase
from segregation.interventions.rules import Plan
from segregation.interventions.token_rules import HideTokens
from segregation.report.tables import beyond_window, claims_markdown, claims_table, rates, rates_table
from segregation.scores.outcomes import outcomes
from segregation.scores.verdicts import decide
from tests.made_up import ablation_records, classic, facts, needles, recorded, sweep_plans, sweep_records


def text(renderable: RenderableType, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_claims_table_fits_80_columns_and_cuts_nothing_off() -> None:
    claims = decide(outcomes(sweep_records(lambda plan, sample: True)))
    long = dataclasses.replace(claims[0], id="random-heads", model="tiny-recurrentgemma", verdict="undecided")
    shown = text(claims_table([*claims, long]))
    assert "…" not in shown and "random-heads" in shown and "(paper: 15% of heads" in shown
    assert all(verdict in shown for verdict in ("holds", "fails"))


def test_claims_in_markdown_have_a_row_each() -> None:
    lines = claims_markdown(decide(outcomes(ablation_records(lambda plan, sample: not plan.rules)))).splitlines()
    assert len(lines) == 2 + 2 and all(line.count("|") == 8 for line in lines)


def test_rates_join_random_draws_and_keep_tasks_apart() -> None:
    samples, right = needles(lengths=[128], depths=[0, 50]), lambda plan, sample: not plan.rules
    records = recorded(samples, sweep_plans(4, 3, Phase.DECODE), right) + recorded(
        facts(3), sweep_plans(4, 1)[:1], right
    )
    rows = rates(outcomes(records))
    assert [row.n for row in rows if row.plan == "2 random heads per layer in the new tokens"] == [6]
    assert [(row.task, row.n, row.correct) for row in rows if row.plan == "base"] == [("needle", 2, 1), ("facts", 3, 1)]
    assert "top 1 heads by l2 in the new tokens" in text(rates_table(outcomes(records)), width=120)


def test_the_classic_needle_has_rows_of_its_own_beside_others() -> None:
    samples, right = needles(lengths=[128], depths=[0, 50]), lambda plan, sample: True
    both = outcomes(recorded([*samples, *classic(samples)], [Plan()], right))
    assert [(row.task, row.n) for row in rates(both)] == [("needle", 2), ("classic needle", 2)]
    assert [row.task for row in rates([outcome for outcome in both if outcome.classic])] == ["needle"]


def test_rules_that_had_nothing_to_act_on_are_told() -> None:
    hidden, samples = Plan(HideTokens("needle")), needles(lengths=[128], depths=[0, 50, 100])
    records = recorded(samples, [Plan(), hidden], lambda plan, sample: True)
    assert beyond_window(outcomes(records)) == []
    records = [dataclasses.replace(records[1], beyond_window={"needle": 3}), *records[2:]]
    (line,) = beyond_window(outcomes(records))
    assert line.startswith("1 of 3 samples: needle beyond the attention window")
    assert line.split("; ")[1] in text(rates_table(outcomes(records)), width=200)


def test_names_with_square_brackets_are_shown_as_they_are() -> None:
    claims = decide(outcomes(sweep_records(lambda plan, sample: True)))
    assert "my[red]model" in text(claims_table([dataclasses.replace(claims[0], model="my[red]model")]), width=120)
    (sample,) = needles(lengths=[128], depths=[0])
    odd = dataclasses.replace(sample, metadata={**sample.metadata, "task": "[/bold]odd"})
    assert "[/bold]odd" in text(
        rates_table(outcomes(recorded([odd], sweep_plans(4, 1)[:1], lambda plan, sample: True)))
    )
