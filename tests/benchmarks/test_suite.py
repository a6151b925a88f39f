"""The suite keeps what ran, tells what did not, and puts all of it on the page; where GPU time goes is told apart."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as suite
from benchmarks.__main__ import CPU, GPU, PAGE, Entry, run, with_peers, write_page
from benchmarks.kernels_by_part import marked, moments, seconds_of_parts, traced
from benchmarks.published import PUBLISHED, build, word_tokenizer
from benchmarks.results import Ended, Line, Machine, append, last_run, markdown, read
from benchmarks.speed_gpu import MODEL, measure, moved_in_a_step, parts
from benchmarks.subjects import Subject, subject_of
from benchmarks.timing import Timed

MACHINE = Machine("2026-01-31", "a CPU", 2, 1, {"torch": "2"})


def _row(way: str, seconds: float) -> Timed:
    return Timed("sweep", "a case", way, "alone", seconds, 2.0, 1.5, 2.5, 3, 0.5, {"rows equal": "4 of 4"})


def test_records_come_back_and_the_last_run_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "cpu.jsonl"
    first = [MACHINE, _row("alone", 9.0), Ended("sweep", 10.0, ""), Line("scans", {"a": 1}), Ended("scans", 1.0, "")]
    again = [MACHINE, _row("alone", 4.0), _row("together", 2.0), Ended("sweep", 6.0, "exit status 1: out of memory")]
    append(path, first)
    append(path, again)
    found = read(path)
    assert found == [*first, *again]
    assert last_run(found, "sweep") == again
    assert last_run(found, "scans") == [MACHINE, *first[3:]]
    text = markdown(found, "sweep")
    assert "9.00 s" not in text
    assert "| a case | together | 2.00 s | 2.00 [1.50, 2.50] | rows equal: 4 of 4 |" in text
    assert text.startswith("On 2026-01-31: a CPU (2 cores of the CPU, 1 thread); torch 2.")
    assert text.endswith("It did not run to its end: exit status 1: out of memory.")
    assert read(tmp_path / "gpu.jsonl") == []


def test_own_forms_keep_their_own_tables() -> None:
    scan = {"case": "c", "form": "fast", "reference_ms": 2.0, "speedup": 3.5, "least": 3.0, "most": 4.0, "error": None,
            "reference_error": None, "load": 0.1}  # fmt: skip
    assert "| c | fast | 2.0 | 3.5 (3.0-4.0) |" in markdown([Line("scans", scan)], "scans")
    call = {"layer": "l", "dtype": "bfloat16", "tokens": 4096, "form": "eager", "fits": False}
    lines = [Line("entropy_gpu", {"device": "d"}), Line("entropy_gpu", call)]
    assert "| l | bfloat16 | 4,096 | eager | does not fit |" in markdown(lines, "entropy_gpu")


def test_a_page_is_filled_again_and_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- results: cpu sweep -->\nold\n<!-- end -->\n<!-- results: gpu scans --><!-- end -->\n")
    page.write_text(page.read_text().replace("--><!--", "-->\n<!--"))
    append(tmp_path / "cpu.jsonl", [MACHINE, _row("alone", 4.0)])
    write_page(page, tmp_path)
    once = page.read_text()
    assert "old" not in once
    assert "| a case | alone | 4.00 s | (base) |" in once
    assert once.startswith("Before\n") and once.endswith("-->\n\nNot run yet.\n\n<!-- end -->\n")
    write_page(page, tmp_path)
    assert page.read_text() == once


def test_the_page_has_a_place_for_every_benchmark() -> None:
    page = PAGE.read_text()
    for file, entries in (("cpu", CPU), ("gpu", GPU)):
        for entry in entries:
            assert page.count(f"<!-- results: {file} {entry.name} -->") == 1
    assert page.count("<!-- results:") == page.count("<!-- end -->") == len(CPU) + len(GPU)
    assert sum(entry.seconds for entry in GPU if entry.name == "speed_gpu") <= 240


def test_a_benchmark_that_takes_too_long_leaves_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'some text'\necho '{\"a\": 1}'\nsleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(suite.sys, "executable", str(python))
    *lines, ended = run(Entry("scans", 2.0, leaves="lines"))
    assert lines == [Line("scans", {"a": 1})]
    assert isinstance(ended, Ended) and ended.failure == "it took more than 2 s" and ended.seconds < 30


def test_a_benchmark_that_crashes_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Traceback' >&2\necho 'ValueError: no' >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(suite.sys, "executable", str(python))
    (ended,) = run(Entry("sweep", 20))
    assert isinstance(ended, Ended) and ended.failure == "exit status 3: ValueError: no"


def test_the_suite_records_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = (Entry("peers", 5, ("--rounds", "1")), Entry("sweep", 5))
    monkeypatch.setattr(suite, "CPU", entries)
    monkeypatch.setattr(suite.sys, "executable", "/bin/false")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "sweep", "--results", str(tmp_path)])
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")
    suite.main()
    machine, ended = read(tmp_path / "cpu.jsonl")
    assert isinstance(machine, Machine) and machine.versions["torch"] == torch.__version__ and machine.threads == 1
    assert isinstance(ended, Ended) and (ended.benchmark, ended.failure) == ("sweep", "exit status 1: ")
    assert with_peers(entries[0], Path("x")).arguments == ("--rounds", "1", "--peers", "x")
    assert with_peers(entries[1], Path("x")) is entries[1]


def _mark(name: str, ts: float, dur: float) -> dict[str, Any]:
    return {"ph": "X", "cat": "user_annotation", "name": f"part: {name}", "ts": ts, "dur": dur}


def _kernel(number: int, launched: float, dur: float, cat: str = "cuda_runtime") -> list[dict[str, Any]]:
    own = {"correlation": number}
    return [
        {"ph": "X", "cat": cat, "name": "launch", "ts": launched, "dur": 1.0, "args": own},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": launched + 500, "dur": dur, "args": own},
    ]


def test_a_kernel_belongs_to_the_innermost_part_that_launched_it() -> None:
    events = [
        *(_mark("block", 10.0, 50.0), _mark("scan", 20.0, 10.0), _mark("MLP", 70.0, 10.0)),
        *_kernel(1, 5.0, 1e6),  # before any part
        *_kernel(2, 15.0, 2e6),
        *_kernel(3, 25.0, 4e6, "cuda_driver"),  # as Triton launches
        *_kernel(4, 35.0, 8e6),  # after the inner part
        *_kernel(5, 65.0, 16e6),  # between parts
        *_kernel(6, 75.0, 32e6),
        *_kernel(7, 200.0, 64e6),  # after the time asked for
        {"ph": "i", "name": "no duration", "ts": 1.0},
    ]
    assert seconds_of_parts(events, 0.0, 100.0) == {"rest": 17.0, "block": 10.0, "scan": 4.0, "MLP": 32.0}
    assert seconds_of_parts(events, 60.0, 100.0) == {"rest": 16.0, "MLP": 32.0}


@pytest.fixture(scope="module")
def griffin() -> Subject:
    published = PUBLISHED[MODEL]
    config = published.config(**{**published.fields, **published.tiny})
    return subject_of(MODEL, build(config, "cpu"), word_tokenizer(config), "fast")


def test_parts_are_marked_where_they_run(griffin: Subject) -> None:
    found = parts(griffin.plain, griffin)
    assert {part: len(modules) for part, modules in found.items()} == {
        **{"attention": 2, "recurrent block around it": 4, "RG-LRU": 4, "MLP": 6, "lm_head": 1}
    }
    with torch.no_grad(), marked(found):
        events = traced(lambda: griffin.plain(torch.arange(8)[None]), [torch.profiler.ProfilerActivity.CPU])
    marks = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {part: marks.count(f"part: {part}") for part in found} == {p: len(ms) for p, ms in found.items()}
    assert not moments(events)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in found["MLP"])


def test_a_step_moves_weights_and_memory(griffin: Subject) -> None:
    config = griffin.plain.config
    ids = torch.randint(8, 500, (1, 40))
    with torch.no_grad():
        moved = moved_in_a_step(griffin, ids)
    weights = 2 * griffin.plain.num_parameters()
    per_key = 2 * 2 * config.head_dim  # key and value in bf16, one group
    keys = 2 * (config.sliding_window - 1) * per_key  # of two layers; the newest is added in the step
    states = 4 * (4 * config.lru_width + 2 * config.lru_width * (config.conv1d_width - 1))  # fp32; bf16
    assert moved == weights + keys + states


@pytest.mark.slow
def test_prefills_and_steps_are_told_apart(griffin: Subject) -> None:
    ids = torch.randint(8, 500, (1, 24))
    with torch.no_grad():
        rows = measure(griffin, ids, 4, 1, ["plain", "no plan", "keep 4 heads"], 1e9)
    assert [row.case for row in rows] == ["CPU, prefill, T = 24"] * 3 + ["CPU, a step, T = 24"] * 3
    assert [row.way for row in rows] == ["plain", "no plan", "keep 4 heads"] * 2
    for row in rows:
        tokens = 24 if "prefill" in row.case else 1
        assert row.notes["tokens a second"] == pytest.approx(tokens / row.seconds)
    moved = float(rows[3].notes["GB a step"])
    assert rows[3].notes["of the copy bandwidth"] == pytest.approx(moved / rows[3].seconds)
