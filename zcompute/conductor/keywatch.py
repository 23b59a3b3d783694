"""Follows the keyring and the key file of a conductor while it runs: an operator's edit counts within seconds."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import gevent
from gevent.threadpool import ThreadPool

from zcompute.bus import Keyring
from zcompute.config import ConfigError
from zcompute.keys import KeyFile, KeyringContent, keyring_content, read_keyring_file, read_keys

log = logging.getLogger(__name__)

POLL_S = 1.0  # with the second in which an endpoint looks at its keyring, revocation stays far under 5 s

Signature = tuple[int, int, int, int]


def signature(path: str) -> Signature | None:
    """What changes when a file is replaced or edited; None when it cannot be looked at."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


class KeyWatch:
    """``on_keys`` is called every POLL_S with the key file as it was last read; it must not raise.

    A file that cannot be read keeps its former meaning: nobody is locked out by a typing error, and the log says so.
    Large keyrings are parsed in a thread of their own, as liveness must not wait for it.
    """

    def __init__(
        self,
        keyring_path: str,
        keyring: Keyring | None,
        key_path: str,
        on_keys: Callable[[KeyFile | None], None] = lambda _: None,
    ) -> None:
        self._keyring_path = keyring_path
        self._keyring = keyring
        self._key_path = key_path
        self._on_keys = on_keys
        self._seen: dict[str, Signature | None] = {}
        self._expires_at: datetime | None = None
        self._threads: ThreadPool | None = None
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self.keys: KeyFile | None = None

    def start(self) -> None:
        """Begin; the first look is taken at once, for what changed since the files were read at the start."""
        self._threads = ThreadPool(1)
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        if self._threads is not None:
            self._threads.kill()

    def _run(self) -> None:
        while True:
            try:
                self.look(datetime.now(UTC))
            except Exception:
                log.exception("looking at the key files failed")
            gevent.sleep(POLL_S)

    def look(self, now: datetime) -> None:
        """One look at both files."""
        if self._keyring is not None and (self._changed(self._keyring_path) or self._expired(now)):
            self._read_keyring(self._keyring, now)
        if self._key_path:
            if self._changed(self._key_path):
                self._read_keys()
            self._on_keys(self.keys)

    def _changed(self, path: str) -> bool:
        found = signature(path)
        if found is None:
            if self._seen.get(path) is not None:
                log.error("key file is gone, its former content counts path=%s", path)
            self._seen[path] = None
            return False
        changed = self._seen.get(path) != found
        self._seen[path] = found
        return changed

    def _expired(self, now: datetime) -> bool:
        return self._expires_at is not None and now >= self._expires_at

    def _read_keyring(self, keyring: Keyring, now: datetime) -> None:
        path = self._keyring_path

        def read() -> KeyringContent:
            return keyring_content(read_keyring_file(path), now, path)

        self._expires_at = None
        try:
            content = self._threads.apply(read) if self._threads is not None else read()
        except ConfigError as error:
            log.error("keyring not taken, the former one counts error=%s", error)
            return
        keyring.replace(content.entries, content.revoked)
        self._expires_at = content.expires_at
        log.info("keyring read keys=%d revoked=%d", len(content.entries), len(content.revoked))

    def _read_keys(self) -> None:
        try:
            self.keys = read_keys(self._key_path)
        except ConfigError as error:
            log.error("key file not taken, the former one counts error=%s", error)
