"""The state directory of an embedded region: its version, its lock, its region.toml; and free ports."""

import fcntl
import os
import re
import socket
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from zcompute.cli.exits import CommandError, PortInUse, StateDirInUse, StateDirVersion, UsageRefused
from zcompute.cli.toml_text import dumps
from zcompute.cli.up.layout import API_HOST, Paths, RegionFile

LAYOUT_VERSION = "1"
PORT_FIRST = 26000  # below them are those that the bus chooses for port 0
PORT_LAST = 31999
CHOSEN_S_MAX = 120.0
"""A port that was chosen for a region is nobody else's for so long: its process listens there by then."""


def check_version(paths: Paths, *, create: bool) -> None:
    """Refuse a directory of another layout, and one that holds something else. Raises StateDirVersion, UsageRefused."""
    if paths.version.exists():
        found = paths.version.read_text(encoding="utf-8").strip()
        if found != LAYOUT_VERSION:
            raise StateDirVersion(
                f"{paths.state_dir} is of version {found or '(empty)'}, this release reads version {LAYOUT_VERSION}: "
                "use the release that wrote it, or another --state-dir"
            )
        return
    if not create:
        raise UsageRefused(f"{paths.state_dir} holds no region: start one with `zcompute up --state-dir`")
    if paths.state_dir.is_dir() and any(entry.name != paths.lock.name for entry in paths.state_dir.iterdir()):
        raise UsageRefused(f"{paths.state_dir} is not empty and holds no region: use another --state-dir")


def take_lock(paths: Paths) -> int:
    """The lock on the state directory, held until the descriptor is closed. Raises StateDirInUse, CommandError."""
    try:
        paths.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(f"{paths.state_dir} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StateDirInUse(
            f"{paths.state_dir} is in use by another `zcompute up` (pid {holder or 'unknown'}): "
            "stop it, or use another --state-dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def read_region(paths: Paths) -> RegionFile:
    """region.toml. Raises UsageRefused when it is damaged."""
    try:
        return msgspec.convert(tomllib.loads(paths.region.read_text(encoding="utf-8")), RegionFile)
    except (OSError, ValueError) as error:
        raise UsageRefused(f"{paths.region} cannot be read: {error}") from error


def write_region(paths: Paths, region: RegionFile) -> None:
    """Write region.toml, then the version: a directory with a version is whole."""
    for path, text in ((paths.region, dumps(msgspec.to_builtins(region))), (paths.version, LAYOUT_VERSION + "\n")):
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.rename(path)


def port_is_free(port: int) -> bool:
    """True when this process could listen on the port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((API_HOST, port))
        except OSError:
            return False
    return True


def require_free(port: int) -> None:
    """Raises PortInUse."""
    if not port_is_free(port):
        raise PortInUse(f"port {port} of {API_HOST} is in use: stop what listens there, or use --api-port")


def free_ports(names: list[str], wanted: dict[str, int]) -> dict[str, int]:
    """A port for each name below the ephemeral range: the wanted one where it is still free, else another."""
    taken: set[int] = set()
    chosen: dict[str, int] = {}
    for name in names:
        port = wanted.get(name, 0)
        if port and port not in taken and port_is_free(port):
            chosen[name] = port
            taken.add(port)
    missing = [name for name in names if name not in chosen]
    if missing:
        chosen.update(zip(missing, _choose(len(missing), taken), strict=True))
    return chosen


def _choose(count: int, taken: set[int]) -> list[int]:
    """Ports that nobody listens on, and that were chosen for nobody else who is about to. Raises PortInUse."""
    span = PORT_LAST - PORT_FIRST + 1
    start = int.from_bytes(os.urandom(4), "big") % span
    with _chosen_lately() as others:
        free: list[int] = []
        for port in (PORT_FIRST + (start + step) % span for step in range(span)):
            if port not in taken and port not in others and port_is_free(port):
                free.append(port)
                others[port] = time.monotonic()
            if len(free) == count:
                return free
    raise PortInUse(f"{count} free ports wanted from {PORT_FIRST} to {PORT_LAST} of {API_HOST}, found {len(free)}")


@contextmanager
def _chosen_lately() -> Iterator[dict[int, float]]:
    """The ports chosen by this user's regions in the last CHOSEN_S_MAX, with the machine's monotonic time of it; kept
    in a file that is held alone meanwhile."""
    path = Path(tempfile.gettempdir()) / f"zcompute-ports-{os.getuid()}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+", encoding="ascii") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        now_s = time.monotonic()
        lines = re.findall(r"^(\d{1,5}) (\d{1,12}\.\d{3})$", kept.read(), re.MULTILINE)
        chosen = {int(port): float(at_s) for port, at_s in lines if 0 <= now_s - float(at_s) < CHOSEN_S_MAX}
        yield chosen
        kept.seek(0)
        kept.truncate()
        kept.writelines(f"{port} {at_s:.3f}\n" for port, at_s in chosen.items())
