"""The experiment on routes from end to end on a tiny random model: every record and the claims, not their values."""

from dataclasses import replace
from pathlib import Path

from experiments import routes
from segregation.prompts.grid import Grid
from segregation.runs.store import read_records
from segregation.scores.route_claims import ROUTE_STATEMENTS, route_claims
from tests.made_up import save_random_model


def test_every_sample_is_measured_at_every_border_once(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path / "random-rg")
    grid = Grid(lengths=(150,), depths=(0,), needles="classic")
    options = routes.Options(model=str(folder), grid=grid, borders=("question", "answer"), runs=tmp_path)
    run = routes.run(options)
    records = read_records(run)
    assert [(r.kind, r.settings["border"]) for r in records] == [("measurement", "question"), ("measurement", "answer")]
    assert all(len(record.values) == 1 + 4 + 16 * 4 for record in records)
    claims = route_claims(records)
    assert [claim.id for claim in claims] == list(ROUTE_STATEMENTS)
    assert {claim.verdict for claim in claims} == {"undecided"}  # a random model writes no needle
    assert routes.run(replace(options, resume=True)) == run
    assert len(read_records(run)) == len(records)
