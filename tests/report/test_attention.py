from pathlib import Path

import numpy as np
import pytest
import torch

from segregation.errors import RecordError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, Plan
from segregation.prompts.sample import Sample
from segregation.report.attention import PLANS, attention_figure, attention_figures, gaze_of
from segregation.report.html import write_report
from segregation.runs.capture_store import Captured, captures, write_capture
from segregation.runs.record import Record
from segregation.runs.store import RunFolder

PROMPT, NEEDLE, ANSWER = 6, (2, 3), ("one", " two", "<eos>")
TOKENS = PROMPT + len(ANSWER) - 1


def patterns() -> torch.Tensor:
    """Head 0 looks at all tokens alike, head 1 at the needle alone (at itself before it), head 2 at itself."""
    even = torch.ones(TOKENS, TOKENS).tril()
    needle = torch.zeros(TOKENS, TOKENS)
    needle[2, 2], needle[3:, list(NEEDLE)] = 1.0, 0.5
    needle[:2, :2] = torch.eye(2)
    return torch.stack([even / even.sum(-1, keepdim=True), needle, torch.eye(TOKENS)])


def made_up(
    path: Path, plans: list[Plan], *, positions: list[int] | None = None, spans=None, samples: int = 1, kept=None
) -> Path:
    folder = RunFolder(path, {"model": {"name": "made-up"}})
    at = torch.arange(TOKENS) if positions is None else torch.tensor(positions)
    for number in range(samples):
        sample = Sample(id=f"s{number}", prompt="CONTEXT: ...", target="one two", metadata={"depth_percent": 50})
        for plan in plans:
            record = Record.of(
                sample,
                kind="generate",
                plan=plan.to_json(),
                plan_hash=plan.hash,
                prompt_tokens=PROMPT,
                tokens=(7, 8, 1),
                text="one two",
                model={"name": "models/made-up"},
            )
            tensors = {
                "positions": at,
                "phases": (at >= PROMPT - 1).long() + (at >= PROMPT).long(),
                "tokens": torch.arange(TOKENS),
                "pattern.layer2": patterns()[:, at],
                "pattern.layer5": patterns()[1:2, at],
                **({} if kept is None else {"kept.layer2": kept, "kept.layer5": torch.ones(len(at), 1).bool()}),
            }
            captured = Captured.of(
                record,
                tensors,
                heads={2: (0, 1, 3), 5: (1,)},
                spans={"needle": (NEEDLE,)} if spans is None else spans,
                new_tokens=ANSWER,
            )
            write_capture(folder.path, captured, tensors)
            folder.append(record)
    return folder.path


def only(path: Path) -> tuple[Record, Captured]:
    (found,) = captures(path)
    return found


def test_weights_on_the_needle_are_those_by_hand(tmp_path: Path) -> None:
    path = made_up(tmp_path / "run", [Plan()])
    gaze = gaze_of(path, only(path)[1])
    assert gaze.heads == ((2, 0), (2, 1), (2, 3), (5, 1))
    assert gaze.positions.tolist() == [4, 5, 6, 7] and gaze.phases.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(gaze.weights[0], [2 / 5, 2 / 6, 2 / 7, 2 / 8], rtol=1e-6)
    assert gaze.weights[[1, 3]].tolist() == [[1.0] * 4] * 2 and gaze.weights[2].tolist() == [0.0] * 4
    shares = [[2 / (p + 1), 1, 0, 1] for p in (4, 5, 6, 7)]  # of the tokens that each head sees
    np.testing.assert_allclose(gaze.even, np.mean(shares, axis=1), rtol=1e-6)
    assert gaze.acts.all()


def test_a_panel_per_phase_and_a_strip_of_the_answer(tmp_path: Path) -> None:
    path = made_up(tmp_path / "run", [Plan()])
    figure = attention_figure(path, only(path)[0].key)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert [title.split("\n")[0] for title in titles] == [
        "prefill, after the needle",
        "last prompt token",
        "new tokens",
        "the 4 heads that look at it most while the answer is written",
    ]
    assert titles[2].endswith("mean of 2 positions; 57% if spread evenly")  # (2/7 + 2/8) / 2 of head 0, 1, 0, 1
    shown = figure.axes[2].images[0].get_array()
    assert np.ma.getmaskarray(shown).tolist() == [[False] * 3, [True, False, True]]  # one head of layer 5
    assert shown[0].tolist() == pytest.approx([(2 / 7 + 2 / 8) / 2, 1, 0])
    strip = figure.axes[3]
    assert [label.get_text() for label in strip.get_xticklabels()] == ["one", "two", "<eos>"]
    assert [label.get_text() for label in strip.get_yticklabels()] == [
        "layer 2, head 1",
        "layer 5, head 1",
        "layer 2, head 0",
        "layer 2, head 3",
    ]
    assert figure.get_supxlabel() == "untouched model; one prompt of 6 tokens; the needle has 2 of them, at depth 50%"


def test_a_capture_of_the_last_new_token_names_it(tmp_path: Path) -> None:
    path = made_up(tmp_path / "run", [Plan(AblateHeads(during=Phase.LAST))], positions=[5, 7])
    figure = attention_figure(path, only(path)[0].key)
    assert [axis.get_title().split("\n")[0] for axis in figure.axes[:2]] == ["last prompt token", "new tokens"]
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["one", "<eos>"]
    assert figure.get_supxlabel().startswith("all heads ablated in the last prompt token; ")


def test_where_a_head_is_ablated_is_marked(tmp_path: Path) -> None:
    kept = torch.ones(TOKENS, 3, dtype=torch.bool)
    kept[6, 1] = kept[7, 0] = kept[0] = False
    path = made_up(tmp_path / "run", [Plan()], kept=kept)
    strip = attention_figure(path, only(path)[0].key).axes[3]
    assert strip.get_title().endswith("(×: ablated there)")
    marks = {(int(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in strip.lines}
    assert marks == {(1, 0), (2, 2)}  # layer 2, head 1 comes first, head 0 third


def test_only_prefill_has_no_strip(tmp_path: Path) -> None:
    path = made_up(tmp_path / "run", [Plan()], positions=[0, 4])
    figure = attention_figure(path, only(path)[0].key)
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == [
        "prefill, after the needle\n1 position; 60% if spread evenly"
    ]


def test_a_report_shows_the_middle_sample_under_each_plan(tmp_path: Path) -> None:
    plans = [Plan(AblateHeads(((2, head),))) for head in range(PLANS + 1)]
    path = made_up(tmp_path / "run", plans, samples=3)
    assert list(attention_figures(path)) == [f"attention{number}" for number in range(1, PLANS + 1)]
    write_report(path)
    assert "How much of each head" in (path / "report.html").read_text(encoding="utf-8")
    assert (path / "figures" / "run-attention1.png").is_file()
    assert attention_figures(tmp_path) == {}


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    path = made_up(tmp_path / "run", [Plan()], spans={"question": ((4,),)})
    assert attention_figures(path) == {}
    with pytest.raises(RecordError, match='its sample has no span "needle"'):
        attention_figure(path, only(path)[0].key)
    with pytest.raises(RecordError, match="no capture under the key 'other'"):
        attention_figure(path, "other")
    before = made_up(tmp_path / "before", [Plan()], positions=[0, 1])
    assert attention_figures(before) == {}
    with pytest.raises(RecordError, match="no position after the needle"):
        attention_figure(before, only(before)[0].key)
