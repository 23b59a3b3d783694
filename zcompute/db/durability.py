"""Durability modes of a cell (design, section 6): what a commit that is acknowledged has survived.

``local``: the primary's own disk. ``replicated``: a replica has it too (MariaDB's semi-synchronous replication,
AFTER_SYNC), and the primary never falls back to doing without: its time-out is so long that it never comes, and it
waits even while no replica is connected. A batch checks that before it commits, and once more before it counts as
committed: a commit that waits is let go as soon as somebody switches semi-synchronous replication off.
"""

LOCAL, REPLICATED = "local", "replicated"
MODES = (LOCAL, REPLICATED)

TIMEOUT_MS_MIN = 1_000_000_000_000  # 31 years
TIMEOUT_MS = 18_446_744_073_709_551_615  # the most that MariaDB takes

ERROR_NOT_REPLICATED = 30004

HELD = (
    b"@@GLOBAL.rpl_semi_sync_master_enabled AND @@GLOBAL.rpl_semi_sync_master_wait_no_slave AND "
    b"@@GLOBAL.rpl_semi_sync_master_wait_point = 'AFTER_SYNC' AND @@GLOBAL.rpl_semi_sync_master_timeout >= %d"
    % TIMEOUT_MS_MIN
)
DEMANDED = (
    b"IF NOT (" + HELD + b") THEN SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = %d, "
    b"MESSAGE_TEXT = 'not replicated'; END IF; " % ERROR_NOT_REPLICATED
)

# On the primary, in this order: what it takes before the first commit waits.
SWITCHED_ON = (
    f"SET GLOBAL rpl_semi_sync_master_timeout = {TIMEOUT_MS}",
    "SET GLOBAL rpl_semi_sync_master_wait_point = 'AFTER_SYNC'",
    "SET GLOBAL rpl_semi_sync_master_wait_no_slave = ON",
    "SET GLOBAL rpl_semi_sync_master_enabled = ON",
)
PRIMARY_OPTIONS = (
    "--rpl-semi-sync-master-enabled=ON",
    f"--rpl-semi-sync-master-timeout={TIMEOUT_MS}",
    "--rpl-semi-sync-master-wait-point=AFTER_SYNC",
    "--rpl-semi-sync-master-wait-no-slave=ON",
)
ACKER_OPTIONS = ("--rpl-semi-sync-slave-enabled=ON",)


def unmet(enabled: bool, wait_no_slave: bool, wait_point: str, timeout_ms: int, status_on: bool) -> str:
    """What of ``replicated`` a primary's settings do not hold; empty when all is as required. Pure."""
    wrong = []
    if not enabled:
        wrong.append("rpl_semi_sync_master_enabled is OFF")
    if not wait_no_slave:
        wrong.append("rpl_semi_sync_master_wait_no_slave is OFF")
    if wait_point != "AFTER_SYNC":
        wrong.append(f"rpl_semi_sync_master_wait_point is {wait_point}, not AFTER_SYNC")
    if timeout_ms < TIMEOUT_MS_MIN:
        wrong.append(f"rpl_semi_sync_master_timeout is {timeout_ms} ms, less than {TIMEOUT_MS_MIN}")
    if not wrong and not status_on:
        wrong.append("Rpl_semi_sync_master_status is OFF")
    return ", ".join(wrong)
