"""What must hold once nothing fails any more and all work is done."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.simulation.cell.database import Rows
from tests.simulation.cell.hypervisor import Hypervisors
from zcompute.conductor.tasks.charge import charged
from zcompute.conductor.tasks.moves.plans import PLANS
from zcompute.db.tables import CLAIMS, GROUP_PLACEMENTS, HOSTS, INSTANCE_ACTIONS, INSTANCES, TASKS
from zcompute.objects.actions import ACTIONS
from zcompute.objects.history import RESULT_SUCCESS
from zcompute.objects.instance import (
    VM_ACTIVE,
    VM_DELETED,
    VM_ERROR,
    VM_PAUSED,
    VM_RESCUED,
    VM_RESIZED,
    VM_SHELVED,
    VM_SHELVED_OFFLOADED,
    VM_STOPPED,
    VM_SUSPENDED,
    Instance,
)
from zcompute.objects.quota import Amount

HOST_NAME, HOST_FORCED_DOWN = map(HOSTS.columns.index, ("name", "forced_down"))
WORKING = (VM_ACTIVE, VM_STOPPED, VM_PAUSED, VM_SUSPENDED, VM_RESCUED, VM_RESIZED, VM_SHELVED, VM_SHELVED_OFFLOADED)
KIND_OF = {action.name: action.kind for action in ACTIONS.values() if action.kind in PLANS}


class AtRest:
    """The part of the checker that looks at the end."""

    seen: Counter[str]
    _rows: Rows
    _hypervisors: Hypervisors
    _charged: Callable[[str], Amount]
    _created: set[str]
    _deleted: set[str]
    _acted: dict[str, str]
    _told: Counter[tuple[str, str]]

    def _instance(self, row: Any) -> Instance:
        """A row as an object."""
        raise NotImplementedError

    def unrest(self) -> list[str]:
        """What is not as it must be when nothing fails any more and all work is done."""
        found = [f"task {key[0]} is left: {self._task(key)}" for key in self._rows.tables[TASKS.name]]
        if found:
            return found
        told = self._told_and_entered()
        for uuid in sorted(self._created):
            row = self._rows.tables[INSTANCES.name].get((uuid,))
            if row is None:
                found.append(f"instance {uuid} is lost")
                continue
            instance = self._instance(row)
            found += self._instance_unrest(instance) or self._untold(instance, told)
        return found or [*self._acts_left(), *self._claims_left(), *self._machines_left()]

    def _task(self, key: tuple[Any, ...]) -> str:
        task = TASKS.from_row(self._rows.tables[TASKS.name][key])
        return f"{task.kind} of {task.instance_uuid} {task.state} in {task.step}"

    def count_ended(self) -> None:
        """What has come of the moves, for the coverage of many seeds."""
        for row in self._rows.tables[INSTANCE_ACTIONS.name].values():
            action = INSTANCE_ACTIONS.from_row(row)
            if action.action in KIND_OF:
                outcome = "done" if action.result == RESULT_SUCCESS else "failed"
                self.seen[f"{KIND_OF[action.action]} {outcome}"] += 1

    def _acts_left(self) -> list[str]:
        """Actions that have not ended, though no task is left."""
        actions = self._rows.tables[INSTANCE_ACTIONS.name]
        rows = ((name, uuid, actions.get((uuid, name))) for name, uuid in sorted(self._acted.items()))
        return [
            f"{name} of {uuid} is not over"
            for name, uuid, row in rows
            if row is None or INSTANCE_ACTIONS.from_row(row).finished_at_us is None
        ]

    def _claims_left(self) -> list[str]:
        """Claims that no instance is known by, and those that are missing: no task is left that could name them."""
        instances = map(self._instance, self._rows.tables[INSTANCES.name].values())
        named = {name for instance in instances for name in _claims_of(instance)}
        claims = {
            (row[0], f"{row[1]}/{row[2]}", row[CLAIMS.columns.index("host")])
            for row in self._rows.tables[CLAIMS.name].values()
        }
        left = [f"claim {name} of {uuid} on {host} is left" for uuid, name, host in sorted(claims - named)]
        left += [f"claim {name} of {uuid} on {host} is not there" for uuid, name, host in sorted(named - claims)]
        return left + self._places_left(named)

    def _places_left(self, named: set[tuple[str, str, str]]) -> list[str]:
        """The places of servers in groups are those of their claims."""
        rows = map(GROUP_PLACEMENTS.from_row, self._rows.tables[GROUP_PLACEMENTS.name].values())
        places = {(row.instance_uuid, row.name, row.host) for row in rows}
        instances = map(self._instance, self._rows.tables[INSTANCES.name].values())
        members = {instance.uuid for instance in instances if instance.spec.group is not None}
        expected = {claim for claim in named if claim[0] in members}
        left = [f"place {name} of {uuid} on {host} is left" for uuid, name, host in sorted(places - expected)]
        return left + [f"place {name} of {uuid} on {host} is missing" for uuid, name, host in sorted(expected - places)]

    def shelved_images(self) -> set[str]:
        """Those that shelved servers have."""
        instances = map(self._instance, self._rows.tables[INSTANCES.name].values())
        return {instance.shelved_image_ref for instance in instances if instance.shelved_image_ref is not None}

    def _machines_left(self) -> list[str]:
        """Machines of which the cell knows nothing, or that they are elsewhere; hosts that are out of service keep what
        they have until they return."""
        instances = self._rows.tables[INSTANCES.name]
        lost = self._lost_hosts()
        return [
            f"{uuid} is left on {host}"
            for host, domains in self._hypervisors.domains.items()
            if host not in lost
            for uuid in domains
            if (row := instances.get((uuid,))) is None or host not in _hosts_of(self._instance(row))
        ]

    def _lost_hosts(self) -> set[str]:
        """Forced down, and without power."""
        rows = self._rows.tables[HOSTS.name].values()
        return {row[HOST_NAME] for row in rows if row[HOST_FORCED_DOWN]} & self._hypervisors.off

    def _told_and_entered(self) -> Counter[tuple[str, str]]:
        """How often each event of each instance was told, and each of its actions entered."""
        told = self._told.copy()
        for row in self._rows.tables[INSTANCE_ACTIONS.name].values():
            action = INSTANCE_ACTIONS.from_row(row)
            told[action.instance_uuid, f"{action.action} {'over' if action.finished_at_us else 'begun'}"] += 1
        return told

    def _untold(self, instance: Instance, told: Counter[tuple[str, str]]) -> list[str]:
        """The ends of a server's build and delete are told once, and stand in its history once."""
        uuid = instance.uuid
        wanted = {"create over": 1, "create begun": 0, "delete begun": 0}
        if instance.vm_state in WORKING:
            wanted |= {"instance.create.end": 1, "instance.delete.end": 0}
        elif uuid in self._deleted:
            wanted |= {"instance.delete.end": 1, "delete over": 1}
        counts = {what: told[uuid, what] for what in wanted}
        return [f"{uuid} is {instance.vm_state}: {counts}, expected {wanted}"] if counts != wanted else []

    def _instance_unrest(self, instance: Instance) -> list[str]:
        uuid, lost = instance.uuid, self._lost_hosts()
        where = [host for host in self._hypervisors.having(uuid) if host not in lost]
        if uuid in self._deleted and instance.vm_state != VM_DELETED:
            return [f"{uuid} is {instance.vm_state}, its delete was accepted"]
        if instance.vm_state in (VM_DELETED, VM_ERROR):
            astray = [host for host in where if host not in _hosts_of(instance)]
            return [f"{uuid} is {instance.vm_state} and is on {astray}"] if astray else []
        if instance.vm_state not in WORKING or instance.task_state is not None or instance.task_id is not None:
            return [f"{uuid} is {instance.vm_state}, {instance.task_state}, task {instance.task_id}"]
        if (instance.vm_state == VM_RESIZED) != (instance.move is not None):
            return [f"{uuid} is {instance.vm_state}, its move is {instance.move}"]
        if self._charged(uuid) != charged(instance, None):
            return [f"{uuid} is charged {self._charged(uuid)} at the root, it is {charged(instance, None)}"]
        if (instance.vm_state == VM_SHELVED_OFFLOADED) != (instance.host is None and instance.claim is None):
            return [f"{uuid} is {instance.vm_state} on {instance.host} with claim {instance.claim}"]
        expected = [host for host in _hosts_of(instance) if host not in lost]
        if sorted(where) != sorted(expected):
            return [f"{uuid} is {instance.vm_state} on {expected}, it is on {where}"]
        if instance.host is None or instance.host in lost:
            return []
        copy = "" if instance.move is None else instance.move.former_host
        if copy in self._hypervisors.live(uuid):
            return [f"{uuid} runs on {copy}, where its stopped copy should be"]
        domain = self._hypervisors.domains[str(instance.host)][uuid]
        if domain.amounts != instance.flavor.amounts():
            return [f"{uuid} has {domain.amounts} on {instance.host}, its flavor is {instance.flavor.name}"]
        if domain.power_state != instance.power_state:
            return [f"{uuid} has power {domain.power_state} on {instance.host}, the row says {instance.power_state}"]
        return []


def _hosts_of(instance: Instance) -> list[str]:
    """Where it is, by its row: the host, and that of the stopped copy."""
    if instance.vm_state == VM_DELETED:
        return []
    move = instance.move
    return [host for host in (instance.host, None if move is None else move.former_host) if host]


def _claims_of(instance: Instance) -> list[tuple[str, str, str]]:
    """(uuid, task/attempt, host) of the claims in force by the row."""
    found = [(instance.uuid, str(instance.claim), str(instance.host))] if instance.claim and instance.host else []
    move = instance.move
    return found + ([(instance.uuid, move.former_claim, move.former_host)] if move is not None else [])
