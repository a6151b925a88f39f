import pytest

from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan
from segregation.report.benchmarks import known_tasks, retention_bars
from segregation.scores.outcomes import outcomes
from tests.made_up import ABLATED, asked, facts, recorded, sweep_plans

KEPT, LESS = (Plan(KeepTopHeads(k, during=Phase.GENERATION)) for k in (3, 1))
PREFILL = Plan(AblateHeads(during=Phase.PREFILL))


def tasks():
    samples = [*facts(20), *asked("sentiment", 20, (" yes", " no")), *asked("guessed", 20, (" yes", " no"))]

    def right(plan: Plan, sample) -> bool:
        return int(sample.id.split("/")[1]) < {"guessed": 10}.get(
            sample.metadata["task"], 14 if plan == ABLATED else 20
        )

    drawn = sweep_plans(4, 1)[-1]
    return known_tasks(outcomes(recorded(samples, [Plan(), PREFILL, LESS, ABLATED, KEPT, drawn], right)))


def test_what_the_base_only_guesses_is_not_drawn_and_random_heads_are_no_bar() -> None:
    assert [task.task for task in tasks()] == ["facts", "sentiment"]
    assert all(set(task.left) == {PREFILL, LESS, ABLATED, KEPT} for task in tasks())


def test_bars_are_raw_and_corrected_most_heads_first() -> None:
    figure = retention_bars(tasks(), "made-up")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [
        "top 3 heads by entropy\nin generation",
        "top 1 heads by entropy\nin generation",
        "all heads ablated\nin prefill",
        "all heads ablated\nin all phases",
    ]
    raw, corrected = (
        [bar.get_width() for bar in group] for group in figure.axes[1].containers if hasattr(group, "patches")
    )
    assert raw == pytest.approx([1, 1, 1, 0.7]) and corrected == pytest.approx([1, 1, 1, 0.4])
    assert "raw: accuracy over base accuracy" in [text.get_text() for text in figure.legends[0].get_texts()]
