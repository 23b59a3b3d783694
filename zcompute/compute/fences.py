"""The highest owner epoch seen per partition, on disk: an agent refuses commands of an older owner.

File: 256 little-endian u64. It is as large as it will ever be from the start, so a full disk does not matter to it.
"""

import logging
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from zcompute.objects.partition import PARTITIONS

log = logging.getLogger(__name__)

EPOCH_MAX = (1 << 63) - 1

_FILE = struct.Struct(f"<{PARTITIONS}Q")
_CELL = struct.Struct("<Q")


class Fences:
    """``epochs[p]`` never falls, over restarts too. ``on_disk`` False: they are newer in memory; ``complete`` False:
    the file was not there, or not whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_disk = True
        self._descriptor = -1
        found = b""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            found = os.pread(self._descriptor, _FILE.size, 0)
        except OSError as error:
            log.error("fences not read path=%s error=%s", path, error.strerror)
        self.complete = len(found) == _FILE.size
        found = found.ljust(_FILE.size, b"\0")
        # An epoch beyond the maximum was never given: a damaged file, which must not lock all owners out.
        epochs = list(_FILE.unpack(found))
        self.complete = self.complete and max(epochs) <= EPOCH_MAX
        self.epochs: list[int] = [epoch if epoch <= EPOCH_MAX else 0 for epoch in epochs]
        self._write(_FILE.pack(*self.epochs), 0)

    def allows(self, partition: int, owner_epoch: int) -> bool:
        """Whether a command of this owner may be obeyed."""
        return owner_epoch >= self.epochs[partition]

    def raise_to(self, partition: int, owner_epoch: int) -> None:
        """Learn from a command. Lower epochs change nothing."""
        if owner_epoch > self.epochs[partition]:
            self.epochs[partition] = owner_epoch
            if self.on_disk:
                self._write(_CELL.pack(owner_epoch), partition * _CELL.size)

    def raise_all(self, epochs: Sequence[int]) -> None:
        """Learn from a map, or from the answer to a begin: one epoch per partition."""
        raised = [new if new > old else old for old, new in zip(self.epochs, epochs, strict=True)]
        if raised != self.epochs:
            self.epochs = raised
            self._write(_FILE.pack(*raised), 0)

    def tend(self) -> None:
        """Called now and then: writes what could not be written."""
        if not self.on_disk and self._write(_FILE.pack(*self.epochs), 0):
            log.warning("fences back on disk path=%s", self.path)

    def _write(self, data: bytes, offset: int) -> bool:
        former, self.on_disk = self.on_disk, False
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.on_disk = os.pwrite(self._descriptor, data, offset) == len(data)
        except OSError as error:
            if former:
                log.error("fences not written, kept in memory path=%s error=%s", self.path, error.strerror)
        return self.on_disk

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
