"""The endpoints of a test of the bus, and peers in processes of their own that are killed and stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gevent
import msgspec

from tests.cluster.bus_dialogs import Config, Journal, Service
from tests.unit.bus.conftest import Bus, wait_until
from zcompute.bus import Endpoint, Limits, Link

PEERS = {"server": "conductor", "agent": "compute", "agent2": "compute"}
"""Names of the processes, and their roles."""
OWN = {"here": "conductor", "neighbour": "compute"}
"""Names of endpoints of the test, and their roles."""


class Peer:
    """A process with a journal; the next life of it has the same journal."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.journal = Journal(Path(config.journal))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(__file__).with_name("bus_peer.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), msgspec.json.encode(self.config).decode()], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def stop(self) -> None:
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait(5)
            assert process.stdout is not None
            process.stdout.close()

    def restart(self) -> None:
        self.kill()
        self.start()


class Scene:
    """Makes endpoints and peers, and ends them."""

    def __init__(self, directory: Path) -> None:
        self.bus = Bus()
        for name, role in {**PEERS, **OWN}.items():
            self.bus.keys.make(name, role)
        self._directory = directory
        self._peers: list[Peer] = []

    def endpoint(self, name: str = "here", limits: Limits | None = None) -> Endpoint:
        """An endpoint in this process."""
        return self.bus.endpoint(OWN[name], name, limits=limits, topics=("state",))

    def service(self, limits: Limits | None = None) -> tuple[Endpoint, str, Journal]:
        """An endpoint in this process that listens and serves everything; its address and journal."""
        endpoint = self.endpoint(limits=limits)
        journal = Journal(self._directory / "here.journal")
        Service(endpoint, journal)
        return endpoint, endpoint.bind("tcp://127.0.0.1:0"), journal

    def peer(
        self,
        name: str,
        *,
        dials: str = "",
        server_key: str = "",
        does: str = "",
        count: int = 0,
        limits: dict[str, int] | None = None,
    ) -> Peer:
        """A process, started: it dials `here` at that address, or listens at its own."""
        public, secret = self.bus.keys.secrets[name]
        if dials and not server_key:
            server_key = self.bus.keys.secrets["here"][0]
        config = Config(
            service_id=name, role=PEERS[name], public=public, secret=secret,
            keys=[(entry.name, entry.public_key, entry.role) for entry in self.bus.keys.entries],
            address=dials or self._free_address(), server_key=server_key,
            journal=str(self._directory / f"{name}.journal"), limits=limits or {}, does=does, count=count,
        )  # fmt: skip
        peer = Peer(config)
        self._peers.append(peer)
        peer.start()
        return peer

    def dial(self, endpoint: Endpoint, peer: Peer) -> Link:
        """A link that is up, from an endpoint of ours to a process that listens."""
        link = endpoint.dial(peer.config.address, peer.config.public)
        assert link.wait_up(5000)
        return link

    def _free_address(self) -> str:
        probe = Endpoint(self.bus.endpoint("api", "probe", plain=True).identity)
        address = probe.bind("tcp://127.0.0.1:0")
        probe.close(linger_ms=0)
        return address

    def close(self) -> None:
        for peer in self._peers:
            peer.kill()
        self.bus.close()


def seconds_until(holds: Callable[[], object], timeout_s: float = 5.0) -> float:
    """Wait for a condition; how long that took."""
    started = time.monotonic()
    wait_until(holds, timeout_s)
    return time.monotonic() - started


def p99(values: list[float]) -> float:
    """The value that one in a hundred exceeds."""
    return sorted(values)[int(len(values) * 0.99)]


def delays(ask: Callable[[], object], seconds: float, pause_s: float = 0.002) -> list[float]:
    """How long each answer took, one question after another for so long."""
    found = []
    ends = time.monotonic() + seconds
    while (before := time.monotonic()) < ends:
        ask()
        found.append(time.monotonic() - before)
        gevent.sleep(pause_s)
    return found
