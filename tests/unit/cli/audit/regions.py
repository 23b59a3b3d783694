"""Clean regions of random shape, for the audit to find nothing in, or one thing after one corruption."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from zcompute.cli.audit_compare import expected_api
from zcompute.cli.audit_snapshot import ApiServer, CellRows, HostDomains, RootRows, Snapshot
from zcompute.compute.virt.fake_log import OP_DESTROY, OP_SPAWN, DomainLine
from zcompute.objects.build_request import BUILD_ERROR, BuildRequest, InstanceMapping, Usage
from zcompute.objects.flavor import Amounts, Flavor
from zcompute.objects.host import HOST_UP, Claim, Host
from zcompute.objects.instance import (
    POWER_RUNNING,
    VM_ACTIVE,
    VM_DELETED,
    VM_SHELVED_OFFLOADED,
    Fault,
    Instance,
    ServerSpec,
)
from zcompute.objects.quota import Amount

NOW_US = 1_700_000_000_000_000
CREATED_US = NOW_US - 120 * 10**6
CELLS = ("c1", "c2")
HOSTS_PER_CELL = 3
FLAVORS = [
    Flavor(flavorid=str(number), name=f"m1.{number}", vcpus=number, memory_mb=512 * number, root_gb=number)
    for number in (1, 2, 4)
]


@dataclass(frozen=True)
class Plan:
    """What one server of a region went through."""

    state: str  # active | deleted | refused | error
    cell: str = "c1"
    host: int = 0
    flavor: int = 0
    moves: int = 0  # hosts tried in vain before


@dataclass
class Region:
    """A snapshot to be made, with mutable parts."""

    root: RootRows = field(default_factory=lambda: RootRows(now_us=NOW_US))
    cells: dict[str, CellRows] = field(default_factory=dict)
    hosts: dict[str, HostDomains] = field(default_factory=dict)
    api: dict[str, ApiServer] = field(default_factory=dict)
    used: dict[str, Amount] = field(default_factory=dict)

    def snapshot(self) -> Snapshot:
        return Snapshot(root=self.root, cells=self.cells, hosts=self.hosts, api=self.api, used=self.used)

    def instance(self, uuid: str) -> Instance:
        return next(i for cell in self.cells.values() for i in cell.instances if i.uuid == uuid)

    def refresh_api(self) -> None:
        """Let the API show what the databases hold."""
        self.api = expected_api(self.snapshot())
        for usage in self.root.usages:
            former = self.used.get(usage.project_id, Amount())
            self.used[usage.project_id] = Amount(
                instances=former.instances + 1, cores=former.cores + usage.cores, ram_mb=former.ram_mb + usage.ram_mb
            )


def uuid_of(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def host_name(cell: str, number: int) -> str:
    return f"{cell}-host-{number}"


def clean_region(plans: list[Plan]) -> Region:
    """A region at rest in which everything holds."""
    region = Region()
    for cell in CELLS:
        names = [host_name(cell, number) for number in range(HOSTS_PER_CELL)]
        total = Amounts(vcpus=100, memory_mb=51200, disk_gb=100)
        region.cells[cell] = CellRows(
            now_us=NOW_US, hosts=[Host(name=name, service_id="s", total=total, state=HOST_UP) for name in names]
        )
        region.hosts |= {name: HostDomains() for name in names}
    for number, plan in enumerate(plans):
        _add(region, uuid_of(number), plan)
    region.refresh_api()
    return region


def _add(region: Region, uuid: str, plan: Plan) -> None:
    flavor = FLAVORS[plan.flavor]
    if plan.state == "error":
        _add_root_rows(region, uuid, None, flavor)
        region.root.build_requests.append(
            BuildRequest(
                uuid=uuid,
                project_id="p",
                user_id="u",
                name="n",
                flavor=flavor,
                spec=ServerSpec(),
                operation_id="op",
                created_at_us=CREATED_US,
                state=BUILD_ERROR,
                fault=Fault(message="No valid host was found."),
            )
        )
        return
    name = host_name(plan.cell, plan.host)
    for attempt in range(1, plan.moves + 1):
        former = region.hosts[host_name(plan.cell, (plan.host + attempt) % HOSTS_PER_CELL)]
        former.lines.append(line(OP_SPAWN, uuid, attempt))
        former.lines.append(line(OP_DESTROY, uuid, attempt))
    attempt = plan.moves + 1
    region.hosts[name].lines.append(line(OP_SPAWN, uuid, attempt))
    instance = Instance(
        uuid=uuid,
        project_id="p",
        user_id="u",
        name="n",
        flavor=flavor,
        spec=ServerSpec(),
        created_at_us=CREATED_US,
        vm_state=VM_ACTIVE,
        task_state=None,
        power_state=POWER_RUNNING,
        host=name,
        claim=f"task-{uuid}/{attempt}",
        generation=attempt,
    )
    cell = region.cells[plan.cell]
    cell.instances.append(instance)
    if plan.state == "deleted":
        instance.vm_state, instance.power_state = VM_DELETED, 0
        region.hosts[name].lines.append(line(OP_DESTROY, uuid, attempt))
        return
    _add_root_rows(region, uuid, plan.cell, flavor)
    if plan.state == "shelved":
        instance.vm_state, instance.power_state, instance.host, instance.claim = VM_SHELVED_OFFLOADED, 4, None, None
        instance.generation += 1
        region.hosts[name].lines.append(line(OP_DESTROY, uuid, attempt))
        return
    claim = Claim(
        instance_uuid=uuid,
        task_id=f"task-{uuid}",
        attempt=attempt,
        host=name,
        amounts=flavor.amounts(),
        created_at_us=CREATED_US,
    )
    cell.claims.append(claim)
    host = next(host for host in cell.hosts if host.name == name)
    host.used, host.instances = host.used.plus(claim.amounts), host.instances + 1


def _add_root_rows(region: Region, uuid: str, cell: str | None, flavor: Flavor) -> None:
    region.root.mappings.append(InstanceMapping(uuid=uuid, project_id="p", cell=cell))
    region.root.usages.append(Usage(uuid=uuid, project_id="p", cores=flavor.vcpus, ram_mb=flavor.memory_mb))


def line(op: str, uuid: str, attempt: int) -> DomainLine:
    return DomainLine(op=op, uuid=uuid, task_id=f"task-{uuid}", step="spawn", attempt=attempt, generation=attempt)


PLANS = st.builds(
    Plan,
    state=st.sampled_from(["active", "active", "deleted", "error", "shelved"]),
    cell=st.sampled_from(CELLS),
    host=st.integers(0, HOSTS_PER_CELL - 1),
    flavor=st.integers(0, len(FLAVORS) - 1),
    moves=st.integers(0, HOSTS_PER_CELL - 1),
)
# Server 0 is ACTIVE on host 0 of c1, server 1 in ERROR at the root, server 2 deleted: what corruptions are made to.
REGIONS = st.lists(PLANS, max_size=12).map(
    lambda plans: clean_region([Plan("active"), Plan("error"), Plan("deleted"), *plans])
)
