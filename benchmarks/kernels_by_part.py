"""Which parts of a model its GPU kernels belong to, read from a profiler's trace.

Forward hooks mark when a part begins and ends on the CPU; a kernel belongs to the innermost part in which it was
launched. That holds for kernels of any origin (PyTorch, Triton), since the trace pairs every kernel with its launch.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

PART = "part: "
MOMENT = "moment"
REST = "rest"
"""Kernels launched in no part: embedding, norms, residuals, the choice of a token."""

Events = Sequence[Mapping[str, Any]]
"""The ``traceEvents`` of a trace, times in microseconds."""


@contextlib.contextmanager
def marked(parts: Mapping[str, Sequence[nn.Module]]) -> Iterator[None]:
    """Mark the forward of these modules in traces, by the name of their part."""
    handles = [
        handle for part, modules in parts.items() for module in modules for handle in _mark(module, PART + part)
    ]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mark(module: nn.Module, name: str) -> tuple[Any, Any]:
    running: list[Any] = []

    def begin(*_: Any) -> None:
        running.append(record_function(name).__enter__())

    def end(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    return module.register_forward_pre_hook(begin), module.register_forward_hook(end)


def mark_moment() -> None:
    """Mark a moment in the trace, to tell what came before it from what came after."""
    with record_function(MOMENT):
        pass


def traced(run: Callable[[], object], activities: Sequence[ProfilerActivity]) -> Events:
    """What the profiler sees of a run."""
    with profile(activities=activities) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def moments(events: Events) -> list[float]:
    """When moments were marked, in order."""
    return sorted(event["ts"] for event in events if event.get("name") == MOMENT and event.get("ph") == "X")


def seconds_of_parts(events: Events, start: float, stop: float) -> dict[str, float]:
    """GPU seconds of each part in kernels, copies and fills that were launched between two times of the trace.

    >>> mark = {"ph": "X", "cat": "user_annotation", "name": "part: MLP", "ts": 1.0, "dur": 2.0}
    >>> launch = {"ph": "X", "cat": "cuda_runtime", "name": "launch", "ts": 2.0, "dur": 0.5, "args": {"correlation": 7}}
    >>> kernel = {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 9.0, "dur": 5.0, "args": {"correlation": 7}}
    >>> seconds_of_parts([mark, launch, kernel], 0.0, 10.0)
    {'MLP': 5e-06}
    """
    complete = [event for event in events if event.get("ph") == "X"]
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in complete
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    ranges = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"].removeprefix(PART))
        for event in complete
        if event.get("cat") == "user_annotation" and event["name"].startswith(PART)
    )
    kernels = sorted(
        (launched[event["args"]["correlation"]], event["dur"])
        for event in complete
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and event["args"]["correlation"] in launched
    )
    found: dict[str, float] = {}
    under_way: list[tuple[float, str]] = []
    coming = iter([*ranges, (float("inf"), float("inf"), "")])
    following = next(coming)
    for at, took in kernels:
        while following[0] <= at:
            under_way.append((following[1], following[2]))
            following = next(coming)
        under_way = [one for one in under_way if one[0] >= at]
        if start <= at < stop:
            part = under_way[-1][1] if under_way else REST
            found[part] = found.get(part, 0.0) + took / 1e6
    return found
