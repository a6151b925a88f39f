"""Ways to do the same thing, timed against each other in one process.

Every round runs each way once, so that a slow moment of the machine hits all of them; a ratio is taken within a round.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timed:
    """One way, beside the base of its group.

    Attributes:
        benchmark: what was asked.
        case: on what.
        way: how it was done.
        base: the way that it is compared with.
        seconds: the median over rounds.
        ratio: the median over rounds of the base's seconds over this way's; above 1 is faster than the base.
        low: the smallest ratio of a round.
        high: the largest.
        rounds: timed rounds.
        load: other processes wanting a core when it began, by the machine's one-minute average; ``-1`` if unknown.
        notes: other numbers about it, by name.
    """

    benchmark: str
    case: str
    way: str
    base: str
    seconds: float
    ratio: float
    low: float
    high: float
    rounds: int
    load: float
    notes: Mapping[str, float | str]


def interleaved(
    benchmark: str,
    case: str,
    ways: Mapping[str, Callable[[], object]],
    base: str,
    *,
    rounds: int = 5,
    warm_up: int = 1,
    notes: Mapping[str, Mapping[str, float | str]] | None = None,
) -> list[Timed]:
    """Time every way in every round, and compare each with ``base`` round by round.

    Args:
        benchmark: what is asked.
        case: on what.
        ways: what is timed, by name.
        base: the name of one of them.
        rounds: timed rounds.
        warm_up: rounds before them.
        notes: other numbers about a way, by its name.
    """
    load = load_now()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            took = _once(way)
            if number >= warm_up:
                seconds[name].append(took)
    return compared(benchmark, case, seconds, base, load=load, notes=notes)


def compared(
    benchmark: str,
    case: str,
    seconds: Mapping[str, Sequence[float]],
    base: str,
    *,
    load: float,
    notes: Mapping[str, Mapping[str, float | str]] | None = None,
) -> list[Timed]:
    """Rows for ways of which each was timed once in every round, compared with ``base`` round by round.

    >>> compared("sums", "1 + 1", {"by hand": [4.0, 6.0], "computed": [1.0, 2.0]}, "by hand", load=0.0)[1].ratio
    3.5
    """
    return [
        Timed(
            benchmark, case, name, base, statistics.median(own), statistics.median(ratios), min(ratios), max(ratios),
            len(own), round(load, 2), dict((notes or {}).get(name, {})),
        )
        for name, own in seconds.items()
        for ratios in [[b / a for a, b in zip(own, seconds[base], strict=True)]]
    ]  # fmt: skip


def load_now() -> float:
    """Processes wanting a core, by the machine's one-minute average; ``-1`` if unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0


def _once(way: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def append(path: Path, rows: Iterable[Timed]) -> None:
    """Append rows to a file, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def read(path: Path) -> list[Timed]:
    """The rows of a file."""
    return [Timed(**json.loads(line)) for line in path.read_text().splitlines()]


def table(rows: Sequence[Timed]) -> str:
    """The rows as a Markdown table.

    >>> row = Timed("sweep", "9 plans", "shared", "one by one", 2.0, 3.0, 2.9, 3.2, 5, 0.1, {"rows equal": "90 of 90"})
    >>> print(table([row]).splitlines()[-1])
    | 9 plans | shared | 2.00 s | 3.00 [2.90, 3.20] | rows equal: 90 of 90 |
    """
    lines = ["| case | way | seconds | speed-up [smallest, largest] | |", "|---|---|---|---|---|"]
    for row in rows:
        notes = ", ".join(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}"
                          for name, value in row.notes.items())  # fmt: skip
        seconds = f"{row.seconds:.2f} s" if row.seconds >= 1 else f"{1000 * row.seconds:.1f} ms"
        speed = "(base)" if row.way == row.base else f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]"
        lines.append(f"| {row.case} | {row.way} | {seconds} | {speed} | {notes} |")
    return "\n".join(lines)
