from segregation.interventions.phase import Phase
from segregation.interventions.rules import KeepTopHeads, Plan
from segregation.interventions.visibility import MODES, PHASES, View
from segregation.report.figures import figures_of, heat_maps, png, retention_curves
from segregation.scores.outcomes import outcomes
from tests.made_up import ABLATED, ablation_plans, asked, classic, facts, needles, recorded, sweep_plans


def retrieves(plan: Plan, sample: object) -> bool:
    return not plan.rules


def test_heat_maps_show_every_plan_with_its_rate_and_samples() -> None:
    figure = heat_maps(outcomes(recorded(needles(), ablation_plans(), retrieves)))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == "base\nexact 100% [80%, 100%], n = 15"
    assert [title.split("\n")[0] for title in titles[1:]] == [
        "all heads ablated in prefill",
        "all heads ablated in the last prompt token",
        "all heads ablated in the new tokens",
        "all heads ablated in generation",
        "all heads ablated in all phases",
    ]
    assert figure.get_suptitle() == "made-up: needle in a haystack, context read once"


def test_cells_hold_their_mean_score() -> None:
    samples = needles(lengths=[128, 256], depths=[0, 100])
    figure = heat_maps(outcomes(recorded(samples, [Plan()], lambda plan, sample: sample.id == "needle/256/0/x1")))
    shown = figure.axes[0].images[0].get_array()
    assert shown[0][1] == 1 and shown[1][1] == shown[0][0] == shown[1][0] < 1


def test_a_curve_per_choice_and_a_panel_per_phase() -> None:
    plans = [*sweep_plans(4, 3), *sweep_plans(4, 2, Phase.ALL)[1:]]
    figure = retention_curves(outcomes(recorded(needles(), plans, retrieves)))
    assert [axis.get_title() for axis in figure.axes] == [
        "generation (128-1024 tokens, n = 15, 3 draws)",
        "all phases (128-1024 tokens, n = 15, 2 draws)",
    ]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "by entropy",
        "by l2",
        "random heads (mean of draws)",
    }


def test_figures_follow_from_what_was_run() -> None:
    grid = recorded(needles(), ablation_plans(), retrieves)
    twice = recorded(needles(readings=2), ablation_plans(), retrieves)
    sweep = recorded(needles(), sweep_plans(4, 2)[1:], retrieves)
    assert list(figures_of(outcomes(grid + twice + sweep))) == [
        "retrieval_readings1",
        "retrieval_readings2",
        "heads_kept",
    ]
    assert figures_of(outcomes(recorded(facts(3), [Plan()], retrieves))) == {}


def view_plans(readings: int = 1) -> list[Plan]:
    if readings == 2:
        phases, copies = (Phase.PREFILL, Phase.GENERATION, Phase.ALL), (0, 1, "all")
        return [View("needle hidden", at, occurrence=copy).plan for at in phases for copy in copies]
    semantics = ("default", "paper")
    return list(dict.fromkeys(View(mode, at, how).plan for how in semantics for mode in MODES for at in PHASES))


def test_a_map_is_drawn_instead_of_a_panel_for_each_of_its_plans() -> None:
    once = recorded(needles(), [Plan(), *view_plans()], retrieves)
    known = recorded(classic(needles()), [Plan(), *view_plans()], retrieves)
    twice = recorded(needles(readings=2), [Plan(), *view_plans(2)], retrieves)
    assert list(figures_of(outcomes(once + twice + known))) == ["visibility", "copies", "visibility_classic"]
    assert list(figures_of(outcomes(recorded(needles(), [Plan(), *view_plans()[:2]], retrieves)))) == [
        "retrieval_readings1"
    ]


def test_a_map_changes_no_other_figure_of_its_folder() -> None:
    """Neither its plans nor its samples enter the heat maps of an ablation."""
    other = recorded(needles(lengths=[4096]), [Plan(), *view_plans()], retrieves)
    grid = outcomes([*other, *recorded(needles(), ablation_plans(), retrieves)])
    figures = figures_of(grid)
    assert list(figures) == ["retrieval_readings1", "visibility"]
    titles = [axis.get_title() for axis in figures["retrieval_readings1"].axes if axis.get_title()]
    assert len(titles) == 6 and titles[0] == "base\nexact 100% [80%, 100%], n = 15"


def test_benchmarks_of_several_tasks_or_plans_have_bars() -> None:
    kept = Plan(KeepTopHeads(3, during=Phase.GENERATION))
    tasks = [*facts(20), *asked("sentiment", 20, (" yes", " no"))]
    figures = figures_of(outcomes(recorded(tasks, [Plan(), kept, ABLATED], lambda plan, sample: plan != ABLATED)))
    assert list(figures) == ["benchmarks"]
    assert [axis.get_title() for axis in figures["benchmarks"].axes] == [
        "facts\nbase 100% [84, 100], chance 25%, n = 20",
        "sentiment\nbase 100% [84, 100], chance 50%, n = 20",
    ]
    assert not figures_of(outcomes(recorded(facts(20), [Plan(), ABLATED], retrieves)))
    assert not figures_of(outcomes(recorded(tasks, [Plan(), kept, ABLATED], lambda plan, sample: False)))


def test_a_picture_is_a_png() -> None:
    assert png(heat_maps(outcomes(recorded(needles(), [Plan()], retrieves))), dpi=20).startswith(b"\x89PNG")
