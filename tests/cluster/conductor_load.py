"""A load of claims on one conductor, as a process of its own: ``python -m tests.cluster.conductor_load ORDER``.

It plays a fellow conductor, with the very key of the conductor. Claims are leaf calls: the owner decides and commits
each, or refuses it, which waits for a commit too.
"""

import json
import sys

from gevent import monkey

monkey.patch_all()

import tomllib  # noqa: E402
import uuid  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

from zcompute.bus import Endpoint, Identity  # noqa: E402
from zcompute.bus.errors import BusError  # noqa: E402
from zcompute.objects.flavor import Amounts  # noqa: E402
from zcompute.objects.messages.hosts import ClaimRequest  # noqa: E402
from zcompute.objects.methods import CLAIM  # noqa: E402

CALL_MS = 30_000
REFUSED_S = 0.05


def main(order: dict[str, Any]) -> None:
    """Claim for ever, ``in_flight`` at once."""
    keys = tomllib.loads(Path(order["key"]).read_text())
    identity = Identity(
        role="conductor",
        cell="c1",
        service_id=f"c1-load-{uuid.uuid4().hex[:6]}",
        public_key=keys["public_key"],
        secret_key=keys["secret_key"],
    )
    endpoint = Endpoint(identity)
    link = endpoint.dial(f"tcp://127.0.0.1:{order['port']}", keys["public_key"])
    link.wait_up(10_000)
    hosts, pause_s = order["hosts"], order["pause_s"]

    def claim(host: str) -> None:
        request = ClaimRequest(
            instance_uuid=str(uuid.uuid4()),
            task_id=str(uuid.uuid4()),
            attempt=1,
            host=host,
            amounts=Amounts(vcpus=1, memory_mb=1, disk_gb=0),
        )
        try:
            link.call(CLAIM, request, timeout_ms=CALL_MS)
        except BusError:
            gevent.sleep(REFUSED_S)

    def claim_for_ever(number: int) -> None:
        while True:
            claim(hosts[number % len(hosts)])
            if pause_s:
                gevent.sleep(pause_s)

    gevent.joinall([gevent.spawn(claim_for_ever, number) for number in range(order["in_flight"])])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
