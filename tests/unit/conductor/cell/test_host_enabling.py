"""A host that takes no new servers, and one that does again."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.conductor.ledger_world import World
from tests.unit.conductor.tasks.samples import NOW_US, host
from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.cell.claims import takes_new
from zcompute.conductor.cell.host_enabling import REASON_CHARS_MAX, HostEnabling, enable
from zcompute.conductor.cell.host_states import host_state
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.settings import CellSettings
from zcompute.db.tables import HOSTS
from zcompute.objects.errors import HostNotFound
from zcompute.objects.messages.hosts import HostEnableReply, HostEnableRequest
from zcompute.objects.partition import partition_of


def ask(reply: Any, **fields: Any) -> HostEnableReply:
    return enable(reply, HostEnableRequest(host="h1", **fields), NOW_US + 1)


def test_a_disabled_host_takes_nothing_new_and_says_why_until_it_is_enabled() -> None:
    off = ask(host("h1"), enabled=False, reason="disks")
    assert (off.changed, off.host.disabled_reason, takes_new(off.host), host_state(off.host).enabled) == (
        True, "disks", False, False,
    )  # fmt: skip
    assert not ask(off.host, enabled=False, reason="disks").changed
    assert ask(off.host, enabled=False, reason="fans").host.disabled_reason == "fans"
    on = ask(off.host, enabled=True)
    assert (on.changed, on.host.disabled_reason, takes_new(on.host)) == (True, None, True)
    assert not ask(on.host, enabled=True).changed
    with pytest.raises(HostNotFound):
        ask(None, enabled=True)


def test_it_is_committed_once_told_to_schedulers_and_a_dry_run_changes_nothing(caplog: Any) -> None:
    world = World()
    world.database.seed(HOSTS, host("h1"))
    table, told = HostTable(), []
    table.hold([partition_of("h1")])
    table.on_change(lambda row: told.append(row.disabled))
    env: Any = SimpleNamespace(ledger=world.ledger, forwarding=SimpleNamespace(needed=lambda key, context: False))
    served = HostEnabling(env, table, CellSettings())
    context: Any = SimpleNamespace(peer=SimpleNamespace(service_id="op"), remaining_ms=lambda: 2000)
    request = HostEnableRequest(host="h1", enabled=False, reason="disks", dry_run=True)
    assert served.enable(request, context).changed
    assert not world.database.row(HOSTS, ("h1",)).disabled
    request.dry_run = False
    assert served.enable(request, context).changed
    assert not served.enable(request, context).changed
    assert world.database.row(HOSTS, ("h1",)).disabled
    assert told == [True]
    assert caplog.text.count("audit: host enabled=False host=h1 by=op reason=disks") == 1
    for wrong in ({"enabled": True, "reason": "none"}, {"enabled": False, "reason": "x" * (REASON_CHARS_MAX + 1)}):
        with pytest.raises(InvalidRequest):
            served.enable(HostEnableRequest(host="h1", **wrong), context)  # type: ignore[arg-type]
    world.close()
