"""The root as a cell's conductor meets it: the real decisions about what a server is charged, on a ledger that decides
at once."""

from types import SimpleNamespace
from typing import Any

import msgspec

from tests.unit.conductor.root.fakes import FakeLedger
from zcompute.bus.errors import LinkDown
from zcompute.conductor.root.resizing import Resizing
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.tables import MAPPINGS, PROJECT_USAGES, USAGES
from zcompute.objects.build_request import InstanceMapping, Usage
from zcompute.objects.instance import Instance
from zcompute.objects.quota import Limits, ProjectUsage


class RootDesk:
    """``away``: no answer; ``answers_lost``: so many are decided upon and not heard. ``words`` are those that came."""

    def __init__(self) -> None:
        self.ledger = FakeLedger()
        self.limits = Limits(instances=10, cores=20, ram_mb=51200)
        quotas: Any = SimpleNamespace(default=lambda: self.limits, refused=0)
        env: Any = SimpleNamespace(ledger=self.ledger)
        self._resizing = Resizing(env, quotas, RootSettings(), lambda context, cell: None)
        self.away = False
        self.answers_lost = 0
        self.words: list[tuple[str, Any]] = []

    def call(self, key: str, method: Any, request: Any, *, timeout_ms: int) -> Any:
        if self.away:
            raise LinkDown("no conductor of the root is linked")
        request = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=type(request))
        self.words.append((method.name, request))
        context = SimpleNamespace(remaining_ms=lambda: timeout_ms)
        reply = dict(self._resizing.handlers())[method](request, context)
        if self.answers_lost:
            self.answers_lost -= 1
            raise LinkDown("lost on its way")
        return reply

    def know(self, instance: Instance) -> None:
        """Map the server to its cell, and charge it for its flavor."""
        uuid, project = instance.uuid, instance.project_id
        flavor = instance.flavor
        rows = self.ledger.rows
        rows[(MAPPINGS.name, (uuid,))] = InstanceMapping(
            uuid=uuid, project_id=project, cell="c1", generation=instance.mapping_generation
        )
        rows[(USAGES.name, (uuid,))] = Usage(uuid=uuid, project_id=project, cores=flavor.vcpus, ram_mb=flavor.memory_mb)
        total = self.ledger.get(PROJECT_USAGES, project) or ProjectUsage(project_id=project)
        rows[(PROJECT_USAGES.name, (project,))] = ProjectUsage(
            project_id=project,
            instances=total.instances + 1,
            cores=total.cores + flavor.vcpus,
            ram_mb=total.ram_mb + flavor.memory_mb,
        )

    def charged(self, uuid: str) -> tuple[int, int]:
        """Cores and MiB."""
        usage = self.ledger.get(USAGES, uuid)
        return usage.cores, usage.ram_mb
