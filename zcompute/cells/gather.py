"""Scatter-gather: many calls at once under one deadline; what does not answer is named, never waited for."""

import contextvars
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import gevent
from gevent.pool import Pool

from zcompute.log import REPEATED

log = logging.getLogger(__name__)

T = TypeVar("T")

GATHER_WORKERS_MAX = 64


@dataclass
class Gathered(Generic[T]):
    """``results`` by name, and for each name without one the reason in ``missing`` and the exception in ``errors``
    (none for a call that was still open at the deadline)."""

    results: dict[str, T] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)


def gather(
    calls: Mapping[str, Callable[[], T]],
    timeout_ms: int,
    *,
    workers_max: int = GATHER_WORKERS_MAX,
    on_result: Callable[[str, T], None] | None = None,
) -> Gathered[T]:
    """Run all calls, ``workers_max`` at a time, and return at the deadline at the latest; what is open then is ended.

    ``on_result`` hears of each result as it comes; it must not block. Raises nothing of the calls.
    """
    gathered: Gathered[T] = Gathered()
    ends_at_s = time.monotonic() + timeout_ms / 1000
    pool = Pool(workers_max)
    pending = dict(calls)

    def run(name: str, call: Callable[[], T]) -> None:
        try:
            result = call()
        except Exception as error:  # noqa: BLE001  # each failure is an answer of its own
            log.info("no answer from=%s error=%s", name, error, extra=REPEATED)
            gathered.errors[name] = error
            gathered.missing[name] = f"{type(error).__name__}: {error}"
        else:
            gathered.results[name] = result
            if on_result is not None:
                on_result(name, result)
        del pending[name]

    try:
        for name, call in calls.items():
            left_s = ends_at_s - time.monotonic()
            if left_s <= 0 or not pool.wait_available(timeout=left_s):
                break
            pool.add(gevent.Greenlet.spawn(contextvars.copy_context().run, run, name, call))
        pool.join(timeout=max(0.0, ends_at_s - time.monotonic()))
    finally:
        pool.kill(block=False)
    for name in pending:
        gathered.missing[name] = f"no answer within {timeout_ms} ms"
    return Gathered(dict(gathered.results), dict(gathered.missing), dict(gathered.errors))
