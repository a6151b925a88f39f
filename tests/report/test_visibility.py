from segregation.interventions.phase import Phase
from segregation.interventions.rules import Plan
from segregation.interventions.visibility import View
from segregation.report.visibility import copies_map, visibility_map
from segregation.scores.outcomes import Outcome, outcomes
from tests.made_up import Right, needles, recorded

HIDDEN = {during: View("needle hidden", during).plan for during in (Phase.PREFILL, Phase.GENERATION)}
PAPER = View("needle hidden", Phase.PREFILL, "paper").plan
SMALL, LARGE = needles(lengths=[128]), needles(lengths=[256, 512])


def rows(samples: list, plans: list[Plan], right: Right) -> list[Outcome]:
    return outcomes(recorded(samples, plans, right))


def test_cells_hold_rates_with_intervals_and_panels_their_semantics() -> None:
    def right(plan: Plan, sample: object) -> bool:
        return plan == HIDDEN[Phase.PREFILL]

    figure = visibility_map(rows(SMALL, [*HIDDEN.values(), PAPER], right))
    ours, papers = figure.axes[:2]
    assert ours.images[0].get_array().tolist() == [[1, 0]]
    assert [text.get_text() for text in ours.texts] == ["100%\n[57, 100]", "0%\n[0, 43]"]
    assert [text.get_text() for text in papers.texts] == ["0%\n[0, 43]", "not run"]
    assert [label.get_text() for label in ours.get_xticklabels()] == ["prefill", "generation\n(last + new)"]
    assert ours.get_title().startswith("our way") and papers.get_title().endswith("(n = 5 a cell)")
    assert "the untouched model was not run" in figure.get_supxlabel()


def test_the_cells_of_a_row_are_made_of_the_same_samples() -> None:
    """Ten more samples under one plan, on which it does not act as on the others, do not count."""
    common = rows(SMALL, [Plan(), *HIDDEN.values()], lambda plan, sample: True)
    more = rows(LARGE, [Plan(), HIDDEN[Phase.GENERATION]], lambda plan, sample: False)
    figure = visibility_map([*more, *common])
    assert figure.axes[0].images[0].get_array().tolist() == [[1, 1]]
    assert "128 tokens of context; untouched 100% [57, 100], n = 5" in figure.get_supxlabel()


def test_rows_of_different_samples_say_how_many() -> None:
    common = rows(SMALL, list(HIDDEN.values()), lambda plan, sample: True)
    decoy = rows(LARGE, [View("decoy hidden", Phase.GENERATION).plan], lambda plan, sample: True)
    labels = [label.get_text() for label in visibility_map([*common, *decoy]).axes[0].get_yticklabels()]
    assert labels == ["needle hidden\n(n = 5)", "decoy hidden\n(n = 10)"]


def test_the_copies_of_a_context_read_twice_are_rows() -> None:
    plans = {copy: View("needle hidden", Phase.GENERATION, occurrence=copy).plan for copy in (0, 1, "all")}
    figure = copies_map(
        rows(needles(lengths=[128], readings=2), [Plan(), *plans.values()], lambda plan, s: plan == plans[1])
    )
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first copy", "second copy", "both copies"]
    assert axis.images[0].get_array().tolist() == [[0], [1], [0]]
    assert "read twice" in figure.get_suptitle()
