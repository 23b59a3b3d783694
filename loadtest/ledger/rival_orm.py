"""The rival that uses SQLAlchemy's ORM: read the object for update, change it, add what belongs to it, commit."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, registry

from loadtest.ledger.rival_writers import connect, named, now_us, told
from loadtest.ledger.world import history_of
from zcompute.conductor.cell.observations import judge_observation
from zcompute.db.schema import TABLES
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCES
from zcompute.db.url import MariaDbTarget
from zcompute.objects.partition import partition_of
from zcompute.objects.report import Observation

CHANGED = ("power_state", "progress", "agent_epoch", "observed_seq", "updated_at_us")


class _Row:
    """A mapped row: columns as attributes."""

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)


class InstanceRow(_Row):
    """instances"""


class EventRow(_Row):
    """instance_action_events"""


class NotificationRow(_Row):
    """notifications"""


class PartitionRow(_Row):
    """partitions"""


_MAPPED = {InstanceRow: "instances", EventRow: "instance_action_events", NotificationRow: "notifications",
           PartitionRow: "partitions"}  # fmt: skip
_registry = registry()
for _kind, _name in _MAPPED.items():
    _registry.map_imperatively(_kind, TABLES[_name])


class OrmWriter:
    """One session."""

    def __init__(self, target: MariaDbTarget) -> None:
        def creator() -> Any:
            return connect(target, autocommit=False)

        engine = sa.create_engine("mysql+pymysql://", creator=creator, pool_size=1, max_overflow=0)
        self._engine = engine
        self._session = Session(engine, expire_on_commit=True)

    def write(self, body: Observation, epoch: int, seq: int) -> str:
        """One transaction."""
        session = self._session
        try:
            verdict = self._judged(session, body, epoch, seq)
            session.commit()
        except BaseException:
            session.rollback()
            raise
        session.expunge_all()
        return verdict

    def _judged(self, session: Session, body: Observation, epoch: int, seq: int) -> str:
        row: Any = session.get(InstanceRow, body.instance_uuid, with_for_update=True)
        former = None
        if row is not None:
            former = INSTANCES.from_row(tuple(getattr(row, name) for name in INSTANCES.columns))
        judged = judge_observation(former, body, epoch, seq, None)
        if former is None or judged.decision is None or judged.decision.instance is None:
            return judged.verdict
        image = judged.decision.instance
        image.updated_at_us = now_us()
        for name in CHANGED:
            setattr(row, name, getattr(image, name))
        row.revision += 1
        if former.power_state != image.power_state:
            partition = partition_of(image.uuid)
            event = INSTANCE_ACTION_EVENTS.to_row(history_of(image, image.updated_at_us), partition)
            session.add(EventRow(**named(INSTANCE_ACTION_EVENTS.columns, event)))
            note, packed = told(former, image)
            place: Any = session.get(PartitionRow, partition, with_for_update=True)
            place.last_n += 1
            session.add(
                NotificationRow(
                    partition_id=partition,
                    n=place.last_n,
                    created_at_us=note.created_at_us,
                    event_type=note.event_type,
                    instance_uuid=note.instance_uuid,
                    body=packed,
                )
            )
        return judged.verdict

    def close(self) -> None:
        self._session.close()
        self._engine.dispose()
