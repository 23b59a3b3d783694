"""The methods an endpoint serves, and how a call or cast becomes the run of a handler."""

import logging
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from zcompute.bus.context import request_id
from zcompute.bus.counters import Counters, Refusals
from zcompute.bus.envelope import Call, Cast, Error, Reply
from zcompute.bus.errors import (
    BusConfigError,
    BusError,
    Busy,
    Forbidden,
    FrameRefused,
    InvalidRequest,
    Unavailable,
    UnknownMethod,
    is_registered,
    to_wire,
)
from zcompute.bus.happenings import ServedCall
from zcompute.bus.identity import Peer, VersionRange
from zcompute.bus.limits import Limits
from zcompute.bus.link import Link
from zcompute.bus.method import MethodSpec, PreparedMethod, Priority, check_version, interface_ranges
from zcompute.bus.turn import Turn
from zcompute.bus.workers import WorkerPool

log = logging.getLogger(__name__)

UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
_FIELD = re.compile(r"at `\$\.?(.*)`$")


class CallContext(msgspec.Struct, eq=False):
    """What a handler knows of the call or cast it serves. `deadline` is of time.monotonic()."""

    peer: Peer
    link: Link
    request_id: str
    deadline: float
    _call_id: int = 0
    _serving: ServedCall | None = None  # None: a cast

    @property
    def cancelled(self) -> bool:
        """True when nobody waits for the outcome any more: the caller or its process is gone, or its time is over.

        A handler is not interrupted: a long one looks here between its steps.
        """
        if self._serving is not None and self.link.core.serving.get(self._call_id) is not self._serving:
            return True
        return time.monotonic() >= self.deadline

    def remaining_ms(self) -> int:
        """Milliseconds left until the deadline, never below 0."""
        return max(0, int((self.deadline - time.monotonic()) * 1000))


Handler = Callable[[Any, CallContext], Any]


class Served:
    """A method with its handler and its pool."""

    __slots__ = (
        "arrived", "begun", "cancelled", "decode", "ended", "errors", "expired", "handler", "major", "minor", "pool",
        "prepared", "priority", "refused", "replies", "roles",
    )  # fmt: skip

    def __init__(self, prepared: PreparedMethod, handler: Handler, pool: WorkerPool) -> None:
        self.arrived = self.begun = self.ended = self.errors = self.expired = self.cancelled = 0
        self.refused = Counters()
        self.prepared = prepared
        self.handler = handler
        self.pool = pool
        self.roles = prepared.method.roles
        self.major, self.minor = prepared.major, prepared.minor
        self.decode = prepared.decode_request
        self.replies = prepared.decode_reply is not None
        self.priority = prepared.priority


class Serving:
    """Table of served methods; checks what arrives and hands it to the method's pool."""

    def __init__(self, limits: Limits, refusals: Refusals, counters: dict[str, int], turn: Turn) -> None:
        self._limits = limits
        self._payload_bytes_max = limits.payload_bytes_max
        self._refusals = refusals
        self._counters = counters
        self._served: dict[str, Served] = {}
        self._ranges: dict[str, VersionRange] | None = None  # put together when they are asked for first
        sizes = {
            "control": limits.control_workers,
            "leaf": limits.leaf_workers,
            "calls": limits.calls_workers,
            "reads": limits.reads_workers,
        }
        self.pools = {
            name: WorkerPool(name, size, limits.pool_queue_max, limits.job_run_max, turn.soon)
            for name, size in sizes.items()
        }
        self._pools = tuple(self.pools.values())

    def add(self, method: MethodSpec, handler: Handler) -> None:
        """Serve a method. Raises BusConfigError for a repeated name, an unknown pool or two majors of an interface."""
        prepared = PreparedMethod(method)
        pool = self.pools.get(method.pool)
        if pool is None:
            known = sorted(self.pools)
            raise BusConfigError(f"{prepared.full_name}: expected a pool of {known}, found {method.pool!r}")
        if prepared.full_name in self._served:
            raise BusConfigError(f"{prepared.full_name} is served already: serve it once")
        for other in self._served.values():
            if other.prepared.method.interface == method.interface and other.prepared.major != prepared.major:
                raise BusConfigError(f"{prepared.full_name}: expected one major version per interface, found two")
        self._served[prepared.full_name] = Served(prepared, handler, pool)
        self._ranges = None

    @property
    def ranges(self) -> dict[str, VersionRange]:
        """What is served of each interface."""
        if self._ranges is None:
            self._ranges = interface_ranges(served.prepared.method for served in self._served.values())
        return self._ranges

    @property
    def methods(self) -> Iterable[Served]:
        """Every method that is served."""
        return self._served.values()

    def priority_of(self, method: str) -> Priority:
        """The class of a method's calls; CALLS for one that is not served."""
        served = self._served.get(method)
        return served.priority if served is not None else Priority.CALLS

    @property
    def behind(self) -> bool:
        """True while sockets should not be read: what arrived has not had its turn, and reading on would refuse it.

        The peer is then held by its own queue and told Busy there. Handlers that block hold nobody: they do not count.
        """
        read_ahead_jobs = self._limits.read_ahead_jobs
        for pool in self._pools:
            if len(pool.jobs) + pool.jobs_beside > read_ahead_jobs and pool.runnable > read_ahead_jobs:
                return True
        return False

    def close(self) -> None:
        """Begin nothing more."""
        for pool in self.pools.values():
            pool.close()

    def check(self, work: Call | Cast, peer: Peer) -> Served:
        """The served method that a peer may run. Raises UnknownMethod, UnsupportedVersion, Forbidden."""
        served = self._served.get(work.method)
        if served is None or work.minor != served.minor or work.major != served.major:
            interface = work.method.rpartition(".")[0]
            check_version(interface, (work.major, work.minor), self.ranges, peer.interfaces)
        if served is None:
            raise UnknownMethod(f"method {work.method} is not served here", method=work.method)
        if peer.role not in served.roles:
            raise Forbidden(f"role {peer.role!r} may not call {work.method}", method=work.method)
        return served

    def on_call(self, link: Link, call: Call, now: float) -> None:
        """A call arrived: check it, queue it, or answer with the refusal."""
        core = link.core
        peer = core.peer
        serving = core.serving.get(call.call_id)
        if peer is None or serving is None:
            return
        try:
            served = self.check(call, peer)
            deadline = now + min(call.remaining_ms, self._limits.call_timeout_ms_max) / 1000
            if not served.pool.submit(link, self._run_call, link, call, served, deadline, serving):
                raise Busy(
                    f"pool {served.pool.name} has {served.pool.queued} jobs waiting",
                    retry_after_ms=self._limits.retry_after_ms,
                )
            served.arrived += 1
        except BusError as error:
            self._count_refused(link, call, error)
            self._answer_error(link, call, error, serving)

    def on_cast(self, link: Link, cast: Cast, now: float) -> None:
        """A cast arrived: check it and queue it; a refusal is counted and logged."""
        peer = link.core.peer
        if peer is None:
            return
        try:
            served = self.check(cast, peer)
            if not served.pool.submit(link, self._run_cast, link, cast, served, now, peer):
                raise Busy(f"pool {served.pool.name} is full")
            served.arrived += 1
        except BusError as error:
            self._count_refused(link, cast, error)
            link.core.notice(error, now)

    def _count_refused(self, link: Link, work: Call | Cast, error: BusError) -> None:
        self._refusals.count(error.wire_name, link.name, str(error))
        served = self._served.get(work.method)
        if served is not None:
            served.refused[error.wire_name] += 1

    def _run_call(self, link: Link, call: Call, served: Served, deadline: float, serving: ServedCall) -> None:
        core = link.core
        peer = core.peer
        if core.serving.get(call.call_id) is not serving:  # cancelled while it was queued
            served.cancelled += 1
            return
        if deadline <= time.monotonic() or peer is None:
            self._counters["calls_expired"] += 1
            served.expired += 1
            core.end_serving(call.call_id, serving)
            return
        served.begun += 1
        request_id.set(call.request_id)
        try:
            try:
                request = served.decode(call.payload)
            except UNREADABLE as error:
                raise invalid_request(served.prepared, error) from None
            context = CallContext(peer, link, call.request_id, deadline, call.call_id, serving)
            result = served.handler(request, context)
            payload = link.encode(result) if served.replies else b""
            size = len(payload)
            if size > self._payload_bytes_max:
                raise FrameRefused(
                    f"reply of {call.method} has {size} bytes, expected at most "
                    f"{self._limits.payload_bytes_max}: ask for less",
                    reason="size",
                )
        except Exception as error:
            if not is_registered(error):
                log.exception("handler failed method=%s peer=%s", call.method, link.name)
                self._counters["handlers_failed"] += 1
            served.errors += 1
            served.ended += 1
            self._answer_error(link, call, error, serving)
            return
        except BaseException:  # the handler's greenlet was killed: tell the caller, then end as asked
            served.errors += 1
            served.ended += 1
            self._answer_error(link, call, Unavailable("the handler was stopped"), serving)
            raise
        self._counters["calls_served"] += 1
        served.ended += 1
        if core.answer(Reply(call.call_id, payload), size, serving, served.priority):
            link.flush_soon(not core.serving)

    def _run_cast(self, link: Link, cast: Cast, served: Served, arrived: float, peer: Peer) -> None:
        served.begun += 1
        request_id.set(cast.request_id)
        deadline = arrived + self._limits.call_timeout_ms_max / 1000
        try:
            try:
                request = served.decode(cast.payload)
            except UNREADABLE as error:
                raise invalid_request(served.prepared, error) from None
            served.handler(request, CallContext(peer, link, cast.request_id, deadline))
            self._counters["casts_served"] += 1
        except InvalidRequest as error:
            served.errors += 1
            self._count_refused(link, cast, error)
        except Exception:
            served.errors += 1
            self._counters["handlers_failed"] += 1
            log.exception("handler failed method=%s peer=%s", cast.method, link.name)
        finally:
            served.ended += 1

    def _answer_error(self, link: Link, call: Call, error: BaseException, serving: ServedCall) -> None:
        wire_name, message, details = to_wire(error)
        served = self._served.get(call.method)
        priority = served.prepared.priority if served is not None else Priority.CALLS
        if link.core.answer(Error(call.call_id, wire_name, message, details), 0, serving, priority):
            link.flush_soon()


def invalid_request(prepared: PreparedMethod, error: Exception) -> InvalidRequest:
    """What the caller is told of a request that cannot be read, with the field."""
    found = _FIELD.search(str(error))
    return InvalidRequest(f"{prepared.full_name}: {error}", field=found.group(1) if found else "")
