from segregation.report.figures import png
from segregation.report.probes import probe_figures
from tests.scores.test_probes import exchanges, measured, probe


def panels(figure) -> dict[str, object]:
    return {axis.get_title(): axis for axis in figure.axes if axis.get_visible() and axis.get_title()}


def probes(features=("recurrent", "residual")):
    return [
        probe(layer, distance, 40 - 5 * i, target=target, feature=feature)
        for target in ("identity", "presence")
        for feature in features
        for layer in (0, 3)
        for i, distance in enumerate((0, 4, 16))
    ]


def test_a_panel_for_each_feature_and_target_and_the_patch_beside_them():
    figure = probe_figures([*probes(), *exchanges()])["probes"]
    found = panels(figure)
    assert sum(title.startswith(("recurrent", "residual")) for title in found) == 4
    assert sum(title.startswith("patch") for title in found) == 2
    axis = found["recurrent state\nwhich needle was it?"]
    drawn = [line.get_ydata().tolist() for line in axis.lines if len(line.get_xdata()) == 3]
    assert drawn == [[1.0, 35 / 40, 30 / 40]] * 2  # one line for each layer
    answers = next(axis for title, axis in found.items() if "untouched" in title)
    assert {line.get_ydata()[0] for line in answers.lines if line.get_marker() in ("o", "s")} == {0.0, 0.75}
    assert png(figure)[:4] == b"\x89PNG"


def test_what_a_model_has_not_is_left_out():
    only = probe_figures(probes(features=("residual",)))["probes"]
    assert len(panels(only)) == 2
    assert len(panels(probe_figures(exchanges())["probes"])) == 2
    assert probe_figures([]) == {}
    assert probe_figures([measured("a", {"x": 1.0}, {"measure": "another"})]) == {}


def test_models_have_figures_of_their_own():
    other = [measured(r.sample_id, dict(r.values), dict(r.settings), dict(r.metadata), "n") for r in probes()]
    assert list(probe_figures([*probes(), *other])) == ["probes_m", "probes_n"]
