"""What a run of boots showed: metrics, tables, the JSON file."""

import json
import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zcompute.cli.up.boots import BootRun, percentile
from zcompute.cli.up.layout import Shape, cell_of_host


def machine() -> dict[str, Any]:
    """On what a benchmark ran."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_mb": memory // 2**20,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def boot_metrics(run: BootRun, cpu_before: dict[str, float], cpu_after: dict[str, float]) -> dict[str, float]:
    """The numbers of a run; CPU in ms a boot, all processes and the client together, and by service."""
    times = run.times_ms()
    active = run.count("ACTIVE")
    metrics = {
        "boots_per_second": round(run.boots_per_second, 2),
        "active": active,
        "error": len(run.boots) - active,
        "p50_ms": round(percentile(times, 50), 1),
        "p99_ms": round(percentile(times, 99), 1),
    }
    spent = {kind: cpu_after[kind] - cpu_before[kind] for kind in cpu_after}
    share = max(1, len(run.boots))
    metrics["cpu_ms_per_boot"] = round(sum(spent.values()) / share, 2)
    for kind, value in spent.items():
        metrics[f"cpu_ms_per_boot_{kind}"] = round(value / share, 2)
    return metrics


def write_json(path: str | Path, benchmark: str, metrics: dict[str, float]) -> None:
    """The form of all the project's benchmarks."""
    document = {"benchmark": benchmark, "metrics": metrics, "machine": machine()}
    Path(path).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def show_metrics(console: Console, title: str, metrics: dict[str, float]) -> None:
    """A table of names and numbers."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:g}" if isinstance(value, float) else str(value))
    console.print(table)


def show_placement(console: Console, servers: list[dict[str, Any]], shape: Shape) -> None:
    """Servers per cell and host."""
    per_host = Counter(server.get("OS-EXT-SRV-ATTR:host") or "" for server in servers)
    per_cell: dict[str, list[str]] = {}
    for host, count in sorted(per_host.items()):
        per_cell.setdefault(cell_of_host(shape, host), []).append(f"{host} {count}" if host else f"no host {count}")
    table = Table(title="Servers per cell and host", title_justify="left")
    table.add_column("cell")
    table.add_column("servers", justify="right")
    table.add_column("hosts")
    for cell, hosts in sorted(per_cell.items()):
        table.add_row(cell or "none", str(sum(int(text.rsplit(" ", 1)[1]) for text in hosts)), ", ".join(hosts))
    console.print(table)
