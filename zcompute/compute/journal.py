"""Append-only journal: framed records that survive kill -9, a torn tail and a full disk.

File: the header line, then frames of ``<u32 length><u32 crc32><record>``, little-endian. Reading stops at the first
frame that is short or whose checksum is wrong (the tail of a write that was cut off), and writing goes on from there.
A rewrite goes to a new file that replaces the old one by rename.

What ``append`` has returned from survives the death of the process. It is not forced to the platter: the hub must not
wait for a disk, and after a loss of power the host begins a new epoch with full state.
"""

import contextlib
import errno
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from zcompute.compute.errors import JournalUnsupported, JournalWriteFailed
from zcompute.compute.settings import Settings
from zcompute.failpoints import failpoint

log = logging.getLogger(__name__)

MAGIC = b"zcompute journal "
HEADER = MAGIC + b"1\n"
RECORD_BYTES_MAX = 1 << 20
RESYNC_BYTES_MAX = 1 << 20  # of a damaged file that are searched for the next sound record

# A disk that is full or broken: the agent goes on without it. Anything else about the file is for the operator.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG})

_FRAME = struct.Struct("<II")


def frame(record: bytes) -> bytes:
    """One record as it lies in the file. Raises ValueError above RECORD_BYTES_MAX."""
    if len(record) > RECORD_BYTES_MAX:
        raise ValueError(f"a journal record has at most {RECORD_BYTES_MAX} bytes, found {len(record)}")
    return _FRAME.pack(len(record), zlib.crc32(record)) + record


@dataclass
class Scanned:
    """The sound records of a file's bytes, where the last of them ends, how many bytes before that are not sound."""

    records: list[bytes]
    end: int
    unsound_bytes: int = 0


def scan(data: bytes) -> Scanned:
    """What a file's bytes (header included) hold. Raises JournalUnsupported.

    A file shorter than its header is one whose creation was cut off: no records, end 0. Behind damage the next sound
    record is searched for within RESYNC_BYTES_MAX: replay takes each record for itself. The header may be damaged too:
    a file that was truncated under a running agent begins with a hole.
    """
    if len(data) < len(HEADER) and HEADER.startswith(data):
        return Scanned([], 0)
    if data.startswith(MAGIC) and not data.startswith(HEADER):
        raise JournalUnsupported(f"expected a file that begins with {HEADER!r}, found {data[: len(HEADER)]!r}")
    found = Scanned([], len(HEADER) if data.startswith(HEADER) else 0)
    at, searched = found.end, 0
    while at + _FRAME.size < len(data) and searched <= RESYNC_BYTES_MAX:
        record = _record_at(data, at)
        if record is None:
            at, searched = at + 1, searched + 1
            continue
        found.unsound_bytes += at - found.end
        found.records.append(record)
        at = found.end = at + _FRAME.size + len(record)
    return found


def _record_at(data: bytes, at: int) -> bytes | None:
    """The sound record there. None has no bytes: a hole of zeros would be full of such."""
    length, checksum = _FRAME.unpack_from(data, at)
    start = at + _FRAME.size
    if not 0 < length <= min(RECORD_BYTES_MAX, len(data) - start):
        return None
    record = data[start : start + length]
    return record if zlib.crc32(record) == checksum else None


class JournalFile:
    """The file itself. Opening it reads it; ``records`` are those found, oldest first.

    ``lost`` says what is missing of what may once have been written, "" for nothing. ``sound`` False: it cannot be
    appended to before a rewrite. Raises JournalUnsupported, and OSError for what is not the disk's fault.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[bytes] = []
        self.size_bytes = 0
        self.sound = False
        self.lost = ""
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._read()
        except (OSError, JournalWriteFailed) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in DISK_ERRORS:
                self.close()
                raise
            self.lost = self.lost or f"{path.name} cannot be used: {cause.strerror}"
            log.error("journal not usable at start path=%s error=%s", path, cause.strerror)
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as file:
            data = file.read()
        try:
            found = scan(data)
        except JournalUnsupported as error:
            raise JournalUnsupported(
                f"{self.path}: {error}: use the release that wrote it, or an empty state_dir"
            ) from None
        self.records, self.size_bytes = found.records, found.end
        ignored_bytes = found.unsound_bytes + len(data) - found.end
        if not data:
            self.lost = f"{self.path.name} was not there"
        elif ignored_bytes or not found.end:
            self.lost = f"{self.path.name} is damaged"
            log.warning(
                "journal damaged path=%s sound_records=%d ignored_bytes=%d",
                self.path, len(found.records), ignored_bytes,
            )  # fmt: skip
        os.ftruncate(self._descriptor, found.end)
        if not found.end:
            self._write(HEADER)
        self.sound = not found.unsound_bytes

    def is_whole(self) -> bool:
        """Whether the file at the path is still the one that was written, of the size that it was given."""
        try:
            there, ours = os.stat(self.path), os.fstat(self._descriptor)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # the disk fails: the next write will say so
        return (there.st_dev, there.st_ino, there.st_size) == (ours.st_dev, ours.st_ino, self.size_bytes)

    def append(self, record: bytes) -> None:
        """Write one record. Raises JournalWriteFailed; the records before it are untouched then."""
        if not self.sound:
            raise JournalWriteFailed(f"{self.path}: an earlier write failed, rewrite it first")
        failpoint("journal.before_append")
        self._write(frame(record))
        failpoint("journal.after_append")

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self.size_bytes + written)
        except OSError as error:
            # What was written of it must not be taken for a record once shorter ones follow.
            try:
                os.ftruncate(self._descriptor, self.size_bytes)
            except OSError:
                self.sound = False
            raise JournalWriteFailed(f"{self.path}: {error.strerror}") from error
        self.size_bytes += len(data)

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Replace the contents by these records, all or nothing. Raises JournalWriteFailed."""
        fresh = self.path.with_suffix(".new")
        try:
            fresh.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalWriteFailed(f"{fresh}: {error.strerror}") from error
        try:
            size_bytes = 0
            with open(descriptor, "wb", closefd=False) as file:
                size_bytes += file.write(HEADER)
                for record in records:
                    size_bytes += file.write(frame(record))
            failpoint("journal.before_replace")
            os.rename(fresh, self.path)
            failpoint("journal.after_replace")
        except OSError as error:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise JournalWriteFailed(f"{fresh}: {error.strerror}") from error
        self.close()
        self._descriptor, self.size_bytes, self.sound = descriptor, size_bytes, True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Journal:
    """A journal of state that also lives in memory: ``snapshot`` gives the records that say all of it.

    A failing disk degrades it, and so does who deletes or truncates the file under it: ``write`` answers False, the
    state lives in memory only, and ``tend`` tries to write the whole of it again. Replaying a record twice must do what
    once does.
    """

    def __init__(self, path: Path, snapshot: Callable[[], Iterable[bytes]], settings: Settings) -> None:
        self._file = JournalFile(path)
        self._snapshot = snapshot
        self._settings = settings
        self._compact_at_bytes = max(settings.compact_bytes_min, 2 * self._file.size_bytes)
        self._retry_at = 0.0
        self._log_at = 0.0
        self.degraded = False
        self.writes_failed = 0
        self.on_degraded: Callable[[], object] = lambda: None

    @property
    def records(self) -> list[bytes]:
        """What was found at start; read once, then drop by ``loaded``."""
        return self._file.records

    def loaded(self) -> None:
        """The records are in memory. A file that cannot be appended to is written anew."""
        self._file.records = []
        if not self._file.sound:
            self.degraded = True
            self.tend(time.monotonic())

    @property
    def lost(self) -> str:
        """What was missing at start, "" for nothing."""
        return self._file.lost

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    def write(self, record: bytes) -> bool:
        """Append; the caller's memory holds the change already. False: it is not on disk."""
        if self.degraded:
            self.writes_failed += 1
            return False
        try:
            self._file.append(record)
        except JournalWriteFailed as error:
            self._failed(error, time.monotonic())
            return False
        if self._file.size_bytes >= self._compact_at_bytes:
            self._compact()
        return True

    def tend(self, now: float) -> None:
        """Called now and then: gets a failed journal back on disk when the disk allows, and one that somebody deleted,
        truncated or replaced."""
        if not self.degraded and not self._file.is_whole():
            log.error("journal is not as it was written, it is written anew path=%s", self._file.path)
            self._file.sound, self.degraded, self._retry_at = False, True, 0.0
            self.on_degraded()
        if self.degraded and now >= self._retry_at:
            try:
                self._file.rewrite(self._snapshot())
            except JournalWriteFailed as error:
                self._failed(error, now)
                return
            self.degraded = False
            self._log_at = 0.0
            log.warning("journal back on disk path=%s writes_failed=%d", self._file.path, self.writes_failed)

    def _failed(self, error: JournalWriteFailed, now: float) -> None:
        self.degraded = True
        self.writes_failed += 1
        self.on_degraded()
        self._retry_at = now + self._settings.journal_retry_ms / 1000
        if now >= self._log_at:
            self._log_at = now + self._settings.journal_log_ms / 1000
            log.error("journal failing, state kept in memory only: %s writes_failed=%d", error, self.writes_failed)

    def _compact(self) -> None:
        try:
            self._file.rewrite(self._snapshot())
        except JournalWriteFailed as error:
            log.warning("journal not compacted: %s", error)
        self._compact_at_bytes = max(self._settings.compact_bytes_min, 2 * self._file.size_bytes)

    def close(self) -> None:
        self._file.close()
