"""What the benchmark's cells hold, the same for whoever computes it."""

from loadtest.ledger.world import instance as ledger_instance
from loadtest.ledger.world import uuid_of
from zcompute.cli.up.layout import PROJECT_ID
from zcompute.objects.instance import Instance

PROJECTS = 10
FIRST_CREATED_US = 1_600_000_000_000_000
CREATED_EVERY_US = 1_000_000

__all__ = ["PROJECTS", "instance", "name_of", "newest", "project_of", "uuid_of"]


def project_of(number: int) -> str:
    """Every tenth server is of the first project."""
    share = number % PROJECTS
    return f"project-{share}" if share else PROJECT_ID


def name_of(number: int) -> str:
    """A server's name."""
    return f"server-{number}"


def created_us(number: int) -> int:
    """The higher its number, the newer it is."""
    return FIRST_CREATED_US + number * CREATED_EVERY_US


def instance(number: int) -> Instance:
    """A server that was built and runs."""
    made = ledger_instance(number, f"host-{number % 100:05d}")
    made.project_id, made.created_at_us = project_of(number), created_us(number)
    return made


def newest(instances: int, rows: int, share: int = 0) -> list[str]:
    """The uuids of a project's first page, of so many instances in all."""
    last = (instances - 1 - share) // PROJECTS * PROJECTS + share
    return [uuid_of(number) for number in range(last, -1, -PROJECTS)][:rows]
