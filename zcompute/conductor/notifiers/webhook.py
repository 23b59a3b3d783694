"""Notifications POSTed to a URL as JSON, again until the answer is 2xx.

The body is ``{"notifications": [...]}`` or ``{"gap": {...}}``. Connections are kept for the next delivery.
"""

import http.client
import logging
import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
import msgspec

from zcompute.conductor.notifiers.sink import Told
from zcompute.config import ConfigError, NotifierConfig

log = logging.getLogger(__name__)

IDLE_CONNECTIONS_MAX = 8
ANSWER_BYTES_MAX = 64 * 1024
TOKEN_MODE_MASK = 0o077


class DeliveryRefused(Exception):
    """The receiver did not take a delivery."""


class Webhook:
    """A sink that posts. ``connect`` makes an unconnected HTTPConnection."""

    def __init__(self, path: str, headers: dict[str, str], timeout_s: float, connect: Callable[[], Any]) -> None:
        self._path = path
        self._headers = headers
        self._timeout_s = timeout_s
        self._connect = connect
        self._idle: list[http.client.HTTPConnection] = []

    def deliver(self, batch: Sequence[Told]) -> None:
        """One POST. Raises DeliveryRefused for any answer but 2xx, OSError, HTTPException, gevent.Timeout."""
        self._post({"notifications": [told.document() for told in batch]})

    def gap(self, cell: str, partition: int, first: int, last: int) -> None:
        """One POST."""
        self._post({"gap": {"cell": cell, "partition": partition, "from": first, "to": last}})

    def close(self) -> None:
        """Let go of idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _post(self, body: dict[str, Any]) -> None:
        """A connection that was kept may have been closed by the other side: then once more over a new one."""
        data = msgspec.json.encode(body)
        with gevent.Timeout(self._timeout_s):
            if self._idle:
                connection = self._idle.pop()
                try:
                    self._ask(connection, data)
                    return
                except (http.client.RemoteDisconnected, ConnectionError, BrokenPipeError):
                    log.debug("kept connection was closed")
            self._ask(self._connect(), data)

    def _ask(self, connection: http.client.HTTPConnection, data: bytes) -> None:
        """Whatever happens in the middle of it, the connection is not used again."""
        done = False
        try:
            connection.request("POST", self._path, body=data, headers=self._headers)
            answer = connection.getresponse()
            text = answer.read(ANSWER_BYTES_MAX)
            if not 200 <= answer.status < 300:
                raise DeliveryRefused(f"expected an answer 2xx, found {answer.status}: {text[:200]!r}")
            done = answer.isclosed() and not answer.will_close
        finally:
            if done and len(self._idle) < IDLE_CONNECTIONS_MAX:
                self._idle.append(connection)
            else:
                connection.close()


def open_sink(config: NotifierConfig) -> Webhook:
    """Of ``kind = "webhook"``. Raises ConfigError for a URL or token file that cannot be used."""
    url = urlsplit(config.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(f"notifier {config.name}: expected url = http(s)://host/path, found {config.url!r}")
    headers = {"Content-Type": "application/json", "User-Agent": "zcompute", "X-Zcompute-Notifier": config.name}
    if config.token_file:
        headers["Authorization"] = f"Bearer {_token(config)}"
    timeout_s = config.timeout_ms / 1000
    host, port = url.hostname, url.port

    def connect() -> http.client.HTTPConnection:
        if url.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=timeout_s)

    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return Webhook(path, headers, timeout_s, connect)


def _token(config: NotifierConfig) -> str:
    try:
        path = Path(config.token_file)
        if os.stat(path).st_mode & TOKEN_MODE_MASK:
            raise ConfigError(f"notifier {config.name}: {path} is readable by others: chmod 0600")
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"notifier {config.name}: token_file cannot be read: {error}") from error
