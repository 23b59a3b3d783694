"""What the rate limit of the logs holds back."""

import logging

from zcompute.log import REPEATED, RateLimit


def record(level: int, text: str, extra: dict[str, bool] | None = None) -> logging.LogRecord:
    return logging.getLogger("x").makeRecord("x", level, "f", 1, text, (), None, extra=extra)


def let_through(limit: RateLimit, level: int, text: str, extra: dict[str, bool] | None = None) -> int:
    return sum(limit.filter(record(level, text, extra)) for _ in range(10))


def test_warnings_and_what_is_repeated_are_held_back_beyond_the_burst() -> None:
    limit = RateLimit(burst=3, window_s=60)
    assert let_through(limit, logging.WARNING, "host is down") == 3
    assert let_through(limit, logging.INFO, "read failed", REPEATED) == 3
    assert let_through(limit, logging.WARNING, "another") == 3


def test_the_other_events_of_a_request_are_never_held_back() -> None:
    assert let_through(RateLimit(burst=3, window_s=60), logging.INFO, "server accepted") == 10


def test_the_next_one_says_how_many_were_held_back() -> None:
    limit = RateLimit(burst=3, window_s=0)
    limit._window_s = 60
    let_through(limit, logging.WARNING, "again")
    limit._window_s = 0
    following = record(logging.WARNING, "again")
    assert limit.filter(following)
    assert following.getMessage() == "again held_back=7"
