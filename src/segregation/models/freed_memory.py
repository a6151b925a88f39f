"""Letting a process keep the memory that it frees, so that a CPU does not clear pages at every operation.

glibc hands large free blocks back to the system, by thresholds that it adapts as it goes, and the next operation gets
them anew, page by page. Activations of a batch are of just that size: 20 prompts under three plans spent 0.1 to 3.3 of
15 to 23 seconds in the system, differently from run to run, and 0.0 to 0.2 with what is freed kept (the two bundled
hybrids, four runs of each kind).
"""

import ctypes
import os

LARGEST = 2**25
"""Blocks up to this are kept, 32 MiB: the most that glibc lets one ask for."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_CHOSEN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Whoever sets a variable that begins so has chosen how memory is kept."""


def keep_freed_memory() -> bool:
    """Keep freed blocks of up to ``LARGEST`` for what comes next, in this process from now on; whether it will.

    Not where the C library is another than glibc, or one of the variables that steer its allocation is set.
    """
    if any(value and name.startswith(_CHOSEN) for name, value in os.environ.items()):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
