"""Errors of the conductor, and the wire errors that the ledger raises to its callers.

What crosses the wire (NotOwner, Busy, DeadlineExceeded, InvalidRequest) belongs to the bus; the functions here only
word them, so that the same thing is always said in the same way.
"""

from zcompute.bus.errors import Busy, DeadlineExceeded, InvalidRequest, NotOwner


class ConductorError(Exception):
    """Root of this package's own errors."""


class LedgerMisuse(ConductorError):
    """The caller broke the ledger's contract: a programming error, never an answer to a client."""


class NotLoaded(LedgerMisuse):
    """A decide function touched a row that was not named at submit."""


class WrongPartition(LedgerMisuse):
    """A row was read or written through a partition that is not its own."""


class IncarnationEnded(ConductorError):
    """This life of the conductor is over; ``reason`` says why. Its partitions belong to others now."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the incarnation has ended: {reason}")
        self.reason = reason


def not_owner(partition: int, map_version: int) -> NotOwner:
    """This conductor does not own the partition (any more); the caller asks the owner of a newer map."""
    return NotOwner(
        f"partition {partition} is not owned here (map version {map_version}): ask its owner",
        partition=partition,
        map_version=map_version,
    )


def busy(what: str, limit: int, retry_after_ms: int) -> Busy:
    """A named limit is reached."""
    return Busy(f"{what} is at its limit of {limit}: retry in {retry_after_ms} ms", retry_after_ms=retry_after_ms)


def database_away(lost_ms: int, retry_after_ms: int) -> Busy:
    """The database has been out of reach for so long: nothing more is taken in until it is back."""
    return Busy(
        f"the cell's database has been out of reach for {lost_ms} ms: retry in {retry_after_ms} ms",
        retry_after_ms=retry_after_ms,
    )


def deadline_exceeded(what: str, timeout_ms: int) -> DeadlineExceeded:
    """The time that the caller gave is over; whether the change commits is unknown unless said otherwise."""
    return DeadlineExceeded(f"{what} took longer than {timeout_ms} ms")


def invalid_row(table: str, reason: str) -> InvalidRequest:
    """The database (or the row codec) refused the data of one change; nothing of it was kept."""
    return InvalidRequest(f"the row for table {table} cannot be stored: {reason}", field=table)
