"""One fake host: the file of its domains.

The file is the host: it outlives the agent, every operation reads what others appended first, and a lock on it makes
"is it there? then write" one step, whoever else serves the host by mistake.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from zcompute.compute.errors import DriverError
from zcompute.compute.virt.driver import Domain
from zcompute.compute.virt.fake_log import ELSEWHERE, GOES, DomainLine, parse_lines

log = logging.getLogger(__name__)


class FakeHost:
    """One host's file. Raises DriverError when the file system fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._domains: dict[str, Domain] = {}
        self._awaited: set[str] = set()
        self._read_bytes = 0
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DriverError(f"{path}: the fake host's domains cannot be opened: {error.strerror}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone on the file and up to date with it. Held for microseconds: nothing yields inside."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                self._refresh()
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise DriverError(f"{self.path}: {error.strerror}") from error

    def _refresh(self) -> None:
        size_bytes = os.fstat(self._descriptor).st_size
        if size_bytes == self._read_bytes:
            return
        data = os.pread(self._descriptor, size_bytes - self._read_bytes, self._read_bytes)
        lines, end, unreadable = parse_lines(data)
        if end < len(data):
            # A writer died inside its write: end its line, so that the next one begins a line of its own.
            os.write(self._descriptor, b"\n")
            end, unreadable = len(data) + 1, unreadable + 1
        if unreadable:
            log.warning("fake host has unreadable lines path=%s count=%d", self.path, unreadable)
        self._read_bytes += end
        for line in lines:
            self._apply(line)

    def _apply(self, line: DomainLine) -> None:
        if line.op in ELSEWHERE:
            self._awaited.add(line.uuid)
            return
        self._awaited.discard(line.uuid)
        if line.op in GOES:
            self._domains.pop(line.uuid, None)
        else:
            self._domains[line.uuid] = Domain(line.uuid, line.power_state, line.amounts)

    def domains(self) -> dict[str, Domain]:
        """What is there; valid while locked."""
        return self._domains

    def awaits(self, uuid: str) -> bool:
        """Whether it was prepared for this domain, and neither got it nor was told to destroy it since; valid while
        locked."""
        return uuid in self._awaited

    def append(self, line: DomainLine) -> None:
        """One line in one write; called while locked."""
        data = msgspec.json.encode(line) + b"\n"
        written = os.write(self._descriptor, data)
        if written < len(data):
            raise DriverError(f"{self.path}: wrote {written} of {len(data)} bytes: is the disk full?")
        self._read_bytes += written
        self._apply(line)

    def close(self) -> None:
        os.close(self._descriptor)
