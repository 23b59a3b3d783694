"""Where operators' commands find the primary."""

import pytest

from zcompute.config import DatabaseConfig, ReplicaConfig
from zcompute.db.errors import PrimaryNotFound
from zcompute.db.failover import finding
from zcompute.db.failover.choice import Sighting

FIRST, SECOND = "mysql://u@10.0.0.1:3306/c1", "mysql://u@10.0.0.2:3306/c1"
BOTH = DatabaseConfig(url=FIRST, replicas=[ReplicaConfig(SECOND)])


def seen(monkeypatch: pytest.MonkeyPatch, *sightings: Sighting) -> None:
    monkeypatch.setattr("zcompute.db.failover.looking.Servers.look", lambda self: list(sightings))


def test_after_a_promotion_commands_go_to_the_new_primary(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, Sighting("10.0.0.1:3306", 1, True, "c1", 1), Sighting("10.0.0.2:3306", 2, True, "c1", 2))
    assert finding.primary_url(BOTH, "c1") == SECOND


def test_no_command_writes_to_a_primary_that_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, Sighting("10.0.0.1:3306", 1, True, "c1", 1), Sighting("10.0.0.2:3306", 2, False, "c1", 2))
    with pytest.raises(PrimaryNotFound, match="replaced, to be rebuilt"):
        finding.primary_url(BOTH, "c1")


def test_a_cell_that_is_nowhere_yet_is_made_where_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, Sighting("10.0.0.1:3306", problem="no table"), Sighting("10.0.0.2:3306", problem="no table"))
    assert finding.primary_url(BOTH, "c1") == FIRST


def test_one_server_alone_is_not_asked() -> None:
    assert finding.primary_url(DatabaseConfig(url=FIRST), "c1") == FIRST
    assert finding.primary_url(DatabaseConfig(url="sqlite:////tmp/none.db"), "c1") == "sqlite:////tmp/none.db"
