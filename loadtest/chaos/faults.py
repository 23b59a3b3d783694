"""The faults: one at a time, each undone, and the cluster whole again before the next."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import gevent

from loadtest.chaos import history, wires
from loadtest.chaos.cluster import CELL, Cluster, wait_until
from zcompute.cli.up.layout import COMPUTE, CONDUCTOR
from zcompute.objects.cell import ROOT_CELL

LEASE_S = 0.6
HELD_S = 0.015  # how long batches gather and wait before a fault that is to meet them: part of what is measured
DOWN_S = (0.2, 0.8)
STOPPED_S = (LEASE_S + 0.3, LEASE_S + 1.4)
UNPLUGGED_S = (1.5, 3.0)
BACK_S = (0.5, 2.0)  # conductors look at the servers once a second
FLAPS = 6
FLAP_S = 1.0
REST_S = (0.5, 1.0)
WHOLE_S = 45.0
KILLS_A_ROUND = 9  # then all conductors of the cell, or of the region, at once

KILL, ALL, STOP, RESTART, AGENT, DATABASE = "kill", "all", "stop", "restart", "agent", "database"
PROMOTE = "promote"
HOST = "host"
UNPLUG, ONE_WAY, FLAP = "unplug", "oneway", "flap"
# What ends an incarnation. SIGSTOP does not always: a watcher that was itself disturbed lets the peer live.
ENDS = frozenset({KILL, ALL, RESTART})
KINDS = ("kill", "stop", "restart", "unplug", "agent", "database")
TASK_KINDS = (HOST,)  # of the traffic that evacuates what they have lost (loadtest.chaos.lost_hosts)
REPLICATED_KINDS = (PROMOTE,)  # these need databases with replicas that acknowledge: a cluster of another shape


class Faults:
    """Does faults of the given kinds by turns, in an order and with pauses drawn from the seed."""

    def __init__(self, cluster: Cluster, kinds: list[str], seed: int, said: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._kinds = kinds
        self._chance = random.Random(seed)
        self._said = said
        self._out = history.History(Path(cluster.history) / "faults.jsonl")
        self._kills = 0
        self.done = 0

    def run(self, until: float, kills_max: int = 0) -> None:
        """Until the time, or until so many SIGKILLs were done. Raises CommandError when the cluster stays broken."""
        while time.monotonic() < until and not (kills_max and self._kills >= kills_max):
            kinds = list(self._kinds)
            self._chance.shuffle(kinds)
            for kind in kinds:
                if time.monotonic() >= until:
                    return
                self.once(kind)

    def once(self, kind: str, *, rested: bool = False) -> history.Fault:
        """One fault of this kind, written down when the cluster is whole again. ``rested``: at once."""
        if not rested:
            gevent.sleep(self._chance.uniform(*REST_S))
        before = self._cluster.incarnations()
        fault = getattr(self, f"_{kind}")()
        fault.undone = fault.undone or time.monotonic()
        ended = list(before) if fault.name == PROMOTE else fault.victim.split(",") if fault.name in ENDS else []
        self._cluster.wait_whole(WHOLE_S, [before[victim] for victim in ended if victim in before])
        fault.over = time.monotonic()
        self._out.write(fault)
        self.done += 1
        self._said(f"{fault.name} {fault.victim}: whole again after {fault.over - fault.t:.1f} s")
        return fault

    def close(self) -> None:
        """Close the history."""
        self._out.close()

    def _begin(self, name: str, victim: str) -> history.Fault:
        return history.Fault(t=time.monotonic(), name=name, victim=victim)

    def _conductor(self) -> str:
        return self._chance.choice(self._cluster.members(CONDUCTOR, CELL))

    # -- conductors ---------------------------------------------------------------------------------------------------

    def _kill(self) -> history.Fault:
        """SIGKILL of a conductor, with a batch in flight; now and then of all at once."""
        self._kills += 1
        if self._kills % (KILLS_A_ROUND + 1) == 0:
            cells = [CELL] if self._chance.random() < 0.5 else [CELL, ROOT_CELL]
            victims = [victim for cell in cells for victim in self._cluster.members(CONDUCTOR, cell)]
            fault = self._begin(ALL, ",".join(victims))
        else:
            victims = [self._conductor()]
            with self._cluster.batches_held(victims[0], HELD_S):
                fault = self._begin(KILL, victims[0])
                self._cluster.kill(victims[0])
                victims = []
        for victim in victims:
            self._cluster.kill(victim)
        gevent.sleep(self._chance.uniform(*DOWN_S))
        for victim in fault.victim.split(","):
            self._cluster.restart(victim)
        return fault

    def _stop(self) -> history.Fault:
        """SIGSTOP for longer than the lease, with a batch decided that has not been sent; then SIGCONT."""
        victim = self._conductor()
        with self._cluster.batches_held(victim, HELD_S):
            fault = self._begin(STOP, victim)
            self._cluster.kill(victim, signal.SIGSTOP)
        gevent.sleep(self._chance.uniform(*STOPPED_S))
        self._cluster.kill(victim, signal.SIGCONT)
        return fault

    def _restart(self) -> history.Fault:
        fault = self._begin(RESTART, self._conductor())
        self._cluster.end(fault.victim)
        gevent.sleep(self._chance.uniform(*DOWN_S))
        self._cluster.restart(fault.victim)
        return fault

    def _unplug(self) -> history.Fault:
        """No byte to or from a conductor, its database included; or in one direction only; or by turns."""
        name = self._chance.choice([UNPLUG, UNPLUG, ONE_WAY, FLAP])
        fault = self._begin(name, self._conductor())
        if name == FLAP:
            for _ in range(FLAPS // 2):
                self._cluster.cut(fault.victim)
                gevent.sleep(FLAP_S)
                self._cluster.mend(fault.victim)
                gevent.sleep(FLAP_S)
            return fault
        way = [self._chance.choice([wires.TOWARDS, wires.BACK])] if name == ONE_WAY else [wires.TOWARDS, wires.BACK]
        self._cluster.cut(fault.victim, way)
        gevent.sleep(self._chance.uniform(*UNPLUGGED_S))
        self._cluster.mend(fault.victim)
        return fault

    # -- others -------------------------------------------------------------------------------------------------------

    def _agent(self) -> history.Fault:
        """SIGKILL of an agent, with reports under way."""
        victim = self._chance.choice(self._cluster.members(COMPUTE, CELL))
        with self._cluster.batches_held(self._conductor(), HELD_S):
            fault = self._begin(AGENT, victim)
            self._cluster.kill(victim)
        gevent.sleep(self._chance.uniform(*DOWN_S))
        self._cluster.restart(victim)
        log = self._cluster.paths.log(victim)
        read = log.stat().st_size
        hosts = len(self._cluster.plans[victim].hosts)
        wait_until(lambda: log.read_bytes()[read:].count(b"host begun") >= hosts, f"{victim} has begun", WHOLE_S)
        return fault

    def _database(self) -> history.Fault:
        """kill -9 of the cell's MariaDB, and its start on the same data."""
        fault = self._begin(DATABASE, CELL)
        self._cluster.kill_database(CELL)
        gevent.sleep(self._chance.uniform(*DOWN_S))
        self._cluster.start_database(CELL)
        return fault

    def _promote(self) -> history.Fault:
        """kill -9 of the cell's primary with a batch in flight; another server becomes it, by the operator's command.

        Now and then the lost one comes back as it was, and takes writes; in the end it is a replica, rebuilt.
        """
        lost = self._cluster.database_server(CELL)
        with self._cluster.batches_held(self._conductor(), HELD_S):
            fault = self._begin(PROMOTE, CELL)
            self._cluster.kill_database(CELL)
        gevent.sleep(self._chance.uniform(*DOWN_S))
        self._cluster.promote(CELL)
        fault.undone = time.monotonic()
        if self._chance.random() < 0.5:
            lost.start()
            gevent.sleep(self._chance.uniform(*BACK_S))
        self._cluster.rebuild(CELL, lost)
        return fault
