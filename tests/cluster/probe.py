"""A bus client of one conductor, with the key of its peer: asks it what no other conductor is asked instead."""

import tomllib
import uuid
from dataclasses import replace
from types import TracebackType

import gevent

from zcompute.bus import Endpoint, Identity
from zcompute.bus.errors import BusError
from zcompute.cli.up.region import Region
from zcompute.objects.flavor import Amounts
from zcompute.objects.messages.hosts import ClaimRequest
from zcompute.objects.messages.instances import InstanceDeleteRequest
from zcompute.objects.methods import CLAIM, INSTANCE_DELETE

CALL_S = 40.0
# Never sent again after a reconnect, so that only the process that was stopped can answer.
ONCE = replace(CLAIM, idempotent=False)


class Probe:
    """A link to one conductor of a cell. CLAIM is a leaf call: its receiver commits it or refuses it, itself."""

    def __init__(self, region: Region, cell: str, service_id: str) -> None:
        peer = next(plan.id for plan in region.plans.values() if plan.cell == cell and plan.id != service_id)
        keys = tomllib.loads(region.paths.key(peer).read_text())
        config = tomllib.loads(region.paths.config(peer).read_text())
        target = next(item for item in config["bus"]["conductors"] if item["id"] == service_id)
        identity = Identity(
            role="conductor",
            cell=cell,
            service_id=f"{cell}-probe",
            public_key=keys["public_key"],
            secret_key=keys["secret_key"],
        )
        self._endpoint = Endpoint(identity)
        self._link = self._endpoint.dial(target["address"], target["public_key"])

    def __enter__(self) -> "Probe":
        assert self._link.wait_up(10_000), "the probe's link did not come up"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._endpoint.close()

    def ask_claim(self, host: str) -> "gevent.Greenlet[..., str]":
        """Ask for a claim that nobody needs."""
        request = ClaimRequest(
            instance_uuid=str(uuid.uuid4()),
            task_id=str(uuid.uuid4()),
            attempt=1,
            host=host,
            amounts=Amounts(vcpus=1, memory_mb=1, disk_gb=0),
        )
        return gevent.spawn(self._ask, request)

    def delete(self, uuid: str, project_id: str, operation_id: str) -> None:
        """Ask for a delete. Raises what the conductor answers."""
        request = InstanceDeleteRequest(uuid=uuid, project_id=project_id, operation_id=operation_id)
        self._link.call(INSTANCE_DELETE, request, timeout_ms=10_000)

    def _ask(self, request: ClaimRequest) -> str:
        try:
            reply = self._link.call(ONCE, request, timeout_ms=int(CALL_S * 1000))
        except BusError as error:
            return error.wire_name
        return "granted" if reply.granted else "refused"

    def answer(self, asked: "gevent.Greenlet[..., str]") -> str:
        """What came of it: granted or refused (verdicts), or the name of the bus' error."""
        return asked.get(timeout=CALL_S + 5)
