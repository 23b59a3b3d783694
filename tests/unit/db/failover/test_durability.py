"""What of ``replicated`` a primary's settings hold."""

import pytest

from zcompute.db.durability import TIMEOUT_MS, TIMEOUT_MS_MIN, unmet


def test_settings_as_a_promotion_makes_them_are_as_required() -> None:
    assert unmet(True, True, "AFTER_SYNC", TIMEOUT_MS, True) == ""


@pytest.mark.parametrize(
    ("enabled", "waits", "point", "timeout_ms", "on", "named"),
    [
        (False, True, "AFTER_SYNC", TIMEOUT_MS, False, "master_enabled is OFF"),
        (True, False, "AFTER_SYNC", TIMEOUT_MS, True, "wait_no_slave is OFF"),
        (True, True, "AFTER_COMMIT", TIMEOUT_MS, True, "wait_point is AFTER_COMMIT"),
        (True, True, "AFTER_SYNC", 10_000, True, f"timeout is 10000 ms, less than {TIMEOUT_MS_MIN}"),
        (True, True, "AFTER_SYNC", TIMEOUT_MS, False, "master_status is OFF"),
    ],
)
def test_each_way_to_fall_back_is_named(
    enabled: bool, waits: bool, point: str, timeout_ms: int, on: bool, named: str
) -> None:
    assert named in unmet(enabled, waits, point, timeout_ms, on)
