"""The command ``zcompute``. Monkey patching comes before every other import; commands are imported when they run.

A compute process must not load what knows the database, so no command's module is imported for another's sake.
"""

from gevent import monkey

monkey.patch_all()

import importlib  # noqa: E402
from collections.abc import Sequence  # noqa: E402

import click  # noqa: E402

COMMANDS: dict[str, tuple[str, str]] = {
    "api": ("zcompute.cli.services:api", "Run one API service."),
    "audit": ("zcompute.cli.audit:audit_command", "Compare what API, databases and hosts say."),
    "bus": ("zcompute.cli.bus_commands:bus", "Look into the bus: queues, calls in flight, credit, refusals."),
    "cell": ("zcompute.cli.cell_remap:cell", "Create, look at, open, close, drain, delete and verify cells."),
    "compute": ("zcompute.cli.services:compute", "Run one compute agent."),
    "conductor": ("zcompute.cli.conductor_commands:conductor", "Run one conductor; look at those that run."),
    "config": ("zcompute.cli.config_commands:config", "Print or check configuration."),
    "db": ("zcompute.cli.db_commands:db", "Create, upgrade and look at a cell's database."),
    "host": ("zcompute.cli.host_commands:host", "List hosts; force them down, and let them work again."),
    "image": ("zcompute.cli.image_commands:image", "Register, list, show and delete images."),
    "keys": ("zcompute.cli.keys_commands:keys", "Create, list, rotate and revoke keys."),
    "notifications": (
        "zcompute.cli.notifications_commands:notifications",
        "Follow what is told of a cell's changes.",
    ),
    "quota": ("zcompute.cli.quota_commands:quota", "Show, set and check what projects may have and have."),
    "scheduler": ("zcompute.cli.services:scheduler", "Run one scheduler."),
    "server": ("zcompute.cli.server_move:server", "Look at servers; move one to another cell."),
    "service": ("zcompute.cli.listings:service", "Look at services."),
    "task": ("zcompute.cli.task_commands:task", "List tasks; begin a parked one again; end one."),
    "up": ("zcompute.cli.up.command:up", "Bring up an embedded region and boot servers in it."),
    "upgrade": ("zcompute.cli.upgrade_commands:upgrade", "Check an upgrade, and end it: raise the release level."),
    "version": ("zcompute.cli.version:version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when that command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module_name, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module_name), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module_name}.{attribute}: expected a click command, found {type(command).__name__}")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help text comes from the table, so that --help imports nothing."""
        rows: Sequence[tuple[str, str]] = [(name, text) for name, (_, text) in sorted(COMMANDS.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """zcompute: the control plane of a very large compute cloud, deployed cell by cell."""


if __name__ == "__main__":
    main(prog_name="zcompute")
