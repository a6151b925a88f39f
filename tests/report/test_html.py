import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from segregation.errors import RecordError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import Plan
from segregation.interventions.visibility import MODES, View
from segregation.report.html import EXAMPLES, examples, write_report
from segregation.report.run import read_run
from segregation.scores.claims import read_claims
from tests.made_up import ablation_records, lone_target, needles, recorded, sweep_plans, write_run


def not_attention(plan, sample) -> bool:
    return not plan.rules


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "one", ablation_records(not_attention, cells=10))


def test_a_report_is_made_of_records_alone(folder: Path) -> None:
    (run,) = write_report(folder)
    assert read_claims(folder / "claims.json") == list(run.claims)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        "one-retrieval_readings1.png",
        "one-retrieval_readings2.png",
    ]
    assert json.loads((folder / "claims.json").read_text())[0]["id"] == "ablation"


def test_the_page_stands_alone_and_escapes_what_models_and_users_wrote(folder: Path) -> None:
    write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<b>sandwich</b>" not in page and "&lt;b&gt;sandwich&lt;/b&gt;" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page) and page.count("data:image/png;base64,") == 2
    assert 'class="badge undecided"' in page
    HTMLParser().feed(page)


def test_a_folder_of_runs_has_one_page_over_all(tmp_path: Path) -> None:
    write_run(tmp_path / "all" / "b", recorded(needles(), sweep_plans(4, 2), not_attention))
    write_run(tmp_path / "all" / "a", ablation_records(not_attention, cells=10))
    runs = write_report(tmp_path / "all")
    assert [run.name for run in runs] == ["a", "b"]
    claims = read_claims(tmp_path / "all" / "claims.json")
    assert [claim.id for claim in claims] == ["ablation", "jrt", "sparsity", "random-heads"]
    assert (tmp_path / "all" / "figures" / "b-heads_kept.png").is_file()


def test_examples_are_one_sample_under_each_plan_without_the_draws(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", recorded(needles(), sweep_plans(8, 2), not_attention)))
    shown = examples(run)
    assert len(shown) == EXAMPLES and len({example.where for example in shown}) == 1
    assert shown[0].plan == "base" and shown[0].text == shown[0].target
    assert not any("named" in example.plan for example in shown)


def test_log_probabilities_of_needles_are_counted_but_not_scored(tmp_path: Path) -> None:
    grid = needles()
    lone = [lone_target(sample) for sample in grid]
    (run,) = write_report(write_run(tmp_path / "mixed", [*lone, *recorded(grid, sweep_plans(4, 2), not_attention)]))
    assert len(run.records) - len(run.outcomes) == len(lone)
    assert examples(run)[0].text == examples(run)[0].target
    (alone,) = write_report(write_run(tmp_path / "alone", lone))
    assert not alone.outcomes and not alone.claims and not examples(alone)


def test_a_map_is_captioned_and_rules_without_tokens_are_told(tmp_path: Path) -> None:
    views = [View(mode, Phase.PREFILL).plan for mode in MODES]
    records = recorded(needles(), [Plan(), *views], not_attention)
    records[1] = dataclasses.replace(records[1], beyond_window={"needle": 2})
    write_report(write_run(tmp_path / "map", records))
    page = (tmp_path / "map" / "report.html").read_text(encoding="utf-8")
    assert "map: visibility" in page and "Only attention is edited" in page
    assert "1 of 15 samples: needle beyond the attention window" in page


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no run"):
        write_report(tmp_path)
