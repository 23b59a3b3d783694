"""What ``zcompute image`` refuses before it asks anybody, and what embedded regions begin with."""

import pytest
from click.testing import CliRunner

from zcompute.cli.image_commands import image
from zcompute.cli.up.boots import IMAGE
from zcompute.db import migrate, schema, seed
from zcompute.db.drivers import open_store
from zcompute.db.tables import IMAGES
from zcompute.objects.image import IMAGE_ACTIVE, PUBLIC


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "a", "--id", "no-uuid"], "expected a UUID"),
        (["create", "a", "--property", "novalue"], "KEY=VALUE"),
        (["create", "a", "--min-disk", "-1"], "--min-disk"),
        (["create"], "NAME"),
        (["list", "--limit", "0"], "--limit"),
    ],
)
def test_wrong_usage_is_said_and_ends_with_2(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(image, arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_the_image_that_up_boots_is_seeded_once(tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/root.db"
    migrate.upgrade(url, schema.KIND_ROOT, "root")
    assert [seed.default_image(url), seed.default_image(url)] == [1, 0]
    store = open_store(url)
    (found,) = store.scan(IMAGES, limit=10)
    store.close()
    assert (found.id, found.status, found.visibility) == (IMAGE, IMAGE_ACTIVE, PUBLIC)
    assert found.created_at_us > 0
