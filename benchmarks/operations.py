"""How much work a decode step is, free of noise: torch operations dispatched, and Python functions called."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

FEW, MORE = 3, 7
"""New tokens of the two runs whose difference is taken; the first steps, which may set things up, cancel."""


class Operations(TorchDispatchMode):
    """Counts the operations that reach a kernel while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count it."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], object]) -> int:
    """Torch operations in a run.

    >>> import torch
    >>> operations(lambda: torch.ones(2) + 1)
    2
    """
    with Operations() as mode:
        run()
    return mode.count


def calls(run: Callable[[], object]) -> int:
    """Calls of Python functions in a run.

    >>> calls(lambda: (lambda: None)())
    2
    """
    count = 0

    def profile(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def per_step(run: Callable[[int], object]) -> Mapping[str, int]:
    """Operations and calls of one more decode step: the difference of two runs, over the steps between them."""
    found = {}
    for name, count in (("operations a step", operations), ("calls a step", calls)):
        few, more = (count(lambda new=new: run(new)) for new in (FEW, MORE))
        found[name] = round((more - few) / (MORE - FEW))
    return found
