"""One measured run: orders to the agents, CPU of everybody meanwhile, what came of it."""

import time
from dataclasses import dataclass

from loadtest.bus.contender import cpu_s
from loadtest.ledger.cell import NATIVE, PORTABLE, Cell, Writers
from loadtest.ledger.orders import Closed, Connect, Outcome, Paced

LEAD_S = 0.3
IN_FLIGHT = 4_000
WINDOW_MAX = 16  # of an agent: far below the credit of a lane


@dataclass(frozen=True)
class Measured:
    """A run: updates acknowledged in the measured time, per second; CPU microseconds an update by who used it; ack
    latencies; reports and instances' rows of the whole run (conductors only, 0 for rivals)."""

    updates_per_second: float
    updates: int
    conductor_us: float
    mariadbd_us: float
    agents_us: float
    p50_ms: float
    p99_ms: float
    reports: int
    rows: int
    batches: int
    lasted_s: float


@dataclass
class Tally:
    """Over all runs in a cell: what must be found in the database."""

    applied: int = 0
    transitions: int = 0
    put_off: int = 0
    links_lost: int = 0

    def add(self, outcomes: list[Outcome]) -> None:
        """Count a run's. Raises SystemExit when an update was refused, or never answered."""
        for outcome in outcomes:
            if outcome.refused or outcome.unacked:
                raise SystemExit(
                    f"{outcome.refused} updates were refused ({outcome.said}), {outcome.unacked} never answered"
                )
            self.applied += outcome.applied
            self.transitions += outcome.transitions
            self.put_off += outcome.put_off
            self.links_lost = max(self.links_lost, outcome.links_lost)


class Bench:
    """A cell, one contender at a time, and the tally."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.tally = Tally()

    def connect(self, writers: Writers) -> None:
        """Link every agent to the contender's processes."""
        self.cell.ask(Connect(writers.places, writers.owners))
        self.cell.outcomes()

    def leave(self, writers: Writers) -> None:
        """Hang up, then end the contender's processes."""
        try:
            self.cell.ask(Connect([], []))
            self.cell.outcomes()
        finally:
            writers.stop()

    def sweep(self, writers: Writers) -> Measured:
        """Update every instance once: what no cache holds yet."""
        now = time.monotonic()
        window = self._window(IN_FLIGHT)
        return self._run(writers, Closed(window, now, now + 3600, sweep=True), now, 0.0)

    def closed(
        self, writers: Writers, seconds: float, warm_up_s: float, *, in_flight: int = IN_FLIGHT, zipf: bool = False
    ) -> Measured:
        """So many updates in flight, always."""
        start = time.monotonic() + LEAD_S
        window = self._window(in_flight)
        measured_from = start + warm_up_s
        order = Closed(window, measured_from, measured_from + seconds, zipf=zipf)
        return self._run(writers, order, measured_from, seconds)

    def paced(self, writers: Writers, per_second: float, seconds: float, warm_up_s: float) -> Measured:
        """So many updates a second, evenly."""
        measured_from = time.monotonic() + LEAD_S + warm_up_s
        share = per_second / len(self.cell.groups)
        return self._run(writers, Paced(share, measured_from, measured_from + seconds), measured_from, seconds)

    def _window(self, in_flight: int) -> int:
        return min(WINDOW_MAX, max(1, in_flight // self.cell.agents))

    def _run(self, writers: Writers, order: Closed | Paced, measured_from: float, seconds: float) -> Measured:
        ours = writers.kind in (NATIVE, PORTABLE)
        before = writers.counts() if ours else {"rows": 0, "batches": 0}
        self.cell.ask(order)
        time.sleep(max(0.0, measured_from - time.monotonic()))
        cpu, clock = self._cpu(writers), time.monotonic()
        outcomes: list[Outcome] = []
        if seconds:
            time.sleep(max(0.0, measured_from + seconds - time.monotonic()))
            spent, lasted = self._since(writers, cpu), time.monotonic() - clock
            outcomes = self.cell.outcomes()
        else:
            outcomes = self.cell.outcomes()
            spent, lasted = self._since(writers, cpu), time.monotonic() - clock
        after = writers.counts() if ours else before
        self.tally.add(outcomes)
        taken = sorted(value for outcome in outcomes for value in outcome.taken_ms)
        updates = sum(outcome.measured for outcome in outcomes)
        if not updates:
            raise SystemExit(f"{writers.kind}: no update was acknowledged within {seconds:g} s")
        return Measured(
            updates_per_second=updates / (seconds or lasted),
            updates=updates,
            conductor_us=spent[0] / updates * 1e6,
            mariadbd_us=spent[1] / updates * 1e6,
            agents_us=spent[2] / updates * 1e6,
            p50_ms=taken[len(taken) // 2],
            p99_ms=taken[len(taken) * 99 // 100],
            reports=sum(outcome.applied for outcome in outcomes),
            rows=after["rows"] - before["rows"],
            batches=after["batches"] - before["batches"],
            lasted_s=max(outcome.lasted_s for outcome in outcomes),
        )

    def _cpu(self, writers: Writers) -> tuple[float, float, float]:
        return (
            sum(cpu_s(process.pid) for process in writers.processes),
            cpu_s(self.cell.server.pid or 0),
            sum(cpu_s(group.pid) for group in self.cell.groups),
        )

    def _since(self, writers: Writers, before: tuple[float, float, float]) -> tuple[float, float, float]:
        after = self._cpu(writers)
        return (after[0] - before[0], after[1] - before[1], after[2] - before[2])
