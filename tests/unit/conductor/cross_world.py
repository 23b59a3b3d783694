"""Two cells and a root: the engines of both cells as tests/unit/conductor/cell has them, the root's runner over a
ledger that decides at once, and links between them that tests cut."""

from types import SimpleNamespace
from typing import Any

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from tests.unit.conductor.ledger_world import wait_for
from tests.unit.conductor.root.fakes import FakeEndpoint, FakeLedger, FakeStore, context
from zcompute.bus.errors import DeadlineExceeded, NotOwner
from zcompute.conductor.cell.crossing import Crossing
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.forwarding import Forwarding
from zcompute.conductor.root.cross_asks import CrossMoveAsks
from zcompute.conductor.root.cross_moves import CrossMoves
from zcompute.conductor.root.settings import CrossMoveSettings
from zcompute.db.tables import CELLS, CROSS_MOVES, INSTANCE_ACTIONS, MAPPINGS
from zcompute.objects.build_request import InstanceMapping
from zcompute.objects.cell import CellInfo
from zcompute.objects.cross_move import CROSS_ENDED, CrossMove
from zcompute.objects.instance import ARRIVING, VM_ACTIVE, VM_DELETED
from zcompute.objects.messages.crossing import CrossMoveRequest, CrossOrder
from zcompute.objects.partition import PARTITIONS

OPERATION = "0e000000-0000-4000-8000-000000000001"
FAST = CrossMoveSettings(lists_s_max=0.0, retry_ms_min=1, retry_ms_max=5, look_ms=2, scan_retry_ms=1, call_ms_max=500)


class Side:
    """One cell and the link to it. ``away``: it does not answer; ``lost`` words are done, and not answered, once."""

    def __init__(self, name: str, *hosts: str) -> None:
        self.name = name
        self.world = CellWorld(*hosts)
        env: Any = SimpleNamespace(
            ledger=self.world.ledger, cell=name, forwarding=Forwarding(self.world, self.world.ledger, name)
        )
        self.crossing = Crossing(env, self.world.engine, CellSettings(), QUICK, self.world._forced)
        self.peer = SimpleNamespace(role="conductor", cell=name, service_id=f"{name}-conductor-1", topics=frozenset())
        self.away = False
        self.lost: set[str] = set()
        self.words: list[str] = []
        self.orders: list[CrossOrder] = []

    def call(self, method: Any, order: CrossOrder, *, timeout_ms: int) -> Any:
        if self.away:
            raise DeadlineExceeded("silence")
        self.words.append(order.word)
        self.orders.append(order)
        reply = self.crossing.cross(order, self.world.context())
        if order.word in self.lost:
            self.lost.discard(order.word)
            raise DeadlineExceeded("the answer is lost")
        return reply


class CrossWorld:
    """A server runs in c1 on h1; c2 has the hosts k1 and k2."""

    def __init__(self, settings: CrossMoveSettings = FAST) -> None:
        self.c1, self.c2 = Side("c1", "h1", "h2"), Side("c2", "k1", "k2")
        self.ledger = FakeLedger()
        self.endpoint = FakeEndpoint()
        self.endpoint.up = [self.c1, self.c2]
        self.deleted: set[str] = set()
        self.settings = settings
        for name in ("c1", "c2"):
            self.ledger.rows[CELLS.name, (name,)] = CellInfo(name=name)
        self.uuid = self.c1.world.build()
        self.c1.world.wait_state(self.uuid, VM_ACTIVE)
        mapping = InstanceMapping(uuid=self.uuid, project_id="demo", cell="c1", generation=1)
        self.ledger.rows[MAPPINGS.name, (self.uuid,)] = mapping
        self.moves = self.new_owner()

    def new_owner(self) -> CrossMoves:
        """A root conductor that owns the project from now on."""
        forwarding = SimpleNamespace(needed=lambda key, context: False)
        env: Any = SimpleNamespace(
            ledger=self.ledger, store=FakeStore(self.ledger), endpoint=self.endpoint, forwarding=forwarding
        )
        cells: Any = SimpleNamespace(deleted=lambda name: name in self.deleted)
        self.moves = CrossMoves(env, cells, self.settings)
        self.asks = CrossMoveAsks(env, self.moves)
        self.moves.gained(list(range(PARTITIONS)))
        return self.moves

    def close(self) -> None:
        self.moves.stop()
        self.c1.world.close()
        self.c2.world.close()

    def side(self, name: str) -> Side:
        return {"c1": self.c1, "c2": self.c2}[name]

    def ask(self, target: str = "c2", operation_id: str = OPERATION) -> CrossMove:
        request = CrossMoveRequest(uuid=self.uuid, target_cell=target, operation_id=operation_id)
        return self.asks.move(request, context(role="operator")).move

    @property
    def move(self) -> Any:
        return self.ledger.get(CROSS_MOVES, self.uuid)

    @property
    def mapping(self) -> Any:
        return self.ledger.get(MAPPINGS, self.uuid)

    def ended(self) -> CrossMove:
        wait_for(lambda: self.move is not None and self.move.state == CROSS_ENDED)
        return self.move

    def row(self, cell: str) -> Any:
        return self.side(cell).world.instance(self.uuid)

    def running_on(self) -> list[str]:
        agents = [*self.c1.world.agents.values(), *self.c2.world.agents.values()]
        return [agent.host for agent in agents if self.uuid in agent.running]

    def domains_on(self) -> list[str]:
        agents = [*self.c1.world.agents.values(), *self.c2.world.agents.values()]
        return [agent.host for agent in agents if self.uuid in agent.domains or self.uuid in agent.awaited]

    def claimed(self) -> list[str]:
        return sorted([*self.c1.world.claims.values(), *self.c2.world.claims.values()])

    def servers(self) -> list[str]:
        """The cells whose row is a server: not deleted, and not on its way. One is too many while a move goes on."""
        return [name for name in ("c1", "c2") if (row := self.row(name)) is not None and row.vm_state != VM_DELETED
                and row.crossing != ARRIVING]  # fmt: skip

    def history(self, cell: str, operation_id: str = OPERATION) -> Any:
        return self.side(cell).world.database.row(INSTANCE_ACTIONS, (self.uuid, operation_id))


class RootDeath:
    """The root's owner loses the partition at the commit that ends a step: ``before`` it, or right after it."""

    def __init__(self, world: CrossWorld, step: str, before: bool) -> None:
        self.came = False
        self._world, self._step, self._before = world, step, before
        self._submit = world.ledger.submit
        world.ledger.submit = self.submit

    def submit(self, partition: int, keys: Any, decide: Any) -> Any:
        now = self._world.move
        at_place = now is not None and now.step == self._step and not self.came
        if at_place and self._before and self._world.moves is not None and self._ends(decide, partition, keys):
            self._die(partition)
        ticket = self._submit(partition, keys, decide)
        after = self._world.move
        if at_place and not self.came and (after.step, after.state) != (now.step, now.state):
            self._die(partition)
        return ticket

    def _ends(self, decide: Any, partition: int, keys: Any) -> bool:
        """Whether this decision would move it on: tried on the rows, and taken back."""
        rows = dict(self._world.ledger.rows)
        now = self._world.move
        self._submit(partition, keys, decide)
        after = self._world.move
        self._world.ledger.rows = rows
        return (after.step, after.state) != (now.step, now.state)

    def _die(self, partition: int) -> None:
        self.came = True
        self._world.ledger.submit = self._submit
        raise NotOwner("another owns it", partition=partition, map_version=2)
