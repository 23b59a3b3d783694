"""The table of methods is consistent in itself."""

import msgspec
import pytest

from zcompute.objects import methods
from zcompute.objects.methods import Method

ALL = [value for value in vars(methods).values() if isinstance(value, Method)]
ROLES = {"api", "conductor", "compute", "scheduler", "operator"}
WRITING = ("build", "spawn", "destroy", "adopt", "claim", "release", "deleted", "refused", "register")


def test_no_two_methods_share_a_name():
    assert len(ALL) >= 25
    assert len({(method.interface, method.name) for method in ALL}) == len(ALL)


@pytest.mark.parametrize("method", ALL, ids=lambda method: f"{method.interface}.{method.name}")
def test_a_method_is_whole(method):
    assert issubclass(method.request, msgspec.Struct)
    assert method.reply is None or issubclass(method.reply, msgspec.Struct)
    assert method.roles
    assert method.roles <= ROLES
    assert method.pool in ("control", "leaf", "calls", "reads")
    assert method.version >= (1, 0)


def test_computes_and_schedulers_may_call_nothing_that_decides():
    for method in ALL:
        if method.roles & {"compute", "scheduler"}:
            assert method.interface in ("cluster", "host"), method
        if method.name in WRITING and method.interface != "host":
            assert method.roles == {"conductor"}, method
