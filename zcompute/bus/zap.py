"""ZAP (ZeroMQ RFC 27): which CURVE keys may connect, and the name under which libzmq attaches them to each message."""

import logging
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils import z85

from zcompute.bus.identity import Keyring
from zcompute.bus.sockets import ZAP_DOMAIN, SocketWatch, readable

log = logging.getLogger(__name__)

ZAP_VERSION = b"1.0"
REQUEST_PARTS = 7  # version, request id, domain, address, identity, mechanism, credentials (CURVE: the public key)
CURVE_KEY_BYTES = 32
ANSWERS_PER_TURN = 64


def zap_answer(parts: list[bytes], keyring: Keyring) -> tuple[list[bytes], str]:
    """The reply's parts to a ZAP request, and the reason of a refusal ("" when the key is known)."""
    if len(parts) != REQUEST_PARTS or parts[0] != ZAP_VERSION:
        request_id = parts[1] if len(parts) > 1 else b""
        return [ZAP_VERSION, request_id, b"500", b"malformed request", b"", b""], "malformed request"
    _, request_id, domain, _, _, mechanism, key = parts
    if domain != ZAP_DOMAIN or mechanism != b"CURVE" or len(key) != CURVE_KEY_BYTES:
        return [ZAP_VERSION, request_id, b"400", b"CURVE required", b"", b""], "no CURVE"
    entry = keyring.by_public_key(z85.encode(key).decode("ascii"))
    if entry is None:
        return [ZAP_VERSION, request_id, b"400", b"unknown key", b"", b""], "unknown key"
    return [ZAP_VERSION, request_id, b"200", b"OK", entry.name.encode("utf-8"), b""], ""


class ZapHandler:
    """Answers libzmq's authentication requests of one context from the hub."""

    def __init__(self, context: "zmq.Context[Any]", keyring: Keyring, refused: Callable[[str, str], None]) -> None:
        self._keyring = keyring
        self._refused = refused
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        self.watch = SocketWatch(self._socket, self._read)

    def close(self) -> None:
        """Stop answering: no further key is let in."""
        self.watch.close()
        self._socket.close(0)

    def _read(self) -> bool:
        for _ in range(ANSWERS_PER_TURN):
            if not readable(self._socket):
                return False
            parts = self._socket.recv_multipart(zmq.NOBLOCK)
            reply, reason = zap_answer(parts, self._keyring)
            if reason:
                address = parts[3].decode("utf-8", "replace") if len(parts) > 3 else "?"
                self._refused(reason, address)
            self._socket.send_multipart(reply, zmq.NOBLOCK)
        return True
