"""`zcompute notifications tail` while conductors are killed: nothing unseen, in order per partition, no gap."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import plugins
from tests.cluster.conftest import require_mariadb
from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot,
    boot_while,
    delete_all,
    started,
    wait_until,
)
from tests.cluster.tailing import Tail, tailing
from tests.cluster.test_faults import owners, store_of, when_share_done
from tests.cluster.test_servers import create
from tests.unit.conductor.notifiers.test_webhook import Receiver
from zcompute.cli.up.boots import Booter
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS, NOTIFICATIONS, NOTIFIER_CURSORS
from zcompute.objects.partition import PARTITIONS

BOOTS = 60
CONDUCTORS = ("c1-conductor-1", "c1-conductor-2")
SCAN_ROWS = 10_000


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """What a webhook posts to."""
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Region]:
    """One cell, so that every server's notifications are in it; its conductors have a webhook, a plug-in of others, and
    one that does not load."""
    require_mariadb()
    shape = Shape(cells=("c1",), computes=1)
    directory = tmp_path_factory.mktemp("r")
    with (
        pytest.MonkeyPatch.context() as patch,
        started(directory / "s", MARIADB, shape) as region,
    ):
        patch.setenv("PYTHONPATH", plugins.install(directory / "site"))
        configure(
            region,
            notifier_text("hook", "webhook", receiver.url)
            + notifier_text("lost", "broken", "")
            + notifier_text("lines", "file", f"file://{lines_path(region)}"),
        )
        with store_of(region, "c1") as store:
            wait_until(
                lambda: len(store.scan(NOTIFIER_CURSORS, limit=SCAN_ROWS)) == 2 * PARTITIONS, "cursors are there"
            )
        yield region


def notifier_text(name: str, kind: str, url: str) -> str:
    return f'\n[[notifications.notifiers]]\nname = "{name}"\nkind = "{kind}"\nurl = "{url}"\n'


def lines_path(region: Region) -> Path:
    """Where the plug-in writes."""
    return region.paths.state_dir / "lines.jsonl"


def configure(region: Region, text: str) -> None:
    """Append this to the conductors' configuration, and have them read it."""
    for service_id in CONDUCTORS:
        with region.paths.config(service_id).open("a", encoding="utf-8") as config:
            config.write(text)
        kill_and_restart(region, service_id)


def kill_and_restart(region: Region, victim: str) -> None:
    region.kill(victim)
    with store_of(region, "c1") as store:
        wait_until(lambda: victim not in owners(store), "the survivor has every partition")
        region.restart(victim)
        wait_until(lambda: victim in owners(store), f"{victim} owns partitions again")


def assert_in_order(tail: Tail) -> None:
    assert_names_in_order(tail.told())
    assert tail.gaps() == []


def assert_names_in_order(lines: Iterable[dict[str, Any]]) -> None:
    """Per partition each n once or again, never one before an earlier one was seen, none left out."""
    last: dict[int, int] = {}
    for line in lines:
        partition, n = line["partition"], line["n"]
        assert n <= last.get(partition, n - 1) + 1, f"{partition}: {n} after {last[partition]}"
        last[partition] = max(n, last.get(partition, 0))


def committed(region: Region) -> dict[tuple[int, int], str]:
    """Every notification in the table: its name and its event type; gapless up to last_n."""
    with store_of(region, "c1") as store:
        rows = store.scan(NOTIFICATIONS, limit=SCAN_ROWS)
        last_n = {row.partition_id: row.last_n for row in store.read_map().partitions}
    for partition in range(PARTITIONS):
        numbers = [row.n for row in rows if row.partition_id == partition]
        assert numbers == list(range(1, last_n[partition] + 1))
    return {(row.partition_id, row.n): row.event_type for row in rows}


def test_a_tail_sees_every_change_in_order_while_conductors_are_killed(region: Region, tmp_path: Path) -> None:
    before = set(committed(region))

    def kill(booter: Booter) -> None:
        for number, share in ((1, 0.2), (2, 0.6)):
            when_share_done(booter, share)
            kill_and_restart(region, f"c1-conductor-{number}")

    with tailing(region, tmp_path / "tail.jsonl") as tail:
        run = boot_while(region, BOOTS, kill)
        assert_all_active(run)
        uuids = {each.uuid for each in run.boots}
        wait_until(lambda: uuids <= tail.seen("instance.create.end"), "every boot was told")
        table = committed(region)
        wait_until(
            lambda: {(line["partition"], line["n"]) for line in tail.told()} >= set(table) - before,
            "all that committed was told",
        )
        assert_in_order(tail)
        for line in tail.told():
            assert table.get((line["partition"], line["n"]), line["event_type"]) == line["event_type"]
    assert_audit_holds(region)


def test_a_tail_goes_on_from_its_cursor_and_sees_nothing_twice(region: Region, tmp_path: Path) -> None:
    with tailing(region, tmp_path / "first.jsonl") as first:
        uuids = [each.uuid for each in boot(region, 5).boots]
        wait_until(lambda: set(uuids) <= first.seen("instance.create.end"), "every boot was told")
    cursor = first.cursors()[-1]
    delete_all(region, uuids)
    with tailing(region, tmp_path / "second.jsonl", "--from", cursor) as second:
        wait_until(lambda: set(uuids) <= second.seen("instance.delete.end"), "every delete was told")
    names = [{(line["partition"], line["n"]) for line in tail.told()} for tail in (first, second)]
    assert not names[0] & names[1]
    assert_in_order(second)
    with tailing(region, tmp_path / "all.jsonl", "--from", "start") as everything:
        table = set(committed(region))
        wait_until(lambda: {(x["partition"], x["n"]) for x in everything.told()} >= table, "all from the start")
        assert_in_order(everything)


def test_a_webhook_gets_every_change_in_order_while_conductors_are_killed_and_it_fails_itself(
    region: Region, receiver: Receiver
) -> None:
    def disturb(booter: Booter) -> None:
        when_share_done(booter, 0.2)
        receiver.answers = [503, 0, 500] * 3
        kill_and_restart(region, "c1-conductor-1")

    with store_of(region, "c1") as store:
        before = {row.partition_id: row.last_n for row in store.read_map().partitions}
        assert_all_active(boot_while(region, BOOTS, disturb))
        table = set(committed(region))
        wait_until(lambda: table <= posted(receiver) | names_upto(before), "everything was posted")
        wait_until(
            lambda: all(
                cursor.n >= max((n for p, n in table if p == cursor.partition_id), default=0)
                for cursor in store.scan(NOTIFIER_CURSORS, limit=SCAN_ROWS)
            ),
            "the cursors have followed",
        )
    assert not [post for post in receiver.posts if "gap" in post]
    assert_names_in_order(told for post in receiver.posts for told in post["notifications"])


def posted(receiver: Receiver) -> set[tuple[int, int]]:
    return {(told["partition"], told["n"]) for post in list(receiver.posts) for told in post.get("notifications", ())}


def names_upto(last_n: dict[int, int]) -> set[tuple[int, int]]:
    return {(partition, n) for partition, last in last_n.items() for n in range(1, last + 1)}


def test_history_tells_what_was_done_with_a_server(region: Region) -> None:
    (server,) = boot(region, 1).boots
    delete_all(region, [server.uuid])
    with store_of(region, "c1") as store:
        actions = store.scan(INSTANCE_ACTIONS, where={"instance_uuid": server.uuid}, limit=10)
        events = store.scan(INSTANCE_ACTION_EVENTS, where={"instance_uuid": server.uuid}, limit=50)
    assert sorted((each.action, each.result) for each in actions) == [("create", "Success"), ("delete", "Success")]
    assert [each.event for each in sorted(events, key=lambda each: each.finished_at_us)] == [
        "build_schedule", "build_claim", "build_spawn", "delete_destroy", "delete_finish",
    ]  # fmt: skip


def test_a_plug_in_of_others_gets_every_change_while_conductors_are_killed_and_one_that_does_not_load_harms_nobody(
    region: Region,
) -> None:
    with store_of(region, "c1") as store:
        before = names_upto({row.partition_id: row.last_n for row in store.read_map().partitions})
    run = boot_while(region, 10, lambda _: kill_and_restart(region, "c1-conductor-2"))
    assert_all_active(run)
    table = set(committed(region))

    def told() -> list[dict[str, Any]]:
        return [json.loads(line) for line in lines_path(region).read_text(encoding="utf-8").splitlines()]

    wait_until(lambda: {(line["partition"], line["n"]) for line in told()} >= table - before, "the plug-in has it all")
    assert not [line for line in told() if "gap" in line]
    assert_names_in_order(told())
    refusal = "notifier refused notifier=lost kind=broken"
    for service_id in CONDUCTORS:
        text = region.paths.log(service_id).read_text(encoding="utf-8")
        assert refusal in text
        assert "a_library_that_is_not_installed" in text


def of_root(tail: Tail, uuid: str) -> list[str]:
    """What the root has told of a server."""
    return [each["event_type"] for each in tail.told() if each["cell"] == "root" and each["instance_uuid"] == uuid]


def test_what_ends_at_the_root_is_told_by_the_root_to_the_same_tail(region: Region, tmp_path: Path) -> None:
    with tailing(region, tmp_path / "t.jsonl", cell="") as tail:
        wait_until(lambda: len(tail.cursors()) >= 2, "both cells are followed")
        status, answer = create(region, availability_zone="atlantis")
        assert status == 202, answer
        uuid = answer["server"]["id"]

        def told() -> set[tuple[str, str]]:
            return {(each["cell"], each["event_type"]) for each in tail.told() if each["instance_uuid"] == uuid}

        wait_until(lambda: ("root", "instance.create.error") in told(), "the error was told", found=told)
        wait_until(lambda: ("c1", "instance.update") in told(), "the cell's try was told", found=told)
    (error,) = [each for each in tail.told() if each["cell"] == "root" and each["instance_uuid"] == uuid]
    assert error["publisher_id"] == "conductor:root"
    assert error["payload"]["data"]["state"] == "error"
    assert error["payload"]["data"]["fault"]["exception_message"].startswith("No valid host was found.")
    last = {cursor.partition("/")[0]: cursor for cursor in tail.cursors()}
    assert set(last) == {"root", "c1"}
    with tailing(region, tmp_path / "again.jsonl", "--from", last["root"], "--from", last["c1"], cell="") as again:
        assert {cursor.partition("/")[0] for cursor in again.cursors()} <= {"root", "c1"}
        delete_all(region, [uuid])
        wait_until(lambda: len(of_root(again, uuid)) == 2, "its deletion was told", found=lambda: of_root(again, uuid))
        assert of_root(again, uuid) == ["instance.delete.start", "instance.delete.end"]
    names = [{(each["cell"], each["partition"], each["n"]) for each in one.told()} for one in (tail, again)]
    assert not names[0] & names[1]
