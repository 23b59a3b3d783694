"""A page that goes over the wire: within a number of bytes, whatever its servers carry."""

from typing import TypeVar

import msgspec

from zcompute.objects.build_request import BuildRequest
from zcompute.objects.instance import Instance

PAGE_BYTES_MAX = 2 * 1024 * 1024  # the bus carries 3 MiB

R = TypeVar("R", Instance, BuildRequest)

_encode = msgspec.msgpack.Encoder().encode


def fitted(rows: list[R], bytes_max: int = PAGE_BYTES_MAX) -> tuple[list[R], bool]:
    """The rows that fit, in order and at least one, and whether some were left out. The user data is taken out of all:
    no list shows it, and it may be most of a row."""
    for row in rows:
        if row.spec.user_data is not None:
            row.spec.user_data = None
    if len(_encode(rows)) <= bytes_max:
        return rows, False
    size = 0
    for at, row in enumerate(rows):
        size += len(_encode(row))
        if size > bytes_max and at:
            return rows[:at], True
    return rows, False
