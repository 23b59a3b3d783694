"""gevent's WSGI server with what it lacks: deadlines for reading, refusal of ambiguous lengths, an end that waits.

Measured on the plain server: a half header stays open for ever, without TCP_NODELAY on the listening socket an answer
takes 44 ms, a duplicate Content-Length and one beside Transfer-Encoding come through (request smuggling, RFC 9112
section 6.3), and an unread body is read to its end, however long it is.
"""

import logging
import socket
from typing import Any

import gevent
import msgspec
from gevent import pywsgi
from gevent.pool import Pool

from zcompute.api.errors import ServiceUnavailable
from zcompute.api.settings import LIMITS, Limits

log = logging.getLogger(__name__)

_METHOD_CHARS_MAX = 32
_DISCARD_PART_BYTES = 16_384


class AmbiguousRequest(ValueError):
    """A request whose end two readers may see at different places, or that is no HTTP/1.1."""


class BoundedInput(pywsgi.Input):  # type: ignore[misc]  # gevent is followed without types
    """A body; what nobody read of it is skipped within limits, else the connection ends."""

    handler: "Handler"

    def _discard(self) -> None:
        if self._chunked_input_error or not (self.chunked_input or self.position < (self.content_length or 0)):
            return
        if self.socket is not None:  # the client still waits for "100 Continue": nothing of the body will come
            self.handler.close_connection = True
            return
        self.send_100_continue_enabled = False
        skipped = 0
        with gevent.Timeout(LIMITS.discard_s, False):
            while skipped <= LIMITS.discard_bytes_max:
                part = self.read(_DISCARD_PART_BYTES)
                if not part:
                    self.send_100_continue_enabled = True
                    return
                skipped += len(part)
        self.handler.close_connection = True


class Handler(pywsgi.WSGIHandler):  # type: ignore[misc]  # gevent is followed without types
    """One connection."""

    wsgi_input: Any

    def __init__(self, sock: Any, address: Any, server: "Server", rfile: Any = None) -> None:
        sock.settimeout(server.limits.idle_s)  # also bounds how long an answer waits for its reader
        super().__init__(sock, address, server, rfile)
        self._limits = server.limits

    def read_requestline(self) -> str:
        """The next request's first line; "" ends the connection, which is idle until then."""
        server: Server = self.server
        if server.ending:
            return ""
        line = ""
        server.idle.add(self)
        try:
            with gevent.Timeout(self._limits.idle_s, False):
                line = str(super().read_requestline())
        finally:
            server.idle.discard(self)
        return line

    def read_request(self, raw_requestline: str) -> bool:
        """Parse the headers within header_s. Raises ValueError, which is answered with 400."""
        late = AmbiguousRequest("the headers did not arrive in time")
        with gevent.Timeout(self._limits.header_s, late):
            parsed: bool = super().read_request(raw_requestline)
        if self.request_version == "HTTP/0.9":
            raise AmbiguousRequest("expected HTTP/1.1 or HTTP/1.0")
        if self.request_version == "HTTP/1.1" and len(self.headers.get_all("host", [])) != 1:
            raise AmbiguousRequest("expected one Host header")
        if len(self.command) > _METHOD_CHARS_MAX:
            raise AmbiguousRequest("the method is no HTTP method")
        if self.server.ending:
            self.close_connection = True
        return parsed

    def MessageClass(self, *args: Any) -> Any:
        """The headers, looked at before gevent drops one of two lengths."""
        headers = super().MessageClass(*args)
        lengths = headers.get_all("content-length", [])
        encodings = headers.get_all("transfer-encoding", [])
        if len(lengths) > 1:
            raise AmbiguousRequest("expected one Content-Length header")
        if lengths and not (lengths[0].strip().isascii() and lengths[0].strip().isdigit()):
            raise AmbiguousRequest("expected Content-Length to be a whole number")
        if encodings and lengths:
            raise AmbiguousRequest("expected Content-Length or Transfer-Encoding, found both")
        if encodings and [encoding.strip().lower() for encoding in encodings] != ["chunked"]:
            raise AmbiguousRequest("expected no Transfer-Encoding but chunked")
        return headers

    def get_environ(self) -> dict[str, Any]:
        """gevent's, with the bounded body."""
        environ: dict[str, Any] = super().get_environ()
        plain = self.wsgi_input
        body = BoundedInput(plain.rfile, plain.content_length, plain.socket, plain.chunked_input)
        body.handler = self
        self.wsgi_input = environ["wsgi.input"] = body
        return environ

    def _handle_client_error(self, ex: Exception) -> tuple[str, bytes]:
        log.info("request refused peer=%s reason=%s", self.client_address, ex)
        message = str(ex) if isinstance(ex, AmbiguousRequest) else "the request is not valid HTTP"
        body = msgspec.json.encode({"badRequest": {"code": 400, "message": f"Malformed request: {message}."}})
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return "400", head.encode() + b"Connection: close\r\n\r\n" + body

    def handle_error(self, kind: Any, error: Any, trace: Any) -> None:
        """A request that the end of this process cuts is answered as any other whose outcome is not known."""
        if not isinstance(error, gevent.GreenletExit):
            super().handle_error(kind, error, trace)
            return
        self.close_connection = True
        if self.response_length:
            return
        fault = ServiceUnavailable(
            "The API is stopping; whether the request took effect is not known. Please repeat it (with the same "
            "Idempotency-Key, if it creates servers)."
        )
        body = fault.body()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        try:
            self.start_response(fault.status, [*headers.items(), *fault.headers.items()])
            self.write(body)
        except OSError as reason:
            log.debug("connection was gone reason=%s", reason)

    def log_request(self) -> None:
        """One line for what may change something, at level debug for the rest."""
        level = logging.DEBUG if self.command in ("GET", "HEAD") else logging.INFO
        if log.isEnabledFor(level):
            status = (self._orig_status or "000").split(" ", 1)[0]
            took_ms = (self.time_finish - self.time_start) * 1000
            log.log(level, "served method=%s path=%s status=%s ms=%.1f", self.command, self.path, status, took_ms)


class Server(pywsgi.WSGIServer):  # type: ignore[misc]  # gevent is followed without types
    """Serves an application on a listening socket, connections_max at once; more wait in the backlog."""

    def __init__(
        self, listener: socket.socket, application: Any, limits: Limits = LIMITS, *, shared: bool = False
    ) -> None:
        """``shared``: other processes accept from this socket too, so each takes one connection at a time."""
        self.limits = limits
        self.ending = False
        self.idle: set[Handler] = set()
        super().__init__(
            listener,
            application,
            handler_class=Handler,
            spawn=Pool(limits.connections_max),
            log=None,
            error_log=logging.getLogger(f"{__name__}.gevent"),
            environ={"wsgi.multithread": True, "wsgi.multiprocess": shared, "SERVER_NAME": listener.getsockname()[0]},
        )

    def end(self, timeout_s: float) -> None:
        """Accept nothing new, end idle connections, give running requests ``timeout_s``, then cut what is left."""
        self.ending = True
        self.stop_accepting()
        for handler in list(self.idle):
            try:
                handler.socket.shutdown(socket.SHUT_RD)
            except OSError as error:
                log.debug("connection was gone reason=%s", error)
        self.stop(timeout=timeout_s)


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """A listening socket with TCP_NODELAY (accepted ones inherit it). Raises OSError (EADDRINUSE, ...)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
