import json
from pathlib import Path

import pytest

from segregation.errors import RecordError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, Plan
from segregation.prompts.sample import Sample
from segregation.runs import batching, fill, launch
from segregation.runs.batching import Batching, Measured, chosen_prompts, measure_batching, of_one_length
from segregation.runs.fill import fill_generate, fill_loglikelihood, open_run
from segregation.runs.store import RunFolder, read_manifest, read_records
from tests.runs.test_fill import Options

PLANS = [Plan(), Plan(AblateHeads("all", during=Phase.DECODE))]


@pytest.fixture(scope="module")
def sweep() -> list[Sample]:
    """Prompts of 12, 13 and 40 tokens, two of each; a CPU reads the first four of them together."""
    texts = ["abc def ghi", "ihg fed cba", "abcd efg hij", "jih gfe dcba", "xy " * 13, "zw " * 13]
    return [Sample(id=str(number), prompt=text, target="xyz") for number, text in enumerate(texts)]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompt lengths of every batch that is decoded while records are made."""
    seen: list[list[int]] = []
    real = launch.run_rows

    def watched(model, rows, *args):
        seen.append([len(row.prompt) for row in rows])
        return real(model, rows, *args)

    monkeypatch.setattr("segregation.runs.generate.run_rows", watched)
    monkeypatch.setattr("segregation.runs.loglikelihood.run_rows", watched)
    return seen


def broken_padding(build, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("segregation.models.hybrid.keep_padding_out", lambda *_: None)
    return build("recurrentgemma")


def tokens(folder: RunFolder) -> dict[str, tuple[int, ...]]:
    return {record.key: record.tokens for record in folder.records()}


def test_a_sound_model_runs_in_batches_of_any_lengths(model, sweep, sizes, tmp_path: Path) -> None:
    folder = open_run(tmp_path, "one", model, Options())
    fill_generate(folder, model, sweep, PLANS, max_new_tokens=3)
    found = Batching.from_dict(read_manifest(folder.path)["batching"])
    assert (found.mode, found.tolerance) == ("batched", pytest.approx(1e-4, rel=0.5))
    assert found.padded is not None and found.equal is not None
    assert (found.padded.prompt_tokens, found.equal.prompt_tokens) == ((12, 13, 40), (12, 12, 12))
    assert found.padded.worst < 2e-5 and found.equal.worst < 2e-5
    assert (found.padded.tokens_differ, found.equal.tokens_differ) == (0, 0)
    assert sizes == [[12] * 4 + [13] * 4 + [40] * 4]


def test_a_broken_padding_fix_leads_to_buckets_that_give_the_tokens_of_singles(
    build, monkeypatch, sweep, sizes, tmp_path: Path
) -> None:
    sound = build("recurrentgemma")
    expected = open_run(tmp_path, "sound", sound, Options())
    fill_generate(expected, sound, sweep, PLANS, max_new_tokens=3, batch_size=1)
    model = broken_padding(build, monkeypatch)
    folder = open_run(tmp_path, "broken", model, Options())
    sizes.clear()
    fill_generate(folder, model, sweep, PLANS, max_new_tokens=3)
    found = Batching.from_dict(read_manifest(folder.path)["batching"])
    assert (found.mode, found.why) == (
        "bucketed",
        "a batch of different lengths does not give each row what it gives alone",
    )
    assert found.padded is not None and found.equal is not None
    assert found.padded.worst > 1e-2 > found.equal.worst
    assert sizes == [[12] * 4, [13] * 4, [40] * 4]
    assert tokens(folder) == tokens(expected)


def test_buckets_run_together_though_the_checks_at_load_switched_batching_off(
    build, monkeypatch, sweep, sizes, tmp_path: Path
) -> None:
    model = broken_padding(build, monkeypatch)
    model.can_batch = False
    folder = open_run(tmp_path, "one", model, Options())
    fill_generate(folder, model, sweep, PLANS, max_new_tokens=3)
    assert sizes == [[12] * 4, [13] * 4, [40] * 4]
    assert not model.can_batch
    fill_loglikelihood(folder, model, sweep, PLANS)
    assert sizes == [[12] * 4, [13] * 4, [40] * 4]  # scored in one forward each, and none beside another


def test_padding_that_only_the_checks_at_load_found_wrong_is_not_used(build, sweep) -> None:
    model = build("jamba")
    model.can_batch = False
    assert measure_batching(model, sweep).mode == "bucketed"


def test_a_model_whose_fork_is_off_runs_singles(build, sweep, sizes, tmp_path: Path) -> None:
    model = build("jamba")
    model.can_fork = False
    folder = open_run(tmp_path, "one", model, Options())
    fill_generate(folder, model, sweep, PLANS, max_new_tokens=3)
    assert read_manifest(folder.path)["batching"] == {
        "mode": "single",
        "why": "the model's self-checks switched forking off",
        "tolerance": None,
        "padded": None,
        "equal": None,
    }
    assert set(map(len, sizes)) == {1} and len(sizes) == 12


def test_a_batch_that_mixes_its_rows_up_leads_to_singles(build, monkeypatch, sweep, sizes, tmp_path: Path) -> None:
    """Merged memories with their rows in another order: nothing that a check at load would see."""
    model = build("jamba")
    real = launch.merge
    swap = {3: [2, 0, 1], 2: [1, 0]}

    def mixed(memories):
        merged = real(memories)
        rows = len(merged.lengths)
        return merged.select(merged.lengths.new_tensor(swap.get(rows, range(rows))))

    with monkeypatch.context() as patch:
        patch.setattr(launch, "merge", mixed)
        found = measure_batching(model, sweep)
    assert (found.mode, found.why) == ("single", "a batch of equal lengths does not give each row what it gives alone")
    folder = open_run(tmp_path, "one", model, Options())
    folder.note("batching", found.to_dict())
    fill_generate(folder, model, sweep, PLANS, max_new_tokens=3)
    fill_loglikelihood(folder, model, sweep, PLANS)
    assert set(map(len, sizes)) == {1}


def test_a_resumed_run_goes_by_what_its_manifest_says(model, sweep, sizes, monkeypatch, tmp_path: Path) -> None:
    folder = open_run(tmp_path, "one", model, Options())
    folder.note("batching", Batching("bucketed", "measured elsewhere").to_dict())
    fill_generate(folder, model, sweep[:4], PLANS, max_new_tokens=3)
    monkeypatch.setattr(fill, "measure_batching", lambda *_: pytest.fail("measured again"))
    again = open_run(tmp_path, "one", model, Options(), resume=True)
    assert fill_generate(again, model, sweep, PLANS, max_new_tokens=3) == 4
    assert sizes == [[12] * 4, [13] * 4, [40] * 4]
    assert read_manifest(again.path)["batching"]["why"] == "measured elsewhere"
    assert len(read_records(again.path)) == 12


def test_nothing_is_measured_where_nothing_is_to_do(model, sweep, tmp_path: Path, monkeypatch) -> None:
    folder = open_run(tmp_path, "one", model, Options())
    monkeypatch.setattr(fill, "measure_batching", lambda *_: pytest.fail("measured"))
    assert fill_generate(folder, model, [], PLANS) == 0
    assert "batching" not in read_manifest(folder.path)


def test_prompts_of_one_length_have_no_padding_to_measure(model, sweep) -> None:
    found = measure_batching(model, sweep[:1])
    assert (found.mode, found.padded) == ("batched", None)
    assert found.equal is not None and found.equal.prompt_tokens == (12, 12)


def test_prompts_of_one_token_are_measured_where_there_are_no_others(model, sweep, monkeypatch) -> None:
    monkeypatch.setattr(model, "encode", lambda _: [5])
    found = measure_batching(model, sweep)
    assert found.mode == "batched"
    assert found.equal is not None and found.equal.prompt_tokens == (1, 1)


def test_a_model_that_carries_a_plan_is_not_measured(model, sweep) -> None:
    carrying = model.intervene(PLANS[1])
    assert measure_batching(carrying, sweep) == Batching("batched", "not measured, as the model carries a plan")


def test_long_prompts_are_cut_in_proportion() -> None:
    prompts = [(7,) * n for n in (100, 400, 800, 820)]
    assert [len(prompt) for prompt in chosen_prompts(prompts, 205)] == [25, 200, 205]
    assert [len(prompt) for prompt in chosen_prompts([(7,) * 2, (7,) * 4000], 100)] == [2, 100]


def test_a_model_at_its_last_position_is_measured_within_it(build, sweep) -> None:
    found = measure_batching(build("jamba", max_position_embeddings=42), sweep)
    assert found.padded is not None
    assert max(found.padded.prompt_tokens) + batching.NEW <= 42


def test_samples_are_put_in_groups_of_one_length_in_their_order(model, sweep) -> None:
    groups = of_one_length(model, [sweep[i] for i in (4, 2, 0, 5, 1)])
    assert [[sample.id for sample in group] for group in groups] == [["0", "1"], ["2"], ["4", "5"]]


def test_it_reads_what_it_wrote_and_refuses_anything_else() -> None:
    measured = Batching("bucketed", "why", 1e-4, Measured((3, 4), 0.5, 2), Measured((3, 3), 0.0, 0))
    assert Batching.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    for wrong in ({"mode": "all"}, {**measured.to_dict(), "mode": "all"}, {**measured.to_dict(), "padded": 3}):
        with pytest.raises(RecordError, match=r"batching in a manifest holds mode \(batched, bucketed, single\)"):
            Batching.from_dict(wrong)


def test_a_note_is_made_once_and_is_plain_json(model, tmp_path: Path) -> None:
    folder = open_run(tmp_path, "one", model, Options())
    folder.note("batching", {"mode": "single"})
    with pytest.raises(RecordError, match=r"already says batching="):
        folder.note("batching", {"mode": "batched"})
    with pytest.raises(RecordError, match=r"plain JSON values only"):
        folder.note("other", float("nan"))
    assert read_manifest(folder.path)["batching"] == {"mode": "single"}
