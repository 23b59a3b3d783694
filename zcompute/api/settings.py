"""Limits of an API process that are not configuration."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Every limit with its name; milliseconds and seconds as the names say."""

    # HTTP
    connections_max: int = 2_000
    backlog: int = 1_024
    idle_s: float = 60.0  # a connection without a request; also how long a client may leave a response unread
    header_s: float = 10.0  # from the request line to the end of the headers
    body_s: float = 20.0
    discard_s: float = 2.0  # for the rest of a body that nobody reads
    discard_bytes_max: int = 1_048_576
    stop_s: float = 1.5

    # Calls into the region
    read_ms_max: int = 10_000  # of showing one server
    withdraw_ms_max: int = 2_000  # of an image whose making was refused
    list_ms_max: int = 5_000  # of a list: what has not answered by then is named as missing
    unlinked_ms_max: int = 1_000  # for a cell without any link
    pending_probe_ms: int = 2_000  # asking a cell for a server that the root still holds
    relocate_pause_ms_min: int = 25
    relocate_pause_ms_max: int = 500
    same_place_misses_max: int = 2  # the same cell and generation denied so often: the server is gone

    marker_ms_max: int = 2_500  # to find the server behind which a page begins
    grace_ms: int = 60  # before the deadline of what is gathered, for the calls' own errors to come
    merge_rounds_max: int = 64
    busy_ms: int = 1_000  # what a caller is told to wait who found no room

    # Memory
    lists_in_flight_max: int = 256
    list_rows_in_flight_max: int = 50_000  # of all lists together, about 3 KB each
    list_wait_ms_max: int = 2_000  # for room
    count_pending_max: int = 10_000  # build requests that a count tells from the cells' rows
    places_max: int = 100_000
    page_rows_max: int = 1_000  # no more come from a cell at once: a longer page would end early
    details_in_flight_max: int = 32
    known_max: int = 10_000  # images, and as many flavors, that boots have named
    known_s: float = 10.0
    absent_s: float = 1.0
    tokens_max: int = 10_000
    token_reload_s: float = 5.0


LIMITS = Limits()
