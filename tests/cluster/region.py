"""What tests do to a whole region: start it, run the command, boot, audit, wait, look for what is left."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import psutil

from zcompute.cli.up.boots import Boot, Booter, BootRun
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region

POLL_S = 0.02
WAIT_S = 30.0
COMMAND_S = 100.0


@contextmanager
def started(state_dir: Path, database: str, shape: Shape | None = None) -> Iterator[Region]:
    """A region that is up; stopped at the end, whatever happened."""
    region = Region.create(state_dir, database, api_port=0, shape=shape)
    try:
        region.start()
        yield region
    finally:
        region.stop()


def command(*arguments: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    """Run ``zcompute`` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "zcompute.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def popen(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """Start ``zcompute`` with these arguments, its output in a file."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "zcompute.cli.main", *arguments], stdout=file, stderr=file, start_new_session=True
        )


def wait_until(
    condition: Callable[[], object], what: str, timeout_s: float = WAIT_S, *, found: Callable[[], object] | None = None
) -> None:
    """Until the condition holds; fails with ``what`` and what was ``found`` when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}: {found() if found else ''}"
        gevent.sleep(POLL_S)


def boot(region: Region, count: int, in_flight: int = 20, *, flavor: str = "1") -> BootRun:
    """Boot servers and wait until all have ended."""
    return Booter(region, count, in_flight, flavor=flavor).run()


def boot_while(region: Region, count: int, act: Callable[[Booter], None], in_flight: int = 20) -> BootRun:
    """Boot servers while ``act`` does something to the region; what it raises is raised here."""
    booter = Booter(region, count, in_flight)
    acting = gevent.spawn(act, booter)
    try:
        run = booter.run()
        acting.get(timeout=WAIT_S)
    finally:
        acting.kill()
    return run


def when_share_done(booter: Booter, share: float) -> None:
    """Until this share of the boots has ended."""
    wait_until(lambda: booter.share_done >= share, f"{share:.0%} of the boots", timeout_s=60)


def assert_all_active(run: BootRun) -> None:
    """Every boot ended ACTIVE."""
    failed: list[Boot] = [item for item in run.boots if item.status != "ACTIVE"]
    assert not failed, [f"{item.name} {item.uuid} {item.status} {item.fault}" for item in failed[:5]]


def assert_audit_holds(region: Region) -> None:
    """The audit command finds nothing."""
    done = command("audit", "--state-dir", str(region.paths.state_dir), timeout_s=60)
    assert done.returncode == 0, done.stdout + done.stderr


def delete_all(region: Region, uuids: list[str]) -> None:
    """DELETE each of these servers and wait until none is shown."""
    client = region.client()
    deadline = time.monotonic() + 60
    for uuid in uuids:
        status, answer = client.repeated("DELETE", f"/v2.1/servers/{uuid}", deadline=deadline)
        assert status in (204, 404), (status, answer)
    for uuid in uuids:
        wait_until(
            lambda uuid=uuid: client.repeated("GET", f"/v2.1/servers/{uuid}", deadline=deadline)[0] == 404,
            f"{uuid} gone",
        )
    client.close()


def region_processes(state_dir: Path) -> list[psutil.Process]:
    """Every process whose command line names this state directory: services, databases, the command itself."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if process.pid != psutil.Process().pid and any(str(state_dir) in word for word in words):
            found.append(process)
    return found
