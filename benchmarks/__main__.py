"""The benchmark suite: every comparison in a process of its own, and the page of its results.

``python -m benchmarks`` runs what a CPU can, with one thread; ``--gpu`` what needs a CUDA device. What is found is
appended to ``benchmarks/results/cpu.jsonl`` or ``gpu.jsonl``. A benchmark that crashes or takes longer than it may is
recorded as such, with the rows that it has by then, and the next one begins. ``--table`` writes the tables of both
files into docs/benchmarks.md and runs nothing.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks import timing
from benchmarks.results import Ended, Line, Machine, Record, append, markdown, read, rendered

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PACKAGES = ("torch", "transformers", "nnsight")


@dataclass(frozen=True)
class Entry:
    """One benchmark of the suite.

    Attributes:
        name: its module in ``benchmarks``.
        seconds: what it may take.
        arguments: of its command.
        leaves: ``"rows"`` if it appends common rows to the file that ``--out`` names, ``"lines"`` if it prints JSON
            lines of its own form.
    """

    name: str
    seconds: float
    arguments: tuple[str, ...] = ()
    leaves: Literal["rows", "lines"] = "rows"


CPU = (
    Entry("overhead", 900, ("--rounds", "2")),
    Entry("peers", 200, ("--rounds", "5")),
    Entry("throughput", 500, ("--rounds", "2")),
    Entry("scaling", 600, ("--rounds", "2")),
    Entry("sweep", 900, ("--prompts", "10", "--rounds", "1")),
    Entry("reading", 600),
    Entry("depths", 200, ("--rounds", "3")),
    Entry("scans", 400, ("--rounds", "3"), "lines"),
    Entry("entropy_cpu", 300),
    Entry(
        "entropy",
        600,
        (*("--models", "tiny-recurrentgemma", "tiny-jamba"), *("--tokens", "1024", "4096"), *("--rounds", "3")),
        "lines",
    ),
)
_LONG = ("--tokens", "1024", "2048", "4096", "8192", "16384", "32768")
GPU = (
    Entry("speed_gpu", 240),
    Entry("scaling", 200, ("--device", "cuda", "--models", "google/recurrentgemma-2b", "tiny-jamba", *_LONG)),
    Entry("throughput", 150, ("--device", "cuda")),
    Entry("reading", 120, ("--device", "cuda")),
    Entry("scans", 120, ("--device", "cuda"), "lines"),
    Entry("entropy_gpu", 280, ("--tokens", "4096", "32768"), "lines"),
)


def run(entry: Entry) -> list[Record]:
    """Run a benchmark in a process of its own; what it left, and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        rows, printed, said = (Path(folder) / name for name in ("rows", "stdout", "stderr"))
        out = ("--out", str(rows)) if entry.leaves == "rows" else ()
        command = [sys.executable, "-m", f"benchmarks.{entry.name}", *entry.arguments, *out]
        start = time.perf_counter()
        with printed.open("w") as stdout, said.open("w") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
            failure = _wait(process, entry.seconds)
        seconds = round(time.perf_counter() - start, 1)
        if failure and process.returncode > 0:
            failure += ": " + (said.read_text().strip().splitlines() or [""])[-1]
        records: list[Record] = list(timing.read(rows)) if rows.exists() else []
        if entry.leaves == "lines":
            lines = [line for line in printed.read_text().splitlines() if line.startswith("{")]
            records += [Line(entry.name, json.loads(line)) for line in lines]
    return [*records, Ended(entry.name, seconds, failure)]


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process, end it and its children where it takes too long, and say what went wrong, if anything."""
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # a session of its own, so that its children are in it and no one else
        process.wait()
        return f"it took more than {seconds:g} s"
    return f"exit status {status}" if status else ""


def machine(device: str) -> Machine:
    """This machine, as far as results depend on it."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions = {"Python": platform.python_version(), **versions}
    cores = os.cpu_count() or 1
    return Machine(datetime.date.today().isoformat(), device, cores, int(os.environ["OMP_NUM_THREADS"]), versions)


def cpu_name() -> str:
    """The CPU's name, or its architecture where the system does not tell it, and the widest vectors torch uses."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def write_page(page: Path, results: Path) -> None:
    """Fill the tables of a page from the two files of results."""
    files = {name: read(results / f"{name}.jsonl") for name in ("cpu", "gpu")}
    page.write_text(rendered(page.read_text(), files))


def main() -> None:
    """Run the suite, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="what needs a CUDA device")
    parser.add_argument("--table", action="store_true", help="write the page, run nothing")
    parser.add_argument("--only", nargs="+", help="run these alone")
    parser.add_argument("--peers", type=Path, help="a folder with pyvene and transformer_lens")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of both files")
    options = parser.parse_args()
    if options.table:
        write_page(PAGE, options.results)
        return
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    entries, path = (GPU, options.results / "gpu.jsonl") if options.gpu else (CPU, options.results / "cpu.jsonl")
    if options.peers is not None:
        entries = tuple(with_peers(entry, options.peers) for entry in entries)
    names = [entry.name for entry in entries]
    if unknown := sorted(set(options.only or ()) - set(names)):
        parser.error(f"--only takes {', '.join(names)}; got {', '.join(unknown)}")
    append(path, [machine(torch.cuda.get_device_name() if options.gpu else cpu_name())])
    for entry in entries:
        if options.only is None or entry.name in options.only:
            records = run(entry)
            append(path, records)
            print(f"\n## {entry.name}\n\n{markdown(records, entry.name)}", flush=True)


def with_peers(entry: Entry, folder: Path) -> Entry:
    """The entry, told where other packages lie if it is the one about them."""
    if entry.name != "peers":
        return entry
    return Entry(entry.name, entry.seconds, (*entry.arguments, "--peers", str(folder)), entry.leaves)


if __name__ == "__main__":
    main()
