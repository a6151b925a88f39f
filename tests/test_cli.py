import json
import subprocess
import sys
from pathlib import Path

import pytest

from segregation.cli import main
from segregation.interventions.phase import Phase
from segregation.interventions.rules import KeepTopHeads, Plan
from segregation.models.load import bundled_models
from segregation.runs.store import read_manifest, read_records
from tests.made_up import ablation_records, save_random_model, write_run

GRID = ["--lengths", "150", "200", "--depths", "0", "100", "--needles", "classic", "--max-new-tokens", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("cli") / "random-rg")


def command(*args: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(arg) for arg in args])
    return int(exit.value.code or 0)


def test_models_lists_what_is_bundled(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("models") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in bundled_models())


def test_check_prints_every_check_as_table_and_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("check", folder, "--json") == 0
    checks = json.loads(capsys.readouterr().out)
    assert len(checks) >= 8 and all(check["passed"] for check in checks)
    assert command("check", folder) == 0
    assert "left-padded" in capsys.readouterr().out


def test_a_failed_check_shows_in_the_exit_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segregation.models import checks

    failed = checks.Check("a check", False, 1.0, 0.1, "batching")
    monkeypatch.setattr(checks, "run_checks", lambda model: [failed])
    assert command("check", folder) == 1


def test_niah_runs_base_and_plan_and_reports(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--keep-top-heads", "2", "--score", "l2", "--during", "GENERATION"]
    assert command("niah", folder, *flags, *GRID, "--runs", tmp_path, "--run", "one") == 0
    records = read_records(tmp_path / "one")
    plan = Plan(KeepTopHeads(2, "l2", during=Phase.GENERATION))
    assert [record.plan_hash for record in records] == [Plan().hash, plan.hash] * 4
    assert (tmp_path / "one" / "report.html").is_file()
    assert {"needle", "base", "top"} <= set(capsys.readouterr().out.split())
    options = read_manifest(tmp_path / "one")["options"]
    assert options["plan"] == json.loads(plan.to_json()) and options["grid"]["lengths"] == [150, 200]


def test_niah_reads_a_plan_from_a_file_and_resumes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(KeepTopHeads(1, during=Phase.DECODE))
    (tmp_path / "plan.json").write_text(plan.to_json())
    args = ["niah", folder, "--plan", tmp_path / "plan.json", *GRID, "--runs", tmp_path, "--run", "two"]
    assert command(*args) == 0
    before = (tmp_path / "two" / "records.jsonl").read_text()
    assert plan.hash in before
    assert command(*args) == 2
    assert "resume" in capsys.readouterr().err
    assert command(*args, "--resume") == 0
    assert (tmp_path / "two" / "records.jsonl").read_text() == before
    (tmp_path / "plan.json").write_text(Plan(KeepTopHeads(2, during=Phase.DECODE)).to_json())
    capsys.readouterr()
    assert command(*args, "--resume") == 2
    assert "options" in capsys.readouterr().err
    assert (tmp_path / "two" / "records.jsonl").read_text() == before


def test_report_needs_only_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", ablation_records(lambda plan, sample: not plan.rules, cells=10))
    assert command("report", folder) == 0
    shown = capsys.readouterr().out
    assert "ablation" in shown and "report.html" in shown.replace("\n", "")
    assert (folder / "claims.json").is_file()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["check", "no-such-model"], ["no-such-model", "bundled models are"]),
        (["report", "no-such-folder"], ["no-such-folder", "holds no run"]),
        (["niah", "MODEL", "--keep-top-heads", "9"], ["0..4", "9"]),
        (["niah", "MODEL", "--ablate-heads", "--during", "SOMETIMES"], ["SOMETIMES", "PREFILL"]),
        (["niah", "MODEL", "--plan", "absent.json"], ["absent.json", "cannot be read"]),
        (["niah", "MODEL", "--plan", "absent.json", "--ablate-heads"], ["not from both"]),
        (["niah", "MODEL", "--during", "DECODE"], ["--during", "DECODE", "--keep-top-heads", "leave"]),
        (["niah", "MODEL", "--score", "l2"], ["--score", "l2", "--keep-top-heads", "leave"]),
        (["niah", "MODEL", "--ablate-heads", "--score", "entropy"], ["--score", "entropy", "--keep-top-heads"]),
        (["niah", "MODEL", "--plan", "absent.json", "--during", "ALL"], ["--during", "a plan of a file"]),
        (["niah", "MODEL", "--ablate-heads", "--lengths", "20"], ["needle", "20"]),
        (["niah", "MODEL", "--ablate-heads", "--haystack", "the-moon"], ["the-moon", "folder:PATH"]),
        (["niah", "MODEL", "--ablate-heads", "--run", "../up"], ["../up"]),
    ],
)
def test_bad_input_is_one_line_with_rule_value_and_remedy(
    args: list[str], words: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--runs", str(tmp_path), "--max-new-tokens", "3"] if args[0] == "niah" else []
    assert command(*[folder if arg == "MODEL" else arg for arg in args], *runs) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("segregation: ")
    assert all(word in message for word in words), message


def test_a_plan_that_the_model_refuses_leaves_no_run_folder(folder: Path, tmp_path: Path) -> None:
    flags = ["--keep-top-heads", "9", "--runs", str(tmp_path / "runs"), "--run", "never"]
    assert command("niah", folder, *flags) == 2
    assert not (tmp_path / "runs").exists()


def test_importing_loads_nothing_heavy_before_it_is_used() -> None:
    code = (
        "import sys, segregation\n"
        "assert 'torch' not in sys.modules\n"
        "import segregation.cli\n"
        "heavy = {'transformers', 'nnsight', 'matplotlib', 'datasets', 'scipy', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
