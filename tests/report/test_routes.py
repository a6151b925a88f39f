import pytest

from segregation.report.routes import CAPTIONS, route_figures
from segregation.scores.routes import ATTENTION
from tests.scores.test_routes import attention, recurrence, toy


def test_markers_stand_at_recovery_and_credit_with_their_intervals() -> None:
    (figure,) = route_figures(
        [*toy(attention, n=50, border="answer"), *toy(recurrence, n=50, border="needle")]
    ).values()
    above, credit = figure.axes[:2]
    assert [label.get_text() for label in above.get_yticklabels()] == [
        "KV cache alone", "keys alone", "values alone", "both states alone", "recurrent alone", "convolution alone",
    ]  # fmt: skip
    points = [list(bar.lines[0].get_xdata()) for bar in above.containers]
    ends = [bar.lines[2][0].get_segments() for bar in above.containers]
    assert points == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    z2 = 1.959963984540054**2
    assert ends[0][1][:, 0] == pytest.approx([0, z2 / (50 + z2)])  # 0 of 50, Wilson
    shares = [list(bar.lines[0].get_xdata()) for bar in credit.containers]
    assert shares == [pytest.approx([0.5, 0.5, 0, 0]), pytest.approx([0, 0, 0.5, 0.5])]
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told[0].startswith("before the last prompt token: route index 1.00 [0.90, 1.00]; own needle written by the")
    assert told[1].startswith("right after the needle: route index -1.00 [-1.00, -0.90]")
    assert any(figure_name.startswith(caption) for caption in CAPTIONS for figure_name in ("routes",))


def test_a_model_that_recovers_nothing_or_lacks_channels_is_drawn_too() -> None:
    records = toy(attention, n=9, channels=ATTENTION, border="5")
    (figure,) = route_figures(records).values()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "KV cache alone", "keys alone", "values alone",
    ]  # fmt: skip
    assert figure.legends[0].get_texts()[0].get_text().startswith("before position 5: route index 1.00")
    (figure,) = route_figures(toy(lambda clean, i: False, n=2)).values()
    assert len(figure.axes[0].containers[0].lines[0].get_xdata()) == 0
    assert "nothing to recover" in figure.legends[0].get_texts()[0].get_text()
