"""A service's metrics in Prometheus' text format, over HTTP on a loopback port or a Unix socket.

`/metrics` is this process; `/metrics?service=ID` asks the service ID over its link (conductors: for those that listen
on nothing). Everything is computed when it is asked for.
"""

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from ipaddress import ip_address
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gevent
from gevent import pywsgi
from gevent.pool import Pool
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from zcompute.bus import BUS_STAT, BusError, EndpointStat, LinkDown, StatRequest, open_endpoints
from zcompute.config import Config, ConfigError
from zcompute.measure import Measure, Spread

log = logging.getLogger(__name__)

UNIX = "unix:"
TCP_KINDS = frozenset({"conductor", "api"})  # the others listen on no port, not even this one
CONNECTIONS_MAX = 8
BACKLOG = 16
CONNECTION_S_MAX = 60.0
ASK_MS_MAX = 2_000
SOCKET_MODE = 0o600

Measures = Callable[[], Iterable[Measure | Spread]]

_FRAMES = {"frames_sent": "sent", "frames_received": "received"}
_BYTES = {"bytes_sent": "sent", "bytes_received": "received"}
_REFUSED = "refused_"

Source = Callable[[], Iterable[Metric]]


class Families:
    """Metric families under construction, in order; every sample carries the service."""

    def __init__(self, service: str, prefix: str = "zcompute_bus_") -> None:
        self._service = service
        self._prefix = prefix
        self._families: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())

    def gauge(self, name: str, about: str, value: float, **labels: str) -> None:
        self._add(GaugeMetricFamily, name, about, value, labels)

    def counter(self, name: str, about: str, value: float, **labels: str) -> None:
        self._add(CounterMetricFamily, name, about, value, labels)

    def histogram(self, spread: Spread) -> None:
        family = self._family(HistogramMetricFamily, spread.name, spread.about, spread.labels)
        bounds = [*(str(bound) for bound in spread.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(spread.counts), strict=True))
        family.add_metric([self._service, *spread.labels.values()], buckets, spread.sum)

    def _add(self, kind: Any, name: str, about: str, value: float, labels: dict[str, str]) -> None:
        self._family(kind, name, about, labels).add_metric([self._service, *labels.values()], value)

    def _family(self, kind: Any, name: str, about: str, labels: Mapping[str, str]) -> Any:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = kind(f"{self._prefix}{name}", about, labels=["service", *labels])
        return family


def families(stat: EndpointStat) -> Iterable[Metric]:
    """The metrics of one endpoint. Nothing is labelled by link: Prometheus wants bounded labels."""
    made = Families(stat.service_id)
    made.gauge(
        "info", "Who this is", 1,
        role=stat.role, cell=stat.cell, release=stat.release, incarnation=stat.incarnation,
    )  # fmt: skip
    made.gauge("age_seconds", "Age of the endpoint", stat.age_ms / 1000)
    for state, count in (("known", stat.links_known), ("up", stat.links_up), ("blocked", stat.links_blocked)):
        made.gauge("links", "Links by state", count, state=state)
    made.gauge("open_calls", "Own calls without an answer", stat.open_calls)
    made.gauge("serving_calls", "Calls of peers, queued or running", stat.serving_calls)
    made.gauge("queued_messages", "Calls, casts and replies waiting to be sent", stat.queued)
    made.gauge("streams_published", "Streams published", stat.streams_published)
    made.gauge("streams_followed", "Streams followed at peers", stat.streams_followed)
    made.gauge("stream_events_waiting", "Events of streams not taken by a handler yet", stat.stream_events_waiting)
    _add_streams(made, stat)
    _add_methods(made, stat)
    _add_pools(made, stat)
    _add_counters(made, stat)
    return made


def _add_methods(made: Families, stat: EndpointStat) -> None:
    for row in stat.methods:
        name = row.method
        made.counter("method_arrived", "Calls and casts let in", row.arrived, method=name)
        made.counter("method_ended", "Calls and casts done", row.ended, method=name)
        made.counter("method_errors", "Of these, ended by an error", row.errors, method=name)
        made.counter("method_expired", "Calls not begun: their time was over", row.expired, method=name)
        made.counter("method_cancelled", "Calls not begun: their caller was gone", row.cancelled, method=name)
        made.gauge("method_queued", "Waiting for a worker", row.queued, method=name)
        made.gauge("method_running", "Handlers at work", row.running, method=name)
        made.gauge("method_oldest_seconds", "Age of the oldest call", row.oldest_ms / 1000, method=name)
        for reason, count in row.refused.items():
            made.counter("method_refused", "Refused by reason", count, method=name, reason=reason)
    for asked in stat.asked:
        made.counter("asked_sent", "Own calls and casts", asked.sent, method=asked.method)
        made.gauge("asked_open", "Own calls without an answer", asked.open, method=asked.method)
        made.gauge("asked_oldest_seconds", "Age of the oldest", asked.oldest_ms / 1000, method=asked.method)


def _add_streams(made: Families, stat: EndpointStat) -> None:
    """By topic: a topic may have a stream for each of very many keys."""
    topics: dict[str, tuple[int, int, int, int]] = {}
    for row in stat.streams:
        followers, events, size, appended = topics.get(row.topic, (0, 0, 0, 0))
        topics[row.topic] = (followers + row.followers, events + row.events, size + row.bytes, appended + row.next)
    for topic, (followers, events, size, appended) in topics.items():
        made.gauge("stream_followers", "Links that follow", followers, topic=topic)
        made.gauge("stream_kept_events", "Events kept", events, topic=topic)
        made.gauge("stream_kept_bytes", "Bytes of these", size, topic=topic)
        made.gauge("stream_cursors", "Cursors of the next events, added up", appended, topic=topic)


def _add_pools(made: Families, stat: EndpointStat) -> None:
    for row in stat.pools:
        made.gauge("pool_workers_max", "Jobs that may run at once", row.workers_max, pool=row.pool)
        made.gauge("pool_running", "Jobs at work", row.running, pool=row.pool)
        made.gauge("pool_queued", "Jobs waiting for a worker", row.queued, pool=row.pool)
        made.gauge("pool_oldest_seconds", "Age of the oldest of them", row.oldest_ms / 1000, pool=row.pool)


def _add_counters(made: Families, stat: EndpointStat) -> None:
    for name, count in sorted(stat.counters.items()):
        if name.startswith(_REFUSED):
            made.counter("refused", "Refused by reason", count, reason=name.removeprefix(_REFUSED))
        elif name in _BYTES:
            made.counter("bytes", "Bytes of frames", count, direction=_BYTES[name])
        elif name in _FRAMES:
            made.counter("frames", "Frames", count, direction=_FRAMES[name])
        else:
            made.counter(name, f"The endpoint's counter {name}", count)


def measured(service: str, measures: Iterable[Measure | Spread]) -> Iterable[Metric]:
    """A service's own measures as metrics."""
    made = Families(service, "zcompute_")
    for measure in measures:
        if isinstance(measure, Spread):
            made.histogram(measure)
            continue
        add = made.counter if measure.counter else made.gauge
        add(measure.name, measure.about, measure.value, **measure.labels)
    return made


def _nothing() -> Iterable[Measure | Spread]:
    return ()


class _Stats(Collector):
    """These stats, and measures of the first one's service, as a collector."""

    def __init__(self, stats: Iterable[EndpointStat], measures: Measures = _nothing) -> None:
        self._stats = list(stats)
        self._measures = measures

    def collect(self) -> Iterable[Metric]:
        for stat in self._stats:
            yield from families(stat)
        for stat in self._stats[:1]:
            yield from measured(stat.service_id, self._measures())


class _Exposed(Collector):
    """What a service of this process shows beside its endpoint."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        return self._source()


_sources: dict[str, Source] = {}


def expose(name: str, source: Source | None) -> None:
    """Show what ``source`` makes among this process' metrics; None ends it. A name stands for one source."""
    if source is None:
        _sources.pop(name, None)
    else:
        _sources[name] = source


def own_text(measures: Measures = _nothing) -> bytes:
    """The metrics of this process, of its endpoint, and what its service measures and exposes."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    endpoints = open_endpoints()[:1]  # a service has one; between two incarnations of a conductor there is none
    registry.register(_Stats((endpoint.stat(links_max=0) for endpoint in endpoints), measures))
    for source in _sources.values():
        registry.register(_Exposed(source))
    return generate_latest(registry)


def text_of(service: str) -> bytes:
    """The metrics of a service that is linked here. Raises BusError."""
    for endpoint in open_endpoints():
        for link in endpoint.links(service_id=service):
            stat = link.call(BUS_STAT, StatRequest(links_max=0), timeout_ms=ASK_MS_MAX)
            registry = CollectorRegistry()
            registry.register(_Stats([stat]))
            return generate_latest(registry)
    raise LinkDown(f"no link with a service {service!r} here: ask a conductor that it dialled")


def application(measures: Measures, environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """WSGI, but for the first argument: GET /metrics, or /metrics?service=ID."""
    if environ["PATH_INFO"] != "/metrics" or environ["REQUEST_METHOD"] != "GET":
        return _answer(start_response, "404 Not Found", b"expected GET /metrics\n", "text/plain")
    wanted = parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=4).get("service", [""])[0]
    try:
        body = text_of(wanted) if wanted else own_text(measures)
    except BusError as error:
        return _answer(start_response, "502 Bad Gateway", f"{error}\n".encode(), "text/plain")
    return _answer(start_response, "200 OK", body, CONTENT_TYPE_LATEST)


def _answer(start_response: Any, status: str, body: bytes, kind: str) -> list[bytes]:
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


class MetricsServer(pywsgi.WSGIServer):  # type: ignore[misc]  # gevent is followed without types
    """Serves `application`, CONNECTIONS_MAX connections at once, each for CONNECTION_S_MAX at most."""

    def __init__(self, listener: socket.socket, address: str, measures: Measures = _nothing) -> None:
        self.shown_address = address
        super().__init__(listener, partial(application, measures), spawn=Pool(CONNECTIONS_MAX), log=None, error_log=log)

    def handle(self, client_socket: Any, address: Any) -> None:
        """One connection: a client that stays silent gives its place back."""
        with gevent.Timeout(CONNECTION_S_MAX, False):
            super().handle(client_socket, address or ("unix", 0))


def serve(kind: str, config: Config, measures: Measures = _nothing) -> MetricsServer | None:
    """Serve the metrics where the configuration says; None when it says nowhere. ``measures`` must not block.

    Raises ConfigError for an address that this kind of service may not have, OSError for one in use.
    """
    wanted = config.metrics.listen
    if not wanted:
        return None
    if wanted.startswith(UNIX):
        path = Path(config.service.state_dir) / wanted.removeprefix(UNIX)
        listener, shown = _listen_unix(path), str(path)
    elif kind in TCP_KINDS:
        listener, shown = _listen_tcp(wanted)
    else:
        raise ConfigError(
            f"[metrics] listen: a {kind} listens on no port: expected unix:PATH, found {wanted!r}; "
            "its conductors give its metrics too, at /metrics?service=ID"
        )
    server = MetricsServer(listener, shown, measures)
    server.start()
    log.info("metrics address=%s", shown)
    return server


def _listen_tcp(wanted: str) -> tuple[socket.socket, str]:
    host, _, port = wanted.rpartition(":")
    try:
        loopback = ip_address(host.strip("[]")).is_loopback
        number = int(port)
    except ValueError:
        loopback, number = False, -1
    if not loopback or not 0 <= number <= 65535:
        raise ConfigError(f"[metrics] listen: expected a loopback address and a port, found {wanted!r}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), number))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener, f"{host}:{listener.getsockname()[1]}"


def _listen_unix(path: Path) -> socket.socket:
    """A socket that only its owner may use. The one of a former life is removed; a living one is in use."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            if listener.connect_ex(str(path)) == 0:
                raise OSError(errno.EADDRINUSE, f"{path} is in use by another process")
            path.unlink()
            listener.close()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
