"""Tokens and the keys that they let in: who may make, use and revoke them, and what the keyring becomes."""

from types import SimpleNamespace

import pytest

from tests.unit.conductor.root.fakes import NOW_US, FakeEndpoint, FakeLedger, FakeStore
from zcompute.bus import KeyEntry, Keyring
from zcompute.bus.errors import Forbidden, InvalidRequest
from zcompute.cli.key_files import new_pair
from zcompute.conductor.enrolment.service import Enrolments
from zcompute.conductor.enrolment.settings import EnrolmentLimits
from zcompute.conductor.forwarding import Forwarding
from zcompute.db.tables import CELLS
from zcompute.objects.cell import CellInfo
from zcompute.objects.errors import CellNotFound, EnrolmentRefused
from zcompute.objects.messages.topology import (
    EnrolmentCreateRequest,
    EnrolmentListRequest,
    EnrolmentRevokeRequest,
    EnrolRequest,
)
from zcompute.objects.partition import ConductorInfo, PartitionMap, partition_of

HOUR_US = 3600 * 1_000_000
KEYS = [new_pair()[0] for _ in range(6)]
TOKEN, OWN, OTHER, API, THIRD, FELLOW = KEYS


def peer(role, cell, key_name="", service_id="s"):
    return SimpleNamespace(
        peer=SimpleNamespace(role=role, cell=cell, service_id=service_id, key_name=key_name),
        remaining_ms=lambda: 5000,
    )


OPERATOR = peer("operator", "root")
HOLDER = peer("enrolling", "c9", "token:t1")


class Place:
    """The enrolments of one conductor."""

    def __init__(self, cell="root"):
        self.ledger, self.endpoint = FakeLedger(), FakeEndpoint()
        self.keyring = self.endpoint.keyring = Keyring([KeyEntry("api-1", API, "api", "root")])
        self.forwarded = []
        router = SimpleNamespace(call=lambda key, method, request, timeout_ms, lasts_ms: self.forwarded.append(request))
        fellows = {"f": ConductorInfo(service_id="f", incarnation="i", address="tcp://a:1", public_key=FELLOW)}
        self.ledger.map = PartitionMap(cell=cell, conductors=fellows)
        self.ledger.on_map = lambda callback: None
        env = SimpleNamespace(
            cell=cell, ledger=self.ledger, endpoint=self.endpoint, store=FakeStore(self.ledger),
            forwarding=Forwarding(router, self.ledger, cell),
        )  # fmt: skip
        self.enrolments = Enrolments(env, EnrolmentLimits(poll_ms=10))
        self.ledger.rows[(CELLS.name, ("c9",))] = CellInfo(name="c9")

    def create(self, context=OPERATOR, **options):
        wanted = {"id": "t1", "token_key": TOKEN, "role": "conductor", "cell": "c9", **options}
        return self.enrolments.create(EnrolmentCreateRequest(**wanted), context)

    def enrol(self, key=OWN, service_id="c9-1", context=HOLDER, token="t1"):
        return self.enrolments.enrol(EnrolRequest(id=token, service_id=service_id, public_key=key), context)

    def refusal(self, *arguments, **options):
        with pytest.raises(EnrolmentRefused) as refused:
            self.enrol(*arguments, **options)
        return refused.value.details["reason"]


@pytest.fixture
def root():
    return Place()


def test_a_token_lets_its_holder_have_a_key_let_in_for_that_cell_only(root):
    root.create()
    assert root.keyring.by_public_key(TOKEN) == KeyEntry("token:t1", TOKEN, "enrolling", "c9")
    reply = root.enrol()
    assert root.keyring.by_public_key(OWN) == KeyEntry("c9-1", OWN, "conductor", "c9")
    assert (reply.role, reply.cell) == ("conductor", "c9")
    assert [key.name for key in reply.accepted] == ["api-1"]
    assert [info.service_id for info in reply.conductors] == ["f"]


def test_a_repeat_is_the_same_answer_and_no_second_use(root):
    root.create()
    root.enrol()
    commits = root.ledger.commits
    root.enrol()
    assert root.ledger.commits == commits
    assert root.refusal(OTHER, "c9-2") == "used"
    assert root.endpoint.refused == [("enrolment", "enrolling/s@c9")]


def test_a_token_of_several_uses_lets_as_many_in(root):
    root.create(uses_max=2)
    root.enrol(OWN, "c9-1")
    root.enrol(OTHER, "c9-2")
    assert root.refusal(THIRD, "c9-3") == "used"


def test_an_expired_token_is_explained_for_a_day_and_then_unknown(root):
    root.create(lifetime_s=3600)
    root.ledger.now = NOW_US + HOUR_US
    assert root.refusal() == "expired"
    root.ledger.now += 24 * HOUR_US
    root.enrolments.refresh()
    assert root.keyring.by_public_key(TOKEN) is None


def test_who_joined_in_time_stays_and_its_repeat_is_answered_after_the_end(root):
    root.create(lifetime_s=3600)
    root.enrol()
    root.ledger.now = NOW_US + 48 * HOUR_US
    root.enrolments.refresh()
    assert root.keyring.by_public_key(OWN) is not None
    root.enrol()


def test_a_revoked_token_shuts_out_whom_it_let_in(root):
    root.create()
    root.enrol()
    assert root.enrolments.revoke(EnrolmentRevokeRequest(id="t1"), OPERATOR).changed
    assert root.keyring.by_public_key(TOKEN) is None
    assert root.keyring.by_public_key(OWN) is None
    assert root.refusal() == "revoked"
    assert not root.enrolments.revoke(EnrolmentRevokeRequest(id="t1"), OPERATOR).changed


def test_one_tokens_holder_cannot_use_anothers(root):
    root.create()
    root.create(id="t2", token_key=OTHER)
    for context in (peer("enrolling", "c9", "token:t2"), peer("conductor", "c9"), peer("api", "root")):
        with pytest.raises(Forbidden):
            root.enrol(context=context)
    assert root.refusal(context=peer("conductor", "root"), token="t7") == "unknown"


def test_the_row_that_counts_is_no_token(root):
    root.create()
    with pytest.raises(Forbidden):
        root.enrol(token="", context=HOLDER)
    assert root.refusal(token="", context=peer("enrolling", "c9", "token:")) == "unknown"
    listed = root.enrolments.list_enrolments(EnrolmentListRequest(), OPERATOR).enrolments
    assert [row.id for row in listed] == ["t1"]


def test_names_and_keys_of_others_are_not_given_away(root):
    root.create(uses_max=9)
    assert root.refusal(OWN, "api-1") == "foreign"
    assert root.refusal(API, "c9-1") == "foreign"
    assert root.refusal(TOKEN, "c9-1") == "foreign"
    assert root.refusal("short", "c9-1") == "foreign"
    assert root.refusal(OWN, "a name\nwith a line") == "foreign"
    root.keyring.replace([KeyEntry("api-1", API, "api", "root")], [OWN])
    assert root.refusal(OWN, "c9-1") == "revoked"


def test_only_operators_of_the_root_make_and_revoke_tokens(root):
    for context in (peer("conductor", "c9"), peer("operator", "c9"), peer("api", "root"), HOLDER):
        for act in (
            lambda context=context: root.create(context),
            lambda context=context: root.enrolments.revoke(EnrolmentRevokeRequest(id="t1"), context),
            lambda context=context: root.enrolments.list_enrolments(EnrolmentListRequest(), context),
        ):
            with pytest.raises(Forbidden):
                act()


def test_the_root_enrols_conductors_of_cells_and_a_cell_its_own_hosts(root):
    cell = Place("c9")
    for place, options in (
        (root, {"role": "compute", "hosts": ["h1"]}),
        (root, {"cell": "root"}),
        (root, {"role": "api"}),
        (cell, {}),
        (cell, {"role": "compute", "hosts": []}),
        (cell, {"role": "compute", "hosts": ["h1"], "cell": "c8"}),
        (root, {"token_key": "short"}),
        (root, {"uses_max": 0}),
        (root, {"lifetime_s": 10**9}),
    ):
        with pytest.raises(InvalidRequest):
            place.create(**options)
    cell.create(role="compute", hosts=["h2", "h1"])
    cell.enrol(OWN, "agent")
    assert cell.keyring.by_public_key(OWN) == KeyEntry("agent", OWN, "compute", "c9", frozenset({"h1", "h2"}))


def test_a_cell_that_is_not_there_or_deleted_gets_no_token(root):
    with pytest.raises(CellNotFound):
        root.create(cell="c8")
    root.ledger.rows[(CELLS.name, ("c9",))] = CellInfo(name="c9", deleted_at_us=1)
    with pytest.raises(CellNotFound):
        root.create()


def test_a_dry_run_and_another_token_of_the_same_id_write_nothing(root):
    assert root.create(dry_run=True).changed
    assert root.ledger.commits == 0
    root.create()
    with pytest.raises(EnrolmentRefused):
        root.create(token_key=OTHER)
    assert not root.create().changed


def test_calls_for_another_owner_are_handed_on(root):
    root.create()
    root.ledger.lost.add(partition_of("global"))
    root.enrolments.revoke(EnrolmentRevokeRequest(id="t1"), OPERATOR)
    root.enrol()
    assert len(root.forwarded) == 2


def test_another_conductors_change_is_taken_at_the_next_look(root):
    second = Place()
    second.ledger.rows = root.ledger.rows
    root.create()
    second.enrolments.refresh()
    assert second.keyring.by_public_key(TOKEN) is not None
    version = second.keyring.version
    second.enrolments.refresh()
    assert second.keyring.version == version, "nothing new: the links of others are not looked at"


def test_fellow_conductors_are_let_in_by_the_cells_own_map_unless_revoked():
    place = Place("c9")
    place.enrolments._take_fellows(place.ledger.map)
    assert place.keyring.by_public_key(FELLOW) == KeyEntry("f", FELLOW, "conductor", "c9")
    place.keyring.replace([KeyEntry("api-1", API, "api", "root")], [FELLOW])
    assert place.keyring.by_public_key(FELLOW) is None
    assert place.keyring.by_name("f") is None


def test_what_is_beside_displaces_nobody():
    keyring = Keyring([KeyEntry("a", OWN, "api", "root")])
    keyring.take_beside("x", [KeyEntry("a", OTHER, "conductor", "c1"), KeyEntry("b", OWN, "conductor", "c1")])
    assert keyring.by_public_key(OWN) == KeyEntry("a", OWN, "api", "root")
    assert keyring.by_public_key(OTHER) is None
    keyring.take_beside("y", [KeyEntry("c", THIRD, "compute", "c1")])
    keyring.take_beside("x", [])
    assert [entry.name for entry in keyring.entries()] == ["a", "c"]
