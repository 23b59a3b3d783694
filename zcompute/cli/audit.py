"""``zcompute audit``: does everything hold? API, databases and hosts of an embedded region, compared.

Exit codes: 0 everything holds, 1 findings, 2 the audit could not be made.
"""

import time
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from zcompute.cli import exits
from zcompute.cli.audit_kinds import KINDS
from zcompute.cli.audit_reading import AuditNotMade, RegionReader
from zcompute.cli.audit_settling import INTERVAL_S, SETTLE_S, AuditReport, settle
from zcompute.cli.exits import CommandError
from zcompute.db.errors import StoreError

if TYPE_CHECKING:
    from zcompute.cli.up.region import Region

ROWS_SHOWN_MAX = 200


def audit_region(region: "Region", settle_s: float = SETTLE_S, interval_s: float = INTERVAL_S) -> AuditReport:
    """Audit a running region. Raises AuditNotMade."""
    try:
        urls = {cell: region.primary_url(cell) for cell in region.cells}
        reader = RegionReader.open(urls, region.hosts, region.paths.hosts, region.client)
        try:
            return settle(reader.take, time.monotonic, time.sleep, settle_s, interval_s)
        finally:
            reader.close()
    except AuditNotMade:
        raise
    except (StoreError, CommandError, OSError, ValueError, LookupError) as error:
        reason = error.message if isinstance(error, CommandError) else f"{type(error).__name__}: {error}"
        raise AuditNotMade(f"the audit could not be made: {reason}") from error


def report_document(report: AuditReport) -> dict[str, Any]:
    """The report as ``--format json`` prints it."""
    return {
        "holds": report.holds,
        "findings": [
            {"kind": finding.kind, "subject": finding.subject, "detail": finding.detail} for finding in report.findings
        ],
        "in_motion": [{"kind": item.kind, "uuid": item.uuid, "progress": item.progress} for item in report.in_motion],
        "compared": report.counts,
        "snapshots": report.snapshots,
    }


def print_report(report: AuditReport, form: str) -> None:
    """To standard output, as a table or as JSON."""
    if form == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(report_document(report)), indent=2).decode())
        return
    compared = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items())
    click.echo(f"compared: {compared}")
    if report.in_motion:
        click.echo(f"in motion, not judged: {len(report.in_motion)}")
    if report.holds:
        click.echo("everything holds")
        return
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)
    table = Table("kind", "subject", "detail")
    for finding in report.findings[:ROWS_SHOWN_MAX]:
        table.add_row(finding.kind, finding.subject, finding.detail)
    console.print(table)
    for kind in sorted({finding.kind for finding in report.findings}):
        click.echo(f"{kind}: {KINDS[kind]}")
    shown = min(len(report.findings), ROWS_SHOWN_MAX)
    click.echo(f"{len(report.findings)} findings, {shown} shown")


@click.command("audit")
@click.option("--state-dir", default="./var", show_default=True, help="The embedded region.")
@click.option("--format", "form", default="table", type=click.Choice(["table", "json"]), show_default=True)
@click.option(
    "--settle-s",
    default=SETTLE_S,
    type=click.FloatRange(min=INTERVAL_S),
    show_default=True,
    help="How long to wait for what is in motion.",
)
def audit_command(state_dir: str, form: str, settle_s: float) -> None:
    """Compare what API, databases and hosts say: every server on exactly one host, spawned once, nothing orphaned,
    leaked or stuck. Exit codes: 0 everything holds, 1 findings, 2 the audit could not be made."""
    from zcompute.cli.up.region import Region

    try:
        region = Region.load(state_dir)
    except CommandError as error:
        raise AuditNotMade(f"the audit could not be made: {error.message}") from error
    report = audit_region(region, settle_s)
    print_report(report, form)
    if not report.holds:
        raise click.exceptions.Exit(exits.FAILED)
