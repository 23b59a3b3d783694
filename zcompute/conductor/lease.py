"""Who is alive: beats raised by a native thread, and the count of a peer's silence. Monotonic clocks only.

A beat says that the process runs and that its hub turns. A peer is dead when its counter has not moved for lease_ms of
the watcher's own clock, without any disturbance of the watcher itself: a database that stalls kills nobody.

Two things shorten that, both for a peer whose port refuses, asked twice: two silent beats; or the end of the session in
which it beat, of which the database is the witness (docs/decisions/0015-take-over-time.md). The end of a link with a
peer only makes the watch look more often.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import gevent
from gevent import monkey, socket

from zcompute.conductor.settings import LeaseSettings
from zcompute.db.store import Beater

log = logging.getLogger(__name__)

RETRY_S = 0.05
ENDED_LOOKS = 2


@dataclass
class _Silence:
    """A peer's last counter, since when (at the earliest) it has not moved, and when it was last and first seen to."""

    counter: int
    since_s: float
    moved_at_s: float | None = None
    first_moved_at_s: float = 0.0


class LeaseWatch:
    """Counts the silence of peers. Pure: the times are passed in, in seconds of time.monotonic()."""

    def __init__(self, settings: LeaseSettings, me: str) -> None:
        self._settings = settings
        self._me = me
        self._peers: dict[str, _Silence] = {}
        self._read_at_s: float | None = None
        self._checked_at_s = 0.0
        self._disturbed_at_s = -settings.lease_ms / 1000
        self._refused: set[str] = set()
        self._doubted_at_s: dict[str, float] = {}
        self._attended: set[str] = set()
        self._ended_looks: dict[str, int] = {}

    def failed(self, now_s: float) -> None:
        """A read of the beats failed: every count starts again."""
        self._restart(now_s)

    def observe(self, sent_s: float, received_s: float, beats: Mapping[str, int], disturbed_s: float) -> None:
        """The beats as read between ``sent_s`` and ``received_s``.

        A counter that has moved did so before ``received_s``, so silence counts from there; it is known to have
        lasted until ``sent_s``, since the read began then. ``disturbed_s``: when an own beat last failed or was slow.
        """
        settings = self._settings
        gap_s = 0.0 if self._read_at_s is None else sent_s - self._read_at_s
        slow = (received_s - sent_s) * 1000 > settings.round_trip_ms_max
        if slow or gap_s * 1000 > settings.lease_ms / 2:
            self._restart(received_s)
        elif disturbed_s:
            self._restart(disturbed_s)
        self.forget(self._peers.keys() - beats.keys())
        for incarnation, counter in beats.items():
            if incarnation == self._me:
                continue
            peer = self._peers.get(incarnation)
            if peer is None:
                self._peers[incarnation] = _Silence(counter, received_s)
            elif counter != peer.counter:
                if peer.moved_at_s is None:
                    peer.first_moved_at_s = received_s
                peer.counter, peer.since_s, peer.moved_at_s = counter, received_s, received_s
                self._refused.discard(incarnation)
                self._ended_looks.pop(incarnation, None)
        self._read_at_s = received_s
        self._checked_at_s = sent_s

    def forget(self, incarnations: Iterable[str]) -> None:
        """They are gone: others own what was theirs."""
        for incarnation in list(incarnations):
            self._peers.pop(incarnation, None)
            self._refused.discard(incarnation)
            self._doubted_at_s.pop(incarnation, None)
            self._attended.discard(incarnation)
            self._ended_looks.pop(incarnation, None)

    def doubt(self, incarnation: str, now_s: float) -> None:
        """Our link with this peer has ended: ask about it, and look often, for lease_ms."""
        if incarnation in self._peers:
            self._doubted_at_s[incarnation] = now_s

    def doubts(self, now_s: float) -> bool:
        """Whether anybody is doubted."""
        ends_s = self._settings.lease_ms / 1000
        self._doubted_at_s = {name: at_s for name, at_s in self._doubted_at_s.items() if now_s - at_s < ends_s}
        return bool(self._doubted_at_s)

    def suspects(self) -> list[str]:
        """Silent for ``refused_beats``, or doubted: worth asking whether their port refuses."""
        return sorted({*self._silent_beats(), *self._doubted_at_s})

    def strangers(self) -> list[str]:
        """They beat, and whether the database knows the session in which they do was not asked yet."""
        return sorted(
            incarnation
            for incarnation, peer in self._peers.items()
            if peer.moved_at_s is not None and incarnation not in self._attended
        )

    def refuses(self, incarnation: str) -> None:
        """Its port refused, asked twice."""
        self._refused.add(incarnation)

    def attended(self, asked: Iterable[str], alive: Collection[str]) -> None:
        """Of those asked for, the database knows a living session in which these beat.

        One that was never known to have such a session (another release, SQLite) cannot be seen to have lost it.
        """
        for incarnation in asked:
            if incarnation in alive:
                self._attended.add(incarnation)
                self._ended_looks.pop(incarnation, None)
            elif incarnation in self._attended:
                self._ended_looks[incarnation] = self._ended_looks.get(incarnation, 0) + 1

    def dead(self) -> dict[str, str]:
        """Who is dead, and why: silent for the whole lease; or its port refuses, and it is silent for refused_beats or
        its session has ended (seen twice, while nothing disturbed this watcher for lease_ms)."""
        silent_beats = self._silent_beats()
        found = dict.fromkeys(self._silent(self._settings.lease_ms), "silent for lease_ms")
        calm = (self._checked_at_s - self._disturbed_at_s) * 1000 >= self._settings.lease_ms
        for incarnation in self._refused:
            if incarnation in silent_beats:
                found.setdefault(incarnation, "silent, its port refuses")
            elif calm and self._ended_looks.get(incarnation, 0) >= ENDED_LOOKS:
                found.setdefault(incarnation, "its session has ended, its port refuses")
        return dict(sorted(found.items()))

    def fresh(self) -> list[str]:
        """Seen to beat, and no suspect of half a lease: fit to receive partitions."""
        half_silent = set(self._silent(self._settings.lease_ms // 2))
        return sorted(
            incarnation
            for incarnation, peer in self._peers.items()
            if peer.moved_at_s is not None and incarnation not in half_silent
        )

    def settled(self) -> list[str]:
        """The fresh ones that have beaten for ``join_ms``: the agents have had the time to find them."""
        joined_s = self._checked_at_s - self._settings.join_ms / 1000
        return [incarnation for incarnation in self.fresh() if self._peers[incarnation].first_moved_at_s <= joined_s]

    def _silent_beats(self) -> list[str]:
        return self._silent(self._settings.refused_beats * self._settings.beat_ms)

    def _silent(self, silence_ms: int) -> list[str]:
        return sorted(
            incarnation
            for incarnation, peer in self._peers.items()
            if (self._checked_at_s - peer.since_s) * 1000 >= silence_ms
        )

    def _restart(self, now_s: float) -> None:
        self._disturbed_at_s = max(self._disturbed_at_s, now_s)
        self._ended_looks.clear()
        for peer in self._peers.values():
            peer.since_s = max(peer.since_s, now_s)


class BeatThread:
    """Raises the beat while the hub turns. The thread is a native one, of gevent's unpatched world: it takes no
    patched lock, logs nothing, and shares plain attributes with the hub."""

    def __init__(self, beater: Beater, settings: LeaseSettings) -> None:
        self._beater = beater
        self._settings = settings
        self._hub_at_s = time.monotonic()
        self._stop = False
        self._stopped = True
        self._beating_since_s = 0.0
        self._disturbed_at_s = 0.0
        self._held_from_s = 0.0

    def tick_hub(self) -> None:
        """The greenlet that shows that the hub turns; runs until it is killed."""
        while True:
            now_s = time.monotonic()
            late_ms = (now_s - self._hub_at_s) * 1000 - self._settings.hub_tick_ms
            if late_ms > self._settings.hub_late_ms_max:
                log.warning(
                    "hub late ms=%.0f: no beat meanwhile, peers wait lease_ms=%s", late_ms, self._settings.lease_ms
                )
            self._hub_at_s = now_s
            gevent.sleep(self._settings.hub_tick_ms / 1000)

    def start(self) -> None:
        """Begin to beat."""
        self._hub_at_s = time.monotonic()
        self._stopped = False
        monkey.get_original("_thread", "start_new_thread")(self._run, ())

    def stop(self, timeout_ms: int) -> bool:
        """No beat begins after this; False when one is still under way at the deadline."""
        self._stop = True
        ends_at_s = time.monotonic() + timeout_ms / 1000
        while not self._stopped and time.monotonic() < ends_at_s:
            gevent.sleep(0.005)
        return self._stopped

    def disturbed_at_s(self, now_s: float) -> float:
        """When an own beat last failed or took too long (now, while one does); 0.0 for never."""
        since_s = self._beating_since_s
        if since_s and (now_s - since_s) * 1000 > self._settings.round_trip_ms_max:
            return now_s
        return self._disturbed_at_s

    def held(self, now_s: float) -> bool:
        """Whether a beat that began less than lease_ms ago has committed: reads may call themselves current."""
        return self._held_from_s > 0 and (now_s - self._held_from_s) * 1000 < self._settings.lease_ms

    def _run(self) -> None:
        sleep: Callable[[float], None] = monkey.get_original("time", "sleep")
        try:
            while not self._stop:
                begun_s = time.monotonic()
                sleep(self._beat(begun_s))
        finally:
            self._beater.close()
            self._stopped = True

    def _beat(self, begun_s: float) -> float:
        """One beat if the hub turns; returns the seconds until the next."""
        settings = self._settings
        if (begun_s - self._hub_at_s) * 1000 > settings.hub_late_ms_max:
            return settings.hub_tick_ms / 1000
        self._beating_since_s = begun_s
        beaten = self._beater.beat()
        ended_s = time.monotonic()
        if beaten:
            self._held_from_s = begun_s
        if not beaten or (ended_s - begun_s) * 1000 > settings.round_trip_ms_max:
            self._disturbed_at_s = ended_s
        self._beating_since_s = 0.0
        return max(0.0, begun_s + settings.beat_ms / 1000 - ended_s) if beaten else RETRY_S


def port_refuses(address: str, timeout_ms: int) -> bool:
    """Whether a connection to ``tcp://host:port`` is refused outright. Silence, or anything else, is no refusal."""
    parts = urlsplit(address)
    if parts.scheme != "tcp" or not parts.hostname or not parts.port:
        return False
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=timeout_ms / 1000).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
