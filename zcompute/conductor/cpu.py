"""What this process takes of a core, and what it would take if others left it one."""

import time
from pathlib import Path

_SCHEDSTAT = Path("/proc/self/schedstat")  # of the main thread, in which the hub turns


def cpu_s() -> float:
    """CPU time of all threads so far, in seconds."""
    return time.process_time()


def cpu_wait_s() -> float:
    """For how long the hub's thread was ready to run while others had the cores; 0.0 where the kernel does not say."""
    try:
        return int(_SCHEDSTAT.read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
