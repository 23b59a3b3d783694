"""What the command's exit codes mean, and the errors that carry them. docs/operating/exit-codes.md lists them."""

import click

OK = 0
FAILED = 1
USAGE = 2
PORT_IN_USE = 3
PROGRAM_MISSING = 4
STATE_DIR_IN_USE = 5
STATE_DIR_VERSION = 6
TOO_LATE = 7
HOSTS_TAKEN = 8
MORE_LEFT = 9

MEANINGS: dict[int, str] = {
    OK: "done; for `audit` and `up --exit`: everything holds",
    FAILED: "failed; for `audit`: findings; for `up --exit`: a server not ACTIVE, or findings",
    USAGE: "wrong usage or configuration; for `audit`: it could not be made",
    PORT_IN_USE: "the port to listen on is in use",
    PROGRAM_MISSING: "a program that is needed is not installed",
    STATE_DIR_IN_USE: "the state directory is in use by another process",
    STATE_DIR_VERSION: "the state directory is of another version",
    TOO_LATE: "did not come up in time",
    HOSTS_TAKEN: "another agent has taken the hosts of this one: do not start it again by itself",
    MORE_LEFT: "done as far as it was allowed to, more is left: run it again",
}


class CommandError(click.ClickException):
    """A command ends here: one sentence on standard error, and an exit code."""

    exit_code = FAILED


class UsageRefused(CommandError):
    """The configuration or the options cannot be used."""

    exit_code = USAGE


class PortInUse(CommandError):
    """Another process listens on the port."""

    exit_code = PORT_IN_USE


class ProgramMissing(CommandError):
    """A program that is needed is not on this machine."""

    exit_code = PROGRAM_MISSING


class StateDirInUse(CommandError):
    """Another process uses the state directory."""

    exit_code = STATE_DIR_IN_USE


class StateDirVersion(CommandError):
    """The state directory was written by a release with another layout."""

    exit_code = STATE_DIR_VERSION


class TooLate(CommandError):
    """Something did not come up within its deadline."""

    exit_code = TOO_LATE


class HostsTaken(CommandError):
    """Another agent serves the hosts of this one: were it started again by itself, the two would take turns."""

    exit_code = HOSTS_TAKEN
