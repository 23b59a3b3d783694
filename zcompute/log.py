"""Logs for operators: one event a line, with the service, the request id and the message's own key=value pairs."""

import logging
import sys
import time

from zcompute.bus.context import request_id
from zcompute.config import LogConfig


class LineFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO c1-conductor-1 req-... zcompute.module: event key=value``, one line each."""

    def __init__(self, service_id: str) -> None:
        super().__init__()
        self._service_id = service_id

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage().replace("\n", "\\n")
        if record.exc_info:
            text += " exception=" + self.formatException(record.exc_info).replace("\n", "\\n")
        return (
            f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {self._service_id} {request_id.get()} "
            f"{record.name}: {text}"
        )


REPEATED = {"repeated": True}
"""``extra`` of an event below a warning that comes with every retry or message: rate limited as warnings are."""


class RateLimit(logging.Filter):
    """Lets the same warning (logger and format string) through ``burst`` times in ``window_s``, then counts.

    The next one let through says how many were held back. Events below a warning are held back only when they are
    marked as REPEATED: a peer cannot cause the others at will, and an operator follows one request by them.
    """

    EVENTS_MAX = 1000

    def __init__(self, burst: int = 20, window_s: float = 10.0) -> None:
        super().__init__()
        self._burst = burst
        self._window_s = window_s
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING and not getattr(record, "repeated", False):
            return True
        key = (record.name, str(record.msg))
        now = time.monotonic()
        start, count = self._seen.get(key, (now, 0))
        if now - start >= self._window_s:
            held = count - self._burst
            if held > 0:
                record.msg = f"{record.msg} held_back={held}"
            start, count = now, 0
        if len(self._seen) >= self.EVENTS_MAX and key not in self._seen:
            self._seen.clear()
        self._seen[key] = (start, count + 1)
        return count < self._burst


def setup(config: LogConfig, service_id: str) -> None:
    """Configure the root logger of this process."""
    handler: logging.Handler = logging.FileHandler(config.file) if config.file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service_id))
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
