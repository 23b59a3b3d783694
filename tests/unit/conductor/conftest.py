"""Shared by the tests of the ledger."""

from collections.abc import Iterator

import pytest

from tests.unit.conductor.ledger_world import World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()
