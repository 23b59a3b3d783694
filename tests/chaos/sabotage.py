"""A service with one of its safeguards taken out, so that a test can see whether the chaos' checker would notice.

    python -m tests.chaos.sabotage KIND -- MODULE ARGUMENTS...     (``zcompute`` for zcompute.cli.main)

Production code knows nothing of this: what is replaced is replaced in this process alone, before the service starts.
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import runpy  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

STOPPED_OBSERVATIONS_MIN = 5


def stop_file(config: Path) -> Path:
    """While it is there, a conductor without a fence stops itself before it sends a batch; it deletes the file."""
    return config.with_suffix(".stop")


def stop_before_send() -> None:
    """Nothing is taken out. A conductor stops itself between the decision of a batch and its packet, when the file
    beside its configuration says so: one that is stopped at a random moment mostly learns, when it goes on, that its
    life is over before it sends what it had decided, which is luck, and no safeguard."""
    from zcompute.conductor import lane
    from zcompute.db.batch import Update
    from zcompute.db.tables import INSTANCES

    def observed(batch: Any) -> int:
        updates = [each for each in batch.changes if isinstance(each, Update) and each.table is INSTANCES]
        return sum(len(each.rows) for each in updates if "progress" in each.columns)

    gate = stop_file(Path(sys.argv[sys.argv.index("--config") + 1]))
    plain = lane.Lane._send

    def send(self: Any, batch: Any) -> bool:
        if gate.exists() and observed(batch) >= STOPPED_OBSERVATIONS_MIN:
            gate.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)
        return plain(self, batch)

    lane.Lane._send = send  # type: ignore[method-assign]


def no_fence() -> None:
    """A batch is written whoever owns its rows: without the lane's fence, and without the second lock, the guards of
    revisions and of numbered notifications, which alone would still hold."""
    from zcompute.db.native import packet

    stop_before_send()

    def unguarded(batch: Any) -> bytes:
        return b"UPDATE lanes SET applied = %d, nonce = %d WHERE lane_id = %d; " % (
            batch.number, batch.nonce, batch.lane_id,
        )  # fmt: skip

    packet._fence = unguarded
    packet._guard = lambda table, rows: b""
    plain_update, plain_insert, plain_number = packet._update, packet._insert, packet._number

    def update(change: Any) -> bytes:
        return plain_update(change).replace(b"WHERE v.revision > t.revision", b"WHERE TRUE")

    def insert(change: Any) -> bytes:
        return plain_insert(change).replace(b"INSERT INTO", b"INSERT IGNORE INTO", 1)

    def number(mine: int, numberings: Any) -> bytes:
        return plain_number(mine, numberings).partition(b"IF ROW_COUNT()")[0]

    packet._update, packet._insert, packet._number = update, insert, number


def no_sequence() -> None:
    """An owner takes every observation of the present grant for new."""
    from zcompute.conductor.cell import observations, reports

    plain = observations.judge_observation

    def judge(instance: Any, observation: Any, agent_epoch: int, seq: int, named: Any) -> Any:
        import msgspec

        if instance is not None and (agent_epoch, seq) <= (instance.agent_epoch, instance.observed_seq):
            instance = msgspec.structs.replace(instance, agent_epoch=agent_epoch, observed_seq=seq - 1)
        return plain(instance, observation, agent_epoch, seq, named)

    reports.judge_observation = judge


def no_outbox() -> None:
    """What an agent owes is in its memory only."""
    from zcompute.compute import outbox
    from zcompute.compute.journal import Journal

    class Forgetful(Journal):
        def __init__(self, path: Any, snapshot: Callable[[], Iterator[bytes]], settings: Any) -> None:
            path.unlink(missing_ok=True)
            super().__init__(path, snapshot, settings)

        def write(self, record: bytes) -> bool:
            return True

    outbox.Journal = Forgetful


def no_watermark() -> None:
    """A batch whose outcome is unknown is taken for committed: without the watermark nobody can tell."""
    from zcompute.conductor import lane
    from zcompute.db.errors import ConnectionLost
    from zcompute.db.native import packet

    plain = lane.Lane._send

    def unnumbered(batch: Any) -> bytes:
        return b"UPDATE lanes SET applied = %d, nonce = %d WHERE lane_id = %d AND alive = 1 AND term = %d; " % (
            batch.number, batch.nonce, batch.lane_id, batch.term,
        ) + packet._EXPECT % (1, packet.ERROR_FENCED, b"fenced")  # fmt: skip

    def send(self: Any, batch: Any) -> bool:
        if not batch.changes:
            return plain(self, batch)
        try:
            self._connection.commit(batch)
        except ConnectionLost:
            self._recover(True, lane.time.monotonic() + 30, 50)
        self.batches += 1
        return False

    packet._fence = unnumbered
    lane.Lane._send = send


def no_generation() -> None:
    """An agent obeys whatever it is told, by whomever, in whichever order."""
    from zcompute.compute import generations
    from zcompute.compute.fences import Fences

    plain = generations.Generations.find

    def find(self: Any, order: Any) -> Any:
        finding, step = plain(self, order)
        return (generations.Finding.NEW, None) if finding is generations.Finding.STALE else (finding, step)

    generations.Generations.find = find
    Fences.allows = lambda self, partition, owner_epoch: True


KINDS: dict[str, Callable[[], None]] = {
    "nothing": stop_before_send,
    "fence": no_fence,
    "sequence": no_sequence,
    "outbox": no_outbox,
    "watermark": no_watermark,
    "generation": no_generation,
}
OF_AGENTS = frozenset({"outbox", "generation"})


def main() -> None:
    """Take the safeguard out where it is, then be the service."""
    kind, _, module, *arguments = sys.argv[1:]
    module = "zcompute.cli.main" if module == "zcompute" else module
    is_agent = module == "loadtest.chaos.agent"
    if is_agent == (kind in OF_AGENTS) and (is_agent or "conductor" in arguments):
        KINDS[kind]()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
