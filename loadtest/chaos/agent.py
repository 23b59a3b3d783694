"""A real agent with traffic of its own: its machines change their state all the time, and it writes down what it owes
and what it is answered.

    python -m loadtest.chaos.agent --config FILE --history FILE --per-second N --origin T [--wires FILE]

It is ``zcompute compute`` but for the driver (a fake one whose power states change), the recording round the outbox and
the commands, and a repeater, as a late network is one: reports are sent again which were answered long ago, and
commands of former owners arrive once more.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import time  # noqa: E402
from collections import deque  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from dataclasses import replace  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import msgspec  # noqa: E402

from loadtest.chaos import history, wires  # noqa: E402
from zcompute import config as configs  # noqa: E402
from zcompute.bus import Ack, BusError, Link  # noqa: E402
from zcompute.bus import Report as BusReport  # noqa: E402
from zcompute.cli.services import run as run_service  # noqa: E402
from zcompute.compute import observer  # noqa: E402
from zcompute.compute.commands import Commands  # noqa: E402
from zcompute.compute.outbox import Outbox  # noqa: E402
from zcompute.compute.reporter import Reporter  # noqa: E402
from zcompute.compute.service import ComputeService  # noqa: E402
from zcompute.compute.virt.driver import Domain  # noqa: E402
from zcompute.compute.virt.fake import FakeDriver  # noqa: E402
from zcompute.config import Config  # noqa: E402
from zcompute.objects.command import Order  # noqa: E402
from zcompute.objects.errors import CommandRefused, ServiceError  # noqa: E402
from zcompute.objects.instance import POWER_PAUSED, POWER_RUNNING  # noqa: E402
from zcompute.objects.report import FINAL_VERDICTS, Observation, StepResult  # noqa: E402

TICK_S = 0.02
POWER_SHARE = 0.2  # of the reports that bring another power state, and with it a notification
REPEAT_SHARE = 0.02  # of the answered reports that are sent once more
REPEAT_AFTER_S = 0.5
REPEATS_MAX = 500
COMMANDS_MAX = 50  # of the last, which come again when their partition has another owner


class ChangingDriver(FakeDriver):
    """The fake driver, whose machines are paused and resumed by the traffic; memory of this process only."""

    powers: dict[str, int]
    history: history.History

    def domains(self, host: str) -> Mapping[str, Domain]:
        found = super().domains(host)
        return {
            uuid: replace(domain, power_state=self.powers.get(uuid, domain.power_state))
            for uuid, domain in found.items()
        }

    def spawn(self, host: str, instance: Any, order: Order) -> Domain:
        domain = super().spawn(host, instance, order)
        self._told(host, instance.uuid, "spawn", order)
        return domain

    def destroy(self, host: str, uuid: str, order: Order) -> None:
        there = uuid in super().domains(host)
        super().destroy(host, uuid, order)
        if there:
            self._told(host, uuid, "destroy", order)

    def _told(self, host: str, uuid: str, op: str, order: Order) -> None:
        self.history.write(history.Domain(t=time.monotonic(), host=host, uuid=uuid, op=op, generation=order.generation))


class Values:
    """Values that rise for each instance, from one life of the agent to the next too: milliseconds of the run."""

    def __init__(self, origin_s: float) -> None:
        self._origin_s = origin_s
        self._last: dict[str, int] = {}

    def next(self, uuid: str) -> int:
        """The next value of an instance."""
        value = max(int((time.monotonic() - self._origin_s) * 1000), self._last.get(uuid, 0) + 1)
        self._last[uuid] = value
        return value


def number_observations(values: Values) -> None:
    """Every observation, those of a full state too, says a value of its own."""
    plain = observer.observation

    def numbered(record: Any, domain: Domain | None) -> Observation:
        return msgspec.structs.replace(plain(record, domain), progress=values.next(record.uuid))

    observer.observation = numbered


class Recorder:
    """Writes down what the outbox takes, what is answered and what is commanded."""

    def __init__(self, out: history.History, agent: str) -> None:
        self._out = out
        self._agent = agent
        self._life = os.getpid()
        self.answered: deque[tuple[float, Link, BusReport]] = deque(maxlen=REPEATS_MAX)
        self._payloads: dict[int, bytes] = {}
        self.commanded: deque[tuple[Callable[[], Any], int, int]] = deque(maxlen=COMMANDS_MAX)

    def watch(self, outbox: Outbox, reporter: Reporter) -> None:
        """Record round the outbox' one way in, and round the answers' one way in."""
        put, acks = outbox._put, reporter.acks

        def recorded_put(body: Observation | StepResult) -> Any:
            self._owed(outbox, body)
            entry = put(body)
            if random.random() < REPEAT_SHARE:
                self._payloads[entry.seq] = entry.payload
            return entry

        def recorded_acks(link: Link, answers: list[Ack]) -> None:
            self._answers(link, answers)
            acks(link, answers)

        outbox._put = recorded_put  # type: ignore[method-assign]
        reporter.acks = recorded_acks  # type: ignore[method-assign]

    def _owed(self, outbox: Outbox, body: Observation | StepResult) -> None:
        event = history.Report(
            t=time.monotonic(), agent=self._agent, life=self._life, uuid=body.instance_uuid, seq=outbox.last_seq + 1
        )
        if isinstance(body, Observation):
            event.value, event.power = body.progress, body.power_state
            event.folds = outbox._observed.get((body.host, body.instance_uuid), 0)
        else:
            event.kind = history.RESULT
        self._out.write(event)

    def _answers(self, link: Link, answers: list[Ack]) -> None:
        now = time.monotonic()
        peer = "" if link.peer is None else link.peer.service_id
        for ack in answers:
            self._out.write(
                history.Answer(
                    t=now, agent=self._agent, life=self._life, uuid=ack.key, seq=ack.seq, verdict=ack.verdict, peer=peer
                )
            )
            payload = self._payloads.pop(ack.seq, None) if ack.verdict in FINAL_VERDICTS else None
            if payload is not None:
                self.answered.append((now + REPEAT_AFTER_S, link, BusReport(ack.key, ack.seq, payload)))

    def watch_commands(self) -> None:
        """Record round the handlers of commands."""
        for name in ("spawn", "destroy", "adopt"):
            setattr(Commands, name, self._recorded(name, getattr(Commands, name)))

    def _recorded(self, name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(commands: Commands, request: Any, context: Any, *, again: bool = False) -> Any:
            order: Order = request.order
            known = commands._fences.epochs[order.partition]
            try:
                reply = handler(commands, request, context)
            except CommandRefused:
                self._command(name, order, known, obeyed=False)
                raise
            self._command(name, order, known, obeyed=True)
            if not again:
                late = partial(recorded, commands, request, context, again=True)
                self.commanded.append((late, order.partition, order.owner_epoch))
            return reply

        return recorded

    def _command(self, name: str, order: Order, known_epoch: int, *, obeyed: bool) -> None:
        self._out.write(
            history.Command(
                t=time.monotonic(),
                agent=self._agent,
                host=order.host,
                uuid=order.instance_uuid,
                name=name,
                partition=order.partition,
                owner_epoch=order.owner_epoch,
                generation=order.generation,
                task_id=order.task_id,
                step=order.step,
                attempt=order.attempt,
                known_epoch=known_epoch,
                obeyed=obeyed,
            )
        )


class Traffic:
    """Changes of state at a given pace, spread over all granted instances, and late repeats."""

    def __init__(self, service: ComputeService, driver: ChangingDriver, recorder: Recorder, quiet: Path) -> None:
        self._service = service
        self._driver = driver
        self._recorder = recorder
        self._quiet = quiet
        self._pause = quiet.with_name(history.PAUSE_FILE)
        self._calmed = False

    def run(self, per_second: float) -> None:
        """Until it is killed."""
        owed = 0.0
        while True:
            gevent.sleep(TICK_S)
            if self._quiet.exists():
                self._calm()
                continue
            if self._pause.exists():
                continue
            owed += per_second * TICK_S
            granted = self._service._generations.granted()
            hosts = self._service._hosts
            begun = set() if hosts is None else set(hosts.epochs())
            granted = [record for record in granted if record.host in begun]
            while owed >= 1:
                owed -= 1
                if granted:
                    self._change(random.choice(granted))
            self._repeat()

    def _calm(self) -> None:
        """All machines run again, as the hosts' own files say."""
        if self._calmed:
            return
        self._calmed = True
        self._driver.powers.clear()
        for host in self._driver.hosts():
            self._service.observer.look(host)
        self._service.observer.look = lambda host: None  # type: ignore[method-assign]  # each look says new values

    def _change(self, record: Any) -> None:
        if self._service._workers.busy((record.host, record.uuid)):
            return  # its command is under way: its end reports it
        domain = self._driver.domains(record.host).get(record.uuid)
        if domain is None:
            return
        if random.random() < POWER_SHARE:
            other = POWER_PAUSED if domain.power_state == POWER_RUNNING else POWER_RUNNING
            self._driver.powers[record.uuid] = other
            domain = replace(domain, power_state=other)
        self._service.observer.report(record, domain)

    def _repeat(self) -> None:
        answered = self._recorder.answered
        while answered and answered[0][0] <= time.monotonic():
            _, link, report = answered.popleft()
            try:
                if link.up and link.report_credit:
                    link.report([report])
            except BusError:
                continue
        epochs = self._service._fences.epochs
        for entry in [entry for entry in self._recorder.commanded if entry[2] < epochs[entry[1]]]:
            self._recorder.commanded.remove(entry)
            try:
                entry[0]()
            except (BusError, ServiceError):
                continue


class ChangingService(ComputeService):
    """The agent with its traffic."""

    def __init__(self, config: Config, out: history.History, per_second: float, quiet: Path) -> None:
        compute = config.compute
        driver = ChangingDriver(compute.fake_dir, compute.hosts, compute.build_ms, compute.delete_ms)
        driver.powers, driver.history = {}, out
        recorder = Recorder(out, config.service.id)
        recorder.watch_commands()
        super().__init__(config, driver)
        recorder.watch(self._outbox, self.reporter)
        self._traffic = Traffic(self, driver, recorder, quiet)
        self._per_second = per_second

    def start(self) -> None:
        super().start()
        self._loops.append(gevent.spawn(self._traffic.run, self._per_second))


def main() -> None:
    """Run until SIGTERM."""
    options = argparse.ArgumentParser(prog="python -m loadtest.chaos.agent")
    options.add_argument("--config", required=True)
    options.add_argument("--history", required=True, type=Path)
    options.add_argument("--per-second", required=True, type=float)
    options.add_argument("--origin", required=True, type=float)
    options.add_argument("--wires", type=Path)
    given = options.parse_args()
    if given.wires:
        wires.redirect(given.wires)
    number_observations(Values(given.origin))
    out, quiet = history.History(given.history), given.history.parent / history.QUIET_FILE
    config = configs.load(given.config)
    run_service("compute", config, lambda config: ChangingService(config, out, given.per_second, quiet))


if __name__ == "__main__":
    main()
