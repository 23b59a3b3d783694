"""HTTP connections to the API's processes apart: all share one socket, and the kernel says who takes a connection."""

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any

import gevent
import psutil

from zcompute.cli.up.layout import API
from zcompute.cli.up.region import Region

TRIES_MAX = 200
ANSWER_S_MAX = 30.0
AGAIN_S = 0.05


@dataclass(frozen=True)
class Answer:
    """Status and body of a response, and how long it took."""

    status: int
    body: Any
    took_ms: float


class Client:
    """A keep-alive connection: plain HTTP, as any client of Nova's has it."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S_MAX)
        self._headers = {"X-Auth-Token": token, "Content-Type": "application/json"}
        self._connection.connect()
        self.local_port = int(self._connection.sock.getsockname()[1])
        self.put_off = 0

    def ask(self, method: str, target: str, body: object = None) -> Answer:
        """The first answer but 503, which is what says "again". Raises SystemExit when there is none in time."""
        began_s = time.monotonic()
        text = None if body is None else json.dumps(body)
        while time.monotonic() - began_s < ANSWER_S_MAX:
            self._connection.request(method, target, body=text, headers=self._headers)
            response = self._connection.getresponse()
            data = response.read()
            if response.status != http.client.SERVICE_UNAVAILABLE:
                found = json.loads(data) if data else None
                return Answer(response.status, found, (time.monotonic() - began_s) * 1000)
            self.put_off += 1
            gevent.sleep(AGAIN_S)
        raise SystemExit(f"{method} {target}: nothing but 503 for {ANSWER_S_MAX:g} s")

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def clients(region: Region, token: str) -> list[Client]:
    """A connection to each of the API's processes. Raises SystemExit when one of them takes none."""
    (parent,) = [process.pid for service, process in region.processes.items() if region.plans[service].kind == API]
    wanted = [child.pid for child in psutil.Process(parent).children()]
    found: dict[int, Client] = {}
    for _ in range(TRIES_MAX):
        if len(found) == len(wanted):
            break
        made = Client(region.file.api_port, token)
        made.ask("GET", "/v2.1/servers?limit=1")  # whoever answers has accepted it
        pid = _taken_by(wanted, made.local_port)
        if pid is None or pid in found:
            made.close()
        else:
            found[pid] = made
    else:
        raise SystemExit(f"expected a connection to each of {wanted}, found those to {list(found)}")
    return list(found.values())


def _taken_by(pids: list[int], port: int) -> int | None:
    """Which process has the other end of a local port."""
    for pid in pids:
        for each in psutil.Process(pid).net_connections("tcp4"):
            if each.raddr and each.raddr.port == port:
                return pid
    return None
