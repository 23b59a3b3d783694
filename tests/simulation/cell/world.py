"""A whole cell in one process: conductors, agents, a scheduler, a root cell, their database and their network."""

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gevent

from tests.simulation.cell import stage
from tests.simulation.cell.checker import Checker
from tests.simulation.cell.clients import uuid_of
from tests.simulation.cell.database import LATE_S, LATER_S, Rows, Server
from tests.simulation.cell.fleet import CELL, Agent, Conductor
from tests.simulation.cell.hypervisor import Hypervisors
from tests.simulation.cell.loop import BEGIN_S, Process, VirtualLoop
from tests.simulation.cell.operators import Operators
from tests.simulation.cell.plan import Event, Scale
from tests.simulation.cell.root_images import RootImages
from tests.simulation.cell.root_quota import RootQuota
from tests.simulation.cell.store import SimStore
from tests.simulation.cell.wire import Network, Weather
from zcompute import __version__
from zcompute.bus import Endpoint, Identity, register_error
from zcompute.bus.link import Link
from zcompute.compute.links import ConductorLinks
from zcompute.compute.settings import Settings
from zcompute.conductor import primary as conductor_primary
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.instance import POWER_PAUSED, POWER_RUNNING, POWER_SHUTDOWN
from zcompute.objects.lowering import attributes, lowering_for
from zcompute.objects.messages.cluster import Empty, MapReply
from zcompute.objects.messages.hosts import SelectReply
from zcompute.objects.methods import (
    ADOPT,
    CELL_CAPACITY,
    CELL_REGISTER,
    DESTROY,
    MAP_GET,
    MAPPING_DELETED,
    MAPPING_REFUSED,
    SELECT_DESTINATIONS,
    SPAWN,
    STEP,
    TOPIC_MAP,
)  # fmt: skip
from zcompute.objects.partition import PARTITIONS, ConductorInfo, PartitionMap

POWERS = (POWER_RUNNING, POWER_PAUSED, POWER_SHUTDOWN)
BUILDS_S = ((0.0, 0.02), (0.0, 0.5), (0.3, 1.5))
EXISTS_S = 4  # the period of instance.exists, where a life has one
SETTLE_S_MAX = 150.0  # a parked task that nobody wakes is looked at once a minute
LATE_COMMAND_S = (0.02, 1.5)
SELECT_S = (0.3, 0.9)  # of a slow scheduler: one call may take a second
SETTLE_LOOK_S = 0.05


_faces = (Link.report, Endpoint.on_acks, Endpoint.serve, ConductorLinks.learn)


class World(Operators):
    """One simulated life."""

    def __init__(self, seed: int, scale: Scale) -> None:
        self.seed = seed
        self.scale = scale
        self.crashes: list[str] = []
        self.acts = 0
        self.loop: VirtualLoop
        self.network: Network
        self.loop, self.network = stage.set_stage(seed, self.crashed)
        self.dice = random.Random(f"{seed} world")
        self.server = Server(self.loop, Rows(CELL), seed)
        self.hypervisors = Hypervisors(seed)
        self.quota = RootQuota(seed)
        self.checker = Checker(self.server.rows, self.hypervisors, self.loop.now, self.quota.charged)
        self.images = RootImages(self.checker.violated)
        self.directory = Path(tempfile.mkdtemp(prefix="zcompute-sim-", dir=_memory()))
        self.agent_settings = Settings(observe_ms=3_000)
        self.conductor_names = [f"c{n + 1}" for n in range(scale.conductors)]
        self.conductors = {name: Conductor(self, name) for name in self.conductor_names}
        self.agents = {f"a{n + 1}": Agent(self, f"a{n + 1}") for n in range(scale.agents)}
        self.dead: list[Process] = []
        self.lost: set[str] = set()
        self.asked = 0  # operations of clients that have no answer yet
        self.deletes: dict[str, str] = {}
        self.hosts_max = scale.agents  # that the scheduler knows of
        self.exists_s = 0
        self.offload_s = random.Random(f"{seed} shelves").choice((0, -1))  # of shelved servers: at once, or never
        self.select_s = (0.0, 0.0)
        self.late_commands = 0.0  # the share of commands that take long from the wire to the agent
        self.root: Endpoint | None = None
        self.scheduler: Endpoint | None = None
        for kind in SERVICE_ERRORS:
            register_error(kind)
        self._listen_in()

    def crashed(self, text: str) -> None:
        """A greenlet died of what nobody foresaw."""
        self.crashes.append(f"{self.loop.now_s - BEGIN_S:.4f} {text}")

    def close(self) -> None:
        """Nothing is left on the disk."""
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- what the checker hears ---------------------------------------------------------------------------------

    def _listen_in(self) -> None:
        """Hear at the public faces of the bus and the agent what is reported, acknowledged, learnt and obeyed."""
        world = self
        conductor_primary.open_store = lambda *_: SimStore(world.server, world.loop.process or Process("nobody"))
        send, hear, serve, learn = _faces

        def report(link: Link, reports: Any) -> int:
            world.checker.reported(world.network.running(), reports)
            return send(link, reports)

        def on_acks(endpoint: Endpoint, handler: Any) -> None:
            def heard(link: Link, acks: Any) -> None:
                world.checker.acknowledged(endpoint.identity.service_id, acks)
                handler(link, acks)

            hear(endpoint, heard)

        def serve_checked(endpoint: Endpoint, method: Any, handler: Any) -> None:
            agent = world.agents.get(endpoint.identity.service_id)
            if agent is None or method not in (SPAWN, DESTROY, ADOPT, STEP):
                serve(endpoint, method, handler)
                return

            def obey(request: Any, context: Any) -> Any:
                order = request.order
                if world.late_commands and world.dice.random() < world.late_commands:
                    gevent.sleep(world.dice.uniform(*LATE_COMMAND_S))  # later ones overtake it
                known = agent.epoch_known(order.partition)
                reply = handler(request, context)
                world.checker.obeyed(agent.name, method.name, order, known)
                agent.epochs[order.partition] = max(known, order.owner_epoch)
                return reply

            serve(endpoint, method, obey)

        def learn_checked(links: Any, cell_map: PartitionMap) -> None:
            learn(links, cell_map)
            agent = world.agents.get(world.network.running())
            if agent is not None and links.map.version > agent.map.version:
                agent.map = links.map

        Link.report, Endpoint.on_acks = report, on_acks
        Endpoint.serve, ConductorLinks.learn = serve_checked, learn_checked

    # -- the stubs ----------------------------------------------------------------------------------------------

    def start(self, absent: set[str]) -> None:
        """Everything at once, but for conductors that come later."""
        root, scheduler = Process("r1", native=False), Process("s1", native=False)
        self.loop.spawn(root, self._start_root)
        self.loop.spawn(scheduler, self._start_scheduler)
        for conductor in self.conductors.values():
            if conductor.name in absent:
                conductor.process.kill()
            else:
                conductor.start()
        for agent in self.agents.values():
            agent.start()
        self.root_process, self.scheduler_process = root, scheduler

    def _endpoint(self, role: str, cell: str, service_id: str) -> Endpoint:
        identity = Identity(role=role, cell=cell, service_id=service_id, release=__version__)
        return Endpoint(identity, topics=[TOPIC_MAP], attributes=attributes, lowering=lowering_for)

    def _start_root(self) -> None:
        """The root cell: one conductor that owns everything and acknowledges all."""
        endpoint = self.root = self._endpoint("conductor", ROOT_CELL, "r1")
        info = ConductorInfo(service_id="r1", incarnation="root", address="tcp://r1:1")
        root_map = PartitionMap(cell=ROOT_CELL, version=1, owners=["r1"] * PARTITIONS, epochs=[1] * PARTITIONS,
                                conductors={"r1": info})  # fmt: skip
        endpoint.serve(MAP_GET, lambda *_: MapReply(map=root_map))
        for method in (CELL_REGISTER, MAPPING_DELETED, MAPPING_REFUSED):
            endpoint.serve(method, lambda *_: Empty())
        endpoint.serve(CELL_CAPACITY, lambda *_: None)
        self.quota.serve(endpoint)
        self.images.serve(endpoint)
        endpoint.bind("tcp://r1:1")

    def _start_scheduler(self) -> None:
        endpoint = self.scheduler = self._endpoint("scheduler", CELL, "s1")

        def select(request: Any, context: Any) -> SelectReply:
            if self.select_s[1]:
                gevent.sleep(self.dice.uniform(*self.select_s))
            ignored = {*request.ignore_hosts, *(self.hosts_forced_down() if self.dice.random() < 0.8 else ())}
            only = request.only_hosts or self.agents
            hosts = [name for name in self.agents if name not in ignored and name in only]
            self.dice.shuffle(hosts)
            del hosts[self.hosts_max :]
            return SelectReply(hosts=[hosts[: 1 + request.alternates] for _ in request.instance_uuids])

        endpoint.serve(SELECT_DESTINATIONS, select)
        for name in self.conductor_names:
            endpoint.dial(f"tcp://{name}:1")

    # -- clients ------------------------------------------------------------------------------------------------

    def builds(self, number: int) -> None:
        """How long hypervisors take."""
        self.hypervisors.build_s = BUILDS_S[number]

    def power(self, number: int) -> None:
        """A machine changes by itself."""
        for host in self.hypervisors.live(uuid_of(number)):
            self.hypervisors.set_power(host, uuid_of(number), self.dice.choice(POWERS))
            self.agents[host].look()

    def power_all(self, event: Event) -> None:
        """Every machine of a host, or of all, changes at once."""
        for host, domains in self.hypervisors.domains.items():
            if event.who in ("", host):
                for uuid in domains:
                    self.hypervisors.set_power(host, uuid, self.dice.choice(POWERS))
                self.agents[host].look()

    # -- faults -------------------------------------------------------------------------------------------------

    def happen(self, event: Event) -> None:
        """One event of the plan."""
        self.checker.seen[f"event {event.kind}"] += 1
        act = getattr(self, f"_{event.kind}", None) or getattr(self, event.kind)
        if event.kind in ("create", "delete", "power", "builds"):
            act(event.number)
        else:
            act(event)

    def _kill(self, event: Event) -> None:
        conductor = self.conductors[event.who]
        if not conductor.process.dead:
            conductor.kill()
            self.loop.later(event.for_s, None, self._revive, conductor)

    def _kill_all(self, event: Event) -> None:
        """Every conductor at once."""
        for name in self.conductors:
            self._kill(Event(event.at_s, "kill", name, for_s=event.for_s))

    def _audit(self, event: Event) -> None:
        """The conductors tell of usage, from the start on."""

    def _full(self, event: Event) -> None:
        """The scheduler finds no host."""
        self.hosts_max = 0
        self.loop.later(event.for_s, None, self._roomy)

    def _roomy(self) -> None:
        self.hosts_max = self.scale.agents

    def _lose_state(self, event: Event) -> None:
        """An agent dies, and its state directory with it."""
        agent = self.agents[event.who]
        self._kill_agent(event)
        if agent.process.dead:
            shutil.rmtree(agent.directory, ignore_errors=True)
            agent.owed = set()
            self.checker.lost_state(agent.name)

    def _stop_agent(self, event: Event) -> None:
        """An agent ends by plan, and begins again."""
        agent = self.agents[event.who]
        if not agent.process.dead and agent.process.held is None and agent.service is not None:
            agent.stop(lambda: self.loop.later(event.for_s, None, self._revive, agent))

    def _lose_file(self, event: Event) -> None:
        """An agent dies, and one of its files is deleted, or half of it."""
        agent = self.agents[event.who]
        self._kill_agent(event)
        files = sorted(path for path in agent.directory.glob("*") if path.name != "lock")
        if agent.process.dead and files:
            path = files[event.number // 2 % len(files)]
            if event.number % 2:
                path.unlink()
            else:
                os.truncate(path, path.stat().st_size // 2)
            agent.owed = set()
            self.checker.lost_state(agent.name)

    def _absent(self, event: Event) -> None:
        """A conductor begins when the others have long been there."""
        self.loop.later(event.for_s, None, self._revive, self.conductors[event.who])

    def _join(self, event: Event) -> None:
        """A conductor of which nobody's configuration tells comes; it may leave again by plan, or die for good."""
        if event.who in self.conductors:
            return
        conductor = self.conductors[event.who] = Conductor(self, event.who)
        conductor.start()
        if self.scheduler is not None:  # which learns of conductors by the map
            self.loop.spawn(self.scheduler_process, self.scheduler.dial, f"tcp://{event.who}:1")
        if event.number:
            self.loop.later(event.for_s, None, self._part, conductor, event.number == 1)

    def _part(self, conductor: Conductor, by_plan: bool) -> None:
        """It is never seen again."""

        def gone() -> None:
            if not conductor.process.dead:
                conductor.kill()
            self.conductors.pop(conductor.name, None)

        if conductor.process.dead or not by_plan:
            gone()
        else:
            conductor.process.thaw(self.loop)
            conductor.stop(gone)

    def _leap(self, event: Event) -> None:
        """The clock of one process jumps forward; nobody else has waited meanwhile."""
        (self.conductors.get(event.who) or self.agents[event.who]).process.leap(self.loop, event.for_s)

    def _database_clock(self, event: Event) -> None:
        """The primary's UTC time jumps forward: stored deadlines pass early."""
        self.server.ahead_s += event.for_s

    def _kill_agent(self, event: Event) -> None:
        agent = self.agents[event.who]
        if not agent.process.dead and agent.service is not None:
            agent.kill()
            self.loop.later(event.for_s, None, self._revive, agent)

    def _revive(self, who: Conductor | Agent) -> None:
        """Unless it has left for good meanwhile: its name may be another's by now."""
        if (
            who.process.dead
            and who.name not in self.hypervisors.off
            and who in (self.conductors.get(who.name), self.agents.get(who.name))
        ):
            who.start()

    def _freeze(self, event: Event) -> None:
        process = (self.conductors.get(event.who) or self.agents[event.who]).process
        if not process.dead and process.held is None:
            process.freeze()
            self.loop.later(event.for_s, None, process.thaw, self.loop)

    _freeze_agent = _freeze

    def _stall_hub(self, event: Event) -> None:
        process = self.conductors[event.who].process
        if not process.dead and process.held is None:
            process.freeze(hub_only=True)
            self.loop.later(event.for_s, None, process.thaw, self.loop)

    def _stop(self, event: Event) -> None:
        conductor = self.conductors[event.who]
        process = conductor.process
        if process.dead or process.held is not None:
            return

        def gone() -> None:
            if conductor.process is process and not process.dead:
                conductor.kill()
                self.loop.later(event.for_s, None, self._revive, conductor)

        conductor.stop(gone)

    def _cut(self, event: Event) -> None:
        for connection in list(self.network.connections.values()):
            if {connection.dealer.process.name, connection.router.process.name} == {event.who, event.other}:
                connection.cut()

    def _block(self, event: Event) -> None:
        self.network.block(event.who, event.other)
        self.loop.later(event.for_s, None, self.network.heal, event.who, event.other)

    def _isolate(self, event: Event) -> None:
        """No agent hears this conductor, or the other way round, or both; the database and its fellows do."""
        for agent in self.agents:
            for source, target in ((event.who, agent), (agent, event.who)):
                if event.number == 2 or (event.number == 0) == (source == event.who):
                    self._block(Event(event.at_s, "block", source, target, event.for_s))

    def _crash(self, event: Event) -> None:
        if not self.server.down:
            self.server.crash(event.for_s)

    def _stall(self, event: Event) -> None:
        self.server.stall(event.for_s)

    def _nasty(self, event: Event) -> None:
        """The database's connections are bad for a while."""
        server = self.server
        bad = self.dice.choice((0.1, 0.25))
        server.lose_before = server.lose_after = server.overtake = server.stick = server.busy = server.delay = bad
        self.loop.later(event.for_s, None, self._nice)

    def _nice(self) -> None:
        server = self.server
        server.lose_before = server.lose_after = server.overtake = server.stick = server.busy = server.delay = 0.0

    def _late_packets(self, event: Event) -> None:
        """What is sent to the database now takes longer than a lease."""
        self.server.delay, self.server.late_s = 0.8, LATER_S
        self.loop.later(event.for_s, None, self._in_time)

    def _in_time(self) -> None:
        self.server.delay, self.server.late_s = 0.0, LATE_S

    def _slow(self, event: Event) -> None:
        self.network.weather = Weather(slow=0.3)
        self.loop.later(event.for_s, None, setattr, self.network, "weather", Weather())

    def _slow_schedulers(self, event: Event) -> None:
        """Schedulers take their time."""
        self.select_s = SELECT_S
        self.loop.later(event.for_s, None, setattr, self, "select_s", (0.0, 0.0))

    def _late_commands(self, event: Event) -> None:
        """Commands of one instance reach its agent in another order than they were sent in."""
        self.late_commands = 0.3
        self.loop.later(event.for_s, None, setattr, self, "late_commands", 0.0)

    def _failing(self, event: Event) -> None:
        self.hypervisors.fail = 0.5
        self.loop.later(event.for_s, None, setattr, self.hypervisors, "fail", 0.0)

    def heal(self) -> None:
        """Nothing fails any more."""
        self._nice()
        self.network.heal_all()
        self.network.weather = Weather()
        self.hypervisors.build_s = BUILDS_S[0]
        self.hypervisors.fail = 0.0
        self._roomy()
        self.late_commands = 0.0
        self.select_s = (0.0, 0.0)
        for who in [*self.conductors.values(), *self.agents.values()]:
            if who.process.dead and who.name not in self.hypervisors.off:
                who.start()
            elif who.process.held is not None:
                who.process.thaw(self.loop)

    # -- a life -------------------------------------------------------------------------------------------------

    def live(self, events: list[Event]) -> None:
        """The plan, then rest. Ends at the first violation."""
        began_s = self.loop.now_s
        if any(event.kind == "audit" for event in events):
            self.exists_s = EXISTS_S
        self.start({event.who for event in events if event.kind == "absent"})
        for event in events:
            gevent.sleep(max(0.0, began_s + event.at_s - self.loop.now_s))
            if self.checker.violations:
                return
            self.happen(event)
        gevent.sleep(max(0.0, began_s + self.scale.seconds - self.loop.now_s))
        self.heal()
        self._settle()

    def _settle(self) -> None:
        ends_at_s = self.loop.now_s + SETTLE_S_MAX
        for agent in self.agents.values():
            agent.look()
        while not self.checker.violations:
            unrest = self.unrest()
            if not unrest:
                self.checker.count_ended()
                return
            if self.loop.now_s >= ends_at_s:
                for text in unrest[:5]:
                    self.checker.violated("not at rest", text)
                return
            gevent.sleep(SETTLE_LOOK_S)

    def unrest(self) -> list[str]:
        """What is not done yet."""
        found = [f"{self.asked} operations are not answered"] if self.asked else []
        found += [
            f"{agent.name} owes {len(agent.service.reporter)}"
            for agent in self.agents.values()
            if agent.service is not None and len(agent.service.reporter)
        ]
        return found or self.checker.unrest() or self.images.unrest(self.checker.shelved_images())


def _memory() -> str | None:
    """Where files live in memory, if there is such a place."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None
