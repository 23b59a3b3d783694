"""Limits of enrolment, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EnrolmentLimits:
    """``poll_ms``: between two looks for what other conductors have decided. ``explained_s``: for so long somebody who
    comes with an expired token is told that it has expired, and not only refused."""

    uses_max: int = 1000
    lifetime_s_max: int = 30 * 86_400
    hosts_max: int = 1000
    rows_max: int = 20_000
    page_rows: int = 1000
    commit_ms_max: int = 10_000
    poll_ms: int = 1000
    explained_s: int = 86_400
