"""Snapshots of real databases, and of an API that is one function."""

import pytest

from zcompute.cli.audit_compare import compare
from zcompute.cli.audit_motion import moving
from zcompute.cli.audit_reading import AuditNotMade, RegionReader, read_api
from zcompute.cli.audit_snapshot import ApiServer
from zcompute.db.migrate import upgrade


class FakeClient:
    """Answers the list of servers in pages."""

    def __init__(self, rows):
        self.rows = rows
        self.paths = []

    def get(self, path):
        self.paths.append(path)
        marker = path.partition("marker=")[2]
        first = next((at + 1 for at, row in enumerate(self.rows) if row["id"] == marker), 0)
        return {"servers": self.rows[first : first + 500]}

    def close(self):
        pass


def test_every_page_of_all_projects_servers_is_read():
    rows = [{"id": f"{n:04}", "status": "ACTIVE", "OS-EXT-SRV-ATTR:host": "h1"} for n in range(1100)]
    client = FakeClient(rows)
    servers = read_api(client)
    assert len(servers) == 1100
    assert servers["0000"] == ApiServer("0000", "ACTIVE", "h1")
    assert all("all_tenants=1" in path and "soft_deleted=1" in path for path in client.paths)


@pytest.fixture
def urls(tmp_path):
    made = {}
    for cell in ("root", "c1"):
        made[cell] = f"sqlite:///{tmp_path}/{cell}.db"
        upgrade(made[cell], "root" if cell == "root" else "cell", cell)
    return made


def test_an_empty_region_is_read_and_holds(urls, tmp_path):
    reader = RegionReader.open(urls, ("c1-host-1",), tmp_path, lambda: FakeClient([]))
    try:
        snapshot = reader.take()
    finally:
        reader.close()
    assert (compare(snapshot), moving(snapshot)) == ([], [])
    assert snapshot.root.now_us > 1_700_000_000_000_000
    assert set(snapshot.cells) == {"c1"}
    assert set(snapshot.hosts) == {"c1-host-1"}


def test_a_reading_that_takes_too_long_is_given_up(urls, tmp_path, monkeypatch):
    monkeypatch.setattr("zcompute.cli.audit_reading.READ_S_MAX", 0.0)
    reader = RegionReader.open(urls, (), tmp_path, lambda: FakeClient([]))
    try:
        with pytest.raises(AuditNotMade):
            reader.take()
    finally:
        reader.close()
