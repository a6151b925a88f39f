import dataclasses
import warnings
from pathlib import Path

import pytest

from segregation.errors import RecordError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, Plan
from segregation.interventions.token_rules import HideTokens, OnlyTokens
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs import fill, launch
from segregation.runs.fill import (
    fill_generate,
    fill_groups,
    fill_loglikelihood,
    fill_measurements,
    fill_scored_groups,
    missing,
    open_run,
)
from segregation.runs.record import Record
from segregation.runs.store import read_manifest

PLANS = [Plan(), Plan(AblateHeads("all", during=Phase.DECODE))]


@dataclasses.dataclass(frozen=True)
class Options:
    model: str = "random"
    seed: int = 0
    runs: Path = Path("runs")
    lengths: tuple[int, ...] = (1, 2)


def test_a_manifest_says_what_was_run_but_not_where(model: HybridModel, tmp_path: Path) -> None:
    folder = open_run(tmp_path, "one", model, Options(runs=tmp_path))
    manifest = read_manifest(folder.path)
    assert manifest["options"] == {"seed": 0, "lengths": [1, 2]}
    assert manifest["model"]["name"] == model.description["name"]
    assert {"command", "started", "device"} <= set(manifest)


def test_a_run_is_not_touched_again_unless_it_is_resumed_with_the_same_options(model, samples, tmp_path: Path) -> None:
    open_run(tmp_path, "one", model, Options(seed=7))  # ended before its first record, so it gives way
    run = open_run(tmp_path, "one", model, Options())
    fill_generate(run, model, samples[:1], PLANS[:1], max_new_tokens=2)
    with pytest.raises(RecordError, match="resume"):
        open_run(tmp_path, "one", model, Options())
    assert len(open_run(tmp_path, "one", model, Options(runs=tmp_path), resume=True)) == 1
    with pytest.raises(RecordError, match="seed"):
        open_run(tmp_path, "one", model, Options(seed=1), resume=True)


def test_an_interrupted_run_is_filled_up_and_then_complete(
    model: HybridModel, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_run(tmp_path, "whole", model, Options())
    assert fill_generate(whole, model, samples[:3], PLANS, max_new_tokens=3) == 6

    cut = open_run(tmp_path, "cut", model, Options())
    real = fill.generate_tasks
    with monkeypatch.context() as patch:
        patch.setattr(
            fill, "generate_tasks", lambda *args, **kwargs: (_stop(i, r) for i, r in enumerate(real(*args, **kwargs)))
        )
        with pytest.raises(KeyboardInterrupt):
            fill_generate(cut, model, samples[:3], PLANS, max_new_tokens=3)
    assert len(cut) == 3
    again = open_run(tmp_path, "cut", model, Options(), resume=True)
    assert fill_generate(again, model, samples[:3], PLANS, max_new_tokens=3) == 3
    assert fill_generate(again, model, samples[:3], PLANS, max_new_tokens=3) == 0
    assert {r.key: r.tokens for r in again.records()} == {r.key: r.tokens for r in whole.records()}


def test_plans_that_lack_the_same_samples_go_together(
    model: HybridModel, samples: list[Sample], tmp_path: Path
) -> None:
    folder = open_run(tmp_path, "one", model, Options())
    fill_loglikelihood(folder, model, samples[:1], PLANS[:1])
    third = Plan(AblateHeads())
    todo = missing(folder, samples[:2], [*PLANS, third, third], "loglikelihood")
    assert [([s.id for s in lacking], plans) for lacking, plans in todo] == [
        ([samples[1].id], PLANS[:1]),
        ([samples[0].id, samples[1].id], [PLANS[1], third]),
    ]


def test_measurements_are_made_once_for_each_sample_and_settings(
    model: HybridModel, samples: list[Sample], tmp_path: Path
) -> None:
    folder = open_run(tmp_path, "one", model, Options())

    def measure(lacking: list[Sample], layer: int):
        for sample in lacking:
            yield Record.of(
                sample,
                kind="measurement",
                plan=Plan().to_json(),
                plan_hash=Plan().hash,
                prompt_tokens=3,
                values={"norm": 1.5},
                settings={"layer": layer},
            )

    def fill_layer(layer: int) -> int:
        return fill_measurements(folder, samples[:2], lambda these: measure(these, layer), settings={"layer": layer})

    assert [fill_layer(0), fill_layer(0), fill_layer(1)] == [2, 0, 2]
    assert [record.values["norm"] for record in folder.records()] == [1.5] * 4


def _stop(position: int, record: object) -> object:
    if position == 3:
        raise KeyboardInterrupt
    return record


def test_a_run_does_not_start_from_a_model_that_carries_a_plan(model: HybridModel, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="starts from an untouched model, but this one carries AblateHeads"):
        open_run(tmp_path, "one", model.intervene(Plan(AblateHeads())), Options())


def test_a_sample_of_several_groups_is_read_once_for_all_of_them(
    model: HybridModel, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups run as one give what they give apart, with fewer reads."""
    third = Plan(AblateHeads(during=Phase.GENERATION))
    groups = [(samples[:3], [Plan()]), (samples[1:2], [third, Plan()]), (samples[2:3], [PLANS[1], third])]
    choices = [([dataclasses.replace(s, choices=(s.target, "cd")) for s in some], plans) for some, plans in groups]
    reads: list[int] = []
    prefill = launch.prefill
    monkeypatch.setattr(
        launch, "prefill", lambda m, prompts, *a, **kw: (reads.append(len(prompts)), prefill(m, prompts, *a, **kw))[1]
    )
    found, counts = [], []
    for name, calls in (
        ("together", [(groups, choices)]),
        ("apart", [([g], [c]) for g, c in zip(groups, choices, strict=True)]),
    ):
        folder = open_run(tmp_path, name, model, Options())
        fill_generate(folder, model, samples[:1], [Plan()], max_new_tokens=3)  # also measures batching, once
        reads.clear()
        for written, scored in calls:
            fill_groups(folder, model, written, max_new_tokens=3)
            fill_scored_groups(folder, model, scored)
        found.append({r.key: (r.tokens, r.loglikelihoods) for r in folder.records()})
        counts.append(sum(reads))
    assert found[0].keys() == found[1].keys() and len(found[0]) == 2 * 6
    for key, (tokens, scores) in found[0].items():
        assert found[1][key][0] == tokens
        assert found[1][key][1] is None or scores == pytest.approx(found[1][key][1], abs=1e-5)
    assert counts[0] < counts[1]


def test_samples_that_differ_in_their_spans_are_run_as_two(model: HybridModel, tmp_path: Path) -> None:
    one = Sample(id="s", prompt="abcdefgh ijkl abcd efgh", target="xy", spans={"needle": ((0, 6),)})
    other = dataclasses.replace(one, spans={"needle": ((9, 16),)})
    groups = [([one], [Plan(HideTokens("needle"))]), ([other], [Plan(OnlyTokens("needle"))])]
    found = []
    for name, calls in (("together", [groups]), ("apart", [[group] for group in groups])):
        folder = open_run(tmp_path, name, model, Options())
        for call in calls:
            fill_scored_groups(folder, model, call)
        found.append([record.loglikelihoods for record in folder.records()])
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5) and found[0][1] == pytest.approx(found[1][1], abs=1e-5)


def test_targets_that_cannot_be_written_whole_are_warned_of(model: HybridModel, tmp_path: Path) -> None:
    samples = [Sample(id=text, prompt="abc", target=text) for text in ("xyz", "xyzzy", "uvwxyz")]
    folder = open_run(tmp_path, "one", model, Options())
    with pytest.warns(UserWarning, match="2 of 3 different targets have up to 6 tokens, more than max_new_tokens=4"):
        fill_generate(folder, model, samples, [Plan()], max_new_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill_generate(folder, model, samples, [Plan()], max_new_tokens=6)
        ended = Sample(id="ended", prompt="abc", target="uvwxyz. ")  # its full stop need not be written
        fill_generate(folder, model, [*samples, ended], [Plan()], max_new_tokens=6)
        fill_generate(folder, model, samples, [Plan()], max_new_tokens=4)  # nothing is left to be written
