"""The agent's state directory, for one agent at a time."""

import fcntl
import os
from pathlib import Path

from zcompute.compute.errors import StateDirInUse


class StateDir:
    """Locks the directory until closed (or the process ends). Raises StateDirInUse, OSError.

    The directory itself, not a file in it: an agent starts on a disk that is full or read-only too.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise StateDirInUse(
                f"state directory {self.path} is in use by another agent: stop it, or give this one its own"
            ) from None

    @property
    def fences(self) -> Path:
        return self.path / "fences"

    @property
    def generations(self) -> Path:
        return self.path / "generations.journal"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox.journal"

    @property
    def doubt(self) -> Path:
        return self.path / "complete"

    @property
    def conductors(self) -> Path:
        return self.path / "conductors.json"

    def close(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # gevent closes a directory later
        os.close(self._descriptor)
