"""An embedded region whose primary was lost and replaced is stopped and started again as any other."""

from pathlib import Path

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import assert_all_active, assert_audit_holds, boot, command, started
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.db.durability import REPLICATED

SHAPE = Shape(
    cells=("c1",), conductors=1, computes=1, hosts_per_compute=2, replicas=2, durability=REPLICATED, host_vcpus=20
)
SERVERS = 5


def test_a_region_started_again_after_a_promotion_has_its_servers_and_takes_new_ones(tmp_path: Path) -> None:
    require_mariadb()
    place = tmp_path / "region"
    with started(place, MARIADB, SHAPE) as region:
        assert_all_active(boot(region, SERVERS))
        region.database_server("c1").kill()
        config = next(plan.id for plan in region.plans.values() if plan.kind == "conductor" and plan.cell == "c1")
        promoted = command("db", "promote", "--config", str(region.paths.config(config)))
        assert promoted.returncode == 0, promoted.stdout + promoted.stderr
        assert_all_active(boot(region, SERVERS))

    with started(place, MARIADB) as region:
        servers = region.database_servers("c1")
        assert servers.primary is not servers.servers[0]
        assert [path.name for path in servers.set_aside] == ["server-1.lost"]
        assert_all_active(boot(region, SERVERS))
        client = region.client()
        assert len(client.get("/v2.1/servers")["servers"]) == 3 * SERVERS
        client.close()
        assert_audit_holds(region)
