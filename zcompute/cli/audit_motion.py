"""What of a snapshot is on its way, and what has been for too long. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zcompute.cli.audit_kinds import (
    BUILD_REQUEST_STUCK,
    CROSSING_WITHOUT_MOVE,
    IMAGE_STUCK,
    OUTBOX_STUCK,
    TASK_STUCK,
    Finding,
)
from zcompute.cli.audit_snapshot import CellRows, Snapshot
from zcompute.objects.build_request import BUILD_PENDING
from zcompute.objects.group import GroupPlacement
from zcompute.objects.host import Claim
from zcompute.objects.task import TASK_PARKED, ClaimName, Task

CLAIM_GRACE_US = 20_000_000  # a leaked claim is swept when 10 s old, each 5 s
ACTION_GRACE_US = 5_000_000  # actions are read before tasks: one that has just begun may miss its own
TASK_GRACE_US = 30_000_000  # past its deadline
IMAGE_WAIT_MAX_US = 1_500_000_000  # twice what the root's sweep doubts it for, and its rounds
WAIT_MAX_US = 600_000_000  # for an outbox row or a build request, whatever happens


@dataclass(frozen=True, order=True)
class Moving:
    """One thing on its way. ``progress`` changes with each step; ``hosts`` are those that it may be changing."""

    kind: str
    uuid: str
    progress: str = ""
    hosts: tuple[str, ...] = ()


def moving(snapshot: Snapshot) -> list[Moving]:
    """All that is on its way."""
    result = [
        Moving("build_request", request.uuid, f"{request.revision} {request.cell}")
        for request in snapshot.root.build_requests
        if request.state == BUILD_PENDING
    ]
    result += [Moving("cross_move", move.uuid, f"{move.revision} {move.step}") for move in snapshot.root.cross_moves]
    for cell in snapshot.cells.values():
        result += [_moving_task(task) for task in cell.tasks if task.state != TASK_PARKED]
        result += [Moving("outbox", row.instance_uuid, f"{row.kind} {row.generation}") for row in cell.outbox]
        result += [
            Moving("claim", claim.instance_uuid, claim.name, (claim.host,))
            for claim in leaked_claims(cell)
            if claim.created_at_us + CLAIM_GRACE_US > cell.now_us
        ]
        result += [
            Moving("placement", place.instance_uuid, place.name, (place.host,))
            for place in leaked_placements(cell)
            if place.created_at_us + CLAIM_GRACE_US > cell.now_us
        ]
    return result


def _moving_task(task: Task) -> Moving:
    hosts = {*task.body.named_hosts, *(claim.host for claim in task.body.release)}
    if task.body.host is not None:
        hosts.add(task.body.host)
    return Moving("task", task.instance_uuid, f"{task.revision} {task.step} {task.attempt}", tuple(sorted(hosts)))


def stood_still(first: Iterable[Moving], last: Iterable[Moving], seconds: float) -> list[Finding]:
    """What was in motion at both ends of ``seconds`` without the least progress."""
    kinds = {"task": TASK_STUCK, "outbox": OUTBOX_STUCK, "build_request": BUILD_REQUEST_STUCK, "cross_move": TASK_STUCK}
    before = set(first)
    return sorted(
        Finding(kinds[item.kind], item.uuid, f"no progress in {seconds:.0f} s: {item.progress}")
        for item in set(last)
        if item in before and item.kind in kinds
    )


def overdue(snapshot: Snapshot) -> Iterator[Finding]:
    """What is in motion, but for too long; and parked tasks."""
    for request in snapshot.root.build_requests:
        age_us = snapshot.root.now_us - request.created_at_us
        if request.state == BUILD_PENDING and age_us > WAIT_MAX_US:
            yield Finding(BUILD_REQUEST_STUCK, request.uuid, f"{age_us // 1_000_000} s old, cell {request.cell}")
    for move in snapshot.root.cross_moves:
        if move.deadline_at_us + WAIT_MAX_US < snapshot.root.now_us:
            yield Finding(TASK_STUCK, move.uuid, f"move to cell {move.target_cell} past its deadline at {move.step}")
    for name, cell in snapshot.cells.items():
        for row in cell.outbox:
            age_us = cell.now_us - row.created_at_us
            if age_us > WAIT_MAX_US:
                yield Finding(OUTBOX_STUCK, row.instance_uuid, f"{row.kind}: {age_us // 1_000_000} s old, cell {name}")
        for task in cell.tasks:
            if task.state == TASK_PARKED:
                yield Finding(TASK_STUCK, task.instance_uuid, f"{task.kind} parked at {task.step}")
            elif task.deadline_at_us and task.deadline_at_us + TASK_GRACE_US < cell.now_us:
                yield Finding(TASK_STUCK, task.instance_uuid, f"{task.kind} past its deadline at {task.step}")


def awaited_in_vain(snapshot: Snapshot) -> Iterator[Finding]:
    """Images that nobody makes, and that the root has not given up."""
    acted_on = {task.instance_uuid for cell in snapshot.cells.values() for task in cell.tasks}
    for image in snapshot.root.images:
        age_us = snapshot.root.now_us - image.updated_at_us
        if age_us > IMAGE_WAIT_MAX_US and image.server_uuid not in acted_on:
            yield Finding(IMAGE_STUCK, image.id, f"{image.status} for {age_us // 1_000_000} s, of {image.server_uuid}")


def alone(snapshot: Snapshot) -> Iterator[Finding]:
    """Copies for a move between cells that the root does not have: no word of it will end them."""
    known = {(move.uuid, cell) for move in snapshot.root.cross_moves for cell in (move.source_cell, move.target_cell)}
    for name, cell in snapshot.cells.items():
        for instance in cell.living():
            if instance.crossing and (instance.uuid, name) not in known:
                yield Finding(CROSSING_WITHOUT_MOVE, instance.uuid, f"{instance.crossing} in cell {name}")


def _named(cell: CellRows) -> set[tuple[str, str, str]]:
    """(instance, claim's name, host) of every claim that a row or a task names."""
    living = cell.living()
    named = {(i.uuid, i.claim, i.host) for i in living if i.claim is not None and i.host is not None}
    named |= {(i.uuid, i.move.former_claim, i.move.former_host) for i in living if i.move is not None}
    for task in cell.tasks:
        claims = list(task.body.release)
        if task.body.host is not None:
            claims.append(ClaimName(host=task.body.host, task_id=task.id, attempt=task.attempt))
        named |= {(task.instance_uuid, f"{claim.task_id}/{claim.attempt}", claim.host) for claim in claims}
    return named


def leaked_claims(cell: CellRows) -> list[Claim]:
    named = _named(cell)
    return [claim for claim in cell.claims if (claim.instance_uuid, claim.name, claim.host) not in named]


def leaked_placements(cell: CellRows) -> list[GroupPlacement]:
    """Places in server groups that no claim in force goes with."""
    named = _named(cell)
    return [place for place in cell.placements if (place.instance_uuid, place.name, place.host) not in named]
