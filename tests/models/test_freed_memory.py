"""A process that keeps what it frees gets no new pages for the next block of the same size."""

import os
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from segregation.models.freed_memory import keep_freed_memory
kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.zeros(2**21).add_(1)  # 8 MiB
        torch.zeros(2**19).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def run(**chosen: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))}
    found = subprocess.run([sys.executable, "-c", COUNT], env={**clean, **chosen}, capture_output=True, text=True)
    kept, faults = found.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is what is told")
def test_freed_blocks_are_used_again_unless_someone_else_chose() -> None:
    kept, faults = run()
    if kept == "False":
        pytest.skip("another C library than glibc")
    assert faults < 1000
    left, more = run(MALLOC_MMAP_THRESHOLD_="131072")
    assert left == "False" and more > 20 * max(faults, 100)
