"""Small limits for the agent's unit tests."""

import pytest

from zcompute.compute.settings import Settings


@pytest.fixture
def settings() -> Settings:
    return Settings()
