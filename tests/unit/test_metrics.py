"""Metrics over HTTP: true, parsable, on loopback or a Unix socket only."""

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.bus.conftest import ECHO, Ask, Bus, connect, serve_echo
from zcompute import metrics
from zcompute.bus import Forbidden
from zcompute.config import Config, ConfigError, MetricsConfig, ServiceConfig
from zcompute.measure import Measure


@pytest.fixture
def bus() -> Iterator[Bus]:
    made = Bus()
    yield made
    made.close()


def config(listen: str, state_dir: Path) -> Config:
    service = ServiceConfig(id="conductor-1", cell="c1", state_dir=str(state_dir))
    return Config(service=service, metrics=MetricsConfig(listen=listen))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[metrics.MetricsServer]:
    made = metrics.serve("conductor", config("127.0.0.1:0", tmp_path))
    assert made is not None
    yield made
    made.stop(timeout=0)


def get(server: metrics.MetricsServer, path: str) -> tuple[int, str]:
    host, _, port = server.shown_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "service")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_own_metrics_and_those_of_a_service_behind_it(bus: Bus, server: metrics.MetricsServer) -> None:
    conductor = bus.endpoint("conductor", "conductor-1")
    serve_echo(conductor)
    compute = bus.endpoint("scheduler", "zz-1", key="zz-1")
    compute.serve(ECHO, lambda ask, context: None)
    link = connect(conductor, compute)
    with pytest.raises(Forbidden):  # schedulers may not
        link.call(ECHO, Ask("x"), timeout_ms=2000)
    conductor.refusals.count("key", "10.0.0.9")
    status, text = get(server, "/metrics")
    assert status == 200
    found = samples(text)
    assert found["zcompute_bus_links", "up"] == 1
    assert found["zcompute_bus_method_arrived_total", "echo.say"] == 0
    assert found["zcompute_bus_refused_total", "key"] == 1
    assert found["zcompute_bus_bytes_total", "received"] > 0
    assert found["zcompute_bus_pool_workers_max", "calls"] == 256
    assert any(name[0] == "process_cpu_seconds_total" for name in found)
    status, text = get(server, "/metrics?service=zz-1")
    assert status == 200
    assert 'zcompute_bus_info{cell="c1"' in text
    assert 'service="zz-1"' in text
    assert get(server, "/metrics?service=nobody")[0] == 502
    assert get(server, "/other")[0] == 404


def test_a_method_in_use_shows_in_the_metrics(bus: Bus, server: metrics.MetricsServer) -> None:
    conductor = bus.endpoint("conductor", "conductor-1")
    serve_echo(conductor)
    link = connect(conductor, bus.endpoint("compute", "zz-1"))
    link.call(ECHO, Ask("x"), timeout_ms=2000)
    found = samples(metrics.text_of("zz-1").decode())
    assert found["zcompute_bus_asked_sent_total", "echo.say"] == 1
    assert samples(get(server, "/metrics")[1])["zcompute_bus_method_ended_total", "echo.say"] == 1


def test_what_a_service_measures_comes_with_them(bus: Bus, tmp_path: Path) -> None:
    bus.endpoint("conductor", "conductor-1")
    told = [Measure("lag_seconds", "x", 1.5, labels={"notifier": name}) for name in ("a", "b")]
    made = metrics.serve(
        "conductor", config("127.0.0.1:0", tmp_path), lambda: [*told, Measure("sent", "y", 7, counter=True)]
    )
    assert made is not None
    found = samples(get(made, "/metrics")[1])
    made.stop(timeout=0)
    assert found["zcompute_lag_seconds", "a"] == found["zcompute_lag_seconds", "b"] == 1.5
    assert found["zcompute_sent_total",] == 7


def test_a_unix_socket_serves_is_private_and_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    first = metrics.serve("compute", config("unix:metrics.sock", tmp_path))
    assert first is not None
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.")
    with pytest.raises(OSError, match="in use"):
        metrics.serve("compute", config("unix:metrics.sock", tmp_path))
    first.stop(timeout=0)
    stale = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    stale.bind(str(path))
    stale.close()  # what a killed process leaves
    second = metrics.serve("compute", config("unix:metrics.sock", tmp_path))
    assert second is not None
    second.stop(timeout=0)


def test_a_silent_client_gives_its_place_back(server: metrics.MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CONNECTION_S_MAX", 0.1)
    host, _, port = server.shown_address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(metrics.CONNECTIONS_MAX + 2)]
    assert [client.recv(1) for client in silent] == [b""] * len(silent)
    for client in silent:
        client.close()
    assert get(server, "/metrics")[0] == 200


def test_off_by_default(tmp_path: Path) -> None:
    assert metrics.serve("conductor", config("", tmp_path)) is None


@pytest.mark.parametrize(
    ("kind", "listen"),
    [
        ("compute", "127.0.0.1:20999"),
        ("scheduler", "127.0.0.1:20999"),
        ("conductor", "0.0.0.0:20999"),
        ("conductor", "192.0.2.1:20999"),
        ("api", "127.0.0.1"),
        ("api", "localhost:20999"),
        ("api", "127.0.0.1:70000"),
    ],
)
def test_an_address_that_others_could_reach_is_refused(kind: str, listen: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[metrics\] listen"):
        metrics.serve(kind, config(listen, tmp_path))
