"""What a cell says of servers to the root that counts them: as its primary has them."""

from typing import Any

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.cell.reads import unavailable_without_database
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.tasks.charge import charged
from zcompute.db.replicas.need import PRIMARY
from zcompute.db.tables import INSTANCES, ROOT_OUTBOX
from zcompute.db.view import View
from zcompute.objects.epochs import history_of
from zcompute.objects.instance import ARRIVING, LEFT, POWER_NOSTATE, VM_DELETED, Instance
from zcompute.objects.interface import Method
from zcompute.objects.messages.quotas import Standing, StandingReply, StandingRequest
from zcompute.objects.methods import QUOTA_STANDING

SERVERS_MAX = 1000  # of one question


def confirmed(instance: Instance) -> bool:
    """Whether a row is certainly no deleted server's that came back with a restore. Pure.

    A restore lifts every row's generation into its history, rows made since have none; an agent's next report brings
    its new epoch, and no power state where there is no domain.
    """
    history = history_of(instance.generation)
    if not history:
        return True
    return history_of(instance.agent_epoch) >= history and instance.power_state != POWER_NOSTATE


def standing_of(instance: Instance, owed: bool) -> Standing:
    """What the cell says of one row. Of a server that comes from another cell, or has left for one, this cell has no
    word that anything may be decided by: the root knows more. Pure."""
    elsewhere = instance.crossing in (ARRIVING, LEFT)
    return Standing(
        uuid=instance.uuid,
        generation=instance.mapping_generation,
        project_id=instance.project_id,
        deleted=instance.vm_state == VM_DELETED and instance.crossing != LEFT,
        owed=owed or elsewhere,
        busy=instance.task_id is not None or elsewhere,
        confirmed=confirmed(instance),
        cores=(amount := charged(instance, None)).cores,
        ram_mb=amount.ram_mb,
        decided=instance.decided,
        group_uuid=instance.spec.group.uuid if instance.spec.group is not None else None,
    )


class Standings:
    """Served by any conductor of the cell."""

    def __init__(self, env: ConductorEnv) -> None:
        self._env = env

    def handlers(self) -> list[tuple[Method, Handler]]:
        return [(QUOTA_STANDING, unavailable_without_database(self.standing))]

    def standing(self, request: StandingRequest, context: Any) -> StandingReply:
        """Raises InvalidRequest, Unavailable."""
        uuids = request.uuids
        if len(uuids) > SERVERS_MAX:
            raise InvalidRequest(f"expected at most {SERVERS_MAX} servers, found {len(uuids)}", field="uuids")

        def read(view: View) -> StandingReply:
            # What is owed is read last: a deleted server that owes nothing by then is one that the root has let go.
            instances = view.fetch(INSTANCES, [(uuid,) for uuid in uuids])
            where = {"instance_uuid": list(uuids)}
            owed = {row.instance_uuid for row in view.scan(ROOT_OUTBOX, where=where, limit=2 * SERVERS_MAX)}
            return StandingReply(
                servers=[standing_of(instance, instance.uuid in owed) for instance in instances.values()]
            )

        return self._env.reads.read(context, read, PRIMARY)
