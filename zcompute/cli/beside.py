"""A conductor and a compute on one host: refused unless told so, since the compute is the least trusted part.

Every compute holds a shared lock on one file of the host for as long as it lives; the kernel drops it with the
process. A conductor asks for the exclusive lock for a moment: when it cannot have it, a compute runs here.
"""

import fcntl
import os
import tempfile
from pathlib import Path


def lock_path() -> Path:
    """The file that the computes of this host hold."""
    run = Path("/run/lock")
    directory = run if os.access(run, os.W_OK) else Path(tempfile.gettempdir())
    return directory / "zcompute-compute.lock"


def _open(path: Path) -> int:
    """Open for locking. A lock needs no write access, so another user's file serves as well as one's own."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def hold_as_compute(path: Path) -> int:
    """Take the shared lock (waits at most for a conductor's moment). The descriptor holds it until the process ends."""
    descriptor = _open(path)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def compute_runs_here(path: Path) -> bool:
    """True when a compute of this host holds the lock."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
