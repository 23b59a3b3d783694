"""ZAP (ZeroMQ RFC 27): which CURVE keys may connect, and the name under which libzmq attaches them to each message.

A known key is answered at once. Refusals are paced: an unknown key that comes again and again (an agent whose key was
revoked, a scanner) would otherwise cost the I/O thread a handshake every few milliseconds.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
import zmq
from zmq.utils import z85

from zcompute.bus.identity import Keyring
from zcompute.bus.limits import Limits
from zcompute.bus.sockets import ZAP_DOMAIN, SocketWatch, readable

log = logging.getLogger(__name__)

ZAP_VERSION = b"1.0"
REQUEST_PARTS = 7  # version, request id, domain, address, identity, mechanism, credentials (CURVE: the public key)
CURVE_KEY_BYTES = 32
ANSWERS_PER_TURN = 64
KEY_PROPERTY = "X-Curve-Key"  # of every message of the connection, beside User-Id: which of the entry's keys it was


def zap_answer(parts: list[bytes], keyring: Keyring) -> tuple[list[bytes], str]:
    """The reply's parts to a ZAP request, and the reason of a refusal ("" when the key is known)."""
    if len(parts) != REQUEST_PARTS or parts[0] != ZAP_VERSION:
        request_id = parts[1] if len(parts) > 1 else b""
        return [ZAP_VERSION, request_id, b"500", b"malformed request", b"", b""], "malformed request"
    _, request_id, domain, _, _, mechanism, key = parts
    if domain != ZAP_DOMAIN or mechanism != b"CURVE" or len(key) != CURVE_KEY_BYTES:
        return [ZAP_VERSION, request_id, b"400", b"CURVE required", b"", b""], "no CURVE"
    public_key = z85.encode(key)
    entry = keyring.by_public_key(public_key.decode("ascii"))
    if entry is None:
        return [ZAP_VERSION, request_id, b"400", b"unknown key", b"", b""], "unknown key"
    metadata = _property(KEY_PROPERTY.encode("ascii"), public_key)
    return [ZAP_VERSION, request_id, b"200", b"OK", entry.name.encode("utf-8"), metadata], ""


def _property(name: bytes, value: bytes) -> bytes:
    """One ZMTP property: lengths and bytes of name and value."""
    return len(name).to_bytes(1, "big") + name + len(value).to_bytes(4, "big") + value


class RefusalPace:
    """How long a refusal is held back: a burst goes at once, then so many a second, the rest at once again. No I/O.

    What is held is bounded: a held refusal keeps a file descriptor, and those must not run out.
    """

    def __init__(self, limits: Limits) -> None:
        self._interval_s = 1.0 / limits.unknown_keys_per_s
        self._burst_s = limits.unknown_keys_burst * self._interval_s
        self._held_s_max = limits.unknown_keys_held_max * self._interval_s
        self._due_at = 0.0

    def delay_s(self, now: float) -> float | None:
        """Seconds to wait before this refusal leaves; None when so many are held that it goes at once."""
        due_at = max(self._due_at, now) + self._interval_s
        delay_s = due_at - now - self._burst_s
        if delay_s > self._held_s_max:
            return None
        self._due_at = due_at
        return max(0.0, delay_s)


class ZapHandler:
    """Answers libzmq's authentication requests of one context from the hub."""

    def __init__(
        self,
        context: "zmq.Context[Any]",
        keyring: Keyring,
        refused: Callable[[str, str], None],
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self._keyring = keyring
        self._refused = refused
        self._pace = RefusalPace(limits)
        self._held: set[gevent.Greenlet[..., None]] = set()
        self._socket = context.socket(zmq.ROUTER)  # not REP: answers leave in another order than requests came
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        self.watch = SocketWatch(self._socket, self._read)

    def close(self) -> None:
        """Stop answering: no further key is let in."""
        for held in list(self._held):
            held.kill(block=False)
        self.watch.close()
        self._socket.close(0)

    def _read(self) -> bool:
        for _ in range(ANSWERS_PER_TURN):
            if not readable(self._socket):
                return False
            way_back, parts = _split(self._socket.recv_multipart(zmq.NOBLOCK))
            reply, reason = zap_answer(parts, self._keyring)
            if reason:
                self._refuse(way_back + reply, reason, parts)
            else:
                self._socket.send_multipart(way_back + reply, zmq.NOBLOCK)
        return True

    def _refuse(self, reply: list[bytes], reason: str, parts: list[bytes]) -> None:
        address = parts[3].decode("utf-8", "replace") if len(parts) > 3 else "?"
        self._refused(reason, address)
        delay_s = self._pace.delay_s(time.monotonic())
        if not delay_s:
            self._socket.send_multipart(reply, zmq.NOBLOCK)
            return
        held = gevent.spawn_later(delay_s, self._send_held, reply)
        self._held.add(held)
        held.rawlink(self._held.discard)

    def _send_held(self, reply: list[bytes]) -> None:
        if not self._socket.closed:
            self._socket.send_multipart(reply, zmq.NOBLOCK)
            self.watch.poke()


def _split(message: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The route back (up to the empty delimiter) and the request."""
    end = message.index(b"", 0, 2) + 1 if b"" in message[:2] else 1
    return message[:end], message[end:]
