"""RabbitMQ and NATS servers of Debian, private to one run: loopback, free ports, ended by their own process ids."""

import os
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 20.0
PORTS = range(20000, 32000)
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class BrokerFailed(RuntimeError):
    """A broker is not installed or did not start."""


def free_port() -> int:
    """A port of 20000-31999 that nobody listens on."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Broker:
    """One or more processes, of which the last opens `port`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._children: list[subprocess.Popen[bytes]] = []

    def _spawn(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment or dict(os.environ)
            )
        self._children.append(child)

    def _wait_open(self, log: Path) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline and self._children[-1].poll() is None:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise BrokerFailed(f"no broker on port {self.port} within {START_DEADLINE_S:g} s:\n{log.read_text()[-2000:]}")

    def pids(self) -> tuple[int, ...]:
        """All its processes, those it started included."""
        found = []
        for child in self._children:
            found += [child.pid, *(process.pid for process in psutil.Process(child.pid).children(recursive=True))]
        return tuple(found)

    def stop(self) -> None:
        """End the processes and what they started."""
        for child in reversed(self._children):
            family = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
            child.terminate()
            try:
                child.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(STOP_DEADLINE_S)
            for process in family:
                if process.is_running():
                    process.kill()


class Nats(Broker):
    """A nats-server."""

    def __init__(self, directory: Path) -> None:
        super().__init__(free_port())
        binary = shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if binary is None:
            raise BrokerFailed("nats-server is not installed: run make bench-peers")
        log = directory / "nats.log"
        config = directory / "nats.conf"
        config.write_text(f'listen: "127.0.0.1:{self.port}"\nmax_pending: 1GB\n', encoding="utf-8")
        self._spawn([binary, "-c", str(config)], log)
        self._wait_open(log)
        self.url = f"nats://127.0.0.1:{self.port}"


class Rabbit(Broker):
    """A RabbitMQ node with an Erlang port mapper of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(free_port())
        epmd = shutil.which("epmd")
        if not RABBITMQ.exists() or epmd is None:
            raise BrokerFailed("rabbitmq-server is not installed: run make bench-peers")
        epmd_port = free_port()
        log = directory / "rabbitmq.log"
        config = directory / "rabbitmq.conf"
        config.write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n", encoding="utf-8")
        (directory / "enabled_plugins").write_text("[].\n", encoding="utf-8")
        environment = {
            **os.environ,
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"bench{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(directory / "rabbitmq.pid"),
        }
        try:
            self._spawn([epmd, "-port", str(epmd_port), "-address", "127.0.0.1"], log)
            self._spawn([str(RABBITMQ)], log, environment)
            self._wait_open(log)
        except BaseException:
            self.stop()
            raise
        self.url = f"rabbit://guest:guest@127.0.0.1:{self.port}/"
