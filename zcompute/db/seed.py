"""What a new region's root database is given before its conductors start: the flavors everybody expects, an image."""

import time

import sqlalchemy as sa
from msgspec import structs

from zcompute.db import migrate, schema
from zcompute.db.tables import FLAVORS, IMAGES
from zcompute.objects.flavor import Flavor
from zcompute.objects.image import IMAGE_ACTIVE, PUBLIC, Image
from zcompute.objects.partition import GLOBAL_KEY, partition_of

FLAVORS_DEFAULT: tuple[Flavor, ...] = (
    Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1),
    Flavor(flavorid="2", name="m1.small", vcpus=1, memory_mb=2048, root_gb=20),
    Flavor(flavorid="3", name="m1.medium", vcpus=2, memory_mb=4096, root_gb=40),
    Flavor(flavorid="4", name="m1.large", vcpus=4, memory_mb=8192, root_gb=80),
)

DEFAULT_IMAGE = Image(
    id="3f7c4b1e-0f3f-4d39-9d4e-5c1f2ad0e0aa",
    project_id="operator",
    name="zcompute-default",
    status=IMAGE_ACTIVE,
    visibility=PUBLIC,
)
"""What embedded regions boot."""


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


def default_image(url: str) -> int:
    """Insert it where it is not there yet, deleted or not; how many. As ``flavors``."""
    table = schema.root_only.tables[IMAGES.name]
    now_us = time.time_ns() // 1000
    image = structs.replace(DEFAULT_IMAGE, created_at_us=now_us, updated_at_us=now_us)
    row = dict(zip(IMAGES.columns, IMAGES.to_row(image, partition_of(image.id)), strict=True))
    with migrate.connected(url) as connection, connection.begin():
        there = connection.scalar(sa.select(table.c.id).where(table.c.id == image.id))
        if there is None:
            connection.execute(sa.insert(table), [row])
    return int(there is None)
