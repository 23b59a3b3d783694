"""Endpoints over real CURVE sockets on 127.0.0.1, closed at the end of each test."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gevent
import msgspec
import pytest
import zmq

from zcompute.bus import Endpoint, Identity, KeyEntry, Keyring, Limits, Link, Peer


class Ask(msgspec.Struct):
    text: str
    number: int = 0


class Answer(msgspec.Struct):
    text: str


@dataclass(frozen=True)
class Method:
    interface: str
    name: str
    request: type = Ask
    reply: type | None = Answer
    version: tuple[int, int] = (1, 0)
    roles: frozenset[str] = frozenset({"compute", "conductor", "api"})
    pool: str = "calls"
    idempotent: bool = False


ECHO = Method("echo", "say")
SLOW = Method("echo", "slow")
SLOW_AGAIN = Method("echo", "slow_again", idempotent=True)
NOTE = Method("echo", "note", reply=None)


def wait_until(holds: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Wait for a condition; fail when it does not come about in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come about in time"
        gevent.sleep(0.005)


class Keys:
    """Key pairs by name, and the keyring of them all."""

    def __init__(self) -> None:
        self.entries: list[KeyEntry] = []
        self.secrets: dict[str, tuple[str, str]] = {}
        self.keyring = Keyring([])

    def make(self, name: str, role: str, cell: str = "c1", hosts: tuple[str, ...] = ()) -> tuple[str, str]:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        self.entries.append(KeyEntry(name, public, role, cell, frozenset(hosts)))
        self.keyring.replace(self.entries)
        self.secrets[name] = (public, secret)
        return public, secret


class Bus:
    """Makes endpoints and closes them."""

    def __init__(self) -> None:
        self.keys = Keys()
        self.endpoints: list[Endpoint] = []

    def endpoint(
        self,
        role: str,
        service_id: str,
        *,
        key: str = "",
        cell: str = "c1",
        hosts: tuple[str, ...] = (),
        limits: Limits | None = None,
        attributes: Callable[[], dict[str, Any]] | None = None,
        admit: Callable[[Peer], None] | None = None,
        topics: tuple[str, ...] = (),
        plain: bool = False,
    ) -> Endpoint:
        public = secret = ""
        if not plain:
            name = key or service_id
            public, secret = self.keys.secrets.get(name) or self.keys.make(name, role, cell, hosts)
        identity = Identity(role, cell, service_id, "1.0", frozenset(hosts), public, secret)
        endpoint = Endpoint(
            identity,
            keyring=None if plain else self.keys.keyring,
            limits=limits or Limits(),
            attributes=attributes,
            admit=admit,
            topics=topics,
        )
        self.endpoints.append(endpoint)
        return endpoint

    def close(self) -> None:
        for endpoint in self.endpoints:
            endpoint.close(linger_ms=0)


@pytest.fixture
def bus() -> Iterator[Bus]:
    made = Bus()
    yield made
    made.close()


def serve_echo(endpoint: Endpoint) -> None:
    """Serve ECHO: the text comes back."""
    endpoint.serve(ECHO, lambda ask, context: Answer(ask.text))


def connect(server: Endpoint, client: Endpoint, address: str = "tcp://127.0.0.1:0") -> Link:
    """Bind the one, dial with the other, and wait for the link."""
    real = server.bind(address)
    link = client.dial(real, server.identity.public_key)
    assert link.wait_up(5000), (client.counters, server.counters)
    return link
