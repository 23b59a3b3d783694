"""Booting servers over HTTP and timing them: N in flight, each from its POST to ACTIVE.

Polling is one short list for all that are under way: what is no longer in BUILD is then looked at by itself. A POST
that was cut off is repeated with its Idempotency-Key, so it boots once.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.pool import Pool

from zcompute.cli.client import ApiFailed, error_text
from zcompute.cli.up.region import Region
from zcompute.db.seed import DEFAULT_IMAGE

POLL_S = 0.04
LIST_LIMIT = 1000
BOOT_DEADLINE_S = 120.0
ENDED = frozenset({"ACTIVE", "ERROR", "DELETED"})
IMAGE = DEFAULT_IMAGE.id


@dataclass
class Boot:
    """One server: its name, id, how it ended ("" while under way), and how long that took."""

    name: str
    uuid: str = ""
    status: str = ""
    fault: str = ""
    host: str = ""
    took_ms: float = 0.0


@dataclass
class BootRun:
    """What came of a run: every boot, and the seconds from the first POST to the last end."""

    boots: list[Boot] = field(default_factory=list)
    took_s: float = 0.0

    def count(self, status: str) -> int:
        return sum(1 for boot in self.boots if boot.status == status)

    def times_ms(self) -> list[float]:
        """How long the boots that ended ACTIVE took, sorted."""
        return sorted(boot.took_ms for boot in self.boots if boot.status == "ACTIVE")

    @property
    def boots_per_second(self) -> float:
        return self.count("ACTIVE") / self.took_s if self.took_s else 0.0


def percentile(sorted_values: list[float], percent: float) -> float:
    """The nearest-rank percentile, 0 for no values."""
    if not sorted_values:
        return 0.0
    rank = max(1, -(-len(sorted_values) * percent // 100))
    return sorted_values[int(rank) - 1]


class Booter:
    """Boots ``count`` servers with ``concurrency`` in flight. ``on_end`` hears of each that has ended. ``group``: the
    server group of which all of them are members."""

    def __init__(
        self,
        region: Region,
        count: int,
        concurrency: int,
        *,
        flavor: str = "1",
        on_end: Callable[[Boot], None] | None = None,
        deadline_s: float = BOOT_DEADLINE_S,
        group: str = "",
    ) -> None:
        self._region = region
        self._hints = {"os:scheduler_hints": {"group": group}} if group else {}
        self._flavor = flavor
        self._on_end = on_end
        self._deadline_s = deadline_s
        self._concurrency = max(1, min(concurrency, count or 1))
        self._label = uuid.uuid4().hex[:6]
        self._clients = [region.client() for _ in range(self._concurrency)]
        self._waiting: dict[str, AsyncResult] = {}
        self.run_so_far = BootRun([Boot(f"server-{self._label}-{n:04d}") for n in range(1, count + 1)])
        self.ended = 0

    @property
    def share_done(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self.ended / len(self.run_so_far.boots) if self.run_so_far.boots else 1.0

    @property
    def under_way(self) -> list[str]:
        """The uuids that have been accepted and have not ended."""
        return list(self._waiting)

    def run(self) -> BootRun:
        """Boot them all; a boot that has not ended in time keeps the status it had."""
        poller = gevent.spawn(self._poll)
        started = time.monotonic()
        try:
            Pool(self._concurrency).map(self._boot, self.run_so_far.boots)
        finally:
            poller.kill()
            for client in self._clients:
                client.close()
        self.run_so_far.took_s = time.monotonic() - started
        return self.run_so_far

    def _boot(self, boot: Boot) -> None:
        started = time.monotonic()
        deadline = started + self._deadline_s
        client = self._clients.pop()
        try:
            server = {"name": boot.name, "flavorRef": self._flavor, "imageRef": IMAGE, "networks": "auto"}
            body: dict[str, Any] = {"server": server, **self._hints}
            key = {"Idempotency-Key": str(uuid.uuid4())}
            status, answer = client.repeated("POST", "/v2.1/servers", body, deadline=deadline, headers=key)
            if status != 202:
                boot.status, boot.fault = "REFUSED", f"status {status}: {error_text(answer)}"
                return
            boot.uuid = answer["server"]["id"]
            self._wait_ended(boot, client, deadline)
        except ApiFailed as error:
            boot.status, boot.fault = "UNKNOWN", str(error)
        finally:
            self._clients.append(client)
            boot.took_ms = (time.monotonic() - started) * 1000
            self.ended += 1
            if self._on_end is not None:
                self._on_end(boot)

    def _wait_ended(self, boot: Boot, client: Any, deadline: float) -> None:
        while True:
            hint = self._waiting[boot.uuid] = AsyncResult()
            try:
                hint.get(timeout=max(0.0, deadline - time.monotonic()))
            except gevent.Timeout:
                boot.status, boot.fault = "TIMEOUT", f"not ended within {self._deadline_s:.0f} s"
                return
            finally:
                self._waiting.pop(boot.uuid, None)
            status, answer = client.repeated("GET", f"/v2.1/servers/{boot.uuid}", deadline=deadline)
            if status != 200:
                boot.status, boot.fault = "LOST", f"status {status}: {error_text(answer)}"
                return
            server = answer["server"]
            if server["status"] in ENDED:
                boot.status = server["status"]
                boot.host = server.get("OS-EXT-SRV-ATTR:host") or ""
                boot.fault = (server.get("fault") or {}).get("message", "")
                return

    def _poll(self) -> None:
        """Wake those that the list no longer shows in BUILD. A list that fails wakes nobody: the next one will."""
        client = self._region.client()
        path = f"/v2.1/servers?status=BUILD&limit={LIST_LIMIT}&name={self._label}"
        while True:
            gevent.sleep(POLL_S)
            asked = dict(self._waiting)
            if not asked:
                continue
            try:
                answer = client.get(path)
            except ApiFailed:
                continue
            building = {row["id"] for row in answer["servers"]}
            for server_id, hint in asked.items():
                if server_id not in building:
                    hint.set(True)
