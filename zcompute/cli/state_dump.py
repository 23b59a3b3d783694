"""SIGUSR2: a service writes what it is doing to a file, and goes on.

The file is JSON: every endpoint's stat with all its links, and the stacks of all greenlets and threads, equal ones
counted together. It holds no payloads and no keys, but names of peers: mode 0600.
"""

import gc
import logging
import os
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import gevent
import greenlet
import msgspec

from zcompute import __version__
from zcompute.bus import Endpoint, EndpointStat, open_endpoints
from zcompute.config import Config

log = logging.getLogger(__name__)

DUMPS_KEPT_MAX = 10
LINKS_AT_ONCE = 500  # between two turns of the hub
STACK_FRAMES_MAX = 40
SUFFIX = ".state.json"


class Stack(msgspec.Struct):
    """Where so many greenlets or threads are: innermost first, "file:line function"."""

    count: int
    kind: str
    frames: list[str]


class StateDump(msgspec.Struct, kw_only=True):
    """A process as it is."""

    service_id: str
    release: str
    pid: int
    written_at: str  # UTC
    endpoints: list[EndpointStat]
    stacks: list[Stack]


def dump_dir(config: Config) -> Path:
    """Where this service's dumps go: [log] dump_dir, else beside its log, else its state directory."""
    if config.log.dump_dir:
        return Path(config.log.dump_dir)
    return Path(config.log.file).parent if config.log.file else Path(config.service.state_dir)


class StateDumper:
    """Writes dumps, one at a time; a signal that comes meanwhile is logged and otherwise ignored."""

    def __init__(self, config: Config) -> None:
        self._service_id = config.service.id
        self._dir = dump_dir(config)
        self._writing = False

    def __call__(self) -> None:
        """Write one; a failure is logged: the service goes on."""
        if self._writing:
            log.warning("state dump is being written already, the signal is ignored")
            return
        self._writing = True
        try:
            document = self._take()
            path = self._dir / f"{self._service_id}-{document.written_at.replace(':', '')}{SUFFIX}"
            gevent.get_hub().threadpool.apply(write_dump, (path, document, self._service_id))
            log.info("state dump written path=%s", path)
        except OSError as error:
            log.warning("state dump could not be written dir=%s error=%s", self._dir, error)
        except Exception:
            log.exception("state dump failed")
        finally:
            self._writing = False

    def _take(self) -> StateDump:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        return StateDump(
            service_id=self._service_id,
            release=__version__,
            pid=os.getpid(),
            written_at=stamp,
            endpoints=[whole_stat(endpoint) for endpoint in open_endpoints()],
            stacks=stacks(),
        )


def whole_stat(endpoint: Endpoint) -> EndpointStat:
    """The stat with every link, taken in pages between which the hub runs."""
    stat = endpoint.stat(links_max=LINKS_AT_ONCE)
    while len(stat.links) < stat.links_known and not endpoint.closed:
        gevent.sleep(0)
        page = endpoint.stat(links_from=len(stat.links), links_max=LINKS_AT_ONCE).links
        if not page:
            break
        stat.links += page
    return stat


def stacks() -> list[Stack]:
    """The stacks of all greenlets and threads, the most frequent first. Costs about 0.1 s a million objects."""
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for thing in gc.get_objects():
        if isinstance(thing, greenlet.greenlet) and thing.gr_frame is not None:
            found["greenlet", _frames(thing.gr_frame)] += 1
    for frame in sys._current_frames().values():
        found["thread", _frames(frame)] += 1
    return [Stack(count, kind, list(frames)) for (kind, frames), count in found.most_common()]


def _frames(frame: FrameType | Any) -> tuple[str, ...]:
    lines: list[str] = []
    while frame is not None and len(lines) < STACK_FRAMES_MAX:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(lines)


def write_dump(path: Path, document: StateDump, service_id: str) -> None:
    """Write a dump, whole or not at all, and delete this service's oldest beyond DUMPS_KEPT_MAX. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(document), indent=1))
    fresh.rename(path)
    kept = sorted(other for other in path.parent.glob(f"*{SUFFIX}") if _is_of(other, service_id))
    for old in kept[:-DUMPS_KEPT_MAX]:
        old.unlink(missing_ok=True)


def _is_of(path: Path, service_id: str) -> bool:
    stamp = path.name.removesuffix(SUFFIX).removeprefix(f"{service_id}-")
    return (
        path.name.startswith(f"{service_id}-") and len(stamp) == len("2026-01-31T120000.123Z") and stamp[:2].isdigit()
    )
