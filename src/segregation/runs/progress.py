"""Telling how far a run is: a bar with rate and time left, for one process or for several that work side by side."""

import contextlib
import multiprocessing as mp
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """What a worker says: so many more of a titled piece of work are done; the first one tells the total."""

    title: str
    total: int
    done: int


Tell = Callable[[Step], None]

_tell: ContextVar[Tell | None] = ContextVar("tell", default=None)


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A function to call once per finished item; draws a bar, unless this process tells another one to draw it."""
    tell = _tell.get()
    if tell is not None:
        tell(Step(title, total, 0))
        yield lambda: tell(Step(title, total, 1))
        return
    with bars() as drawn:
        task = drawn.add_task(title, total=total)
        yield lambda: drawn.advance(task)


def side_by_side(jobs: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """Run jobs in ``workers`` processes with one bar per piece of work; what they return, in the order of the jobs.

    Each job must be picklable. A job that fails stops those not yet started, and its error is raised here.
    """
    context = mp.get_context("spawn")  # torch's threads do not survive a fork
    said = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_listen, initargs=(said, workers))
    with pool, bars() as drawn:
        futures = [pool.submit(job) for job in jobs]
        tasks: dict[str, Any] = {}
        totals: Counter[str] = Counter()
        while not all(future.done() for future in futures) or not said.empty():
            while not said.empty():
                step: Step = said.get()
                if step.title not in tasks:
                    tasks[step.title] = drawn.add_task(step.title, total=0)
                if step.done == 0:  # a piece of work begins; several may have one title
                    totals[step.title] += step.total
                    drawn.update(tasks[step.title], total=totals[step.title])
                drawn.advance(tasks[step.title], step.done)
            wait_for(futures, timeout=0.2)
            if any(future.done() and not future.cancelled() and future.exception() for future in futures):
                pool.shutdown(wait=False, cancel_futures=True)  # those that run are heard to their end
        for future in futures:
            if not future.cancelled():
                future.result()  # the error of a job that failed, rather than that another was not started
        return [future.result() for future in futures]


def bars() -> Progress:
    """Bars with counts, rate and time left, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


class RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """The rate as text, empty until there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


def _listen(queue: Any, workers: int) -> None:
    """Set a worker up: tell the parent how far it is, share the cores, and end with the parent, however that ends."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _tell.set(queue.put)


def _end_with_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
