"""The processes that a life kills and starts again: conductors, and agents with their hosts."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.cell.loop import Process
from zcompute.compute.service import ComputeService
from zcompute.conductor.service import ConductorService
from zcompute.config import (
    BusConfig,
    ComputeConfig,
    ConductorConfig,
    Config,
    DatabaseConfig,
    NotificationsConfig,
    PeerConfig,
    ServiceConfig,
)
from zcompute.objects.partition import PartitionMap

if TYPE_CHECKING:
    from tests.simulation.cell.world import World

CELL = "c1"


class Conductor:
    """One service id; a process at a time."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.process = Process(name)
        self.service: ConductorService | None = None

    def start(self) -> None:
        world = self.world
        self.process = Process(self.name)
        peers = [PeerConfig(id=name, address=f"tcp://{name}:1") for name in world.conductor_names]
        config = Config(
            service=ServiceConfig(id=self.name, cell=CELL, state_dir=""),
            bus=BusConfig(
                listen=f"tcp://{self.name}:1",
                conductors=[peer for peer in peers if peer.id != self.name],
                root=[PeerConfig(id="r1", address="tcp://r1:1")],
            ),
            database=DatabaseConfig(url="mysql://zcompute@db/c1"),
            notifications=NotificationsConfig(exists_s=world.exists_s),
            conductor=ConductorConfig(shelved_offload_time_s=world.offload_s),
        )
        self.service = ConductorService(config)
        self.process.kept.append(self.service)
        world.loop.spawn(self.process, self._run, self.service)

    def _run(self, service: ConductorService) -> None:
        """No fault of this world keeps a conductor from beginning."""
        try:
            service.run()
        except Exception as error:
            self.world.crashed(f"{self.name} does not begin: {type(error).__name__}: {error}")
            raise

    def kill(self) -> None:
        self.process.kill()
        self.world.network.died(self.process)
        self.world.dead.append(self.process)

    def stop(self, then: Callable[[], None]) -> None:
        """The planned end."""
        service, loop = self.service, self.world.loop

        def end() -> None:
            if service is not None:
                service.stop()
            loop.soon(None, then)

        loop.spawn(self.process, end)


class Agent:
    """One host with its agent; the hypervisor and the state directory outlive it."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.process = Process(name, native=False)
        self.service: ComputeService | None = None
        self.ending: ComputeService | None = None
        self.directory = world.directory / name
        self.epochs: dict[int, int] = {}  # the highest owner epochs of partitions that it has obeyed
        self.map = PartitionMap(cell=CELL)
        self.owed: set[Any] = set()

    def start(self) -> None:
        world = self.world
        process = self.process = Process(self.name, native=False)
        config = Config(
            service=ServiceConfig(id=self.name, cell=CELL, state_dir=str(self.directory)),
            bus=BusConfig(conductors=[PeerConfig(id=n, address=f"tcp://{n}:1") for n in world.conductor_names]),
            compute=ComputeConfig(),
        )
        driver = world.hypervisors.driver(self.name)

        def begin() -> None:
            service = self.service = ComputeService(config, driver, world.agent_settings)
            process.kept.append(service)
            world.checker.restarted(self.name, self.owed, self._entries())
            service.start()

        world.loop.spawn(process, begin)

    def _entries(self) -> set[Any]:
        service = self.service
        return set() if service is None else {(e.seq, e.key, e.payload) for e in service._outbox.entries()}

    def kill(self) -> None:
        """kill -9: the kernel gives its lock back."""
        self.owed = self._entries()
        self.process.kill()
        self.world.network.died(self.process)
        self.world.dead.append(self.process)
        if self.service is not None:
            os.close(self.service._state._descriptor)
            self.service = None

    def stop(self, then: Callable[[], None]) -> None:
        """The planned end; it is asked for once."""
        service, process = self.service, self.process
        if service is self.ending:
            return
        self.ending = service

        def end() -> None:
            if service is None or self.service is not service:
                return
            service.stop()
            if self.service is service:  # else it was killed meanwhile
                owed, self.service = self._entries(), None
                self.kill()
                self.owed = owed
                self.world.loop.soon(None, then)

        self.world.loop.spawn(process, end)

    def look(self) -> None:
        """The hypervisor tells the agent that something has changed."""
        service = self.service
        if service is not None and not self.process.dead:
            self.world.loop.spawn(self.process, service.observer.look, self.name)

    def epoch_known(self, partition: int) -> int:
        """The highest owner epoch of a partition of which it has heard."""
        return max(self.map.epochs[partition], self.epochs.get(partition, 0))
