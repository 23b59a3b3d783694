"""An agent that is cut off for long, with much change: its outbox keeps its bounds, and says what it folded."""

import random
from itertools import pairwise
from pathlib import Path

import gevent
import msgspec
import psutil

from tests.cluster.agent_cell import Cell, call, eventually, spawn_request
from tests.cluster.forwarder import Forwarder
from tests.orders import fresh, make_order
from zcompute.bus import Busy
from zcompute.compute.virt.fake_log import DomainLine, domain_log_path
from zcompute.objects.methods import SPAWN
from zcompute.objects.partition import PARTITIONS
from zcompute.objects.report import VERDICT_APPLIED

SERVERS = 60
ROUNDS = 120
RESULTS = 6
LIVE_BYTES_MAX = 400 * SERVERS  # of a journal's record of one observation, generously
COMPACT_BYTES = 32_768
GROWTH_BYTES_MAX = 16 << 20


def change(cell: Cell, there: dict[str, bool], dice: random.Random) -> None:
    """Somebody at the hypervisor removes machines, and makes them again."""
    lines = b""
    for uuid in dice.sample(sorted(there), SERVERS // 2):
        there[uuid] = not there[uuid]
        lines += msgspec.json.encode(DomainLine(op="spawn" if there[uuid] else "destroy", uuid=uuid)) + b"\n"
    with domain_log_path(cell.directory / "hosts", "node1").open("ab", buffering=0) as file:
        file.write(lines)


def journal_bytes(cell: Cell) -> int:
    path: Path = cell.directory / "state" / "outbox.journal"
    return path.stat().st_size


def test_an_agent_cut_off_for_long_stays_within_its_bounds_and_ends_with_the_newest_state(cell: Cell) -> None:
    conductor = cell.conductors[0]
    forwarder = Forwarder(int(conductor.address.rpartition(":")[2]))
    conductor.address = f"tcp://127.0.0.1:{forwarder.port}"
    cell.publish(["k1"] * PARTITIONS, version=1)
    agent = psutil.Process(cell.start_agent(observe_ms=20, beat_ms=50, compact_bytes_min=COMPACT_BYTES).pid)
    link = conductor.ready()
    uuids = [fresh() for _ in range(SERVERS)]
    for uuid in uuids:
        call(link, SPAWN, spawn_request(make_order(uuid)))
    for uuid in uuids:
        eventually("it was observed", lambda uuid=uuid: conductor.observations(uuid))
    dice = random.Random(1)
    there = dict.fromkeys(uuids, True)

    forwarder.cut()
    eventually("the link is down", lambda: not link.up)
    conductor.got.clear()
    sizes, memory = [], []
    for number in range(ROUNDS):
        change(cell, there, dice)
        sizes.append(journal_bytes(cell))
        if number >= ROUNDS // 4:
            memory.append(agent.memory_info().rss)
        gevent.sleep(0.03)
    assert max(sizes) <= COMPACT_BYTES + LIVE_BYTES_MAX, "it is compacted while it owes all of this"
    assert sum(later < former for former, later in pairwise(sizes)) >= 2, "more than once"
    assert max(memory) - memory[0] <= GROWTH_BYTES_MAX

    forwarder.open()
    conductor.ready()

    def newest() -> dict[str, bool]:
        return {uuid: not seen[-1].gone for uuid in uuids if (seen := conductor.observations(uuid))}

    eventually("the newest state of each is here", lambda: newest() == there)
    counted = sum(seen.folded for uuid in uuids for seen in conductor.observations(uuid))
    looks = sum(len(conductor.observations(uuid)) for uuid in uuids)
    assert counted > SERVERS * 5, "what came and went meanwhile is counted"
    assert looks <= 3 * SERVERS, "and is not sent"
    forwarder.cut()


def test_results_that_nobody_answers_end_in_busy_and_none_is_folded(cell: Cell) -> None:
    conductor = cell.conductors[0]
    conductor.verdict = lambda _: None
    cell.start_agent(results_max=RESULTS)
    link = conductor.ready()
    taken: list[str] = []

    def spawn(uuid: str) -> bool:
        try:
            call(link, SPAWN, spawn_request(make_order(uuid)))
        except Busy:
            return False
        taken.append(uuid)
        return True

    for _ in range(2 * RESULTS):
        spawn(fresh())
    assert len(taken) == RESULTS
    eventually("each result came", lambda: {result.instance_uuid for result in conductor.results()} == set(taken))
    assert cell.domains("node1").running == set(taken)
    conductor.got.clear()
    conductor.verdict = lambda _: VERDICT_APPLIED
    eventually("there is room again", lambda: spawn(fresh()))
    eventually("each result came", lambda: {result.instance_uuid for result in conductor.results()} == set(taken))
