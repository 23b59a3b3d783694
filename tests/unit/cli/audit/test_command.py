"""What ``zcompute audit`` prints, and how it exits."""

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from tests.unit.cli.audit.regions import Plan, clean_region
from tests.unit.cli.audit.test_compare import running_nowhere
from zcompute.cli import audit
from zcompute.cli.audit_reading import AuditNotMade, read_host, read_table
from zcompute.cli.audit_settling import AuditReport, settle
from zcompute.compute.virt.fake_log import domain_log_path
from zcompute.db.tables import USAGES
from zcompute.objects.build_request import Usage


def report_of(region):
    return settle(region.snapshot, lambda: 0.0, lambda seconds: None)


def printed(capsys, report, form):
    audit.print_report(report, form)
    return capsys.readouterr().out


def broken_report():
    region = clean_region([Plan("active")])
    running_nowhere(region)
    return report_of(region)


def test_a_clean_report_says_so(capsys):
    out = printed(capsys, report_of(clean_region([Plan("active")])), "table")
    assert "everything holds" in out
    assert "1 servers" in out


def test_findings_are_listed_and_explained(capsys):
    out = printed(capsys, broken_report(), "table")
    assert "server_on_no_host: an ACTIVE server runs on no host" in out
    assert "1 findings" in out


def test_the_json_document_holds_everything(capsys):
    document = json.loads(printed(capsys, broken_report(), "json"))
    assert document["holds"] is False
    assert document["findings"][0]["kind"] == "server_on_no_host"
    assert document["compared"]["servers"] == 1


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, 1)])
def test_the_exit_code_tells_findings(monkeypatch, broken, code):
    monkeypatch.setattr("zcompute.cli.up.region.Region.load", lambda state_dir: SimpleNamespace())
    report = broken_report() if broken else AuditReport()
    monkeypatch.setattr(audit, "audit_region", lambda region, settle_s: report)
    done = CliRunner().invoke(audit.audit_command, ["--state-dir", "x", "--format", "json"])
    assert done.exit_code == code
    assert json.loads(done.output)["holds"] is not broken


def test_a_directory_without_a_region_cannot_be_audited(tmp_path):
    done = CliRunner().invoke(audit.audit_command, ["--state-dir", str(tmp_path)])
    assert done.exit_code == 2
    assert "the audit could not be made" in done.output


def test_a_region_that_is_down_cannot_be_audited(tmp_path):
    region = SimpleNamespace(
        cells=("root", "c1"),
        hosts=(),
        paths=SimpleNamespace(hosts=tmp_path),
        primary_url=lambda cell: f"mysql://u:p@127.0.0.1:1/{cell}",
        client=lambda: (_ for _ in ()).throw(ConnectionRefusedError("down")),
    )
    with pytest.raises(AuditNotMade, match="could not be made"):
        audit.audit_region(region)


class PagedStore:
    def __init__(self, rows):
        self.rows = rows

    def scan(self, table, *, limit, after=None, where=None):
        rows = [row for row in self.rows if after is None or table.key_of(row) > after]
        return rows[:limit]


def test_tables_are_read_page_by_page(monkeypatch):
    monkeypatch.setattr("zcompute.cli.audit_reading.PAGE_ROWS", 3)
    rows = [Usage(uuid=f"{number:03}", project_id="p", cores=1, ram_mb=1) for number in range(10)]
    assert read_table(PagedStore(rows), USAGES) == rows
    monkeypatch.setattr("zcompute.cli.audit_reading.PAGES_MAX", 2)
    with pytest.raises(AuditNotMade):
        read_table(PagedStore(rows), USAGES)


def test_a_hosts_log_is_read_without_its_unfinished_last_line(tmp_path):
    path = domain_log_path(tmp_path, "h1")
    path.write_bytes(b'{"op":"spawn","uuid":"a"}\n{"op":"spawn","uuid":"b"}\n{"op":"destroy","uuid":"a"}\n{"op":"sp')
    domains = read_host(tmp_path, "h1")
    assert (domains.running(), domains.unreadable_lines) == ({"b"}, 0)
    assert read_host(tmp_path, "never-ran").running() == set()
