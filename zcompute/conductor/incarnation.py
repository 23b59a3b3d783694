"""One life of a conductor: register, beat, watch the others, own partitions; until it is fenced or stopped.

Three greenlets decide: the watch reads the beats and says who is dead; the keeper alone reads the map and changes
what is owned (so it never acts on two states at once); each lane commits. Any failure of any of them ends the life.
"""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from zcompute.conductor.clock import PrimaryClock
from zcompute.conductor.errors import ConductorError, IncarnationEnded
from zcompute.conductor.keeper import Keeper
from zcompute.conductor.lane import Lane
from zcompute.conductor.lease import BeatThread, LeaseWatch, port_refuses
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.outage import Outage
from zcompute.conductor.settings import LifeSettings
from zcompute.db.errors import ConnectionLost, DatabaseBusy, StoreError
from zcompute.db.store import ConductorRow, Store
from zcompute.failpoints import failpoint

log = logging.getLogger(__name__)

KILL_S_MAX = 1.0
ABANDONED_BEAT_MS = 50

Probe = Callable[[str, int], bool]


class Incarnation:
    """``run`` blocks for the whole life and returns why it ended. Not used twice.

    ``ledger`` exists from the start, so that callbacks can be set before ``run``; it owns nothing until then.
    ``wait_ready`` returns when the first partition map has been read under living lanes.
    """

    def __init__(
        self,
        store: Store,
        cell: str,
        service_id: str,
        address: str,
        public_key: str = "",
        settings: LifeSettings | None = None,
        probe: Probe = port_refuses,
        refused: Counter[str] | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.settings = settings or LifeSettings()
        self.reason = ""
        self.abandoned = False
        self._store = store
        self._cell = cell
        self._row = ConductorRow(service_id, self.id, address, public_key)
        self._probe = probe
        self._clock = PrimaryClock(store, self.settings.clock_s)
        self.ledger = Ledger(store, cell, self.settings.ledger, self._clock.now_us, refused)
        self._watch = LeaseWatch(self.settings.lease, self.id)
        self._lanes: dict[int, Lane] = {}
        self._keeper: Keeper | None = None
        self._beats: BeatThread | None = None
        self._greenlets: list[gevent.Greenlet[..., Any]] = []
        self._ready = Event()
        self._ended = Event()
        self._stopping = False
        self._outage = Outage()
        self._hurry = Event()

    # -- for the service ----------------------------------------------------------------------------------------

    def run(self) -> str:
        """Live; returns the reason of the end. Raises ConductorError for a database of another cell, StoreError when
        the database cannot be reached within register_retry_s_max."""
        try:
            self._begin()
            self._ended.wait()
        except IncarnationEnded as ended:
            self._end(ended.reason)
        finally:
            self._end("abandoned")
            self._finish()
        return self.reason

    def wait_ready(self, timeout_ms: int) -> bool:
        """Whether the ledger is ready for work within the time."""
        return bool(self._ready.wait(timeout_ms / 1000)) and not self.reason

    def stop(self, timeout_ms: int | None = None) -> None:
        """The planned end: decide nothing more, hand the partitions over to the living, release the rest.

        Returns when the life has ended; what is not handed over within the time is released as it is.
        """
        limit_ms = self.settings.stop_ms_max if timeout_ms is None else timeout_ms
        self._stopping = True
        if self._keeper is not None:
            self._keeper.stop()
            self._ended.wait(limit_ms / 1000)
        self._end("stopped")

    def abandon(self, reason: str) -> None:
        """The database is not the cell's any more: end at once, and leave it as it is."""
        self.abandoned = True
        self._end(reason)

    def readdress(self, address: str, public_key: str) -> None:
        """Tell everybody, through the map, where this conductor listens now. Raises StoreError."""
        self._store.readdress(self._row.service_id, self.id, address, public_key)
        if self._keeper is not None:
            self._keeper.wake()

    @property
    def lanes(self) -> list[Lane]:
        """The writer lanes, in the order of their ids."""
        return list(self._lanes.values())

    @property
    def database_lost_s(self) -> float:
        """For how long some part has been without the database; 0.0 when all are well."""
        return self._outage.lasting_s

    def announced(self, map_version: int) -> None:
        """A peer has this version of the map: read it, if it is newer than ours."""
        if self._keeper is not None and map_version > self.ledger.map.version:
            self._keeper.wake()

    def link_ended(self, service_id: str) -> None:
        """Our link with this conductor has ended: its process may have. Have the watch look at once, and often.

        Who owns nothing (it leaves, or has just come) has nothing that waits for a heir.
        """
        info = self.ledger.map.conductors.get(service_id)
        if info is not None and info.incarnation != self.id and service_id in self.ledger.map.owners:
            self._watch.doubt(info.incarnation, time.monotonic())
            self._hurry.set()

    def lease_held(self) -> bool:
        """Whether an own beat that began less than lease_ms ago has committed: what is read now is current."""
        return self._beats is not None and not self.reason and self._beats.held(time.monotonic())

    # -- begin and end ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        term, lane_ids = self._register()
        self._clock.measure()
        lease = self.settings.lease
        beats = self._beats = BeatThread(self._store.open_beater(self.id), lease)
        self._spawn("hub tick", beats.tick_hub)
        beats.start()
        for lane_id in lane_ids:
            self._lanes[lane_id] = Lane(
                lane_id,
                term,
                self._store.open_lane(lane_id, term),
                self.settings.ledger,
                settled=self.ledger.settled,
                undo=self.ledger.undo,
                fail=self._end,
                outage=self._outage,
            )
        self._keeper = Keeper(
            self._store, self.ledger, self._lanes, self._watch, self.id, term, self.settings, self._ready.set,
            self._outage,
        )  # fmt: skip
        for lane in self._lanes.values():
            self._spawn("lane", lane.run)
        self._spawn("loader", self.ledger.run_loader)
        self._spawn("clock", self._clock.run)
        self._spawn("watch", self._watch_beats)
        self._spawn("keeper", self._keeper.run)
        log.info("incarnation begun id=%s lanes=%s term=%s", self.id, lane_ids, term)
        if self._stopping:
            self._keeper.stop()

    def _register(self) -> tuple[int, list[int]]:
        """The cell's term and our lanes. Repeating it for one incarnation is harmless."""
        give_up_at_s = time.monotonic() + self.settings.register_retry_s_max
        pause_s = self.settings.ledger.retry_ms_min / 1000
        while True:
            try:
                rows = self._store.read_map()
                if rows.cell != self._cell:
                    raise ConductorError(
                        f"expected the database of cell {self._cell}, found that of {rows.cell}: check [database] url"
                    )
                failpoint("incarnation.before_register")
                lanes = self._store.register(self._row, self.settings.lanes)
                failpoint("incarnation.after_register")
                self._outage.back("register")
                return rows.term, lanes
            except (ConnectionLost, DatabaseBusy) as error:
                if time.monotonic() > give_up_at_s or self._stopping or self.abandoned:
                    raise
                self._outage.lost("register", error)
                gevent.sleep(pause_s)
                pause_s = min(2 * pause_s, self.settings.ledger.retry_ms_max / 1000)

    def _spawn(self, name: str, body: Callable[[], None]) -> None:
        def live() -> None:
            try:
                body()
            except IncarnationEnded as ended:
                self._end(ended.reason)
            except Exception as error:  # a life with a dead part would hang: it ends instead
                log.exception("greenlet failed name=%s", name)
                self._end(f"{name} failed: {type(error).__name__}: {error}")

        self._greenlets.append(gevent.spawn(live))

    def _end(self, reason: str) -> None:
        """The end begins here, without yielding: nothing is decided or sent after this."""
        if self.reason:
            return
        self.reason = reason
        log.info("incarnation ended id=%s reason=%s", self.id, reason)
        self.ledger.end(reason, self._lanes.values())
        self._ended.set()
        self._ready.set()

    def _finish(self) -> None:
        """Let go of everything, whatever is broken; what cannot be released is taken over by others."""
        try:
            gevent.killall([g for g in self._greenlets if g is not gevent.getcurrent()], block=True, timeout=KILL_S_MAX)
        except gevent.Timeout:  # raised by killall itself; fences hold whatever goes on in those
            log.warning("greenlets not ended within kill_s_max=%s id=%s", KILL_S_MAX, self.id)
        beats_ms = ABANDONED_BEAT_MS if self.abandoned else 1000
        if self._beats is not None and not self._beats.stop(timeout_ms=beats_ms):
            log.warning("last beat still under way id=%s", self.id)
        for lane in self._lanes.values():
            try:
                lane.close()
            except StoreError as error:
                log.warning("lane not closed lane=%s error=%s", lane.lane_id, error)
        if self._beats is None or self.abandoned:
            return  # never registered for certain; a repeat of the service's start replaces the rows
        try:
            with gevent.Timeout(self.settings.stop_ms_max / 1000):
                failpoint("incarnation.before_release")
                self._store.release(self.id)
                failpoint("incarnation.after_release")
        except (StoreError, gevent.Timeout) as error:
            log.warning("incarnation not released id=%s error=%s", self.id, error)

    # -- the watch ----------------------------------------------------------------------------------------------

    def _watch_beats(self) -> None:
        """Read the beats every beat_ms, tell the keeper who has died, who can receive, and whether we are gone."""
        lease = self.settings.lease
        known: list[list[str]] = []
        while True:
            begun_s = time.monotonic()
            if self._read_beats(begun_s):
                self._ask_suspects()
                found = [list(self._watch.dead()), self._watch.fresh(), self._watch.settled()]
                if found != known:
                    known = found
                    if self._keeper is not None:
                        self._keeper.wake()
            now_s = time.monotonic()
            pause_ms = lease.doubt_ms if self._watch.doubts(now_s) else lease.beat_ms
            self._hurry.wait(max(pause_ms / 4000, begun_s + pause_ms / 1000 - now_s))
            self._hurry.clear()

    def _read_beats(self, sent_s: float) -> bool:
        try:
            beats = self._store.read_beats()
        except StoreError as error:
            self._outage.lost("beats", error)
            self._watch.failed(time.monotonic())
            return False
        received_s = time.monotonic()
        self._outage.back("beats")
        if self.id not in beats:
            raise IncarnationEnded("the beat's row is gone: others have taken over")
        disturbed_s = 0.0 if self._beats is None else self._beats.disturbed_at_s(received_s)
        self._watch.observe(sent_s, received_s, beats, disturbed_s)
        return True

    def _ask_sessions(self, incarnations: list[str]) -> None:
        if incarnations:
            try:
                self._watch.attended(incarnations, self._store.attended(incarnations))
            except StoreError as error:
                self._outage.lost("beats", error)
                self._watch.failed(time.monotonic())

    def _ask_suspects(self) -> None:
        """A peer whose port refuses twice may be dead already; a dying process accepts for some milliseconds."""
        suspects = self._watch.suspects()
        self._ask_sessions(sorted({*suspects, *self._watch.strangers()}))
        if suspects:
            self._probe_ports(suspects)
            self._ask_sessions(suspects)

    def _probe_ports(self, suspects: list[str]) -> None:
        addresses = {info.incarnation: info.address for info in self.ledger.map.conductors.values()}
        lease = self.settings.lease

        def ask(incarnation: str, address: str) -> None:
            if not self._probe(address, lease.probe_ms_max):
                return
            gevent.sleep(lease.probe_pause_ms / 1000)
            if self._probe(address, lease.probe_ms_max):
                self._watch.refuses(incarnation)

        asking = [gevent.spawn(ask, name, addresses[name]) for name in suspects if name in addresses]
        gevent.joinall(asking, timeout=(2 * lease.probe_ms_max + lease.probe_pause_ms) / 1000)
        gevent.killall(asking, block=False)
