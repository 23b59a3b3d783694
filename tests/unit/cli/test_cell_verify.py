"""What ``zcompute cell verify`` says of the schema of a cell's database."""

import pytest

from zcompute.cli.cell_verify import (
    KINDS,
    SCHEMA_BEHIND,
    SCHEMA_NOT_CONTRACTED,
    SCHEMA_UNKNOWN,
    SCHEMAS_DIFFER,
    verify_schemas,
)
from zcompute.db.revisions import Revisions

REVISIONS = Revisions()
NEWEST = [REVISIONS.expand_head, REVISIONS.contract_head]


def found(**applied):
    return {finding.kind: finding.detail for finding in verify_schemas("c1", applied, REVISIONS)}


def test_a_schema_of_this_release_holds():
    assert found(a=NEWEST, b=list(reversed(NEWEST))) == {}


@pytest.mark.parametrize("expanded", ["0001", "0008"])
def test_revisions_that_are_missing_are_named(expanded):
    pending = REVISIONS.pending([expanded], contract=False)
    assert pending
    assert found(a=[expanded, REVISIONS.contract_head]) == {SCHEMA_BEHIND: f"lacks {', '.join(pending)}"}


def test_an_upgrade_that_is_not_ended_and_one_by_a_newer_release_are_told():
    assert found(a=[REVISIONS.expand_head]) == {
        SCHEMA_NOT_CONTRACTED: f"left are {', '.join(REVISIONS.pending([], contract=True))}"
    }
    assert found(a=["9999", REVISIONS.contract_head]) == {SCHEMA_UNKNOWN: "9999"}


def test_conductors_that_see_different_databases_are_told():
    kinds = found(a=NEWEST, b=["0008", REVISIONS.contract_head])
    assert set(kinds) == {SCHEMA_BEHIND, SCHEMAS_DIFFER}
    assert set(kinds) <= set(KINDS)
