"""``zcompute up``: bring the region up, boot servers, say how to use it, stay until told to stop."""

import signal
import subprocess
import sys
from pathlib import Path

import click
import gevent
from gevent.event import Event
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zcompute.cli.client import pages
from zcompute.cli.exits import FAILED, CommandError
from zcompute.cli.up import report, victims
from zcompute.cli.up.boots import Boot, Booter, BootRun
from zcompute.cli.up.databases import AUTO, MARIADB, SQLITE
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import DEFAULT_API_PORT, Region
from zcompute.db.durability import LOCAL, MODES, REPLICATED
from zcompute.db.errors import StoreError
from zcompute.db.private_replicas import REPLICAS_MAX

BOOTS = 100
CONCURRENCY = 20
BOOTS_MAX = 100_000
CONCURRENCY_MAX = 500
AUDIT_DEADLINE_S = 60.0
REFRESHES_PER_S = 5
FAULTS_SHOWN_MAX = 5


class Up:
    """One run of the command."""

    def __init__(self, region: Region, console: Console, boot: int, concurrency: int, kill_conductor: bool) -> None:
        self.region = region
        self._console = console
        self._boot = boot
        self._concurrency = concurrency
        self._kill = kill_conductor
        self.metrics: dict[str, float] = {}

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self) -> None:
        """Start the region and say what it is."""
        self.region.on_unexpected_end = self.say
        shape = self.region.file.shape
        self.say(
            f"region in {self.region.paths.state_dir}: database {self.region.file.database}, "
            f"cells {', '.join(self.region.cells)}, {len(self.region.hosts)} hosts in {len(shape.cells)} of them"
        )
        self.region.start(self.say)
        self.say(f"up: API at {self.region.api_url}")

    def boot(self) -> BootRun:
        """Boot this run's servers, killing conductors when asked; show what came of it."""
        killed: list[victims.Victim] = []
        run = BootRun()
        before = after = self.region.cpu_ms()
        if self._boot:
            run, killed, before, after = self._boots()
        self.metrics = report.boot_metrics(run, before, after)
        self.metrics["conductors_killed"] = len(killed)
        client = self.region.client()
        report.show_placement(self._console, pages(client, "/v2.1/servers/detail", "servers"), self.region.file.shape)
        client.close()
        report.show_metrics(self._console, f"{len(run.boots)} boots, {self._concurrency} in flight", self.metrics)
        self._say_failures(run)
        return run

    def _boots(self) -> tuple[BootRun, list[victims.Victim], dict[str, float], dict[str, float]]:
        self.say(f"booting {self._boot} servers (m1.tiny), {self._concurrency} in flight")
        with self._progress() as progress:
            bar = progress.add_task("boots", total=self._boot)

            def ended(boot: Boot) -> None:
                progress.advance(bar)

            booter = Booter(self.region, self._boot, self._concurrency, on_end=ended)
            killer = gevent.spawn(victims.kill_when_busy, self.region, booter, self.say) if self._kill else None
            try:
                before = self.region.cpu_ms()
                run = booter.run()
                after = self.region.cpu_ms()
                killed: list[victims.Victim] = killer.get(timeout=5) if killer is not None else []
            finally:
                if killer is not None:
                    killer.kill()
        return run, killed, before, after

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            refresh_per_second=REFRESHES_PER_S,
        )

    def _say_failures(self, run: BootRun) -> None:
        failed = [boot for boot in run.boots if boot.status != "ACTIVE"]
        for boot in failed[:FAULTS_SHOWN_MAX]:
            self.say(f"{boot.name} {boot.uuid or '(no id)'}: {boot.status or 'not started'}: {boot.fault}")
        if len(failed) > FAULTS_SHOWN_MAX:
            self.say(f"... and {len(failed) - FAULTS_SHOWN_MAX} more")

    def audit(self) -> int:
        """Run the audit on the living region; its exit code."""
        state_dir = str(self.region.paths.state_dir)
        command = [sys.executable, "-m", "zcompute.cli.main", "audit", "--state-dir", state_dir]
        try:
            done = subprocess.run(command, capture_output=True, timeout=AUDIT_DEADLINE_S, check=False)
        except subprocess.TimeoutExpired:
            self.say(f"the audit did not end within {AUDIT_DEADLINE_S:.0f} s")
            return FAILED
        self.say((done.stdout + done.stderr).decode(errors="replace").rstrip())
        return done.returncode

    def closing_message(self) -> None:
        """How to use what is up."""
        program = Path(sys.argv[0]).resolve()
        name = str(program) if program.name == "zcompute" else f"{sys.executable} -m zcompute.cli.main"
        state_dir = self.region.paths.state_dir
        self.say(
            "\nThe region stays up until Ctrl-C. Try:\n"
            f'  curl -s -H "X-Auth-Token: {self.region.token}" {self.region.api_url}/v2.1/servers/detail\n'
            f"  {name} server list --state-dir {state_dir}\n"
            f"  {name} audit --state-dir {state_dir}"
        )


def _run(up: Up, json_path: str | None, leave: bool, stop: Event) -> int:
    up.start()
    run = up.boot()
    status = 0
    if leave:
        status = up.audit()
        if run.count("ACTIVE") != len(run.boots):
            status = FAILED
    if json_path:
        report.write_json(json_path, "up", up.metrics)
    if not leave:
        up.closing_message()
        stop.wait()
    return status


def _run_or_error(up: Up, json_path: str | None, leave: bool, stop: Event) -> int | Exception:
    """The greenlet's body: an error is its result, so that it is told once, as a sentence."""
    try:
        return _run(up, json_path, leave, stop)
    except (CommandError, OSError, StoreError) as error:
        return error


def _until_stopped(up: Up, json_path: str | None, leave: bool) -> int:
    """Run in a greenlet that a signal ends wherever it is; the region is stopped in any case."""
    stop = Event()
    work = gevent.spawn(_run_or_error, up, json_path, leave, stop)

    def end(number: int) -> None:
        up.say(f"{signal.Signals(number).name}: stopping")
        stop.set()
        work.kill(block=False)

    handlers = [gevent.signal_handler(n, end, n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    try:
        result = work.get()
    finally:
        up.region.stop()
        for handler in handlers:
            handler.cancel()
    if isinstance(result, gevent.GreenletExit):
        return FAILED if leave else 0
    if isinstance(result, Exception):
        raise result
    up.say("stopped")
    return int(result)


@click.command()
@click.option("--boot", default=BOOTS, show_default=True, type=click.IntRange(0, BOOTS_MAX), help="Servers to boot.")
@click.option(
    "--concurrency",
    default=CONCURRENCY,
    show_default=True,
    type=click.IntRange(1, CONCURRENCY_MAX),
    help="Boots in flight.",
)
@click.option("--kill-conductor", is_flag=True, help="SIGKILL a busy conductor of every cell in mid-run.")
@click.option("--exit", "leave", is_flag=True, help="Audit and stop when the boots are done; status 0 if all holds.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the metrics to this file.")
@click.option(
    "--database", default=AUTO, show_default=True, type=click.Choice([AUTO, SQLITE, MARIADB]), help="Kind of database."
)
@click.option("--state-dir", default="./var", show_default=True, type=click.Path(file_okay=False), help="State.")
@click.option(
    "--api-port",
    default=DEFAULT_API_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of the API; 0 takes a free one.",
)
@click.option(
    "--replicas",
    default=0,
    show_default=True,
    type=click.IntRange(0, REPLICAS_MAX),
    help="Replicas of each database (MariaDB); counts for a new state directory.",
)
@click.option(
    "--durability",
    default=LOCAL,
    show_default=True,
    type=click.Choice(MODES),
    help="What an acknowledged change survives; replicated needs --replicas; counts for a new state directory.",
)
def up(
    boot: int,
    concurrency: int,
    kill_conductor: bool,
    leave: bool,
    json_path: str | None,
    database: str,
    state_dir: str,
    api_port: int,
    replicas: int,
    durability: str,
) -> None:
    """Bring up an embedded region and boot servers in it.

    A root cell and two cells of real services, 20 fake hosts, an API. Exit codes: see docs/operating/exit-codes.md.
    """
    if kill_conductor and not boot:
        raise click.UsageError("--kill-conductor kills in the middle of boots: it needs --boot above 0")
    if durability == REPLICATED and not replicas:
        raise click.UsageError("--durability replicated: a replica acknowledges, so it needs --replicas above 0")
    shape = Shape(replicas=replicas, durability=durability)
    region = Region.create(state_dir, database, api_port=api_port, shape=shape)
    run = Up(region, Console(), boot, concurrency, kill_conductor)
    try:
        status = _until_stopped(run, json_path, leave)
    except (OSError, StoreError) as error:
        raise CommandError(f"the region failed: {error}") from error
    sys.exit(status)
