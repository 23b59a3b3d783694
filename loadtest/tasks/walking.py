"""Those who ask: each has a server, and asks for one thing after the other that its state allows."""

import random
import time
import uuid
from collections import Counter

import gevent

from loadtest.tasks.looking import Looking
from zcompute.cli.client import ApiFailed
from zcompute.cli.up.region import Region

ANSWER_S = 30.0
TASK_S = 60.0
POLL_S = 0.02

LIVE = {"os-migrateLive": {"host": None, "block_migration": True, "disk_over_commit": False}}
RESIZES = tuple({"resize": {"flavorRef": flavorid}} for flavorid in ("1", "2"))  # of which one is what it has
SAME_FLAVOR = "must change flavor"
# By vm_state: what may be asked for, each as often as it stands here.
CHOICES: dict[str, list[dict[str, object]]] = {
    "active": [
        {"os-stop": None}, {"reboot": {"type": "SOFT"}}, {"reboot": {"type": "HARD"}}, {"pause": None},
        {"suspend": None}, {"migrate": None}, {"migrate": None}, *RESIZES, LIVE, LIVE, LIVE,
        {"shelve": None},
    ],
    "stopped": [{"os-start": None}, {"migrate": None}, {"shelve": None}, *RESIZES],
    "paused": [{"unpause": None}],
    "suspended": [{"resume": None}],
    "shelved_offloaded": [{"unshelve": None}],
    "resized": [{"confirmResize": None}, {"revertResize": None}],
}  # fmt: skip
MAKE_IMAGE = "createImage"
IMAGE_NAME = "of a walk"  # those of shelved servers have other names, and go again
IMAGE = {MAKE_IMAGE: {"name": IMAGE_NAME}}
IMAGED = frozenset({"active", "stopped", "paused", "suspended"})
MOVES = frozenset({"migrate", "resize", "os-migrateLive", "confirmResize", "revertResize"})


class Walkers:
    """``asked`` and ``ended`` by action; ``odd``: what should not have happened, a sentence each."""

    def __init__(self, region: Region, looking: Looking, seed: int) -> None:
        self._region = region
        self._looking = looking
        self._chance = random.Random(seed)
        self._stopping = False
        self._greenlets: list[gevent.Greenlet] = []
        self.asked: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.odd: list[str] = []

    def start(self, servers: list[str]) -> None:
        """One greenlet a server."""
        self._greenlets = [gevent.spawn(self._walk, server) for server in servers]

    def stop(self, timeout_s: float) -> None:
        """Nothing new is asked for; what is under way is waited for."""
        self._stopping = True
        gevent.joinall(self._greenlets, timeout=timeout_s)
        for greenlet in self._greenlets:
            if greenlet.ready():
                greenlet.get()
        gevent.killall(self._greenlets)

    def _walk(self, server: str) -> None:
        client = self._region.client(timeout_s=ANSWER_S)
        while not self._stopping:
            row = self._looking.found.servers.get(server)
            choices = CHOICES.get(row.vm_state if row is not None and row.task_id is None else "")
            if row is None or choices is None:
                gevent.sleep(POLL_S)
                continue
            body = self._chance.choice([*choices, IMAGE] if row.vm_state in IMAGED else choices)
            name = next(iter(body))
            key = {"Idempotency-Key": str(uuid.uuid4())}
            deadline = time.monotonic() + ANSWER_S
            try:
                status, answer = client.repeated(
                    "POST", f"/v2.1/servers/{server}/action", body, deadline=deadline, headers=key
                )
            except ApiFailed as error:
                self.odd.append(f"{server} {name}: {error}")
                continue
            if status not in (200, 202, 204):
                self.refused[name] += 1
                if status != 409 and SAME_FLAVOR not in str(answer):
                    self.odd.append(f"{server} {name}: status {status} {answer}")
                gevent.sleep(POLL_S)
                continue
            self.asked[name] += 1
            self._await(server, name, row.revision)
        client.close()

    def _await(self, server: str, name: str, revision: int) -> None:
        ends_at_s = time.monotonic() + TASK_S
        while time.monotonic() < ends_at_s:
            row = self._looking.found.servers.get(server)
            if row is not None and row.revision > revision and row.task_id is None:
                self.ended[name] += 1
                return
            gevent.sleep(POLL_S)
        self.odd.append(f"{server} {name}: has not ended within {TASK_S:.0f} s")
