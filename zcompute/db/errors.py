"""Every error of the database layer. What a caller does next hangs on the class, never on the text."""


class StoreError(Exception):
    """Root of this package's errors."""


class Fenced(StoreError):
    """The lane may write no more: dead, of another term, or its watermark is not ours. Ends the incarnation."""


class AlreadyApplied(StoreError):
    """The batch is in the database already, under our nonce: this was the resend of a commit that got through."""


class GuardFailed(StoreError):
    """A statement changed another number of rows than was decided. Rolled back; ends the incarnation."""

    def __init__(self, table: str, message: str = "") -> None:
        super().__init__(message or f"{table}: affected rows differ from what was decided; the batch was rolled back")
        self.table = table


class BadRow(StoreError):
    """The database refuses the data of a row (too long, duplicate key, ...). Rolled back for certain.

    ``key`` names the row where the database tells or a check of the batch finds it, else None.
    """

    def __init__(self, table: str, key: tuple[object, ...] | None, reason: str) -> None:
        super().__init__(f"{table} {'/'.join(map(str, key)) if key else '(row unknown)'}: {reason}")
        self.table = table
        self.key = key
        self.reason = reason


class ReceiverDead(StoreError):
    """The lane that should receive partitions is dead or gone. Rolled back; the partitions stay."""


class ConnectionLost(StoreError):
    """The connection broke; after a commit the outcome is unknown: reconnect and send the same batch again."""


class DatabaseBusy(StoreError):
    """Locks, deadlocks or all connections in use, after bounded retries. Nothing was changed."""


class StatementFailed(StoreError):
    """The database refused a statement for a reason that no caller can mend. ``code`` is the server's error number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"the database answered {code}: {message}")
        self.code = code


class InvalidUrl(StoreError):
    """A database URL that no driver understands."""


class SchemaMismatch(StoreError):
    """The database is of another kind, cell or release than was asked for."""


class MigrationBlocks(StoreError):
    """A change of the schema cannot be made without keeping the cell waiting."""


class ContractRefused(StoreError):
    """Something may still need what a contract migration takes away."""


class LevelRefused(StoreError):
    """The release level cannot be raised: something in use does not speak it."""


class BackupInvalid(StoreError):
    """The file is no backup, or a damaged one, or one that this release cannot restore."""


class RestoreRefused(StoreError):
    """The database into which to restore is not an empty one of this cell."""


class PrivateServerFailed(StoreError):
    """The embedded database server cannot be found, initialised or started."""


class PrimaryNotFound(StoreError):
    """Of a cell's servers none is its primary now, or more than one could be."""


class PromotionRefused(StoreError):
    """No server can become the primary safely; ``reasons`` says why, a sentence each."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
