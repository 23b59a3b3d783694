"""An endpoint and links without sockets."""

from collections.abc import Callable
from typing import Any

import gevent

from zcompute.bus import Event, Identity, Peer
from zcompute.bus.errors import DeadlineExceeded, LinkDown

Answer = Callable[[Any, Any, int], Any]


class FakeLink:
    def __init__(self, cell: str, service_id: str, answer: Answer, role: str = "conductor") -> None:
        self.peer = Peer(role, cell, service_id, "i", "0", frozenset(), "", {}, {}, frozenset())
        self.name = service_id
        self.address = f"tcp://{service_id}"
        self.up = True
        self.answer = answer
        self.calls: list[tuple[str, int]] = []

    def call(self, method: Any, request: Any, *, timeout_ms: int, request_id: str | None = None) -> Any:
        self.calls.append((method.name, timeout_ms))
        gevent.sleep(0)
        if not self.up:
            raise LinkDown(self.name)
        return self.answer(method, request, timeout_ms)


def silence(_method: Any, _request: Any, timeout_ms: int) -> Any:
    gevent.sleep(timeout_ms / 1000)
    raise DeadlineExceeded("silence")


class FakeEndpoint:
    def __init__(self, role: str = "api", service_id: str = "api-1") -> None:
        self.identity = Identity(role, "c1", service_id)
        self.all: list[FakeLink] = []
        self.events: dict[str, Callable[[Any, Event], None]] = {}
        self.dialled: dict[str, FakeLink] = {}
        self.hung_up: list[str] = []

    def links(self, *, role: str | None = None, cell: str | None = None, service_id: str | None = None) -> list[Any]:
        return [
            link
            for link in self.all
            if link.up
            and role in (None, link.peer.role)
            and cell in (None, link.peer.cell)
            and service_id in (None, link.peer.service_id)
        ]

    def on_event(self, topic: str, handler: Callable[[Any, Event], None]) -> None:
        self.events[topic] = handler

    def on_link_up(self, handler: Callable[[Any], None]) -> None:
        """Links of this endpoint come up when a test says so."""

    def on_link_down(self, handler: Callable[[Any], None]) -> None:
        """And go down."""

    def dial(self, address: str, server_public_key: str = "") -> FakeLink:
        link = self.dialled[address] = FakeLink("?", address, silence)
        return link

    def hang_up(self, link: FakeLink) -> None:
        self.hung_up.append(link.name)
