"""The experiments from end to end on a tiny random model: every record, figure and claim, not their values."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import attention_ablation, head_sparsification, reproduce
from experiments.launch import finish
from segregation.prompts.grid import Grid
from segregation.runs.store import read_records
from segregation.scores.claims import read_claims
from tests.made_up import save_random_model

N_HEADS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("experiments") / "random-rg")


def grid(readings: int = 1) -> Grid:
    return Grid(lengths=(150, 200), depths=(0, 100), needles="classic", readings=readings)


def test_attention_ablation(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = attention_ablation.Options(
        model=str(folder), once=grid(), twice=grid(2), n_facts=3, max_new_tokens=3, runs=tmp_path
    )
    run = attention_ablation.run(options)
    records = read_records(run)
    assert len(records) == 4 * (6 + 3) + 3 * 2
    finish(run)
    assert [(claim.id, claim.verdict) for claim in read_claims(run / "claims.json")] == [
        ("ablation", "undecided"),
        ("jrt", "undecided"),
    ]
    assert len(list((run / "figures").iterdir())) == 2
    assert "untouched model gets 0%" in " ".join(capsys.readouterr().out.split())
    assert attention_ablation.run(replace(options, resume=True)) == run
    assert len(read_records(run)) == len(records)


def test_head_sparsification(folder: Path, tmp_path: Path) -> None:
    options = head_sparsification.Options(
        model=str(folder),
        grid=grid(),
        draws=2,
        short=Grid(lengths=(150, 160), depths=(0,), needles="classic"),
        n_facts=3,
        max_new_tokens=3,
        runs=tmp_path,
    )
    run = head_sparsification.run(options)
    ks, drawn = N_HEADS + 1, 2 * (N_HEADS - 1)
    in_generation, in_all_phases = 4 * (1 + ks) + 2 * ks + 2 * drawn, 1 + 2 * 2 * ks + drawn
    draws = [record for record in read_records(run) if "KeepHeads" in record.plan and "PREFILL" not in record.plan]
    assert len({(record.sample_id, record.plan) for record in draws}) == len(draws) == 2 * drawn
    assert len({record.sample_id for record in draws}) == 4  # all samples, though each draw sees a half
    assert len(read_records(run)) == in_generation + in_all_phases + 3 * (2 + ks)
    finish(run)
    assert [claim.id for claim in read_claims(run / "claims.json")] == ["sparsity", "random-heads", "benchmarks"]
    assert [path.name for path in (run / "figures").iterdir()] == ["random-rg-head-sparsification-heads_kept.png"]


def test_reproduce_joins_all_runs(folder: Path, tmp_path: Path) -> None:
    small, tiny = {"n_facts": 1, "max_new_tokens": 2}, replace(grid(), lengths=(150,))
    options = reproduce.Options(
        models=(str(folder),),
        ablation=attention_ablation.Options(once=tiny, twice=replace(tiny, readings=2), **small),
        sparsification=head_sparsification.Options(grid=tiny, short=tiny, draws=1, **small),
        root=tmp_path,
        workers=1,
    )
    finish(reproduce.run(options))
    claims = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["id"] for claim in claims] == ["ablation", "jrt", "sparsity", "random-heads", "benchmarks"]
    assert (tmp_path / "report.html").stat().st_size > 10_000
