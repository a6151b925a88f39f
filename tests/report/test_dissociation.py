from segregation.interventions.phase import Phase
from segregation.interventions.phase_cells import cells
from segregation.prompts.sample import Sample
from segregation.report.dissociation import CAPTIONS, dissociation_figures
from segregation.scores.deciding import BASE
from segregation.scores.matched_effects import LANGUAGE, MEASURING, RETRIEVAL
from segregation.scores.outcomes import outcomes
from tests.made_up import facts, needles, recorded
from tests.scores.test_dissociation_claims import HEADS, made, part, runs, segregated


def test_the_scatter_holds_candidates_pairs_and_random_sides() -> None:
    figures = dissociation_figures(runs(segregated))
    assert set(figures) == set(CAPTIONS)  # whole sides are among the candidates
    scatter, means = figures["dissociation_effects"].axes
    labels = scatter.get_legend_handles_labels()[1]
    assert labels == [
        "attention heads: candidates", "recurrent mixers: candidates", "random, of both kinds",
        "attention heads: matched pairs", "recurrent mixers: matched pairs",
    ]  # fmt: skip
    attention, recurrent, mixed = (collection.get_offsets() for collection in scatter.collections[:3])
    assert len(attention) == len(HEADS) and {tuple(at) for at in attention} == {(1, 0)}
    assert {tuple(at) for at in recurrent} == {(0, 1)} and len(mixed) == 8
    heights = [bar.get_height() for bar in means.patches]
    assert heights == [1, 0, 0, 1, 1, 1]  # retrieval and facts, of heads, of mixers, of both
    assert "double dissociation, segregation index 1.00" in figures["dissociation_effects"].get_suptitle()


def test_without_pairs_the_candidates_are_shown() -> None:
    figure = dissociation_figures(made(segregated, mixers=[]))["dissociation_effects"]
    assert len(figure.axes) == 1 and "no pairs to compare (0 matched" in figure.get_suptitle()


def test_the_phase_map_names_the_smallest_sets() -> None:
    """Retrieval needs attention in generation; facts need recurrence in prefill."""

    def right(plan, sample: Sample) -> bool:
        if plan == BASE:
            return True
        needed = {RETRIEVAL: ("attention", Phase.LAST), LANGUAGE: ("recurrent", Phase.PREFILL)}
        side, phase = needed[str(sample.metadata["task"])]
        hit = any((type(rule).__name__ == "AblateHeads") == (side == "attention") for rule in plan.rules)
        return not (hit and phase in plan.during)

    samples = part(needles() + facts(20), MEASURING)
    plans = [BASE, *(cell.plan() for cell in cells(("attention", "recurrent", "both")))]
    figures = dissociation_figures(outcomes(recorded(samples, plans, right)))
    assert set(figures) == {"dissociation_phases"} <= set(CAPTIONS)
    retrieval, language = figures["dissociation_phases"].axes[:2]
    assert retrieval.images[0].get_array().tolist() == [[0, 1, 0, 1, 1, 0, 1], [0] * 7, [0, 1, 0, 1, 1, 0, 1]]
    texts = [text.get_text() for text in language.texts]
    assert "destroyed by no set\nneeded in no phase" in texts
    assert texts.count("destroyed by P\nneeded in P only") == 2  # recurrence, and both
    assert [label.get_text() for label in retrieval.get_yticklabels()] == [
        "attention heads",
        "recurrent mixers",
        "both",
    ]
    assert retrieval.get_title() == "retrieval (n = 15 a cell)"
