"""Errors of the scheduler."""

from zcompute.bus.errors import InvalidRequest


class SchedulerError(Exception):
    """Root of this package's errors."""


class SelectionRefused(SchedulerError):
    """A request is over a limit or makes no sense; the service answers it as the bus' InvalidRequest."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field

    def for_the_wire(self) -> InvalidRequest:
        """As the caller gets it."""
        return InvalidRequest(str(self), field=self.field)
