"""The clients of the cell: what they ask for over the root, again and again until it is acknowledged."""

import random
from collections.abc import Callable
from typing import Any

import gevent

from tests.simulation.cell.checker import Checker
from tests.simulation.cell.fleet import CELL
from tests.simulation.cell.groups import rule_of
from tests.simulation.cell.loop import Process, VirtualLoop
from tests.simulation.cell.plan import Event
from tests.simulation.cell.root_images import RootImages
from zcompute.bus import BusError, Endpoint
from zcompute.objects.actions import SNAPSHOT
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.command import StepArguments
from zcompute.objects.errors import InstanceBusy, InstanceNotFound, ServiceError
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import ServerSpec
from zcompute.objects.messages.instances import BuildRequestMessage, InstanceActionRequest, InstanceDeleteRequest
from zcompute.objects.methods import INSTANCE_ACTION, INSTANCE_BUILD, INSTANCE_DELETE

FLAVOR = Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1)
OPERATION_MS = 1500


def uuid_of(number: int) -> str:
    """The servers of a simulated life, by number."""
    return f"00000000-0000-4000-8000-{number:012d}"


class Clients:
    """The part of a world that asks."""

    loop: VirtualLoop
    checker: Checker
    images: RootImages
    dice: random.Random
    root: Endpoint | None
    root_process: Process
    deletes: dict[str, str]
    asked: int
    acts: int

    def _operate(self, method: Any, request: Any, done: Callable[[], None]) -> None:
        """Ask for something until it is acknowledged, as the root's hand-off does."""
        self.asked += 1
        try:
            while True:
                links = [] if self.root is None else self.root.links(role="conductor", cell=CELL)
                if links:
                    link = self.dice.choice(links)
                    try:
                        link.call(method, request, timeout_ms=OPERATION_MS)
                        done()
                        return
                    except InstanceBusy:
                        if method is INSTANCE_ACTION:
                            return
                    except InstanceNotFound:
                        return  # an earlier copy was accepted, or the cell has handed the server back: nobody knows
                    except (BusError, ServiceError):
                        pass
                gevent.sleep(0.02)
        finally:
            self.asked -= 1

    def create(self, number: int) -> None:
        uuid = uuid_of(number)
        request = BuildRequest(
            uuid=uuid, project_id="p", user_id="u", name=f"n{number}", flavor=FLAVOR,
            spec=ServerSpec(group=rule_of(number)), operation_id=f"create {number}", cell=CELL,
        )  # fmt: skip
        message = BuildRequestMessage(build_request=request)
        self.loop.spawn(self.root_process, self._operate, INSTANCE_BUILD, message, lambda: self.checker.created(uuid))

    def delete(self, number: int) -> None:
        """Of a server that the cell has taken."""
        uuid = uuid_of(number)
        if uuid not in self.checker._created or uuid in self.deletes:
            return
        self.deletes[uuid] = f"delete {number}"
        request = InstanceDeleteRequest(uuid=uuid, project_id="p", operation_id=self.deletes[uuid])
        self.loop.spawn(self.root_process, self._operate, INSTANCE_DELETE, request, lambda: self.checker.deleted(uuid))

    def _act(self, event: Event) -> None:
        """An action of a server that the cell has taken; what its state or another task forbids is not asked again."""
        uuid = uuid_of(event.number)
        if uuid not in self.checker._created:
            return
        self.acts += 1
        name = f"act {self.acts}"
        snapshot = event.who == SNAPSHOT.key
        arguments = StepArguments(image_ref=name if snapshot else "")
        request = InstanceActionRequest(
            uuid=uuid, project_id="p", operation_id=name, action=event.who, arguments=arguments
        )

        def accepted() -> None:
            self.checker.acted(uuid, name)
            if snapshot:
                self.images.begun(name)

        self.loop.spawn(self.root_process, self._operate, INSTANCE_ACTION, request, accepted)
