import functools
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segregation.errors import RecordError
from segregation.runs.progress import progress, side_by_side


def work(number: int) -> tuple[int, int, int]:
    with progress(f"job {number}", 3) as advance:
        for _ in range(3):
            advance()
    return number, os.getpid(), torch.get_num_threads()


def fail() -> None:
    raise RecordError("the run is another one")


def test_jobs_run_in_other_processes_and_their_bars_are_drawn_here(capfd: pytest.CaptureFixture[str]) -> None:
    done = side_by_side([functools.partial(work, number) for number in range(2)], workers=2)
    assert [number for number, _, _ in done] == [0, 1]
    assert os.getpid() not in {pid for _, pid, _ in done}
    assert {threads for _, _, threads in done} == {max(1, (os.cpu_count() or 1) // 2)}
    shown = capfd.readouterr().err
    assert "job 0" in shown and "job 1" in shown and shown.count("3/3") == 2


def work_twice(number: int) -> None:
    work(number)
    work(number)


def test_pieces_of_work_with_one_title_share_a_bar_that_ends_full(capfd: pytest.CaptureFixture[str]) -> None:
    side_by_side([functools.partial(work_twice, 3)], workers=1)
    shown = capfd.readouterr().err
    assert "6/6" in shown and "6/3" not in shown


def test_an_error_of_a_job_comes_out() -> None:
    with pytest.raises(RecordError, match="another one"):
        side_by_side([fail], workers=1)


def nap(seconds: float, file: Path) -> None:
    file.write_text(str(os.getpid()))
    time.sleep(seconds)


def _run_naps(file: Path) -> None:
    side_by_side([functools.partial(nap, 60, file)], workers=1)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    parent = mp.get_context("spawn").Process(target=_run_naps, args=(file,))
    parent.start()
    wait_until(lambda: file.exists() and file.read_text() != "")
    worker = int(file.read_text())
    os.kill(parent.pid or 0, signal.SIGKILL)
    wait_until(lambda: not running(worker))


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_a_bar_for_one_process(capfd: pytest.CaptureFixture[str]) -> None:
    assert work(7)[1] == os.getpid()
    assert "3/3" in capfd.readouterr().err
