"""The experiment from end to end on tiny random models, interrupted once: every record, not its values."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import state_probe
from experiments.launch import finish
from segregation.probes.samples import ProbeSamples
from segregation.report.probes import probe_figures
from segregation.runs.store import read_records
from segregation.scores.probes import patch_rows, probe_rows
from tests.conftest import byte_tokenizer, random_module

KINDS = {"both": ("recurrent", "attention"), "attention": ("attention",), "recurrence": ("recurrent",)}


def save(folder: Path, kind: str) -> Path:
    random_module("recurrentgemma", num_hidden_layers=2, block_types=KINDS[kind]).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_is_probed_and_patched_in_what_it_has(kind: str, tmp_path: Path) -> None:
    options = state_probe.Options(
        model=str(save(tmp_path / "random", kind)),
        prompts=ProbeSamples(needles=4, haystacks=4, blocks=4, before=30, after=8),
        distances=(0, 5),
        exchanges=(4,),
        max_new_tokens=1,
        runs=tmp_path,
    )
    run = state_probe.run(options)
    records = read_records(run)
    recurrent, ways = {"both": (1, 2), "attention": (0, 1), "recurrence": (2, 1)}[kind]
    probes, patches = probe_rows(records), patch_rows(records)
    assert len(probes) == 2 * (2 + 2 * recurrent) * 2  # targets, residuals and states, distances
    assert {row.accuracy.n for row in probes if row.target == "identity"} == {16}
    assert {row.accuracy.n for row in probes if row.target == "presence"} == {8}
    assert {row.chance for row in probes} == {1 / 4, 1 / 2}
    assert len(patches) == ways + 1
    assert {row.own.n for row in patches} == {4}
    assert len(records) == len(probes) + 4 * 2
    assert list(probe_figures(records)) == ["probes"]
    finish(run)
    file = run / "records.jsonl"
    file.write_text(
        "".join(file.read_text().splitlines(keepends=True)[: len(probes) // 2])
    )  # as a killed run leaves it
    assert state_probe.run(replace(options, resume=True)) == run
    again = {record.key: record.values for record in read_records(run)}
    assert again == {record.key: pytest.approx(dict(record.values), abs=1e-3) for record in records}
