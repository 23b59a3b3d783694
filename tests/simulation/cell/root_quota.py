"""The root's books of what servers are charged, as a cell's resizes change them: zcompute.conductor.root.resizing."""

import random
from typing import Any

from tests.simulation.cell.clients import FLAVOR
from zcompute.bus import Endpoint
from zcompute.bus.errors import Busy
from zcompute.objects.errors import QuotaExceeded
from zcompute.objects.flavor import Flavor
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.quotas import ServerAmount
from zcompute.objects.methods import QUOTA_RAISE, QUOTA_SETTLE
from zcompute.objects.quota import Amount

FLAVORS = (
    Flavor(flavorid="2", name="m1.small", vcpus=2, memory_mb=1024, root_gb=2),
    Flavor(flavorid="3", name="m1.wide", vcpus=4, memory_mb=256, root_gb=1),
    Flavor(flavorid="4", name="m1.nano", vcpus=1, memory_mb=128, root_gb=1),
)
REFUSED_SHARE = 0.1


class RootQuota:
    """One limit: chance. ``charged`` is by server, with the decision of its row that it was said of."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(f"{seed} quota")
        self._charged: dict[str, tuple[int, Amount]] = {}

    def serve(self, endpoint: Endpoint) -> None:
        """Answer the cells."""
        endpoint.serve(QUOTA_RAISE, self._raise)
        endpoint.serve(QUOTA_SETTLE, self._settle)

    def charged(self, uuid: str) -> Amount:
        """What a server counts."""
        return self._of(uuid)[1]

    def _of(self, uuid: str) -> tuple[int, Amount]:
        return self._charged.get(uuid, (0, Amount(instances=1, cores=FLAVOR.vcpus, ram_mb=FLAVOR.memory_mb)))

    def _raise(self, word: ServerAmount, context: Any) -> Empty:
        decided, former = self._of(word.uuid)
        if decided > word.decided:
            raise Busy(f"decision {decided} of server {word.uuid} is known, found {word.decided}", retry_after_ms=0)
        if self._dice.random() < REFUSED_SHARE:
            raise QuotaExceeded("there is no room", resource="cores", limit=0, used=0, requested=word.cores)
        larger = Amount(instances=1, cores=max(former.cores, word.cores), ram_mb=max(former.ram_mb, word.ram_mb))
        self._charged[word.uuid] = (word.decided, larger)
        return Empty()

    def _settle(self, word: ServerAmount, context: Any) -> Empty:
        if self._of(word.uuid)[0] < word.decided:
            self._charged[word.uuid] = (word.decided, Amount(instances=1, cores=word.cores, ram_mb=word.ram_mb))
        return Empty()
