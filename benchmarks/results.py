"""What runs of the suite left in a file of JSON lines, and the Markdown of it in a page.

A run begins with a ``Machine``. Each benchmark then leaves its rows (``timing.Timed``, or ``Line``s in a form of its
own) and an ``Ended``. A page shows the last run of each benchmark, between two comments: the first has the file's stem
and the benchmark, as in ``<!-- results: cpu sweep -->``, the second is ``<!-- end -->``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import entropy, entropy_gpu, scans
from benchmarks.timing import Timed, table


@dataclass(frozen=True)
class Machine:
    """What a run was on.

    Attributes:
        date: the day, as in 2026-01-31.
        device: the GPU's name, or the CPU's.
        cores: of the CPU.
        threads: that torch was given.
        versions: of the packages that do the work.
    """

    date: str
    device: str
    cores: int
    threads: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Line:
    """A record of a benchmark that has a form and a table of its own."""

    benchmark: str
    line: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a benchmark ended.

    Attributes:
        benchmark: which one.
        seconds: that it took.
        failure: why it did not run to its end, or empty.
    """

    benchmark: str
    seconds: float
    failure: str


Record = Machine | Timed | Line | Ended
_RECORDS: Mapping[str, type[Record]] = {kind.__name__: kind for kind in (Machine, Timed, Line, Ended)}

_BLOCK = re.compile(r"(<!-- results: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def append(path: Path, records: Sequence[Record]) -> None:
    """Append records to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps({"record": type(one).__name__, **asdict(one)}) + "\n" for one in records)


def read(path: Path) -> list[Record]:
    """The records of a file, in order; none where there is no file."""
    if not path.exists():
        return []
    given = [json.loads(line) for line in path.read_text().splitlines()]
    return [_RECORDS[one.pop("record")](**one) for one in given]


def last_run(records: Sequence[Record], benchmark: str) -> list[Record]:
    """The records of a benchmark in the last run that it was part of, with that run's machine in front."""
    runs: list[list[Record]] = [[]]
    for record in records:
        if isinstance(record, Machine):
            runs.append([record])
        elif record.benchmark == benchmark:
            runs[-1].append(record)
    return next((run for run in reversed(runs) if run and not isinstance(run[-1], Machine)), [])


def markdown(records: Sequence[Record], benchmark: str) -> str:
    """What a page says of a benchmark: what it ran on, its table, and that it failed if it did.

    >>> print(markdown([Ended("sweep", 3.0, "it took more than 3 s")], "sweep"))
    It did not run to its end: it took more than 3 s.
    >>> markdown([], "sweep")
    'Not run yet.'
    """
    found = last_run(records, benchmark)
    rows = [record for record in found if isinstance(record, Timed)]
    lines = [dict(record.line) for record in found if isinstance(record, Line)]
    parts = [_about(record) for record in found if isinstance(record, Machine)]
    parts += [table(rows)] if rows else []
    parts += [_own_table(benchmark, lines)] if lines else []
    parts += [
        f"It did not run to its end: {record.failure}."
        for record in found
        if isinstance(record, Ended) and record.failure
    ]
    return "\n\n".join(parts) or "Not run yet."


def _own_table(benchmark: str, lines: list[dict[str, Any]]) -> str:
    if benchmark == "scans":
        return scans.table([scans.Measured(**line) for line in lines])
    if benchmark == "entropy":
        return entropy.table(lines)
    return entropy_gpu.table([line for line in lines if "form" in line])  # its first line is about the device


def _about(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    threads = f"{machine.threads} thread" + "s" * (machine.threads != 1)
    return f"On {machine.date}: {machine.device} ({machine.cores} cores of the CPU, {threads}); {versions}."


def rendered(page: str, files: Mapping[str, Sequence[Record]]) -> str:
    """The page with every block filled anew from the records of its file, by the file's stem.

    >>> print(rendered("<!-- results: cpu sweep -->\\n<!-- end -->", {"cpu": []}))
    <!-- results: cpu sweep -->
    <BLANKLINE>
    Not run yet.
    <BLANKLINE>
    <!-- end -->
    """
    return _BLOCK.sub(lambda found: f"{found[1]}\n{markdown(files[found[2]], found[3])}\n\n{found[4]}", page)
