"""What projects use: their usage rows summed by the database, many projects in one statement."""

from collections.abc import Sequence

from zcompute.db.columns import is_ascii
from zcompute.db.schema import TABLES
from zcompute.db.session import Session
from zcompute.db.store import SCAN_ROWS_MAX
from zcompute.db.tables import PARTITION_COLUMN, Key
from zcompute.objects.quota import ProjectUsage

PROJECTS_MAX = 500  # a statement; more are summed by several

_SUMS = "SELECT project_id, COUNT(*), SUM(cores), SUM(ram_mb) FROM usages"


def of_projects(session: Session, keys: Sequence[Key]) -> dict[Key, ProjectUsage]:
    """The sums of these projects; those without a usage row are not in the answer."""
    ascii_only = is_ascii(TABLES["usages"].c["project_id"].type)
    wanted = [key[0] for key in dict.fromkeys(keys) if not ascii_only or str(key[0]).isascii()]
    found: dict[Key, ProjectUsage] = {}
    for start in range(0, len(wanted), PROJECTS_MAX):
        projects = wanted[start : start + PROJECTS_MAX]
        sql = f"{_SUMS} WHERE project_id IN :projects GROUP BY project_id"
        for summed in _read(session, sql, projects=projects):
            found[(summed.project_id,)] = summed
    return found


def page(session: Session, after: str, limit: int, partition: int | None = None) -> list[ProjectUsage]:
    """The sums of the projects (of a partition) behind ``after``, in their order."""
    limit = max(0, min(limit, SCAN_ROWS_MAX))
    condition, values = "project_id > :after", {"after": after}
    if partition is not None:
        condition += f" AND {PARTITION_COLUMN} = {int(partition)}"
    return _read(session, f"{_SUMS} WHERE {condition} GROUP BY project_id ORDER BY project_id LIMIT {limit}", **values)


def _read(session: Session, sql: str, **values: object) -> list[ProjectUsage]:
    return [
        ProjectUsage(project_id=project_id, instances=int(instances), cores=int(cores), ram_mb=int(ram_mb))
        for project_id, instances, cores, ram_mb in session.select(sql, **values)
    ]
