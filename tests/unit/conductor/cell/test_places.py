from zcompute.bus import BusConfigError
from zcompute.conductor.dials import Dials, places
from zcompute.config import PeerConfig
from zcompute.objects.partition import ConductorInfo

KEY = "x" * 40


def info(name, address="tcp://a:1", key=KEY):
    return ConductorInfo(service_id=name, incarnation="i", address=address, public_key=key)


class Endpoint:
    def __init__(self):
        self.dialled, self.hung_up = [], []

    def dial(self, address, key):
        self.dialled.append(address)
        return address

    def hang_up(self, link):
        self.hung_up.append(link)


def test_one_link_a_pair_and_the_map_knows_better():
    configured = [PeerConfig(id="a", address="tcp://a:1"), PeerConfig(id="c", address="tcp://c:1")]
    mapped = {"c": info("c", "tcp://c:2"), "d": info("d", "tcp://d:1")}
    assert places(configured, mapped, "b") == {"c": ("tcp://c:2", KEY), "d": ("tcp://d:1", KEY)}
    assert set(places(configured, mapped, None)) == {"a", "c", "d"}


def test_dials_follow_the_map():
    endpoint = Endpoint()
    dials = Dials(endpoint, [PeerConfig(id="b", address="tcp://b:1")], "a")
    dials.update({})
    dials.update({"c": info("c", "tcp://c:1")})
    dials.update({"c": info("c", "tcp://c:1")})
    dials.update({"c": info("c", "tcp://c:2")})
    dials.update({})
    assert endpoint.dialled == ["tcp://b:1", "tcp://c:1", "tcp://c:2"]
    assert endpoint.hung_up == ["tcp://c:1", "tcp://c:2"]


def test_an_address_that_cannot_be_dialled_keeps_from_no_other():
    endpoint = Endpoint()
    dial = endpoint.dial

    def strict(address, key):
        if key != KEY:
            raise BusConfigError("expected a server key")
        return dial(address, key)

    endpoint.dial = strict
    dials = Dials(endpoint, [], "a")
    odd = ConductorInfo(service_id="b", incarnation="i", address="tcp://b:1")
    dials.update({"b": odd, "c": info("c", "tcp://c:1")})
    assert endpoint.dialled == ["tcp://c:1"]
