"""Errors of the agent. None crosses the wire: handlers answer with errors of zcompute.bus or zcompute.objects."""


class ComputeError(Exception):
    """Root of this package's errors."""


class StateDirInUse(ComputeError):
    """Another agent holds the state directory."""


class JournalUnsupported(ComputeError):
    """A journal file was written in a format that this release does not read."""


class JournalWriteFailed(ComputeError):
    """A record could not be written (disk full, I/O error); the file is as it was before."""


class RecordInvalid(ComputeError):
    """A journaled record is sound on disk but is not what its journal holds."""


class ResultsFull(ComputeError):
    """The outbox holds ``results_max`` results that no owner has acknowledged."""


class ObservationsFull(ComputeError):
    """The outbox holds observations of ``observations_max`` instances."""


class CommandsFull(ComputeError):
    """A bound of the command records is reached; a ``forget`` or an ended task makes room."""


class WorkersFull(ComputeError):
    """``waiting_max`` commands wait for a worker already."""


class DriverError(ComputeError):
    """The hypervisor could not do what was asked; the message becomes the instance's fault."""


class DomainExists(DriverError):
    """The domain to be spawned exists already."""


class DomainMissing(DriverError):
    """The domain of a verb is not on this host."""


class VerbUnsupported(DriverError):
    """The driver cannot do this verb."""


class HostUnknown(DriverError):
    """The driver has no host of this name."""
