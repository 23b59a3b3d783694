"""One fault more for tasks: hosts that lose their power, are forced down, evacuated, and come back."""

import subprocess
import sys
import time
from collections.abc import Callable

import gevent

from loadtest.chaos import history
from loadtest.chaos.cluster import CELL, Cluster, wait_until
from loadtest.chaos.faults import HOST, WHOLE_S, Faults
from loadtest.chaos.walks import Walks
from zcompute.cli.exits import CommandError
from zcompute.cli.up.layout import COMPUTE
from zcompute.compute.virt.fake_host import FakeHost
from zcompute.compute.virt.fake_log import DomainLine, domain_log_path
from zcompute.objects.command import VERB_STOP
from zcompute.objects.instance import POWER_SHUTDOWN

COMMAND_S = 30.0
EVACUATED_S = (1.0, 3.0)  # for so long its servers leave; some are busy then, and others are on their way
AGAIN_S = 0.3
NOT_YET = ("still has", "not linked", "try again", "cannot be asked", "does not answer")


class TaskFaults(Faults):
    """Those of its parent, and ``host``."""

    def __init__(
        self, cluster: Cluster, kinds: list[str], seed: int, said: Callable[[str], None], clients: Walks
    ) -> None:
        super().__init__(cluster, kinds, seed, said)
        self._clients = clients

    def _host(self) -> history.Fault:
        """The hosts of an agent lose their power, with all that runs there. They are forced down, the clients
        evacuate their servers; back, they are let work again when nothing is left there of what has moved."""
        cluster = self._cluster
        victim = self._chance.choice(cluster.members(COMPUTE, CELL))
        hosts = cluster.plans[victim].hosts
        fault = self._begin(HOST, victim)
        cluster.kill(victim)
        wait_until(lambda: not cluster.processes[victim].alive, f"{victim} has ended", COMMAND_S)
        self._clients.lost.update(hosts)
        for host in hosts:
            self._power_off(host)
            self._force_down(host)
        gevent.sleep(self._chance.uniform(*EVACUATED_S))
        cluster.restart(victim)
        for host in hosts:
            wait_until(lambda host=host: self._let_in(host), f"{host} works again", WHOLE_S)  # type: ignore[misc]
        self._clients.lost.difference_update(hosts)
        return fault

    def _power_off(self, host: str) -> None:
        """In the host's own file: nothing runs there any more."""
        fake = FakeHost(domain_log_path(self._cluster.paths.hosts, host))
        with fake.locked():
            for domain in list(fake.domains().values()):
                line = DomainLine(
                    op=VERB_STOP, uuid=domain.uuid, at=time.time_ns() // 1000, amounts=domain.amounts,
                    power_state=POWER_SHUTDOWN,
                )  # fmt: skip
                fake.append(line)
        fake.close()

    def _force_down(self, host: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = ["-m", "zcompute.cli.main", "host", "force-down", host, *options]
        command += ["--state-dir", str(self._cluster.paths.state_dir)]

        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        if done.returncode and not (options and any(text in done.stderr for text in NOT_YET)):
            raise CommandError(f"force-down {host} {' '.join(options)}: {done.stdout}{done.stderr}")
        return done

    def _let_in(self, host: str) -> bool:
        if self._force_down(host, "--off").returncode == 0:
            return True
        gevent.sleep(AGAIN_S)
        return False
