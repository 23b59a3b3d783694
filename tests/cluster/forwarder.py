"""A cut between one service and one conductor: the service dials a forwarder, which can be closed and opened again.

``detoured`` makes a service of a region dial forwarders: its process is started by ``detour.py``, which changes nothing
but the addresses that its endpoint dials.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

from zcompute.cli.up.process import ServiceProcess
from zcompute.cli.up.region import Region

CHUNK_BYTES = 65536
ENTRY = Path(__file__).with_name("detour.py")


class Forwarder:
    """Forwards TCP to ``target`` on 127.0.0.1 while it is open. What the target says can be held back for a while: it
    comes then, whatever others have said meanwhile."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: StreamServer | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._flows = Event()
        self._flows.set()
        self.port = 0
        self.open()

    def hold(self) -> None:
        """Nothing of what the target says from now on comes, until ``release``. Shorter than the bus takes it for dead:
        ``silence_ms_max``."""
        self._flows.clear()

    def release(self) -> None:
        """All of it comes."""
        self._flows.set()

    def open(self) -> None:
        """Let connections in (again), on the same port."""
        if self._server is None:
            self._server = StreamServer(("127.0.0.1", self.port), self._forward)
            self._server.start()
            self.port = self._server.server_port

    def cut(self) -> None:
        """End every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for pair in list(self._pairs):
            for one in pair:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the other end was faster

    def _forward(self, near: socket.socket, address: object) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            near.close()  # as a dead conductor would
            return
        far.settimeout(None)
        pair = (near, far)
        self._pairs.add(pair)
        try:
            gevent.joinall([gevent.spawn(_pump, near, far), gevent.spawn(_pump, far, near, self._flows)])
        finally:
            self._pairs.discard(pair)
            near.close()
            far.close()


def _pump(source: socket.socket, sink: socket.socket, flows: Event | None = None) -> None:
    try:
        while data := source.recv(CHUNK_BYTES):
            if flows is not None:
                flows.wait()
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def detoured(region: Region, service_id: str, conductors: list[str]) -> Iterator[dict[str, Forwarder]]:
    """Have a running service dial these conductors over forwarders, by conductor; its process is started anew.

    At the end the forwarders are open, and stay so for as long as the test's process lives.
    """
    made = {name: Forwarder(region.file.bus_ports[name]) for name in conductors}
    detours = {
        f"tcp://127.0.0.1:{region.file.bus_ports[name]}": f"tcp://127.0.0.1:{forwarder.port}"
        for name, forwarder in made.items()
    }
    file = region.paths.service(service_id) / "detours.json"
    file.write_text(json.dumps(detours))
    plan = region.plans[service_id]
    arguments = [sys.executable, str(ENTRY), str(file), plan.kind, "--config", str(region.paths.config(service_id))]
    region.kill(service_id)
    process = region.processes[service_id] = ServiceProcess(service_id, arguments, region.paths.log(service_id))
    process.start()
    try:
        yield made
    finally:
        for forwarder in made.values():
            forwarder.open()
