"""What a new region's root database is given before its conductors start: the flavors everybody expects."""

import sqlalchemy as sa

from zcompute.db import migrate, schema
from zcompute.db.tables import FLAVORS
from zcompute.objects.flavor import Flavor
from zcompute.objects.partition import GLOBAL_KEY, partition_of

FLAVORS_DEFAULT: tuple[Flavor, ...] = (
    Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1),
    Flavor(flavorid="2", name="m1.small", vcpus=1, memory_mb=2048, root_gb=20),
    Flavor(flavorid="3", name="m1.medium", vcpus=2, memory_mb=4096, root_gb=40),
    Flavor(flavorid="4", name="m1.large", vcpus=4, memory_mb=8192, root_gb=80),
)


def flavors(url: str, wanted: tuple[Flavor, ...] = FLAVORS_DEFAULT) -> int:
    """Insert those of ``wanted`` whose flavorid is not there yet; how many. Raises migrate's errors.

    A direct write: only for a database whose conductors do not run.
    """
    table = schema.root_only.tables[FLAVORS.name]
    partition = partition_of(GLOBAL_KEY)
    with migrate.connected(url) as connection, connection.begin():
        there = set(connection.scalars(sa.select(table.c.flavorid)))
        missing = [flavor for flavor in wanted if flavor.flavorid not in there]
        rows = [dict(zip(FLAVORS.columns, FLAVORS.to_row(flavor, partition), strict=True)) for flavor in missing]
        if rows:
            connection.execute(sa.insert(table), rows)
    return len(missing)
