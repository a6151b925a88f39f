"""The double dissociation from end to end on tiny random models: every record, not their values."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from experiments import double_dissociation
from segregation.errors import RecordError
from segregation.interventions.matched import Match, side_of
from segregation.interventions.phase import Phase
from segregation.interventions.phase_cells import cell_of
from segregation.interventions.recurrent_rules import AblateRecurrent
from segregation.interventions.rules import AblateHeads, Plan
from segregation.prompts.grid import Grid
from segregation.runs.store import RunFolder, read_manifest, read_records
from segregation.scores.dissociation_claims import double_dissociation as claim
from segregation.scores.dissociation_claims import recurrent_ablation
from segregation.scores.matched_effects import MATCHING, MEASURING, PART
from segregation.scores.outcomes import outcomes
from tests.conftest import byte_tokenizer, random_module
from tests.made_up import facts, recorded


def saved(module: PreTrainedModel, folder: Path) -> Path:
    module.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def options(model: Path, runs: Path) -> double_dissociation.Options:
    return double_dissociation.Options(
        model=str(model),
        needles=Grid(lengths=(150,), depths=(0,), needles="classic", n_per_cell=7),
        n_facts=7,
        n_beside=1,
        draws=2,
        max_new_tokens=2,
        runs=runs,
    )


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = random_module("recurrentgemma", attention_window_size=64)
    return saved(module, tmp_path_factory.mktemp("dissociation") / "random-rg")


def test_every_candidate_and_cell_is_run_and_a_run_goes_on(
    hybrid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model retrieves nothing, so the pairs are given."""
    pair = Match(Plan(AblateHeads(((2, 0), (2, 1)))), Plan(AblateRecurrent(layers=(0, 1))), 0.5, 0.5)
    monkeypatch.setattr(double_dissociation, "matches", lambda *_: [pair])
    chosen = options(hybrid, tmp_path)
    run = double_dissociation.run(chosen)
    records, rows = read_records(run), outcomes(read_records(run))
    parts = {row.metadata[PART] for row in rows}
    assert parts == {MATCHING, MEASURING, "random 0", "random 1"}
    by_part = {part: [row for row in rows if row.metadata[PART] == part] for part in parts}
    ids = [{row.sample_id for row in group} for group in by_part.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))  # no sample is in two parts
    values = {rule.value for row in by_part[MATCHING] for rule in row.plan.rules if isinstance(rule, AblateRecurrent)}
    assert values == {"zero", "resample"}
    assert {cell for row in by_part[MEASURING] if (cell := cell_of(row.plan))} == {
        *double_dissociation.cells(("attention", "recurrent", "both"))
    }
    assert {pair.attention, pair.recurrent, pair.both} <= {row.plan for row in by_part[MEASURING]}
    assert {row.task for row in by_part[MEASURING]} == {"needle", "facts", "sentiment", "entailment"}
    mixed = {row.plan for row in by_part["random 0"]} - {Plan()}
    assert (
        len(mixed) == 2
        and sum(len(rule.heads) for p in mixed for rule in p.rules if isinstance(rule, AblateHeads)) == 2
    )
    for decided in (recurrent_ablation(rows), claim(rows)):
        assert decided is not None and decided.verdict == "undecided" and "needle right" in decided.note
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[: len(lines) // 2]))
    double_dissociation.run(replace(chosen, resume=True))
    again = read_records(run)
    assert {record.key for record in again} == {record.key for record in records} and len(again) == len(records)


def test_a_changed_or_moved_reference_is_refused(hybrid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = replace(options(hybrid, tmp_path), values=("zero", "mean", "resample"))
    model, folder = chosen.start("double-dissociation")
    sources = double_dissociation.references(model, folder, chosen)
    assert sources["zero"] == "" and sources["mean"] == sources["resample"] != ""
    assert double_dissociation.references(model, folder, chosen) == sources  # written once
    folder.append(
        *recorded(facts(1), [Plan(AblateRecurrent("mean", source=sources["mean"]))], lambda plan, sample: True)
    )
    assert double_dissociation.references(model, folder, chosen) == sources
    monkeypatch.chdir(tmp_path)
    moved = RunFolder(Path(folder.path.name), read_manifest(folder.path))
    with pytest.raises(RecordError, match="Resume with the same --runs"):
        double_dissociation.references(model, moved, chosen)
    Path(sources["mean"]).write_bytes(b"something else")
    with pytest.raises(RecordError, match="made with another"):
        double_dissociation.references(model, folder, chosen)


@pytest.mark.parametrize(
    ("lacking", "shape"),
    [
        (
            "recurrent",
            {"num_hidden_layers": 2, "attn_layer_period": 1, "attn_layer_offset": 0, "max_position_embeddings": 512},
        ),
        (
            "attention",
            {"num_hidden_layers": 2, "attn_layer_period": 9, "attn_layer_offset": 8, "max_position_embeddings": 512},
        ),
    ],
)
def test_models_of_one_kind_leave_the_other_side_out(lacking: str, shape: dict[str, int], tmp_path: Path) -> None:
    model = saved(random_module("jamba", **shape), tmp_path / f"no-{lacking}")
    run = double_dissociation.run(options(model, tmp_path))
    rows = outcomes(read_records(run))
    there = {"attention", "recurrent"} - {lacking}
    assert {side_of(row.plan) for row in rows} == there | {None}
    assert {row.metadata[PART] for row in rows} == {MATCHING, MEASURING}
    assert {cell.during for row in rows if (cell := cell_of(row.plan))} >= {Phase.PREFILL, Phase.DECODE, Phase.ALL}
    assert not (run / "mixer_outputs.safetensors").exists() or lacking == "attention"
