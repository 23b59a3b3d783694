"""Those who use the API meanwhile: they boot and delete servers, and read; each writes down what it saw."""

import http.client
import itertools
import random
import time
import uuid
from pathlib import Path
from typing import Any

import gevent

from loadtest.chaos import history
from loadtest.chaos.cluster import Cluster
from zcompute.cli.client import ApiClient, ApiFailed, error_text
from zcompute.cli.exits import CommandError
from zcompute.cli.up.boots import IMAGE, Booter

READ_S = 0.2
PAUSE_S = (0.0, 0.3)
POLL_S = 0.05
BOOT_S = 60.0
REQUEST_S = 30.0
LIST_LIMIT = 1000
BOOT, DELETE = "boot", "delete"
OK, GONE = "ok", "gone"


class Clients:
    """``keep`` boots servers that live through the run; then greenlets boot and delete others, and read, until stop."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self._out = history.History(Path(cluster.history) / "clients.jsonl")
        self._greenlets: list[gevent.Greenlet] = []
        self._stopping = False

    def keep(self, count: int, in_flight: int) -> list[str]:
        """Boot the servers that the agents make their traffic for. Raises CommandError when one does not come up."""
        run = Booter(self._cluster, count, in_flight).run()
        failed = [boot for boot in run.boots if boot.status != "ACTIVE"]
        if failed:
            raise CommandError(f"{len(failed)} of {count} boots failed, the first: {failed[0]}")
        return [boot.uuid for boot in run.boots]

    def start(self, booters: int, readers: int) -> None:
        """Begin."""
        self._greenlets = [gevent.spawn(self._boot_and_delete) for _ in range(booters)]
        self._greenlets += [gevent.spawn(self._read) for _ in range(readers)]

    def stop(self, timeout_s: float) -> None:
        """End what is under way; what has not ended then is written down as unknown. Raises what a client raised."""
        self._stopping = True
        gevent.joinall(self._greenlets, timeout=timeout_s)
        for greenlet in self._greenlets:
            if greenlet.ready():
                greenlet.get()
        gevent.killall(self._greenlets)

    def close(self) -> None:
        """Close the history."""
        self._out.close()

    # -- boots and deletes --------------------------------------------------------------------------------------------

    def _boot_and_delete(self) -> None:
        client = self._cluster.client(timeout_s=REQUEST_S)
        while not self._stopping:
            server = self._boot(client)
            gevent.sleep(self._chance.uniform(*PAUSE_S))
            if server:
                self._delete(client, server)
        client.close()

    def _boot(self, client: ApiClient) -> str:
        event = history.Operation(t=time.monotonic(), ended=0.0, name=BOOT, uuid="")
        deadline = event.t + BOOT_S
        body = {"server": {"name": f"chaos-{next(self._numbers)}", "flavorRef": "1", "imageRef": IMAGE}}
        body["server"]["networks"] = "auto"
        try:
            key = {"Idempotency-Key": str(uuid.uuid4())}
            status, answer = client.repeated("POST", "/v2.1/servers", body, deadline=deadline, headers=key)
            if status == 202:
                event.uuid = answer["server"]["id"]
                event.outcome = self._await_status(client, event.uuid, deadline)
            else:
                event.outcome = f"status {status}: {error_text(answer)}"
        except ApiFailed:
            event.outcome = ""
        finally:
            self._write(event)
        return event.uuid

    def _await_status(self, client: ApiClient, server: str, deadline: float) -> str:
        while time.monotonic() < deadline:
            gevent.sleep(POLL_S)
            status, answer = client.repeated("GET", f"/v2.1/servers/{server}", deadline=deadline)
            if status != 200:
                return f"status {status} of a server that was accepted"
            if answer["server"]["status"] == "ACTIVE":
                return OK
            if answer["server"]["status"] == "ERROR":
                return f"ERROR: {(answer['server'].get('fault') or {}).get('message', '')}"
        return ""

    def _delete(self, client: ApiClient, server: str) -> None:
        event = history.Operation(t=time.monotonic(), ended=0.0, name=DELETE, uuid=server)
        deadline = event.t + BOOT_S
        path = f"/v2.1/servers/{server}"
        try:
            status, answer = client.repeated("DELETE", path, deadline=deadline)
            if status not in (204, 404):
                event.outcome = f"status {status}: {error_text(answer)}"
            while not event.outcome and time.monotonic() < deadline:
                gevent.sleep(POLL_S)
                event.outcome = OK if client.repeated("GET", path, deadline=deadline)[0] == 404 else ""
        except ApiFailed:
            event.outcome = ""
        finally:
            self._write(event)

    def _write(self, event: history.Operation) -> None:
        event.ended = time.monotonic()
        self._out.write(event)

    # -- reads --------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        client = self._cluster.client(timeout_s=REQUEST_S)
        while not self._stopping:
            began = time.monotonic()
            rows = self._list(client)
            if rows is not None:
                values = {row["id"]: row["progress"] for row in rows if "progress" in row}
                self._out.write(history.Read(t=began, ended=time.monotonic(), values=values))
            gevent.sleep(READ_S)
        client.close()

    @staticmethod
    def _list(client: ApiClient) -> list[dict[str, Any]] | None:
        """The servers; None when the list failed, or is not whole (a cell did not answer)."""
        try:
            status, answer = client.request("GET", f"/v2.1/servers/detail?limit={LIST_LIMIT}")
        except (OSError, http.client.HTTPException):
            return None
        if status != 200 or any(row["status"] == "UNKNOWN" for row in answer["servers"]):
            return None
        return list(answer["servers"])
