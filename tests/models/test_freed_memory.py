"""A process that keeps what it frees gets no new pages for the next block of the same size."""

import os
import subprocess
import sys

import pytest

from segregation.models.freed_memory import keep_freed_memory

COUNT = """
import resource, sys
import torch
from segregation.models.freed_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.zeros(2**21).add_(1) for _ in range(20)]  # 8 MiB each; all are freed at once
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def run(way: str, **chosen: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))}
    found = subprocess.run([sys.executable, "-c", COUNT, way], env={**clean, **chosen}, capture_output=True, text=True)
    kept, faults = found.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is what is told")
def test_freed_blocks_are_used_again() -> None:
    kept, faults = run("keep")
    if kept == "False":
        pytest.skip("another C library than glibc")
    _, without = run("leave")
    assert without > 20 * max(faults, 100)


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"])
def test_what_someone_else_chose_is_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "131072")
    assert not keep_freed_memory()
