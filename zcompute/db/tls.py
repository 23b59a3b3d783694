"""TLS to MariaDB: one shared context a set of files, made anew when they change; and a TLS stream for native threads.

A context costs 20 ms of CPU, so connections share it. A thread that gevent must not touch cannot use the patched
``wrap_socket``: there TLS runs over memory, between OpenSSL and an original socket.
"""

import io
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from zcompute.db.errors import ConnectionLost

VERIFY_IDENTITY, VERIFY_CA, VERIFY_NONE = "identity", "ca", "none"
VERIFY = (VERIFY_IDENTITY, VERIFY_CA, VERIFY_NONE)
CONTEXTS_MAX = 16
RECEIVED_BYTES_MAX = 65_536


@dataclass(frozen=True)
class TlsFiles:
    """``ca``: who signs servers ("": those that the system trusts); ``cert`` and ``key``: our own, where the server
    asks for one; ``verify``: chain and host name, the chain alone, or nothing."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    verify: str = VERIFY_IDENTITY


_contexts: dict[tuple[TlsFiles, tuple[int, ...]], ssl.SSLContext] = {}


def context_of(files: TlsFiles) -> ssl.SSLContext:
    """The shared context of these files as they are now. Raises ConnectionLost for files that cannot be used: whoever
    mends them is found at the next connection."""
    try:
        stamps = tuple(os.stat(path).st_mtime_ns for path in (files.ca, files.cert, files.key) if path)
        found = _contexts.get((files, stamps))
        if found is None:
            found = _context(files)
            while len(_contexts) >= CONTEXTS_MAX:
                _contexts.pop(next(iter(_contexts)))
            _contexts[(files, stamps)] = found
    except (OSError, ValueError) as error:
        names = ", ".join(path for path in (files.ca, files.cert, files.key) if path)
        raise ConnectionLost(f"the files for TLS with the database cannot be used ({names}): {error}") from error
    return found


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.ca or None)
    context.check_hostname = files.verify == VERIFY_IDENTITY
    if files.verify == VERIFY_NONE:
        context.verify_mode = ssl.CERT_NONE
    if files.cert:
        context.load_cert_chain(files.cert, files.key or None)
    return context


class NativeTls:
    """Stands in for a context where PyMySQL wraps its socket, in a thread of gevent's unpatched world."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap_socket(self, plain: Any, server_hostname: str) -> "NativeTlsSocket":
        """The handshake over an original socket. Raises ssl.SSLError and OSError."""
        return NativeTlsSocket(plain, self._context, server_hostname)


class NativeTlsSocket:
    """What PyMySQL asks of a socket, over TLS in memory."""

    def __init__(self, plain: Any, context: ssl.SSLContext, server_hostname: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._through(self._tls.do_handshake)

    def settimeout(self, timeout_s: float | None) -> None:
        self._plain.settimeout(timeout_s)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._through(partial(self._tls.write, view)) :]

    def receive(self, bytes_max: int) -> bytes:
        """Some bytes; none at the end of the stream."""
        try:
            return bytes(self._through(partial(self._tls.read, bytes_max)))
        except ssl.SSLZeroReturnError:
            return b""

    def makefile(self, mode: str) -> io.BufferedReader:
        """A reader of what arrives."""
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        self._plain.close()

    def _through(self, act: Callable[[], Any]) -> Any:
        """Do it, sending what OpenSSL wants sent and waiting for what it wants to read."""
        while True:
            try:
                result = act()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._plain.recv(RECEIVED_BYTES_MAX)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
                continue
            self._flush()
            return result

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.sendall(self._outgoing.read())


class _Reader(io.RawIOBase):
    def __init__(self, source: NativeTlsSocket) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.receive(len(buffer))
        buffer[: len(data)] = data
        return len(data)
