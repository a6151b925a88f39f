from matplotlib.axes import Axes

from segregation.interventions.compensation import Setting
from segregation.report.compensation import CAPTIONS, compensation_figures
from segregation.runs.record import Record
from segregation.scores.compensation import Prompting
from tests.scores.test_compensation import (
    ABLATED,
    ALL,
    FOUR,
    NEAR,
    PLAIN,
    TOGETHER,
    attention_only,
    generated,
    scored,
)

TWICE = Prompting(168, 50, readings=2)
UNTOUCHED = [Setting(), Setting(recurrence="skips distractors")]


def made(settings: list[Setting]) -> list[Record]:
    def gain(setting: Setting, prompting: Prompting, i: int) -> float:
        return 9.0 if setting.attention == "untouched" else 0.25

    return [
        record
        for prompting in (PLAIN, FOUR, NEAR, TWICE, TOGETHER)
        for record in [*generated(prompting, settings, attention_only), *scored(prompting, settings, gain)]
    ]


def points(axis: Axes, colour: str) -> set[float]:
    """The heights of all points of a colour."""
    drawn = [container.lines[0] for container in axis.containers if hasattr(container, "lines")]
    return {round(y, 6) for line in drawn if line.get_color() == colour for y in line.get_ydata()}


def test_columns_are_what_was_tried_and_rows_what_was_measured() -> None:
    (name,) = figures = compensation_figures(made(ALL))
    axes = figures[name].axes
    assert name in CAPTIONS and len(axes) == 9
    assert "repeated\n(168 tokens, depth 50%, read once)" in axes[0].get_title()
    labels = [[label.get_text() for label in axis.get_xticklabels()] for axis in axes[6:]]
    assert labels[0] == ["1", "4"] and labels[1] == ["90", "8"]
    assert labels[2][0] == "read once\n(168 tokens, depth 50%)" and labels[2][2].startswith("all together:\nread twice")
    for retrieval, gain, enlarged in zip(axes[:3], axes[3:6], axes[6:], strict=True):
        assert (points(retrieval, "black"), points(retrieval, "#D55E00")) == ({1.0}, {0.0})
        assert (points(gain, "black"), points(gain, "#D55E00")) == ({9.0}, {0.25})
        assert (points(enlarged, "black"), points(enlarged, "#D55E00")) == (set(), {0.25})


def test_a_model_without_attention_is_shown_as_it_is() -> None:
    (figure,) = compensation_figures(made(UNTOUCHED)).values()
    assert len(figure.axes) == 6
    assert "what the untouched model retrieves" in figure.get_suptitle()
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [
        "attention untouched",
        "recurrent layers read everything",
        "... skip the context but the needle",
    ]


def test_other_runs_have_no_such_figure() -> None:
    assert compensation_figures(generated(PLAIN, [Setting(), ABLATED], attention_only)) == {}
    assert compensation_figures([]) == {}
