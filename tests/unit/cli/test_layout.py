"""The plan of an embedded region."""

import tomllib
from pathlib import Path

import pytest

from zcompute.cli.toml_text import dumps
from zcompute.cli.up.keys import KeyPair
from zcompute.cli.up.layout import (
    API,
    COMPUTE,
    CONDUCTOR,
    OPERATOR,
    SCHEDULER,
    Paths,
    RegionFile,
    ServicePlan,
    Shape,
    cell_of_host,
    config_document,
    keyring_document,
    operator_document,
    services_of,
)
from zcompute.config import Config, parse
from zcompute.objects.cell import ROOT_CELL

SHAPE = Shape()
PLANS = services_of(SHAPE)
KEYS = {plan.id: KeyPair(public_key=f"p-{plan.id}", secret_key=f"s-{plan.id}") for plan in PLANS}
KEYS[OPERATOR] = KeyPair(public_key="p-operator", secret_key="s-operator")
PORTS = {plan.id: 20000 + number for number, plan in enumerate(PLANS)}
REGION = RegionFile(database="sqlite", api_port=8774, bus_ports=PORTS)


def config_of(plan: ServicePlan) -> Config:
    document = config_document(plan, REGION, Paths(Path("/s")), KEYS, "sqlite:////s/db")
    return parse(dumps(document), Config)


def test_the_region_has_the_services_that_it_promises() -> None:
    kinds = [plan.kind for plan in PLANS]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {CONDUCTOR: 6, SCHEDULER: 2, COMPUTE: 4, API: 1}
    hosts = [host for plan in PLANS for host in plan.hosts]
    assert len(set(hosts)) == len(hosts) == 20
    assert cell_of_host(SHAPE, "c2-host-10") == "c2"
    assert cell_of_host(SHAPE, "c3-host-10") == ""


def test_conductors_start_first_and_the_api_last() -> None:
    assert [PLANS[0].kind, PLANS[-1].kind] == [CONDUCTOR, API]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.id)
def test_only_conductors_listen_and_have_the_database(plan: ServicePlan) -> None:
    config = config_of(plan)
    is_conductor = plan.kind == CONDUCTOR
    assert (config.database is not None) == bool(config.bus.listen) == bool(config.bus.keyring) == is_conductor
    assert {peer.id.split("-")[0] for peer in config.bus.root} == (
        {ROOT_CELL} if plan.kind == API or (is_conductor and plan.cell != ROOT_CELL) else set()
    )
    assert {peer.id.split("-")[0] for peer in config.bus.conductors} == (set() if plan.kind == API else {plan.cell})


def test_a_fake_host_holds_a_hundred_of_the_smallest_servers() -> None:
    computes = [config_of(plan).compute for plan in PLANS if plan.kind == COMPUTE]
    for host in (host for compute in computes for host in compute.hosts):
        assert (host.memory_mb // 512, host.disk_gb // 1, host.vcpus * 16 >= 100) == (100, 100, True)


def test_a_cell_lets_in_its_own_and_the_api_and_the_root_also_the_cells_conductors() -> None:
    def names(cell: str) -> set[str]:
        document = keyring_document(cell, SHAPE, KEYS)
        return {row["name"] for row in tomllib.loads(dumps(document))["keys"]}

    assert names("c1") == {plan.id for plan in PLANS if plan.cell == "c1"} | {"api-1", OPERATOR}
    assert names(ROOT_CELL) == {plan.id for plan in PLANS if plan.kind == CONDUCTOR} | {"api-1", OPERATOR}


def test_the_operator_dials_every_conductor_and_owns_no_database() -> None:
    config = parse(dumps(operator_document(REGION, Paths(Path("/s")), KEYS)), Config)
    assert {peer.id for peer in [*config.bus.root, *config.bus.conductors]} == {
        plan.id for plan in PLANS if plan.kind == CONDUCTOR
    }
    assert (config.database, config.bus.listen, config.bus.key_file) == (None, "", "/s/keys/operator.toml")
