"""A TCP proxy before MariaDB that cuts a connection at the worst moment."""

import socket
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import gevent
from gevent.server import StreamServer

PORTS = range(20_000, 32_000)


class CuttingProxy:
    """Forwards bytes until the client sends ``word``; then drops the connection, once.

    ``after``: the server still gets the word, and its answer never arrives. Else the server never gets it.
    """

    def __init__(self, unix_socket: str) -> None:
        self._unix_socket = unix_socket
        self._word: bytes | None = None
        self._after = False
        self._server = self._listen()

    def _listen(self) -> StreamServer:
        for port in PORTS:
            server = StreamServer(("127.0.0.1", port), self._serve)
            try:
                server.start()
            except OSError:
                continue
            return server
        raise RuntimeError("no free port")

    def url(self, url: str) -> str:
        """The same database, through the proxy."""
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        return urlunsplit((parts.scheme, f"{user}@127.0.0.1:{self._server.server_port}", parts.path, "", ""))

    def cut_at(self, word: bytes, *, after: bool) -> None:
        self._word, self._after = word, after

    def close(self) -> None:
        self._server.stop()

    def _serve(self, client: Any, _: Any) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._unix_socket)
        answers = gevent.spawn(self._pump, server, client)
        try:
            while data := client.recv(65536):
                if self._word is not None and self._word in data:
                    self._word = None
                    answers.kill()
                    if self._after:
                        server.sendall(data)
                        server.recv(1)
                    return
                server.sendall(data)
        except OSError:
            return
        finally:
            answers.kill()
            client.close()
            server.close()

    @staticmethod
    def _pump(source: Any, sink: Any) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            return
        finally:
            sink.close()
