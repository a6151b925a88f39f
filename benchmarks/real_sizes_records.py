"""What a run of ``benchmarks.real_sizes`` leaves behind, and the Markdown table of it."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDS = "records.jsonl"
"""File of a run's folder: one record a line."""


@dataclass(frozen=True)
class Built:
    """A model as it was built and checked. GB are 10^9 bytes."""

    model: str
    parameters: int
    weights_gb: float
    build_seconds: float
    device: str
    device_gb: float | None
    versions: Mapping[str, str]
    implementations: Mapping[str, str]
    checks: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Compared:
    """What one way of generating gave, beside what ``plain`` gave for the same prompt.

    Attributes:
        same_tokens: how many of the first new tokens are those of ``plain``.
        logit_change: the largest difference to the logits of ``plain`` while the tokens read were the same; ``None``
            for the runner, whose records hold no logits.
        functions: what did the recurrent work, by module and name.
    """

    model: str
    way: str
    prompt_tokens: int
    new_tokens: int
    same_tokens: int
    logit_change: float | None
    functions: Sequence[str]


@dataclass(frozen=True)
class Timed:
    """One timed run. ``peak_gb`` is the most that was allocated on the GPU, weights included; ``None`` on a CPU."""

    model: str
    way: str
    round: int
    seconds: float
    peak_gb: float | None


@dataclass(frozen=True)
class Failed:
    """What did not run to its end, a way or (``way`` empty) a model, and why."""

    model: str
    way: str
    reason: str


Result = Built | Compared | Timed | Failed


def append(folder: Path, result: Result) -> None:
    """Write one record at the end of the folder's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RECORDS).open("a") as file:
        file.write(json.dumps({"record": type(result).__name__, **dataclasses.asdict(result)}) + "\n")


def read(folder: Path) -> list[Result]:
    """All records of a folder, in order."""
    kinds = {kind.__name__: kind for kind in (Built, Compared, Timed, Failed)}
    lines = (folder / RECORDS).read_text().splitlines()
    return [kinds[fields.pop("record")](**fields) for fields in map(json.loads, lines)]


def table(results: Sequence[Result], plain: str) -> str:
    """Markdown: a row for each model and way, then what failed, and what each model ran on and how its checks went.

    Args:
        results: records of one run.
        plain: name of the way that ratios are taken to, round by round.
    """
    built = {result.model: result for result in results if isinstance(result, Built)}
    compared = [result for result in results if isinstance(result, Compared)]
    timed: dict[tuple[str, str], dict[int, Timed]] = {}
    for result in results:
        if isinstance(result, Timed):
            timed.setdefault((result.model, result.way), {})[result.round] = result
    lines = [
        "| model | parameters, 10^9 | weights, GB | plan | peak, GB | seconds [min, max] | ratio to plain "
        "| tokens of plain | logit change |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way in compared:
        runs = timed.get((way.model, way.way), {})
        lines.append("| " + " | ".join(_cells(built[way.model], way, runs, timed.get((way.model, plain), {}))) + " |")
    for failed in (result for result in results if isinstance(result, Failed)):
        lines += ["", f"{failed.model}{failed.way and ', ' + failed.way}: did not run to its end: {failed.reason}"]
    for model in built.values():
        functions = sorted({name for way in compared if way.model == model.model for name in way.functions})
        lines += ["", _about(model, functions)]
    return "\n".join(lines)


def _cells(built: Built, way: Compared, runs: Mapping[int, Timed], plain: Mapping[int, Timed]) -> list[str]:
    seconds = [run.seconds for run in runs.values()]
    peaks = [run.peak_gb for run in runs.values() if run.peak_gb is not None]
    ratios = [run.seconds / plain[number].seconds for number, run in runs.items() if number in plain]
    spread = f"{statistics.median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}]" if seconds else "not timed"
    return [
        way.model,
        f"{built.parameters / 1e9:.2f}",
        f"{built.weights_gb:.1f}",
        way.way,
        f"{max(peaks):.1f}" if peaks else "",
        spread,
        f"{statistics.median(ratios):.2f}" if ratios else "",
        "yes" if way.same_tokens == way.new_tokens else f"no, the first {way.same_tokens} of {way.new_tokens}",
        "" if way.logit_change is None else f"{way.logit_change:.2g}",
    ]


def _about(built: Built, functions: Sequence[str]) -> str:
    memory = "" if built.device_gb is None else f", {built.device_gb:.0f} GB"
    versions = ", ".join(f"{name} {version}" for name, version in built.versions.items())
    implementations = ", ".join(f"{part} {name}" for part, name in built.implementations.items())
    checks = "; ".join(
        f"{check['name']}: {check['outcome']}" + ("" if check["measured"] is None else f" ({check['measured']:.2g})")
        for check in built.checks
    )
    return (
        f"{built.model} on {built.device}{memory}, built in {built.build_seconds:.1f} s. {versions}; "
        f"{implementations}. The recurrent work: {', '.join(functions)}. Checks: {checks}."
    )
