"""The search for compensation from end to end on tiny random models: every record, row and figure, not their values."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import ssm_compensation
from segregation.interventions.compensation import CONTROLS, SETTINGS
from segregation.prompts.grid import Grid
from segregation.report.compensation import compensation_figures
from segregation.runs.store import read_records
from segregation.scores.compensation import compensation_rows, onsets
from segregation.scores.compensation_claims import compensation
from segregation.scores.outcomes import outcomes
from tests.conftest import byte_tokenizer, random_module


def small(folder: Path, runs: Path) -> ssm_compensation.Options:
    grid = Grid((140,), (50,), n_per_cell=2, max_needle_tokens=60)
    together = replace(grid, depths=(100,), readings=2, copies=2)
    far = replace(grid, depths=(0,))
    return ssm_compensation.Options(
        model=str(folder),
        runs=runs,
        max_new_tokens=2,
        plain=grid,
        copies=(2,),
        far=far,
        near=far,  # what is there already is not run again
        nearest=far,
        twice=together,
        together=together,
        n_scored=1,
    )


def saved(folder: Path, family: str, **config: object) -> Path:
    random_module(family, **config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_hybrid_is_tried_in_every_setting(tmp_path: Path) -> None:
    options = small(saved(tmp_path / "random", "jamba", max_position_embeddings=1024), tmp_path)
    run = ssm_compensation.run(options)
    records = read_records(run)
    rows = compensation_rows(records)
    assert len(rows) == 4 * len(SETTINGS) + len(CONTROLS)
    assert all(len(row.gains) == 1 for row in rows)
    assert [len(onsets(rows)), len(compensation_figures(records))] == [6, 1]
    found = compensation(outcomes(records))
    assert found is not None and found.verdict == "undecided" and "untouched model gets 0%" in found.note
    assert ssm_compensation.run(replace(options, resume=True)) == run
    assert len(read_records(run)) == len(records)


def test_a_model_of_one_kind_is_tried_in_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "recurrent", "recurrentgemma", block_types=["recurrent"], num_hidden_layers=2)
    records = read_records(ssm_compensation.run(small(folder, tmp_path)))
    assert len(compensation_rows(records)) == 4 * 2 + 1
    assert "recurrent has recurrent layers only: 7 settings are left out" in " ".join(capsys.readouterr().err.split())
    assert compensation(outcomes(records)) is None
    assert len(compensation_figures(records)) == 1
