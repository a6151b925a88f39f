import json
import subprocess
import sys
from pathlib import Path

import pytest

from segregation.cli import main
from segregation.errors import INTERRUPTED, refusing
from segregation.interventions.phase import Phase
from segregation.interventions.rules import KeepTopHeads, Plan
from segregation.models.source import bundled_models
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


def test_check_prints_every_check_as_json_with_what_it_was_made_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dtype", "bfloat16", "--device", "cpu", "--attn-implementation", "eager"]
    assert command("check", folder, "--json", *flags) == 0
    summary = json.loads(capsys.readouterr().out)
    made_on = {"family": "recurrentgemma", "dtype": "bfloat16", "device": "cpu", "attn_implementation": "eager"}
    assert made_on.items() <= summary.items() and {"torch", "transformers", "nnsight"} <= set(summary["versions"])
    assert (summary["refused"], summary["switched_off"], len(summary["checks"])) == (False, [], 14)
    assert set(summary["checks"][0]) == {
        *("name", "outcome", "measured", "tolerance", "consequence", "note", "seconds"),
    }
    noise = {check["tolerance"] for check in summary["checks"] if check["consequence"] == "batching"}
    assert noise == {0.25}


def test_check_prints_a_table_that_80_columns_hold_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("check", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("check "))) :][:15]
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert table[0].split() == ["check", "outcome", "measured", "limit", "if", "it", "fails"]
    assert [line.split("equals")[0].strip() for line in table if "batching off" in line] == [
        "a left-padded batch",
        "an equal-length batch",
        "left-padded generation",
    ]
    assert lines[-2].endswith(" s") and " pass" in lines[-2] and lines[-1] == "Switched off: nothing"


@pytest.mark.parametrize(
    ("outcome", "consequence", "code", "words"),
    [
        ("fail", "batching", 1, "Switched off: batching"),
        ("fail", "fork", 1, "Switched off: fork"),
        ("fail", "refused", 1, "The model is refused"),
        ("fail", "reported", 0, "Switched off: nothing"),
        ("not done", "refused", 0, "1 not done in"),
        ("pass", "refused", 0, "1 pass in"),
    ],
)
def test_the_exit_code_says_whether_more_follows_than_a_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcome, consequence, code, words
) -> None:
    from segregation.models import checks

    check = checks.Check("a check", outcome, None, 0.1, consequence, "the [reason] why")
    monkeypatch.setattr(checks, "run_checks", lambda model: [check])
    assert command("check", folder) == code
    shown = capsys.readouterr().out
    assert words in shown and f"- a check ({outcome}): the [reason] why" in shown


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
        (["niah", "no-such-model", "--ablate-heads", "--run", "../up"], ["../up"]),  # before a model is looked for
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


def test_an_interrupted_command_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit, refusing():
        raise KeyboardInterrupt
    assert exit.value.code == INTERRUPTED and capsys.readouterr().err.count("\n") == 1
