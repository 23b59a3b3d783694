"""The beat of a lease, for a native thread that gevent knows nothing of.

Everything here comes from before monkey patching: an original socket, original name resolution; no logging, no
patched lock. So the beat goes on while the hub is busy, which is for the caller to judge, and stops with the process.
"""

from typing import Any

from gevent.monkey import get_original

from zcompute.db.durability import HELD
from zcompute.db.errors import StoreError
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.native.literal import literal
from zcompute.db.store import BEAT_LOCK
from zcompute.db.url import MariaDbTarget

BEAT_TIMEOUT_S = 1.0
_HELD = b"SELECT " + HELD

_AF_UNIX, _AF_INET, _SOCK_STREAM = 1, 2, 1


class NativeBeater:
    """Raises the beat counter of one incarnation; reconnects by itself at the next beat.

    Its session holds a lock by the incarnation's name, so that others can ask the server whether it has ended.
    ``replicated``: a beat counts only where a replica has it, so a primary that was replaced takes none.
    """

    def __init__(self, target: MariaDbTarget, incarnation: str, *, replicated: bool = False) -> None:
        self._target = target
        self._replicated = replicated
        self._statement = b"UPDATE beats SET counter = counter + 1 WHERE incarnation = " + literal(incarnation)
        self._lock = b"SELECT GET_LOCK(" + literal(BEAT_LOCK + incarnation) + b", 0)"
        self._connection: Connection | None = None
        self._attended = False

    def beat(self) -> bool:
        """True when the row really changed; False when it did not, or the database did not answer in time."""
        try:
            if self._connection is None or not self._connection.is_open:
                self._attended = False
                self._connection = self._connect()
            if not self._attended:  # a former session of ours may still have it
                self._attended = self._connection.rows(self._lock) == [(1,)]
            if self._connection.query(self._statement) != 1:
                return False
            return not self._replicated or self._connection.rows(_HELD) == [(1,)]
        except (StoreError, ServerError, OSError):
            self.close()
            return False

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut()

    def _connect(self) -> Connection:
        return Connection(
            self._target,
            timeout_s=BEAT_TIMEOUT_S,
            connect_timeout_s=BEAT_TIMEOUT_S,
            dial=lambda: _original_socket(self._target),
        )


def _original_socket(target: MariaDbTarget) -> Any:
    """A connected socket of the standard library's own class. Raises OSError."""
    original = get_original("socket", "socket")
    if target.unix_socket is not None:
        attempts = [(_AF_UNIX, target.unix_socket)]
    else:
        found = get_original("socket", "getaddrinfo")(target.host, target.port, 0, _SOCK_STREAM)
        attempts = [(family, address) for family, _, _, _, address in found]
    failure: OSError = OSError(f"no address for {target.host}")
    for family, address in attempts:
        plain = original(family, _SOCK_STREAM)
        try:
            plain.settimeout(BEAT_TIMEOUT_S)
            plain.connect(address)
        except OSError as error:
            plain.close()
            failure = error
        else:
            return plain
    raise failure
