"""The tables of both kinds of database, as they are at this release.

Migrations hold their own frozen copies; a test compares the two. Every partitioned table has ``partition_id``. Rows
are never joined by foreign keys: only the owner of a partition writes them, and it keeps them consistent.
"""

from typing import Any

import sqlalchemy as sa

from zcompute.db.columns import TABLE_OPTIONS, blob, ident, serial, sqlite_checks, text
from zcompute.objects.stored import NEWEST_LEVEL

KIND_ROOT = "root"
KIND_CELL = "cell"

# What stored rows are written for; raised by `upgrade finalize` once every service is new.
RELEASE_LEVEL = NEWEST_LEVEL

ownership = sa.MetaData()
shared = sa.MetaData()
cell_only = sa.MetaData()
root_only = sa.MetaData()


def _table(metadata: sa.MetaData, name: str, *items: sa.Column[Any] | sa.Index, **options: Any) -> sa.Table:
    checks = sqlite_checks(name, [item for item in items if isinstance(item, sa.Column)])
    return sa.Table(name, metadata, *items, *checks, **TABLE_OPTIONS, **options)


def _key(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def _need(name: str, kind: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def _may(name: str, kind: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=True)


def _since(name: str, kind: type[sa.types.TypeEngine[Any]]) -> sa.Column[Any]:
    """A column that came later: the release before inserts rows without it."""
    return sa.Column(name, kind, nullable=False, server_default="0")


def _partition() -> sa.Column[Any]:
    return _need("partition_id", sa.SmallInteger)


def _revision() -> sa.Column[Any]:
    return _need("revision", sa.BigInteger)


_table(
    ownership,
    "cell_state",
    _key("id", sa.SmallInteger()),
    _need("cell", ident(64)),
    _need("kind", ident(8)),
    _need("map_version", sa.BigInteger),
    _need("term", sa.BigInteger),
    _need("release", ident(32)),
)
_table(
    ownership,
    "conductors",
    _key("service_id", ident(255)),
    _need("incarnation", ident(64)),
    _need("address", ident(255)),
    _need("public_key", ident(64)),
    _need("started_at_us", sa.BigInteger),
    _need("alive", sa.Boolean),
)
_table(
    ownership,
    "conductor_releases",  # beside conductors, whose row a conductor of an older release would keep up
    _key("service_id", ident(255)),
    _need("incarnation", ident(64)),
    _need("code_release", ident(32)),
    _need("code_level", ident(32)),
)
_table(ownership, "beats", _key("incarnation", ident(64)), _need("counter", sa.BigInteger))
_table(
    ownership,
    "lanes",
    sa.Column("lane_id", serial(), primary_key=True, autoincrement=True),
    _need("incarnation", ident(64)),
    _need("service_id", ident(255)),
    _need("alive", sa.Boolean),
    _need("term", sa.BigInteger),
    _need("applied", sa.BigInteger),
    _need("nonce", sa.BigInteger),
    _may("connection_id", sa.BigInteger),
    sa.Index("ix_lanes_incarnation", "incarnation"),
    sa.Index("ix_lanes_service_id", "service_id"),
    sqlite_autoincrement=True,
)
_table(
    ownership,
    "partitions",
    _key("partition_id", sa.SmallInteger()),
    _may("lane_id", sa.BigInteger),
    _need("owner_epoch", sa.BigInteger),
    _need("last_n", sa.BigInteger),
)

_table(
    cell_only,
    "instances",
    _key("uuid", ident(36)),
    _partition(),
    _need("project_id", ident(255)),
    _need("user_id", ident(255)),
    _need("name", text(255)),
    _need("flavor", blob()),
    _need("spec", blob()),
    _need("mapping_generation", sa.BigInteger),
    _need("created_at_us", sa.BigInteger),
    _need("updated_at_us", sa.BigInteger),
    _may("launched_at_us", sa.BigInteger),
    _may("deleted_at_us", sa.BigInteger),
    _need("vm_state", ident(32)),
    _may("task_state", ident(32)),
    _need("power_state", sa.Integer),
    _need("progress", sa.Integer),
    _may("host", ident(255)),
    _may("claim", ident(128)),
    _may("task_id", ident(64)),
    _may("fault", blob()),
    _need("generation", sa.BigInteger),
    _need("command_generation", sa.BigInteger),
    _need("agent_epoch", sa.BigInteger),
    _need("observed_seq", sa.BigInteger),
    _need("decided", sa.BigInteger),
    _may("soft_deleted_at_us", sa.BigInteger),
    _may("resized_at_us", sa.BigInteger),
    _may("shelved_at_us", sa.BigInteger),
    _may("shelved_image_ref", ident(64)),
    _since("locked", sa.Boolean),
    _since("locked_by_admin", sa.Boolean),
    _may("locked_reason", text(255)),
    _may("move", blob()),
    sa.Column("crossing", ident(16), nullable=False, server_default=""),
    _revision(),
    sa.Index("ix_instances_project", "project_id", "created_at_us", "uuid"),
    sa.Index("ix_instances_created", "created_at_us", "uuid"),
    sa.Index("ix_instances_project_name", "project_id", "name", "uuid"),
    sa.Index("ix_instances_name", "name", "uuid"),
    sa.Index("ix_instances_host", "host"),
    sa.Index("ix_instances_partition", "partition_id"),
    sa.Index("ix_instances_deleted", "partition_id", "deleted_at_us"),
    sa.Index("ix_instances_soft_deleted", "partition_id", "soft_deleted_at_us"),
    sa.Index("ix_instances_resized", "partition_id", "resized_at_us"),
    sa.Index("ix_instances_shelved", "partition_id", "shelved_at_us"),
)
_table(
    cell_only,
    "hosts",
    _key("name", ident(255)),
    _partition(),
    _need("service_id", ident(255)),
    _need("total_vcpus", sa.Integer),
    _need("total_memory_mb", sa.BigInteger),
    _need("total_disk_gb", sa.BigInteger),
    _need("used_vcpus", sa.Integer),
    _need("used_memory_mb", sa.BigInteger),
    _need("used_disk_gb", sa.BigInteger),
    _need("instances", sa.Integer),
    _need("hypervisor_type", ident(64)),
    _need("hypervisor_hostname", ident(255)),
    _need("availability_zone", text(255)),
    _need("agent_epoch", sa.BigInteger),
    _need("state", ident(16)),
    _need("forced_down", sa.Boolean),
    _need("disabled", sa.Boolean),
    _may("disabled_reason", text(255)),
    _need("created_at_us", sa.BigInteger),
    _need("updated_at_us", sa.BigInteger),
    _revision(),
    sa.Index("ix_hosts_partition", "partition_id"),
)
_table(
    cell_only,
    "claims",
    _key("instance_uuid", ident(36)),
    _key("task_id", ident(64)),
    _key("attempt", sa.Integer()),
    _partition(),
    _need("host", ident(255)),
    _need("vcpus", sa.Integer),
    _need("memory_mb", sa.BigInteger),
    _need("disk_gb", sa.BigInteger),
    _need("created_at_us", sa.BigInteger),
    sa.Index("ix_claims_host", "host"),
    sa.Index("ix_claims_partition", "partition_id"),
)
_table(
    cell_only,
    "group_placements",
    _key("group_uuid", ident(36)),
    _key("instance_uuid", ident(36)),
    _key("task_id", ident(64)),
    _key("attempt", sa.Integer()),
    _partition(),
    _need("host", ident(255)),
    _need("created_at_us", sa.BigInteger),
    sa.Index("ix_group_placements_partition", "partition_id"),
)
_table(
    cell_only,
    "tasks",
    _key("id", ident(64)),
    _partition(),
    _need("instance_uuid", ident(36)),
    _need("kind", ident(32)),
    _need("step", ident(64)),
    _need("state", ident(16)),
    _need("attempt", sa.Integer),
    _need("deadline_at_us", sa.BigInteger),
    _need("operation_id", ident(255)),
    _need("request_id", ident(64)),
    _need("body", blob()),
    _need("created_at_us", sa.BigInteger),
    _need("updated_at_us", sa.BigInteger),
    _revision(),
    sa.Index("ux_tasks_instance_uuid", "instance_uuid", unique=True),
    sa.Index("ix_tasks_partition", "partition_id"),
)
_table(
    cell_only,
    "root_outbox",
    _key("instance_uuid", ident(36)),
    _key("kind", ident(16)),
    _key("generation", sa.BigInteger()),
    _partition(),
    _need("project_id", ident(255)),
    _need("reason", text(1024)),
    _may("build_request", blob()),
    _may("image", blob()),
    _need("request_id", ident(64)),
    _need("created_at_us", sa.BigInteger),
    _revision(),
    sa.Index("ix_root_outbox_partition", "partition_id"),
)

_table(
    cell_only,
    "instance_actions",
    _key("instance_uuid", ident(36)),
    _key("operation_id", ident(255)),
    _partition(),
    _need("action", ident(64)),
    _need("request_id", ident(64)),
    _need("user_id", ident(255)),
    _need("project_id", ident(255)),
    _need("started_at_us", sa.BigInteger),
    _may("finished_at_us", sa.BigInteger),
    _need("result", ident(16)),
    _need("message", text(255)),
    _revision(),
    sa.Index("ix_instance_actions_finished", "partition_id", "finished_at_us"),
)
_table(
    cell_only,
    "instance_action_events",
    _key("instance_uuid", ident(36)),
    _key("operation_id", ident(255)),
    _key("task_id", ident(64)),
    _key("event", ident(64)),
    _key("attempt", sa.Integer()),
    _partition(),
    _need("host", ident(255)),
    _need("started_at_us", sa.BigInteger),
    _need("finished_at_us", sa.BigInteger),
    _need("result", ident(16)),
    _need("message", text(255)),
)
_table(
    cell_only,
    "usage_audits",
    _key("partition_id", sa.SmallInteger()),
    _need("period_at_us", sa.BigInteger),
    _need("after_uuid", ident(36)),
    _revision(),
)

_table(
    shared,
    "archived_rows",
    _key("partition_id", sa.SmallInteger()),
    _key("archived_at_us", sa.BigInteger()),
    _key("source", ident(64)),
    _key("row_key", ident(512)),
    _need("body", blob()),
)
_table(
    shared,
    "enrolments",
    _key("id", ident(64)),
    _partition(),
    _need("token_key", ident(40)),
    _need("role", ident(32)),
    _need("cell", ident(64)),
    _need("hosts", blob()),
    _need("uses_max", sa.BigInteger),
    _need("expires_at_us", sa.BigInteger),
    _need("created_at_us", sa.BigInteger),
    _need("created_by", ident(255)),
    _need("revoked", sa.Boolean),
    _need("enrolled", blob()),
    _revision(),
)
_table(
    shared,
    "notifications",
    _key("partition_id", sa.SmallInteger()),
    _key("n", sa.BigInteger()),
    _need("created_at_us", sa.BigInteger),
    _need("event_type", ident(64)),
    _need("instance_uuid", ident(36)),
    _need("body", blob()),
)
_table(
    shared,
    "notifier_cursors",
    _key("partition_id", sa.SmallInteger()),
    _key("notifier", ident(64)),
    _need("n", sa.BigInteger),
    _need("updated_at_us", sa.BigInteger),
    _revision(),
)

_table(
    root_only,
    "build_requests",
    _key("uuid", ident(36)),
    _partition(),
    _need("project_id", ident(255)),
    _need("user_id", ident(255)),
    _need("name", text(255)),
    _need("flavor", blob()),
    _need("spec", blob()),
    _need("operation_id", ident(255)),
    _need("request_id", ident(64)),
    _need("created_at_us", sa.BigInteger),
    _need("state", ident(16)),
    _may("cell", ident(64)),
    _need("generation", sa.BigInteger),
    _need("delete_requested", sa.Boolean),
    _may("fault", blob()),
    _revision(),
    sa.Index("ix_build_requests_project", "project_id", "created_at_us", "uuid"),
    sa.Index("ix_build_requests_created", "created_at_us", "uuid"),
    sa.Index("ix_build_requests_partition", "partition_id"),
)
_table(
    root_only,
    "instance_mappings",
    _key("uuid", ident(36)),
    _partition(),
    _need("project_id", ident(255)),
    _may("cell", ident(64)),
    _need("generation", sa.BigInteger),
    _need("tried_cells", blob()),
    _may("group_uuid", ident(36)),
    _revision(),
    sa.Index("ix_instance_mappings_project", "project_id"),
    sa.Index("ix_instance_mappings_cell", "cell"),
    sa.Index("ix_instance_mappings_group", "group_uuid"),
    sa.Index("ix_instance_mappings_partition", "partition_id"),
)
_table(
    root_only,
    "server_groups",
    _key("uuid", ident(36)),
    _partition(),
    _need("project_id", ident(255)),
    _need("user_id", ident(255)),
    _need("name", text(255)),
    _need("policy", ident(32)),
    _need("max_server_per_host", sa.Integer),
    _need("metadata", blob()),
    _may("cell", ident(64)),
    _need("created_at_us", sa.BigInteger),
    _revision(),
    sa.Index("ix_server_groups_project", "project_id"),
    sa.Index("ix_server_groups_partition", "partition_id"),
)
_table(
    root_only,
    "cross_moves",
    _key("uuid", ident(36)),
    _partition(),
    _need("project_id", ident(255)),
    _need("operation_id", ident(64)),
    _need("source_cell", ident(64)),
    _need("target_cell", ident(64)),
    _need("generation", sa.BigInteger),
    _need("step", ident(32)),
    _need("state", ident(16)),
    _need("deadline_at_us", sa.BigInteger),
    _need("created_at_us", sa.BigInteger),
    _need("updated_at_us", sa.BigInteger),
    _may("ended_at_us", sa.BigInteger),
    _need("body", blob()),
    _revision(),
    sa.Index("ix_cross_moves_partition", "partition_id", "state"),
    sa.Index("ix_cross_moves_ended", "partition_id", "ended_at_us"),
)
_table(
    root_only,
    "usages",
    _key("uuid", ident(36)),
    _partition(),
    _need("project_id", ident(255)),
    _need("cores", sa.Integer),
    _need("ram_mb", sa.BigInteger),
    _since("decided", sa.BigInteger),
    _since("raised_at_us", sa.BigInteger),
    _revision(),
    sa.Index("ix_usages_project", "project_id"),
    sa.Index("ix_usages_partition", "partition_id"),
)
_table(
    root_only,
    "quotas",
    _key("project_id", ident(255)),
    _partition(),
    _may("instances", sa.BigInteger),
    _may("cores", sa.BigInteger),
    _may("ram_mb", sa.BigInteger),
    _revision(),
    sa.Index("ix_quotas_partition", "partition_id"),
)
_table(
    root_only,
    "quota_classes",
    _key("name", ident(64)),
    _partition(),
    _may("instances", sa.BigInteger),
    _may("cores", sa.BigInteger),
    _may("ram_mb", sa.BigInteger),
    _revision(),
)
_table(
    root_only,
    "operations",
    _key("project_id", ident(255)),
    _key("operation_id", ident(255)),
    _partition(),
    _need("kind", ident(32)),
    _need("digest", ident(128)),
    _need("uuids", blob()),
    _need("reservation_id", ident(64)),
    _need("created_at_us", sa.BigInteger),
    _revision(),
    sa.Index("ix_operations_partition", "partition_id"),
    sa.Index("ix_operations_age", "partition_id", "created_at_us"),
)
_table(
    root_only,
    "flavors",
    _key("flavorid", ident(255)),
    _partition(),
    _need("name", text(255)),
    _need("vcpus", sa.Integer),
    _need("memory_mb", sa.Integer),
    _need("root_gb", sa.Integer),
    _need("ephemeral_gb", sa.Integer),
    _need("swap_mb", sa.Integer),
    _need("is_public", sa.Boolean),
    _need("disabled", sa.Boolean),
    _may("description", text(4096)),
    _need("extra_specs", blob()),
    _revision(),
    sa.Index("ux_flavors_name", "name", unique=True),
)
_table(
    root_only,
    "images",
    _key("id", ident(36)),
    _partition(),
    _need("project_id", ident(255)),
    _need("name", text(255)),
    _need("user_id", ident(255)),
    _need("status", ident(16)),
    _need("visibility", ident(16)),
    _need("size_bytes", sa.BigInteger),
    _need("checksum", ident(128)),
    _need("min_disk_gb", sa.Integer),
    _need("min_ram_mb", sa.Integer),
    _need("properties", blob()),
    _need("server_uuid", ident(36)),
    _need("operation_id", ident(255)),
    _need("reason", text(255)),
    _need("created_at_us", sa.BigInteger),
    _need("updated_at_us", sa.BigInteger),
    _may("deleted_at_us", sa.BigInteger),
    _need("deleted_by", ident(255)),
    _revision(),
    sa.Index("ix_images_project", "project_id", "id"),
    sa.Index("ix_images_visibility", "visibility", "id"),
    sa.Index("ix_images_status", "partition_id", "status"),
    sa.Index("ix_images_deleted", "partition_id", "deleted_at_us"),
)
_table(
    root_only,
    "cells",
    _key("name", ident(64)),
    _partition(),
    _need("conductors", blob()),
    _need("disabled", sa.Boolean),
    _since("draining", sa.Boolean),
    _since("deleted_at_us", sa.BigInteger),
    _since("term", sa.BigInteger),
    _since("map_version", sa.BigInteger),
    _need("created_at_us", sa.BigInteger),
    _revision(),
)


def metadata_of(kind: str) -> sa.MetaData:
    """All tables of one kind of database: those that both have, and its own."""
    merged = sa.MetaData()
    for part in (ownership, shared, root_only if kind == KIND_ROOT else cell_only):
        for table in part.sorted_tables:
            table.to_metadata(merged)
    return merged


TABLES: dict[str, sa.Table] = {**ownership.tables, **shared.tables, **cell_only.tables, **root_only.tables}

cell_state = TABLES["cell_state"]
conductors = TABLES["conductors"]
conductor_releases = TABLES["conductor_releases"]
partitions = TABLES["partitions"]
lanes = TABLES["lanes"]
notifications = TABLES["notifications"]
