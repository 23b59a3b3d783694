"""Snapshots until the region stands still or the time is over: what two of them say counts. No I/O of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field

from zcompute.cli.audit_compare import compare
from zcompute.cli.audit_kinds import Finding
from zcompute.cli.audit_motion import Moving, moving, stood_still
from zcompute.cli.audit_snapshot import Snapshot

SETTLE_S = 10.0
INTERVAL_S = 2.0


@dataclass(frozen=True)
class AuditReport:
    """The outcome. ``in_motion`` is what was still on its way at the end, with progress, and so is not judged."""

    findings: list[Finding] = field(default_factory=list)
    in_motion: list[Moving] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    snapshots: int = 0

    @property
    def holds(self) -> bool:
        return not self.findings


def settle(
    take: Callable[[], Snapshot],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    settle_s: float = SETTLE_S,
    interval_s: float = INTERVAL_S,
) -> AuditReport:
    """Take snapshots ``interval_s`` apart until nothing is in motion, at most for ``settle_s``.

    A region at rest without findings needs one. A finding counts when two snapshots in a row have it; what did not
    move at all over the whole of ``settle_s`` is stuck.
    """
    started = clock()
    snapshot = take()
    first_motion = motion = moving(snapshot)
    findings = compare(snapshot)
    taken = 1
    confirmed: list[Finding] = []
    while findings or motion:
        elapsed = clock() - started
        all_said = not motion and len(confirmed) == len(findings)
        if taken > 1 and (all_said or elapsed >= settle_s):
            break
        sleep(interval_s)
        snapshot = take()
        taken += 1
        former = {(finding.kind, finding.subject) for finding in findings}  # details tell an age, which grows
        findings, motion = compare(snapshot), moving(snapshot)
        confirmed = [finding for finding in findings if (finding.kind, finding.subject) in former]
    elapsed = clock() - started
    if motion and elapsed >= settle_s:
        stuck = {(f.kind, f.subject): f for f in [*stood_still(first_motion, motion, elapsed), *confirmed]}
        confirmed = sorted(stuck.values())
    judged = {(finding.kind, finding.subject) for finding in confirmed}
    still_moving = [item for item in motion if (f"{item.kind}_stuck", item.uuid) not in judged]
    return AuditReport(confirmed, sorted(still_moving), snapshot.counts(), taken)
