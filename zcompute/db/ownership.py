"""Incarnations, lanes, beats and the partition map: every statement that moves ownership.

Locks are always taken in this order: lanes by id, then cell_state's row, then partitions; so two take-overs, or a
take-over and a hand-over, wait for one another and never deadlock. Setting a lane dead takes its row's lock, and so
waits for the batch in flight on it. A dead lane stays dead.
"""

from collections.abc import Sequence

from zcompute import __version__
from zcompute.db.errors import DatabaseBusy, Fenced
from zcompute.db.session import Session, Sessions
from zcompute.db.spread import spread
from zcompute.db.store import BEAT_LOCK, ConductorRow, LaneRow, MapRows, PartitionRow
from zcompute.failpoints import failpoint
from zcompute.objects.stored import NEWEST_LEVEL

MAP_READ_TRIES_MAX = 10


def register(sessions: Sessions, conductor: ConductorRow, lanes: int) -> list[int]:
    """Store.register."""
    if lanes < 1:
        raise ValueError(f"expected at least one lane, found {lanes}")
    former = _LanesToEnd(sessions, "service_id = :service_id", {"service_id": conductor.service_id})
    started_at_us = sessions.now_us()

    def work(session: Session) -> list[int]:
        mine = _lane_ids(session, "incarnation = :incarnation", incarnation=conductor.incarnation)
        if mine:
            return mine
        former.end(session)
        _forget_lanes(session, conductor.service_id)
        _enter_conductor(session, conductor, started_at_us)
        _enter_release(session, conductor)
        _raise_version(session)
        session.execute(
            "INSERT INTO beats (incarnation, counter) VALUES (:incarnation, 0)", incarnation=conductor.incarnation
        )
        for _ in range(lanes):
            session.execute(
                "INSERT INTO lanes (incarnation, service_id, alive, term, applied, nonce) "
                "SELECT :incarnation, :service_id, 1, term, 0, 0 FROM cell_state WHERE id = 1",
                incarnation=conductor.incarnation,
                service_id=conductor.service_id,
            )
        return _lane_ids(session, "incarnation = :incarnation", incarnation=conductor.incarnation)

    return sessions.write(work, on_lock_wait=former.kill)


def _forget_lanes(session: Session, service_id: str) -> None:
    """Delete the service's dead lanes that hold nothing, or a service that restarts often would leave many.

    Lane ids are never given out again, so a zombie's batch finds no lane, and is fenced as by a dead one.
    """
    empty = _lane_ids(
        session,
        "alive = 0 AND service_id = :service_id "
        "AND lane_id NOT IN (SELECT lane_id FROM partitions WHERE lane_id IS NOT NULL)",
        service_id=service_id,
    )
    if empty:
        session.execute("DELETE FROM lanes WHERE lane_id IN :empty", empty=empty)


def _enter_conductor(session: Session, conductor: ConductorRow, started_at_us: int) -> None:
    """The conductor's row is replaced by the new incarnation's, and the former one's beat goes."""
    former = session.select_for_update(
        "SELECT incarnation FROM conductors WHERE service_id = :service_id", service_id=conductor.service_id
    )
    values = {
        "service_id": conductor.service_id,
        "incarnation": conductor.incarnation,
        "address": conductor.address,
        "public_key": conductor.public_key,
        "started_at_us": started_at_us,
    }
    if former:
        session.execute("DELETE FROM beats WHERE incarnation = :incarnation", incarnation=former[0][0])
        session.execute(
            "UPDATE conductors SET incarnation = :incarnation, address = :address, public_key = :public_key, "
            "started_at_us = :started_at_us, alive = 1 WHERE service_id = :service_id",
            **values,
        )
    else:
        session.execute(
            "INSERT INTO conductors (service_id, incarnation, address, public_key, started_at_us, alive) "
            "VALUES (:service_id, :incarnation, :address, :public_key, :started_at_us, 1)",
            **values,
        )


def _enter_release(session: Session, conductor: ConductorRow) -> None:
    """What this code is, tied to the incarnation: an older release that comes back leaves the row of the newer."""
    session.execute("DELETE FROM conductor_releases WHERE service_id = :service_id", service_id=conductor.service_id)
    session.execute(
        "INSERT INTO conductor_releases (service_id, incarnation, code_release, code_level) "
        "VALUES (:service_id, :incarnation, :code_release, :code_level)",
        service_id=conductor.service_id,
        incarnation=conductor.incarnation,
        code_release=__version__,
        code_level=NEWEST_LEVEL,
    )


def take_over(
    sessions: Sessions, dead: Sequence[str], lanes: Sequence[int], term: int, partitions: Sequence[int] | None
) -> int:
    """Store.take_over."""
    if not lanes:
        raise ValueError("expected at least one receiving lane")
    dying = _LanesToEnd(sessions, "incarnation IN :dead", {"dead": list(dead)}) if dead else None

    def work(session: Session) -> int:
        doomed = dying.living(session) if dying else []
        _lock_lanes(session, sorted({*lanes, *doomed}), required=lanes, dying=dying)
        failpoint("ownership.lanes_locked")
        if dying is not None:
            dying.set_dead(session, doomed)
        failpoint("ownership.lanes_dead")
        ended = _end_incarnations(session, list(dead)) if dead else 0
        version = _lock_cell_state(session, term)
        taken = _take_ownerless(session, lanes, version, partitions)
        failpoint("ownership.partitions_moved")
        return _raise_version(session) if ended and taken == version else taken

    return sessions.write(work, on_lock_wait=None if dying is None else dying.kill)


def _lock_cell_state(session: Session, term: int) -> int:
    """Lock the map against everybody else's changes; returns its version."""
    version, present = session.select_for_update("SELECT map_version, term FROM cell_state WHERE id = 1")[0]
    if present != term:
        raise Fenced(f"the cell is in term {present}, the take-over came from term {term}: register anew")
    return int(version)


def _take_ownerless(session: Session, lanes: Sequence[int], version: int, only: Sequence[int] | None) -> int:
    """Move every partition whose lane is dead or none to ``lanes``; returns the map's version."""
    living = {row[0] for row in session.select("SELECT lane_id FROM lanes WHERE alive = 1")}
    rows = session.select("SELECT partition_id, lane_id FROM partitions ORDER BY partition_id")
    wanted = None if only is None else set(only)
    loads: dict[int, int] = {}
    taken = []
    for partition, lane in rows:
        if lane in living:
            loads[lane] = loads.get(lane, 0) + 1
        elif wanted is None or partition in wanted:
            taken.append(partition)
    if not taken:
        return version
    for lane, given in spread(taken, lanes, loads).items():
        session.execute(
            "UPDATE partitions SET lane_id = :lane, owner_epoch = :epoch WHERE partition_id IN :given",
            lane=lane,
            epoch=version + 1,
            given=given,
        )
    session.execute("UPDATE cell_state SET map_version = :version WHERE id = 1", version=version + 1)
    return version + 1


def readdress(sessions: Sessions, service_id: str, incarnation: str, address: str, public_key: str) -> int:
    """Store.readdress."""

    def work(session: Session) -> int:
        rows = session.select_for_update(
            "SELECT incarnation, alive FROM conductors WHERE service_id = :service_id", service_id=service_id
        )
        if not rows or rows[0][0] != incarnation or not rows[0][1]:
            raise Fenced(f"incarnation {incarnation} of {service_id} is not alive: it listens for nobody")
        session.execute(
            "UPDATE conductors SET address = :address, public_key = :public_key WHERE service_id = :service_id",
            service_id=service_id,
            address=address,
            public_key=public_key,
        )
        return _raise_version(session)

    return sessions.write(work)


def release(sessions: Sessions, incarnation: str) -> None:
    """Store.release."""
    ending = _LanesToEnd(sessions, "incarnation = :incarnation", {"incarnation": incarnation})

    def work(session: Session) -> None:
        ending.end(session)
        if _end_incarnations(session, [incarnation]):
            _raise_version(session)

    sessions.write(work, on_lock_wait=ending.kill)


def _raise_version(session: Session) -> int:
    """The map has changed, be it only in its conductors; returns its version."""
    version = int(session.select_for_update("SELECT map_version FROM cell_state WHERE id = 1")[0][0]) + 1
    session.execute("UPDATE cell_state SET map_version = :version WHERE id = 1", version=version)
    return version


def _end_incarnations(session: Session, incarnations: list[str]) -> int:
    """Returns how many were alive."""
    ended = session.execute(
        "UPDATE conductors SET alive = 0 WHERE incarnation IN :gone AND alive = 1", gone=incarnations
    )
    session.execute("DELETE FROM beats WHERE incarnation IN :gone", gone=incarnations)
    return ended


class _LanesToEnd:
    """Lanes that a transaction sets dead, and the connections to kill when one of them holds its lock."""

    def __init__(self, sessions: Sessions, where: str, values: dict[str, object]) -> None:
        self._sessions = sessions
        self._where = where
        self._values = values
        self._waiting_for: int | None = None

    def living(self, session: Session) -> list[int]:
        return _lane_ids(session, f"alive = 1 AND {self._where}", **self._values)

    def end(self, session: Session) -> None:
        doomed = self.living(session)
        _lock_lanes(session, doomed, required=(), dying=self)
        self.set_dead(session, doomed)

    def set_dead(self, session: Session, doomed: Sequence[int]) -> None:
        if doomed:
            session.execute("UPDATE lanes SET alive = 0 WHERE lane_id IN :doomed", doomed=list(doomed))

    def waits_for(self, lane: int | None) -> None:
        self._waiting_for = lane

    def kill(self) -> None:
        """End the session of the lane whose lock did not come, as a zombie's transaction never ends by itself.

        Called while the lock is waited for, and again after a wait that was given up: once for each wait.
        """
        lane, self._waiting_for = self._waiting_for, None
        if lane is None:
            return
        doomed = self._sessions.read(
            lambda session: _lane_ids(session, f"lane_id = :lane AND {self._where}", lane=lane, **self._values)
        )
        if doomed:
            failpoint("ownership.before_kill")
            self._sessions.kill_lane(lane)
            failpoint("ownership.after_kill")


def _lane_ids(session: Session, where: str, **values: object) -> list[int]:
    sql = f"SELECT lane_id FROM lanes WHERE {where} ORDER BY lane_id"  # noqa: S608  # our own text, never a value
    return [row[0] for row in session.select(sql, **values)]


def _lock_lanes(session: Session, lanes: Sequence[int], *, required: Sequence[int], dying: _LanesToEnd | None) -> None:
    """Lock the rows one by one in the order of their ids; the ``required`` ones must be alive."""
    for lane in lanes:
        if dying is not None:
            dying.waits_for(lane)
        rows = session.select_for_update("SELECT alive FROM lanes WHERE lane_id = :lane", lane=lane)
        if lane in required and not (rows and rows[0][0]):
            raise Fenced(f"lane {lane} is dead: somebody took its partitions over")
    if dying is not None:
        dying.waits_for(None)


def read_beats(session: Session) -> dict[str, int]:
    """Store.read_beats."""
    return {row[0]: row[1] for row in session.select("SELECT incarnation, counter FROM beats")}


def attended(session: Session, incarnations: Sequence[str]) -> set[str]:
    """Store.attended, on MariaDB: the server frees a session's lock when it ends, however its process has ended."""
    rows = session.select(
        "SELECT incarnation FROM beats WHERE incarnation IN :asked "
        "AND IS_USED_LOCK(CONCAT(:prefix, incarnation)) IS NOT NULL",
        asked=list(incarnations),
        prefix=BEAT_LOCK,
    )
    return {row[0] for row in rows}


def read_map(session: Session) -> MapRows:
    """Store.read_map: read again while the version moves underneath."""
    for _ in range(MAP_READ_TRIES_MAX):
        found = session.select("SELECT cell, map_version, term, `release` FROM cell_state WHERE id = 1")[0]
        cell, version, term, release = found
        rows = MapRows(
            cell=cell,
            map_version=version,
            term=term,
            partitions=_partition_rows(session),
            lanes=_lane_rows(session),
            conductors=_conductor_rows(session),
            release=release,
        )
        if session.select("SELECT map_version FROM cell_state WHERE id = 1")[0][0] == version:
            return rows
    raise DatabaseBusy(f"the partition map changed {MAP_READ_TRIES_MAX} times while it was read")


def _partition_rows(session: Session) -> list[PartitionRow]:
    rows = session.select("SELECT partition_id, lane_id, owner_epoch, last_n FROM partitions ORDER BY partition_id")
    return [PartitionRow(*row) for row in rows]


def _lane_rows(session: Session) -> dict[int, LaneRow]:
    # Dead lanes are of interest only while partitions are still on them.
    rows = session.select(
        "SELECT lane_id, incarnation, service_id, alive FROM lanes "
        "WHERE alive = 1 OR lane_id IN (SELECT lane_id FROM partitions) ORDER BY lane_id"
    )
    return {row[0]: LaneRow(row[0], row[1], row[2], bool(row[3])) for row in rows}


def _conductor_rows(session: Session) -> dict[str, ConductorRow]:
    rows = session.select(
        "SELECT service_id, incarnation, address, public_key, started_at_us, alive FROM conductors ORDER BY service_id"
    )
    return {row[0]: ConductorRow(row[0], row[1], row[2], row[3], row[4], bool(row[5])) for row in rows}
