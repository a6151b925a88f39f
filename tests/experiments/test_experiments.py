"""The experiments from end to end on a tiny random model: every record, figure and claim, not their values."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import (
    attention_ablation,
    benchmarks,
    double_dissociation,
    head_sparsification,
    needle_visibility,
    paper_audit,
    reproduce,
    routes,
    ssm_compensation,
    state_probe,
)
from experiments.launch import finish
from segregation.errors import RecordError
from segregation.interventions.rules import Plan
from segregation.interventions.visibility import view_of
from segregation.probes.samples import ProbeSamples
from segregation.prompts.grid import Grid
from segregation.runs.store import read_records
from segregation.scores import compensation_claims, dissociation_claims
from segregation.scores.claims import read_claims
from segregation.scores.deciding import STATEMENTS
from segregation.scores.route_claims import ROUTE_STATEMENTS
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
        max_new_tokens=3,
        runs=tmp_path,
    )
    run = head_sparsification.run(options)
    ks, drawn = N_HEADS + 1, 2 * (N_HEADS - 1)
    in_generation, in_all_phases = 4 * (1 + ks) + 2 * ks + 2 * drawn, 1 + 2 * 2 * ks + drawn
    draws = [record for record in read_records(run) if "KeepHeads" in record.plan and "PREFILL" not in record.plan]
    assert len({(record.sample_id, record.plan) for record in draws}) == len(draws) == 2 * drawn
    assert len({record.sample_id for record in draws}) == 4  # all samples, though each draw sees a half
    assert len(read_records(run)) == in_generation + in_all_phases
    finish(run)
    assert [claim.id for claim in read_claims(run / "claims.json")] == ["sparsity", "random-heads"]
    assert [path.name for path in (run / "figures").iterdir()] == ["random-rg-head-sparsification-heads_kept.png"]


def test_reproduce_joins_all_runs(folder: Path, tmp_path: Path) -> None:
    tiny = replace(grid(), lengths=(150,))
    options = reproduce.Options(
        models=(str(folder),),
        ablation=attention_ablation.Options(once=tiny, twice=replace(tiny, readings=2), n_facts=1, max_new_tokens=2),
        sparsification=head_sparsification.Options(grid=tiny, short=tiny, draws=1, max_new_tokens=2),
        visibility=needle_visibility.Options(
            claims=tiny,
            map=replace(tiny, depths=(0,)),
            classic=replace(tiny, depths=(100,)),
            twice=replace(tiny, readings=2),
            max_new_tokens=2,
        ),
        tasks=benchmarks.Options(n=1),
        memory=routes.Options(grid=replace(tiny, depths=(0,)), borders=("question",)),
        dissociation=double_dissociation.Options(
            needles=replace(tiny, depths=(0,), n_per_cell=7),
            n_facts=7,
            n_beside=1,
            values=("zero",),
            draws=1,
            max_new_tokens=2,
        ),
        compensation=ssm_compensation.Options(
            **dict.fromkeys(("plain", "far", "near", "nearest"), replace(tiny, depths=(0,))),
            **dict.fromkeys(("twice", "together"), replace(tiny, depths=(100,), lengths=(250,), readings=2, copies=2)),
            copies=(),
            n_scored=1,
            max_new_tokens=2,
        ),
        probe=state_probe.Options(
            prompts=ProbeSamples(needles=4, haystacks=4, blocks=4, before=30, after=8),
            distances=(5,),
            exchanges=(4,),
            max_new_tokens=1,
        ),
        root=tmp_path,
        workers=1,
    )
    finish(reproduce.run(options))
    claims = json.loads((tmp_path / "claims.json").read_text())
    said = [claim["id"] for claim in claims]
    assert sorted(said) == sorted(
        [*STATEMENTS, *ROUTE_STATEMENTS, *compensation_claims.STATEMENTS, *dissociation_claims.STATEMENTS]
    )
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_needle_visibility(folder: Path, tmp_path: Path) -> None:
    once = replace(grid(), depths=(0,))
    options = needle_visibility.Options(
        model=str(folder),
        claims=once,
        map=replace(once, lengths=(150,), needles="synthetic"),
        classic=replace(once, lengths=(150,)),
        twice=replace(once, readings=2, lengths=(150,)),
        max_new_tokens=2,
        runs=tmp_path,
    )
    run = needle_visibility.run(options)
    views = [view_of(Plan.from_json(record.plan)) for record in read_records(run)]
    assert sum(view is None for view in views) == 2 + 1 + 1  # base, once for each sample
    in_the_map = {(v.mode, v.during, v.semantics) for v in views if v is not None and v.occurrence == "all"}
    assert len(in_the_map) == (5 + 4) * 7 + 1  # modes our way and the paper's, and the decoy of one claim
    assert {v.occurrence for v in views if v is not None} == {0, 1, "all"}
    finish(run)
    assert [(claim.id, claim.verdict) for claim in read_claims(run / "claims.json")] == [
        ("needle-in-generation", "undecided"),
        ("context-somewhere", "undecided"),
        ("prefill-nonsense", "undecided"),
    ]


def test_benchmarks_need_a_number_of_heads(folder: Path, tmp_path: Path) -> None:
    options = benchmarks.Options(model=str(folder), n=2, runs=tmp_path)
    with pytest.raises(RecordError, match=r"run `python -m experiments\.head_sparsification .* first, or give --k"):
        benchmarks.run(options)
    run = benchmarks.run(replace(options, k=2))
    records = read_records(run)
    assert len(records) == 3 * 2 * 6
    assert {record.metadata["task"] for record in records} == {"facts", "sentiment", "entailment"}
    finish(run)
    assert [claim.id for claim in read_claims(run / "claims.json")] == ["benchmarks"]


def test_paper_audit(folder: Path, tmp_path: Path) -> None:
    few = Grid(lengths=(150,), depths=(0, 100), needles="classic")
    options = paper_audit.Options(
        model=str(folder),
        grid=few,
        twice=replace(few, readings=2),
        far=replace(few, lengths=(250,), depths=(0,)),
        k=2,
        max_new_tokens=2,
        runs=tmp_path,
    )
    run = paper_audit.run(options)
    found = json.loads((run / "audit.json").read_text())
    names = list(dict.fromkeys(finding["artefact"] for finding in found))
    assert len(names) == len(paper_audit.PAIRS) + 4
    by_name = {finding["artefact"]: finding for finding in found}
    assert by_name["beyond the window"]["at_ours"]["value"] == 1.0
    assert by_name["nominal depth, 250 tokens"]["at_theirs"] is None  # 50 bytes do not hold the needle
    assert (run / "audit.md").read_text().count("\n") == 2 + len(found)
