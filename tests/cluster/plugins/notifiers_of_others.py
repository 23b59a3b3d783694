"""A notifier as others write one: it knows no more than the face of a plug-in. Lines of JSON in the file of ``url``."""

import json
import os
from collections.abc import Sequence
from typing import Any


class FileSink:
    """Appends a line for each notification, all of a delivery with one write."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def deliver(self, batch: Sequence[Any]) -> None:
        os.write(self._file, "".join(json.dumps(told.document()) + "\n" for told in batch).encode())

    def gap(self, cell: str, partition: int, first: int, last: int) -> None:
        os.write(self._file, (json.dumps({"gap": [cell, partition, first, last]}) + "\n").encode())

    def close(self) -> None:
        os.close(self._file)


def open_file(config: Any) -> FileSink:
    """Entry point ``file``."""
    return FileSink(config.url.removeprefix("file://"))
