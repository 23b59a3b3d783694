"""Clients that lead servers through actions and moves: each boots one, asks for one thing after the other that its
state allows, and deletes it, sometimes in the middle of what it has asked for."""

import time
import uuid
from typing import Any

import gevent

from loadtest.chaos import history
from loadtest.chaos.clients import POLL_S, REQUEST_S, Clients
from loadtest.chaos.cluster import Cluster
from loadtest.tasks.walking import CHOICES, SAME_FLAVOR
from zcompute.cli.client import ApiClient, ApiFailed, error_text

STEPS = (2, 8)
TASK_S = 90.0
DELETED_AMIDST_SHARE = 0.15
ACCEPTED = (200, 202, 204)
AGAIN_S = 0.4
REFUSED = (SAME_FLAVOR, "is still in use")  # of a status 400
EVACUATE: dict[str, object] = {"evacuate": {"onSharedStorage": False}}
EVACUATED = ("active", "stopped", "error")
LOST_AMIDST = "was forced down while it built the instance"
NOT_ENDED = "has not ended in time"


class Walks(Clients):
    """Begin with ``walk``; end as its parent. ``lost``: hosts that are forced down, whose servers are evacuated."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        super().__init__(cluster, seed)
        self.lost: set[str] = set()

    def walk(self, count: int) -> None:
        """So many clients, a server each at a time."""
        self._greenlets = [gevent.spawn(self._lives) for _ in range(count)]

    def _lives(self) -> None:
        client = self._cluster.client(timeout_s=REQUEST_S)
        while not self._stopping:
            server = self._boot(client)
            if not server:
                continue
            for _ in range(self._chance.randint(*STEPS)):
                if self._stopping or not self._step(client, server):
                    break
            if not self._stopping:
                self._delete(client, server)
        client.close()

    def _write(self, event: history.Operation) -> None:
        if LOST_AMIDST in event.outcome:
            event.outcome = ""  # so says its fault, as it must: nobody knows what that host has
        super()._write(event)

    def _step(self, client: ApiClient, server: str) -> bool:
        """One thing more. False: nothing can be asked of it any more, or it is to be deleted now."""
        shown = self._idle(client, server)
        if shown is None:
            return False
        vm_state = shown["OS-EXT-STS:vm_state"]
        lost = shown["OS-EXT-SRV-ATTR:host"] in self.lost
        choices = [EVACUATE] if lost and vm_state in EVACUATED else CHOICES.get(vm_state)
        if not choices:
            return False
        if not self.ask(client, server, self._chance.choice(choices)):
            gevent.sleep(AGAIN_S if lost else POLL_S)
            return True
        return self._chance.random() >= DELETED_AMIDST_SHARE

    def _idle(self, client: ApiClient, server: str) -> dict[str, Any] | None:
        """The server, once nothing is under way; None when that does not come."""
        began_s = time.monotonic()
        while time.monotonic() < began_s + TASK_S:
            try:
                status, answer = client.repeated("GET", f"/v2.1/servers/{server}", deadline=began_s + TASK_S)
            except ApiFailed:
                break
            if status != 200:
                self._out.write(_odd(began_s, server, f"status {status} of a server that nobody has deleted"))
                return None
            if answer["server"]["OS-EXT-STS:task_state"] is None:
                found: dict[str, Any] = answer["server"]
                return found
            gevent.sleep(POLL_S)
        self._out.write(_odd(began_s, server, NOT_ENDED))
        return None

    def ask(self, client: ApiClient, server: str, body: dict[str, object]) -> bool:
        """Ask for an action until there is an answer; whether it was accepted. Written down."""
        event = history.Asked(t=time.monotonic(), ended=0.0, name=next(iter(body)), uuid=server, key=str(uuid.uuid4()))
        path, key = f"/v2.1/servers/{server}/action", {"Idempotency-Key": event.key}
        try:
            status, answer = client.repeated("POST", path, body, deadline=event.t + REQUEST_S, headers=key)
            event.accepted = status in ACCEPTED
            event.refused = status == 409 or any(text in str(answer) for text in REFUSED)
            event.outcome = "" if event.accepted or event.refused else f"status {status}: {error_text(answer)}"
        except ApiFailed:
            event.unknown = True
        event.ended = time.monotonic()
        self._out.write(event)
        return event.accepted


def _odd(began_s: float, server: str, outcome: str) -> history.Asked:
    return history.Asked(t=began_s, ended=time.monotonic(), name="look", uuid=server, outcome=outcome)
