"""Whether the records of the state directory are all there: what an agent forgets, it must know that it forgot.

File: one boot id, always of the same length, written in place, so a full disk does not matter to it. The records on
disk are complete when it names the present boot of the machine: journals are not forced to the platter, so a loss of
power may have cost them their tail.
"""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FILE_BYTES = 64

_NOTHING = b"incomplete"


class Doubt:
    """``here``: this process may know less than a former one did. ``on_disk``: the next one will ask."""

    def __init__(self, path: Path, boot_id_path: Path = BOOT_ID) -> None:
        self._path = path
        self._boot_id = _read_boot_id(boot_id_path)
        self._descriptor = -1
        self._failing = False
        found = b""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            found = os.pread(self._descriptor, FILE_BYTES, 0).rstrip()
        except OSError as error:
            log.error("doubt not read path=%s error=%s", path, error.strerror)
        self.here = self.on_disk = found != self._boot_id
        if self.here:
            self.on_disk = self._write(_NOTHING)

    def raise_here(self, reason: str) -> None:
        """What was read of the records is not all that was written."""
        if not self.here:
            log.warning("state directory in doubt: %s", reason)
        self.here = True
        self.raise_on_disk()

    def raise_on_disk(self) -> bool:
        """Something that was obeyed is not on disk. True: and the next process will know that."""
        if not self.on_disk:
            self.on_disk = self._write(_NOTHING)
        return self.on_disk

    def settle_here(self) -> None:
        """This process has been told what it did not know."""
        if self.here:
            log.info("state directory no longer in doubt path=%s", self._path.parent)
        self.here = False

    def settle_on_disk(self) -> None:
        """All that this process knows is on disk."""
        if self.on_disk and not self.here:
            self.on_disk = not self._write(self._boot_id)

    def _write(self, text: bytes) -> bool:
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            written = os.pwrite(self._descriptor, text.ljust(FILE_BYTES), 0) == FILE_BYTES
        except OSError as error:
            if not self._failing:
                log.error("doubt not written path=%s error=%s", self._path, error.strerror)
            written = False
        self._failing = not written
        return written

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _read_boot_id(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()[:FILE_BYTES] or b"unknown"
    except OSError:
        return b"unknown"
