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
    """``epochs[p]`` never falls, over restarts too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        found = os.pread(self._descriptor, _FILE.size, 0).ljust(_FILE.size, b"\0")
        self.epochs: list[int] = list(_FILE.unpack(found))
        self._write(found, 0)

    def allows(self, partition: int, owner_epoch: int) -> bool:
        """Whether a command of this owner may be obeyed."""
        return owner_epoch >= self.epochs[partition]

    def raise_to(self, partition: int, owner_epoch: int) -> None:
        """Learn from a command. Lower epochs change nothing."""
        if owner_epoch > self.epochs[partition]:
            self.epochs[partition] = owner_epoch
            self._write(_CELL.pack(owner_epoch), partition * _CELL.size)

    def raise_all(self, epochs: Sequence[int]) -> None:
        """Learn from a map: one epoch per partition."""
        raised = [max(old, new) for old, new in zip(self.epochs, epochs, strict=True)]
        if raised != self.epochs:
            self.epochs = raised
            self._write(_FILE.pack(*raised), 0)

    def _write(self, data: bytes, offset: int) -> None:
        try:
            os.pwrite(self._descriptor, data, offset)
        except OSError as error:
            log.error("fences not written, kept in memory path=%s error=%s", self.path, error.strerror)

    def close(self) -> None:
        os.close(self._descriptor)
