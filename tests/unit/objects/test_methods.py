"""The table of methods is consistent in itself."""

import msgspec
import pytest

from zcompute.objects import methods
from zcompute.objects.interface import Interface, Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.methods import EVENTS, INTERFACES

ALL = [value for value in vars(methods).values() if isinstance(value, Method)]
ROLES = {"api", "conductor", "compute", "scheduler", "operator", "enrolling"}
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


def test_every_method_is_declared_in_its_interface_and_none_beside():
    declared = [method for interface in INTERFACES for method in interface.methods.values()]
    assert sorted(map(repr, declared)) == sorted(map(repr, ALL))
    assert len({interface.name for interface in INTERFACES}) == len(INTERFACES)
    for interface in INTERFACES:
        assert interface.methods
        assert all(method.version[0] == interface.version[0] for method in interface.methods.values())
        assert all((1, 0) <= method.version <= interface.version for method in interface.methods.values())
        assert all(method.interface_version == interface.version for method in interface.methods.values())


def test_every_command_to_an_agent_can_be_relayed_in_the_same_form():
    assert list(methods.RELAYED_COMMANDS) == list(methods.COMPUTE_INTERFACE.methods.values())
    for command, relayed in methods.RELAYED_COMMANDS.items():
        assert (relayed.name, relayed.request, relayed.reply) == (command.name, command.request, command.reply)


def test_only_conductors_relay():
    assert all(method.roles == {"conductor"} for method in methods.RELAY_INTERFACE.methods.values())


def test_every_topic_has_its_payload_and_its_roles():
    topics = {value for name, value in vars(methods).items() if name.startswith("TOPIC_") and isinstance(value, str)}
    assert topics == set(EVENTS) == set(methods.TOPIC_ROLES)


def test_a_method_is_declared_once_and_not_before_its_interface_reached_its_minor():
    interface = Interface("tea", (2, 1))
    brew = interface.method("brew", Empty, Empty, frozenset({"api"}), since=1)
    assert brew.version == (2, 1)
    assert interface.method("pour", Empty, None, frozenset({"api"})).version == (2, 0)
    with pytest.raises(ValueError, match="declared already"):
        interface.method("brew", Empty, Empty, frozenset({"api"}))
    with pytest.raises(ValueError, match="raise the latter"):
        interface.method("serve", Empty, Empty, frozenset({"api"}), since=2)
