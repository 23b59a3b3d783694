"""Mutated frames over CURVE sockets into an endpoint of its own process, with a neighbour whose calls are timed.

Quiet and hostile windows take turns, so that what else the machine does falls on both.
"""

import statistics
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.fuzz.bus import wire
from tests.fuzz.bus.decoder import FindingError

ATTACKERS = 4
WINDOW_S = 3.0
WARM_UP_MUTATIONS = 20_000  # memory that any load takes is not growth
FLOOD_FRAMES = 100_000  # of one hostile window without a pace


@dataclass(frozen=True)
class Outcome:
    """What one run showed, frames as the victim counts them. The ratio is the median over windows of a
    hostile window's p99 over that of the quiet window before it."""

    frames: int
    frames_per_second: float
    rss_growth_mb: float
    quiet_p99_ms: float
    hostile_p99_ms: float
    p99_ratio: float
    windows: int
    calls: int
    calls_failed: int
    refused: dict[str, int]


def run(
    mutations: int, seed: int, frames_per_second: int = 0, window_s: float = WINDOW_S, barring: bool = False
) -> Outcome:
    """Send so many mutated frames; frames_per_second 0: as fast as the victim takes them.

    barring: the victim ends connections that flood, as services do, and what is counted is what was sent; else it takes
    everything. Raises FindingError when the victim logs a failure, ends, or loses its neighbour.
    """
    keys = wire.make_keys(ATTACKERS)
    text = msgspec.json.encode(keys).decode()
    victim = wire.Process("victim", text, "barring" if barring else "patient")
    running = [victim]
    try:
        address = victim.answer()["address"]
        neighbour = wire.Process("neighbour", text, address)
        running.append(neighbour)
        attacker = wire.Process("attacker", text, address, str(seed))
        running.append(attacker)
        if not neighbour.answer()["up"]:
            raise FindingError("the neighbour cannot connect")
        attacker.answer()
        return _measure(mutations, victim, neighbour, attacker, (frames_per_second, window_s, barring))
    except EOFError as error:
        raise FindingError(f"seed {seed}: {error}") from error
    finally:
        for process in running:
            process.close()


def _measure(
    mutations: int, victim: wire.Process, neighbour: wire.Process, attacker: wire.Process, pace: tuple[int, float, bool]
) -> Outcome:
    frames_per_second, window_s, barring = pace
    sent = 0
    _window(neighbour, window_s)
    attacker.order(WARM_UP_MUTATIONS, 0)
    attacker.answer()
    before = state = _state(victim)
    share = int(frames_per_second * window_s) or FLOOD_FRAMES
    pairs, in_window = [], []
    while (sent if barring else state["frames"] - before["frames"]) < mutations:
        quiet = _window(neighbour, window_s)
        attacker.order(share, frames_per_second)
        began = _state(victim)["frames"]
        hostile = _window(neighbour, window_s)
        in_window.append(_state(victim)["frames"] - began)
        sent += attacker.answer()["sent"]
        pairs.append((quiet, hostile))
        state = _state(victim)
    windows = [window for pair in pairs for window in pair]
    return Outcome(
        frames=state["frames"] - before["frames"],
        frames_per_second=statistics.median(in_window) / window_s,
        rss_growth_mb=state["rss_mb"] - before["rss_mb"],
        quiet_p99_ms=statistics.median(quiet["p99_ms"] for quiet, _ in pairs),
        hostile_p99_ms=statistics.median(hostile["p99_ms"] for _, hostile in pairs),
        p99_ratio=statistics.median(hostile["p99_ms"] / quiet["p99_ms"] for quiet, hostile in pairs),
        windows=len(pairs),
        calls=sum(int(window["calls"]) for window in windows),
        calls_failed=sum(int(window["failed"]) for window in windows),
        refused={
            name: count - before["counters"].get(name, 0)
            for name, count in sorted(state["counters"].items())
            if name.startswith("refused_")
        },
    )


def _window(neighbour: wire.Process, seconds: float) -> dict[str, float]:
    neighbour.order(seconds)
    measured = neighbour.answer()
    if measured["link_number"] != 1:
        raise FindingError("the neighbour lost its link")
    return measured


def _state(victim: wire.Process) -> dict[str, Any]:
    victim.order("state")
    state = victim.answer()
    if state["failures_count"]:
        raise FindingError(f"the victim logged {state['failures_count']} failures: {state['failures']}")
    return state
