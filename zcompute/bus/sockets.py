"""Plain ZeroMQ sockets under gevent's loop.

ZMQ_FD is edge-triggered: EVENTS must be read again after every send and receive, the first send on a DEALER included.
A `SocketWatch` therefore runs its reader on each edge and at the end of each hub turn in which something was sent
(`poke`), and the endpoint pokes every watch once in `events_reread_ms` whatever happens.
"""

import errno
import logging
import random
import struct
from collections.abc import Callable
from typing import Any

import gevent
import zmq

from zcompute.bus.errors import BusConfigError
from zcompute.bus.identity import Identity
from zcompute.bus.limits import Limits

log = logging.getLogger(__name__)

SENT, BLOCKED, GONE = "sent", "blocked", "gone"
ZAP_DOMAIN = b"zcompute"
EVENTS, POLLIN, NOBLOCK, SNDMORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK), int(zmq.SNDMORE)
"""As plain numbers: the arithmetic of pyzmq's enums costs more than the calls that they are for."""
FREE_PORTS = range(20000, 26000)
BIND_ATTEMPTS_MAX = 200
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 10, 5, 3
MONITORED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)


class SocketWatch:
    """Runs `ready` in the hub when its socket may have become readable or writable.

    `ready` returns True to be run again after others had their turn.
    """

    def __init__(self, socket: "zmq.Socket[Any]", ready: Callable[[], bool]) -> None:
        self._loop = gevent.get_hub().loop
        self._ready = ready
        self._socket = socket
        self._poked = False
        self._running = False
        self._stale = False  # something was sent since EVENTS was read last
        self._closed = False
        self._timer: Any = None  # while `ready` runs at a pace
        self._watcher = self._loop.io(socket.getsockopt(zmq.FD), 1)
        self._watcher.start(self._run)
        self.poke()

    def poke(self) -> None:
        """Run `ready` at the end of this turn of the hub: something was sent, and may have taken an edge with it.

        While `ready` runs nothing is planned: it reads EVENTS again before it ends, or is run anew.
        """
        self._stale = True
        if self._timer is None:
            self._run_soon()

    def _run_soon(self) -> None:
        if not self._poked and not self._running and not self._closed:
            self._poked = True
            self._loop.run_callback(self._run)

    def pace(self, interval_s: float | None) -> None:
        """Run `ready` every so many seconds and not at each edge; None: at each edge again."""
        if (interval_s is None) == (self._timer is None) or self._closed:
            return
        if interval_s is not None:
            self._watcher.stop()
            self._timer = self._loop.timer(interval_s, interval_s)
            self._timer.start(self._run)
        else:
            self._end_pace()
            self._watcher.start(self._run)
            self._run_soon()

    def _end_pace(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def readable(self) -> bool:
        """EVENTS of the socket, read anew."""
        self._stale = False
        return bool(int(self._socket.getsockopt(EVENTS)) & POLLIN)

    def looked(self) -> None:
        """A receive found nothing: as good as a reading of EVENTS, since it takes all commands out of the mailbox."""
        self._stale = False

    def close(self) -> None:
        """Watch no more; to be called before the socket is closed."""
        self._closed = True
        self._end_pace()
        self._watcher.stop()
        self._watcher.close()

    def _run(self) -> None:
        self._poked = False
        if self._closed:
            return
        self._running = True
        self._stale = False
        try:
            again = self._ready()
        except Exception:
            log.exception("reading a socket failed")
            again = True
        self._running = False
        if again or (self._stale and self._timer is None):
            self._run_soon()


def sender_of(socket: "zmq.Socket[Any]") -> Callable[[bytes, int], object]:
    """The socket's `send` without what pyzmq's own class looks at first for sockets of other types than ours."""
    send: Callable[[bytes, int], object] = super(zmq.Socket, socket).send
    return send


def set_options(socket: "zmq.Socket[bytes]", identity: Identity, limits: Limits) -> None:
    """Options that listeners and diallers share.

    No heartbeats of libzmq's (see liveness); TCP's own keepalive ends connections over a dead network that never got
    as far as a hello.
    """
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.frame_bytes_max)
    socket.setsockopt(zmq.SNDHWM, limits.held_frames_hwm)
    socket.setsockopt(zmq.RCVHWM, limits.held_frames_hwm)
    socket.setsockopt(zmq.SNDBUF, limits.held_bytes_max)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, limits.handshake_timeout_ms)
    if identity.secret_key:
        socket.setsockopt(zmq.CURVE_PUBLICKEY, identity.public_key.encode("ascii"))
        socket.setsockopt(zmq.CURVE_SECRETKEY, identity.secret_key.encode("ascii"))


def open_router(context: "zmq.Context[Any]", identity: Identity, limits: Limits) -> "zmq.Socket[bytes]":
    """A ROUTER that tells when a peer is gone or full, and lets nobody take another's route."""
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    set_options(socket, identity, limits)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    socket.setsockopt(zmq.BACKLOG, 4096)
    if identity.secret_key:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    return socket


def open_dealer(
    context: "zmq.Context[Any]", identity: Identity, limits: Limits, server_public_key: str
) -> "zmq.Socket[bytes]":
    """A DEALER that queues nothing while unconnected and reconnects with libzmq's jittered back-off."""
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    set_options(socket, identity, limits)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.RECONNECT_IVL, limits.reconnect_ms_min)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, limits.reconnect_ms_max)
    if server_public_key:
        socket.setsockopt(zmq.CURVE_SERVERKEY, server_public_key.encode("ascii"))
    return socket


def bind_socket(socket: "zmq.Socket[bytes]", address: str) -> str:
    """Bind, choosing a port of 20000-25999 for port 0; returns the address. Raises BusConfigError."""
    host, _, port = address.rpartition(":")
    attempts = BIND_ATTEMPTS_MAX if port == "0" else 1
    for _ in range(attempts):
        chosen = f"{host}:{random.choice(FREE_PORTS)}" if port == "0" else address
        try:
            socket.bind(chosen)
            return chosen
        except zmq.ZMQError as error:
            if error.errno != errno.EADDRINUSE or port != "0":
                raise BusConfigError(f"cannot listen on {chosen}: {error}: choose another address") from error
    raise BusConfigError(f"expected a free port for {address}, found none in {attempts} attempts")


def readable(socket: "zmq.Socket[Any]") -> bool:
    """EVENTS, read anew (cheaper than an EAGAIN exception, and it makes libzmq handle its commands)."""
    return bool(int(socket.getsockopt(EVENTS)) & POLLIN)


def read_monitor(monitor: "zmq.Socket[bytes]") -> list[tuple[int, int]]:
    """All (event, value) that wait on a monitor; value is a file descriptor for most events."""
    found = []
    while readable(monitor):
        event, value = struct.unpack("=Hi", monitor.recv_multipart(zmq.NOBLOCK)[0])
        found.append((int(event), int(value)))
    return found
