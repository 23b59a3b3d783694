"""``zcompute notifications tail`` as a process, and what it has printed."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.region import wait_until
from zcompute.cli.up.region import Region


class Tail:
    """A running command and what it has printed."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._read_bytes = 0
        self._lines: list[dict[str, Any]] = []

    def lines(self) -> list[dict[str, Any]]:
        with self._output.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self._lines += [json.loads(line) for line in whole.splitlines()]
        return self._lines

    def told(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "n" in line]

    def gaps(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "gap" in line]

    def cursors(self) -> list[str]:
        return [line["cursor"] for line in self.lines() if "cursor" in line]

    def seen(self, event_type: str) -> set[str]:
        return {line["instance_uuid"] for line in self.told() if line["event_type"] == event_type}


@contextmanager
def tailing(region: Region, output: Path, *options: str, cell: str = "c1") -> Iterator[Tail]:
    """Run the command, for all cells where ``cell`` is ""; interrupted at the end, and waited for."""
    words = ["notifications", "tail", "--format", "json", "--state-dir", str(region.paths.state_dir)]
    words += ["--cell", cell] if cell else []
    with output.open("wb") as file, output.with_suffix(".err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "zcompute.cli.main", *words, *options], stdout=file, stderr=errors
        )
    tail = Tail(output)
    try:
        wait_until(lambda: tail.cursors() or process.poll() is not None, "the tail has begun", found=output.read_text)
        yield tail
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0, output.with_suffix(".err").read_text()
        finally:
            process.kill()
