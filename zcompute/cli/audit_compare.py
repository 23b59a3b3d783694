"""The audit's judgement: what of a snapshot cannot be right. Pure.

What is in motion (a task, an outbox row, a build request being handed off, a fresh claim) excuses the server that it
is about, and the hosts that it names; what stands still for too long is a finding itself.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from zcompute.cli.audit_groups import group_findings
from zcompute.cli.audit_kinds import (
    ACTION_STUCK,
    API_DIFFERS,
    CLAIM_LEAKED,
    CLAIM_MISSING,
    DOMAIN_LOG_UNREADABLE,
    HOST_USED_WRONG,
    MAPPING_WITHOUT_SERVER,
    OBSERVED_DIFFERS,
    ORPHAN_DOMAIN,
    QUOTA_TOTAL_WRONG,
    SERVER_ON_NO_HOST,
    SERVER_ON_SEVERAL_HOSTS,
    SERVER_WITHOUT_MAPPING,
    SERVER_WITHOUT_USAGE,
    SPAWNED_TWICE,
    TASK_STUCK,
    USAGE_WITHOUT_SERVER,
    USAGE_WRONG,
    Finding,
)
from zcompute.cli.audit_motion import alone, awaited_in_vain, leaked_claims, moving, overdue
from zcompute.cli.audit_records import wrong_records
from zcompute.cli.audit_snapshot import ApiServer, CellRows, Snapshot
from zcompute.conductor.tasks.charge import charged, largest
from zcompute.objects.build_request import BUILD_ERROR, BuildRequest
from zcompute.objects.flavor import Amounts
from zcompute.objects.instance import POWER_RUNNING, POWER_SHUTDOWN, VM_ACTIVE, VM_BUILDING, Instance
from zcompute.objects.quota import Amount
from zcompute.objects.server_status import status_of


def compare(snapshot: Snapshot) -> list[Finding]:
    """Everything that does not hold and that nothing in motion explains, sorted."""
    motion = moving(snapshot)
    busy_uuids = {item.uuid for item in motion}
    busy_hosts = {host for item in motion for host in item.hosts}
    findings = {
        finding
        for finding in _all_findings(snapshot)
        if finding.subject not in busy_uuids and finding.subject not in busy_hosts
    }
    waiting = {*overdue(snapshot), *alone(snapshot), *awaited_in_vain(snapshot)}
    return sorted(findings | waiting | set(wrong_records(snapshot)))


def _all_findings(snapshot: Snapshot) -> Iterator[Finding]:
    yield from _domains(snapshot)
    yield from _spawns(snapshot)
    yield from compare_mappings(snapshot)
    yield from _usages(snapshot)
    yield from _totals(snapshot)
    for cell in snapshot.cells.values():
        yield from _claims(cell)
        yield from _used(cell)
        yield from _task_states(cell)
        yield from _actions(cell)
    yield from group_findings(snapshot)
    yield from _api(snapshot)


# -- hosts --------------------------------------------------------------------------------------------------------


def _living(snapshot: Snapshot) -> dict[str, list[tuple[str, Instance]]]:
    """The servers by uuid, each with its cell; more than one only where something is wrong."""
    found: dict[str, list[tuple[str, Instance]]] = defaultdict(list)
    for name, cell in snapshot.cells.items():
        for instance in cell.living():
            found[instance.uuid].append((name, instance))
    return found


def _domains(snapshot: Snapshot) -> Iterator[Finding]:
    there: dict[str, list[str]] = defaultdict(list)
    powers: dict[tuple[str, str], int] = {}
    for host, domains in sorted(snapshot.hosts.items()):
        if domains.unreadable_lines:
            yield Finding(DOMAIN_LOG_UNREADABLE, host, f"{domains.unreadable_lines} lines")
        for uuid, power_state in domains.powers().items():
            there[uuid].append(host)
            powers[uuid, host] = power_state
    living = _living(snapshot)
    lost = {host.name for cell in snapshot.cells.values() for host in cell.hosts if host.forced_down}
    for uuid, hosts in there.items():
        places = [instance for _, instance in living.get(uuid, [])]
        yield from _placed(uuid, places, hosts, lost, powers)
    for uuid, cells in living.items():
        for _, instance in cells:
            yield from _observed(instance, there.get(uuid, []))


def _placed(
    uuid: str, places: list[Instance], there: list[str], lost: set[str], powers: dict[tuple[str, str], int]
) -> Iterator[Finding]:
    """Whether a server's domains are where they should be: at its host, and stopped where a move has left a copy. What
    a host has that is forced down goes when it comes back."""
    homes = {instance.host for instance in places}
    copies = {instance.move.former_host for instance in places if instance.move is not None}
    hosts = [host for host in there if host not in lost]
    whole = [host for host in hosts if host not in copies or powers[uuid, host] != POWER_SHUTDOWN]
    if len(whole) > 1:
        yield Finding(SERVER_ON_SEVERAL_HOSTS, uuid, ", ".join(whole))
    for host in hosts:
        if host not in homes | copies:
            others = ", ".join(sorted(str(home) for home in homes)) or "nowhere"
            yield Finding(ORPHAN_DOMAIN, uuid, f"runs on {host}, the server is {others}")
    for host in copies - set(there) - lost:
        yield Finding(SERVER_ON_NO_HOST, uuid, f"the copy that its move has left is not on {host}")


def _observed(instance: Instance, hosts: list[str]) -> Iterator[Finding]:
    if instance.vm_state != VM_ACTIVE:
        return
    if not hosts or instance.host is None:
        yield Finding(SERVER_ON_NO_HOST, instance.uuid, f"its row says {instance.host}")
    elif instance.host in hosts and instance.power_state != POWER_RUNNING:
        yield Finding(OBSERVED_DIFFERS, instance.uuid, f"runs on {instance.host}, power_state {instance.power_state}")


def _spawns(snapshot: Snapshot) -> Iterator[Finding]:
    """A server may be spawned once per change of its host (its generation counts those), and once per attempt."""
    given: Counter[str] = Counter()
    for cell in snapshot.cells.values():
        for instance in cell.instances:
            given[instance.uuid] += instance.generation
    total: Counter[str] = Counter()
    attempts: Counter[tuple[str, str, int]] = Counter()
    for domains in snapshot.hosts.values():
        for line in domains.spawns():
            total[line.uuid] += 1
            attempts[(line.uuid, line.task_id, line.attempt)] += 1
    for (uuid, task_id, attempt), times in attempts.items():
        if times > 1:
            yield Finding(SPAWNED_TWICE, uuid, f"{times} times for task {task_id} attempt {attempt}")
    for uuid, times in total.items():
        if times > max(1, given[uuid]):
            yield Finding(SPAWNED_TWICE, uuid, f"{times} times, given to a host {given[uuid]} times")


# -- the root and its cells ---------------------------------------------------------------------------------------


def compare_mappings(snapshot: Snapshot) -> Iterator[Finding]:
    """Both directions: the root's mappings against the cells' servers."""
    mappings = {mapping.uuid: mapping for mapping in snapshot.root.mappings}
    requests = {request.uuid: request for request in snapshot.root.build_requests}
    places: set[tuple[str, str | None, int]] = set()
    for name, cell in snapshot.cells.items():
        for instance in cell.living():
            places.add((instance.uuid, name, instance.mapping_generation))
            mapping = mappings.get(instance.uuid)
            if mapping is None:
                yield Finding(SERVER_WITHOUT_MAPPING, instance.uuid, f"in cell {name}")
            elif (mapping.cell, mapping.generation) != (name, instance.mapping_generation):
                yield Finding(
                    SERVER_WITHOUT_MAPPING,
                    instance.uuid,
                    f"{name}/{instance.mapping_generation}, mapped to {mapping.cell}/{mapping.generation}",
                )
    for uuid, request in requests.items():
        if uuid not in mappings:
            yield Finding(SERVER_WITHOUT_MAPPING, uuid, f"a build request in state {request.state}")
    for uuid, mapping in mappings.items():
        if uuid not in requests and (uuid, mapping.cell, mapping.generation) not in places:
            yield Finding(MAPPING_WITHOUT_SERVER, uuid, f"mapped to {mapping.cell} as {mapping.generation}")


def _usages(snapshot: Snapshot) -> Iterator[Finding]:
    usages = {usage.uuid: usage for usage in snapshot.root.usages}
    amounts = {request.uuid: largest([request.flavor]) for request in snapshot.root.build_requests}
    tasks = {task.instance_uuid: task for cell in snapshot.cells.values() for task in cell.tasks}
    for uuid, places in _living(snapshot).items():
        amounts[uuid] = charged(places[0][1], tasks.get(uuid))
    known = set(amounts) | {mapping.uuid for mapping in snapshot.root.mappings}
    for uuid in set(usages) - known:
        yield Finding(USAGE_WITHOUT_SERVER, uuid, f"project {usages[uuid].project_id}")
    for uuid in known - set(usages):
        yield Finding(SERVER_WITHOUT_USAGE, uuid)
    for uuid, usage in usages.items():
        amount = amounts.get(uuid)
        if amount is not None and (usage.cores, usage.ram_mb) != (amount.cores, amount.ram_mb):
            detail = f"{usage.cores} cores {usage.ram_mb} MiB, should be {amount.cores} and {amount.ram_mb}"
            yield Finding(USAGE_WRONG, uuid, detail)


def _totals(snapshot: Snapshot) -> Iterator[Finding]:
    sums: dict[str, Amount] = {}
    for usage in snapshot.root.usages:
        former = sums.get(usage.project_id, Amount())
        sums[usage.project_id] = Amount(
            instances=former.instances + 1, cores=former.cores + usage.cores, ram_mb=former.ram_mb + usage.ram_mb
        )
    for project, told in snapshot.used.items():
        summed = sums.get(project, Amount())
        if told != summed:
            yield Finding(QUOTA_TOTAL_WRONG, project, f"told {_amount(told)}, the rows have {_amount(summed)}")


def _amount(amount: Amount) -> str:
    return f"{amount.instances} instances {amount.cores} cores {amount.ram_mb} MiB"


# -- claims and tasks of one cell ---------------------------------------------------------------------------------


def _claims(cell: CellRows) -> Iterator[Finding]:
    for claim in leaked_claims(cell):
        yield Finding(CLAIM_LEAKED, claim.instance_uuid, f"{claim.name} on {claim.host}")
    there = {(claim.instance_uuid, claim.name, claim.host) for claim in cell.claims}
    for instance in cell.living():
        claimed = (instance.uuid, instance.claim or "", instance.host or "")
        if (instance.vm_state == VM_ACTIVE or instance.claim is not None) and claimed not in there:
            yield Finding(CLAIM_MISSING, instance.uuid, f"{instance.claim} on {instance.host}")


def _used(cell: CellRows) -> Iterator[Finding]:
    sums: dict[str, Amounts] = {}
    counts: Counter[str] = Counter()
    for claim in cell.claims:
        sums[claim.host] = sums.get(claim.host, Amounts()).plus(claim.amounts)
        counts[claim.host] += 1
    hosts = {host.name: host for host in cell.hosts}
    for name in sorted({*hosts, *sums}):
        host, total = hosts.get(name), sums.get(name, Amounts())
        if host is None:
            yield Finding(HOST_USED_WRONG, name, f"{counts[name]} claims on a host that is not known")
        elif host.used != total or host.instances != counts[name]:
            yield Finding(
                HOST_USED_WRONG,
                name,
                f"used {_amounts(host.used)} by {host.instances}, claims {_amounts(total)} by {counts[name]}",
            )


def _amounts(amounts: Amounts) -> str:
    return f"{amounts.vcpus} vcpus {amounts.memory_mb} MiB {amounts.disk_gb} GiB"


def _task_states(cell: CellRows) -> Iterator[Finding]:
    tasks = {task.instance_uuid: task for task in cell.tasks}
    uuids = {instance.uuid for instance in cell.living()}
    for instance in cell.living():
        task = tasks.get(instance.uuid)
        if task is None and (instance.task_state is not None or instance.vm_state == VM_BUILDING):
            yield Finding(TASK_STUCK, instance.uuid, f"{instance.vm_state}/{instance.task_state} without a task")
        elif task is None and instance.task_id is not None:
            yield Finding(TASK_STUCK, instance.uuid, f"names task {instance.task_id}, which is not there")
    for uuid, task in tasks.items():
        if uuid not in uuids:
            yield Finding(TASK_STUCK, uuid, f"{task.kind} at {task.step} without a server")


def _actions(cell: CellRows) -> Iterator[Finding]:
    """A task ends in the same commit as its action; one that was taken over by another too."""
    under_way = {(task.instance_uuid, task.operation_id or task.id) for task in cell.tasks}
    for action in cell.actions:
        if (action.instance_uuid, action.operation_id) not in under_way:
            yield Finding(ACTION_STUCK, action.instance_uuid, f"{action.action}, operation {action.operation_id}")


# -- the API ------------------------------------------------------------------------------------------------------


def expected_api(snapshot: Snapshot) -> dict[str, ApiServer]:
    """What an administrator's list of all projects should show at rest."""
    expected = {
        request.uuid: ApiServer(request.uuid, _request_status(request)) for request in snapshot.root.build_requests
    }
    for uuid, places in _living(snapshot).items():
        instance = places[0][1]
        expected[uuid] = ApiServer(uuid, status_of(instance.vm_state, instance.task_state), instance.host)
    return expected


def _request_status(request: BuildRequest) -> str:
    return "ERROR" if request.state == BUILD_ERROR else "BUILD"


def _api(snapshot: Snapshot) -> Iterator[Finding]:
    expected = expected_api(snapshot)
    for uuid in set(expected) - set(snapshot.api):
        yield Finding(API_DIFFERS, uuid, f"not listed, {expected[uuid].status} in the databases")
    for uuid, shown in snapshot.api.items():
        wanted = expected.get(uuid)
        if wanted is None:
            yield Finding(API_DIFFERS, uuid, f"listed as {shown.status}, not in the databases")
        elif (shown.status, shown.host) != (wanted.status, wanted.host):
            detail = f"listed as {shown.status} on {shown.host}, {wanted.status} on {wanted.host} in the databases"
            yield Finding(API_DIFFERS, uuid, detail)
