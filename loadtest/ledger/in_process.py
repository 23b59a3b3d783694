"""What a report costs a conductor by itself: no network, no database, no other process.

    python -m loadtest.ledger.in_process [--rounds N] [--links N] [--frame N] [--instances N]

Frames are read by the bus' own protocol core, decided by the real ledger, rendered into packets, answered and encoded;
what is left out is sockets and the server. The figure repeats to a few per cent where a benchmark of the whole varies
by a fifth, so this is where a change to the path is judged (docs/decisions/0011).
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import gc  # noqa: E402
import itertools  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import msgspec  # noqa: E402

from loadtest.ledger.conductor import record_transitions  # noqa: E402
from loadtest.ledger.world import CELL, PROGRESS_MAX, TRANSITION_EVERY, host_name, instance, uuid_of  # noqa: E402
from zcompute.bus import Ack, Peer, Report  # noqa: E402
from zcompute.bus.envelope import Hello, ReportBatch, Welcome, encode_attributes, encode_frame  # noqa: E402
from zcompute.bus.protocol import LinkCore  # noqa: E402
from zcompute.conductor.cell.hosts import Attachments  # noqa: E402
from zcompute.conductor.cell.reports import Reports  # noqa: E402
from zcompute.conductor.clock import PrimaryClock  # noqa: E402
from zcompute.conductor.commands import Commands  # noqa: E402
from zcompute.conductor.lane import Lane  # noqa: E402
from zcompute.conductor.ledger import Ledger  # noqa: E402
from zcompute.conductor.notices import tell_of_rows  # noqa: E402
from zcompute.conductor.service import GARBAGE_THRESHOLDS, LIMITS  # noqa: E402
from zcompute.conductor.settings import LedgerLimits  # noqa: E402
from zcompute.conductor.tasks.engine import TaskEngine  # noqa: E402
from zcompute.conductor.tasks.run import TaskEnv  # noqa: E402
from zcompute.conductor.tasks.settings import TaskSettings  # noqa: E402
from zcompute.db.batch import Batch  # noqa: E402
from zcompute.db.native.packet import render  # noqa: E402
from zcompute.db.tables import Key, TableCodec  # noqa: E402
from zcompute.objects.instance import Instance  # noqa: E402
from zcompute.objects.partition import PARTITIONS, PartitionMap  # noqa: E402
from zcompute.objects.report import VERDICT_APPLIED, Observation  # noqa: E402

LANES = (1, 2)
COMMIT_S = 0.005
FRAMES_PER_TURN = 32  # read before others get their turn, as a listener does


class Server:
    """A database that takes every batch, and has all instances."""

    def __init__(self, instances: int, agents: int) -> None:
        self.rows = {(uuid_of(n),): instance(n, host_name(n % agents)) for n in range(instances)}
        self.written = 0

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def fetch(self, table: TableCodec[Any], keys: Sequence[Key]) -> dict[Key, Instance]:
        return {key: self.rows[key] for key in keys if key in self.rows}


class Connection:
    """A lane's: renders the packet; then the server's time passes."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def commit(self, batch: Batch) -> None:
        self._server.written += len(render(batch))
        gevent.sleep(COMMIT_S)

    def reconnect(self, deadline_ms: int) -> None:
        raise RuntimeError("nothing is ever lost here")

    def close(self) -> None:
        return


class AgentLink:
    """A conductor's link to an agent: the protocol's core without a socket."""

    def __init__(self, number: int) -> None:
        self.name = f"agent-{number}"
        self.host = host_name(number)
        self.peer = Peer("compute", CELL, self.name, "i", "1", frozenset([self.host]), {}, {}, self.name, frozenset())
        self.core = LinkCore(LIMITS)
        said = ("i", "conductor", CELL, "1", [], {}, [], encode_attributes({}, LIMITS), LIMITS.report_credit)
        self.core.accept(Hello(1, 1, 1, self.name, *said), self.peer, Welcome(1, 1, 1, "conductor-1", *said), 0.0)
        self.core.take_frame(0.0)
        self.admit_report = self.core.reports_in.lanes.admit
        self.settle_report = self.core.reports_in.lanes.settle
        self.up = True
        self.frames = self.applied = self.others = 0

    @property
    def reports_unanswered(self) -> int:
        return self.core.reports_in.unacked

    def ack(self, acks: list[Ack]) -> None:
        applied = sum(ack.verdict == VERDICT_APPLIED for ack in acks)
        self.applied += applied
        self.others += len(acks) - applied
        self.core.ack(acks)
        while self.core.take_frame(0.0) is not None:
            self.frames += 1


class Conductor:
    """One life's report path."""

    def __init__(self, server: Server) -> None:
        store: Any = server
        limits = LedgerLimits()
        clock = PrimaryClock(store, 10.0)
        self.ledger = Ledger(store, CELL, limits, clock.now_us)
        self.lanes = [
            Lane(
                lane_id, 1, Connection(server), limits,
                settled=self.ledger.settled, undo=self.ledger.undo, fail=self._fail,
            )
            for lane_id in LANES
        ]  # fmt: skip
        for lane in self.lanes:
            gevent.spawn(lane.run)
        gevent.spawn(self.ledger.run_loader)
        self.ledger.gain((partition, 1, self.lanes[partition % len(LANES)], 0) for partition in range(PARTITIONS))
        self.attachments = Attachments()
        owned = PartitionMap(cell=CELL)
        env: Any = SimpleNamespace(
            ledger=self.ledger, cell=CELL, service_id="conductor-1", router=SimpleNamespace(map=owned), forwarding=None
        )
        nobody: Any = SimpleNamespace()
        hosts: Any = SimpleNamespace(attachments=self.attachments)
        settings = TaskSettings()
        commands = Commands(self.ledger)
        engine = TaskEngine(
            TaskEnv(CELL, self.ledger, nobody, commands, nobody, lambda _: set(), lambda _: None, settings)
        )
        self.reports = Reports(env, engine, hosts, nobody, settings)
        self.reports.start()
        self.ledger.on_decided(tell_of_rows)
        self.ledger.on_decided(record_transitions)

    def _fail(self, reason: str) -> None:
        raise SystemExit(f"the ledger ended: {reason}")


class Load:
    """Agents' frames, made before the clock runs."""

    def __init__(self, links: int, frame: int, instances: int) -> None:
        self.links = [AgentLink(number) for number in range(links)]
        self._frame = frame
        self._mine = [itertools.cycle(range(number, instances, links)) for number in range(links)]
        self._seq = self._sent = 0

    def frames(self) -> list[tuple[AgentLink, bytes]]:
        """The next frame of every link."""
        made = []
        for number, link in enumerate(self.links):
            reports = []
            for _ in range(self._frame):
                self._seq += 1
                body = Observation(
                    instance_uuid=uuid_of(next(self._mine[number])),
                    host=host_name(number),
                    generation=1,
                    power_state=4 if self._seq // TRANSITION_EVERY % 2 and self._seq % TRANSITION_EVERY == 0 else 1,
                    progress=self._seq % PROGRESS_MAX,
                )
                reports.append(Report(body.instance_uuid, self._seq, msgspec.msgpack.encode(body)))
            made.append((link, encode_frame([ReportBatch(1, self._sent, reports)])))
        self._sent += self._frame
        return made

    def round(self, conductor: Conductor) -> float:
        """Feed a frame of every link, wait for all verdicts; CPU seconds."""
        frames = self.frames()
        expected = sum(link.applied for link in self.links) + len(self.links) * self._frame
        received = conductor.reports.received
        began = time.process_time()
        for at, (link, frame) in enumerate(frames):
            for happening in link.core.receive(frame, 0.0):
                received(link, happening.reports)
            if at % FRAMES_PER_TURN == FRAMES_PER_TURN - 1:
                gevent.sleep(0)
        while any(link.reports_unanswered for link in self.links):
            gevent.sleep(COMMIT_S)
        spent = time.process_time() - began
        if sum(link.applied for link in self.links) != expected:
            raise SystemExit(f"{sum(link.others for link in self.links)} reports were not applied")
        return spent


def main() -> None:
    """Print CPU microseconds a report, by round, and their median."""
    options = argparse.ArgumentParser(prog="python -m loadtest.ledger.in_process")
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--links", type=int, default=1_000)
    options.add_argument("--frame", type=int, default=4, help="reports of a frame")
    options.add_argument("--instances", type=int, default=16_000)
    given = options.parse_args()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    server = Server(given.instances, given.links)
    conductor = Conductor(server)
    load = Load(given.links, given.frame, given.instances)
    for link in load.links:
        conductor.attachments.attach(link, {link.host: 1})  # type: ignore[arg-type]
    reports = given.links * given.frame
    for _ in range(given.instances // reports + 1):
        load.round(conductor)
    spent = sorted(1e6 * load.round(conductor) / reports for _ in range(given.rounds))
    frames = sum(link.frames for link in load.links)
    applied = sum(link.applied for link in load.links)
    print(
        f"{statistics.median(spent):.2f} us a report (best {spent[0]:.2f}, worst {spent[-1]:.2f}); "
        f"{applied / frames:.1f} verdicts a frame, {server.written / applied:.0f} bytes of packet a report"
    )


if __name__ == "__main__":
    main()
