"""A private group that is started again has the primary that it had last."""

import pytest

from zcompute.db.errors import PrivateServerFailed
from zcompute.db.private_succession import Left, Succession, succession
from zcompute.db.replicas.position import parse_position


def left(term: int, written: str, server_id: int) -> Left:
    writers = {one.split("-")[1] for one in written.split(",") if one}
    return Left(7000 + server_id, term, parse_position(written), str(server_id) in writers)


def test_without_a_cell_in_it_the_usual_server_is_the_primary() -> None:
    assert succession([left(0, "", 1), left(0, "", 2)], 1) == Succession(1)


def test_who_wrote_last_in_the_highest_term_is_the_primary_and_replicas_that_lag_are_kept() -> None:
    assert succession([left(1, "0-1-9", 1), left(1, "0-1-9", 2), left(0, "0-1-2", 3)], 0) == Succession(0)


def test_after_a_promotion_the_new_primary_stays_and_the_former_one_is_lost() -> None:
    servers = [left(1, "0-1-9", 1), left(2, "0-2-12", 2), left(2, "0-2-12", 3)]
    assert succession(servers, 0) == Succession(1, (0,))


def test_a_promotion_that_had_raised_the_term_and_no_more_has_its_primary_too() -> None:
    servers = [left(1, "0-1-90", 1), left(2, "0-2-13", 2), left(1, "0-1-12", 3)]
    assert succession(servers, 0) == Succession(1, (0,))


def test_a_replica_that_has_more_than_the_new_primary_is_lost() -> None:
    servers = [left(1, "0-1-9", 1), left(2, "0-2-12", 2), left(1, "0-1-14", 3)]
    assert succession(servers, 0) == Succession(1, (0, 2))


def test_a_former_primary_that_was_made_a_replica_again_is_kept() -> None:
    assert succession([left(2, "0-2-12", 4), left(2, "0-2-12", 2)], 0) == Succession(1)


def test_two_that_wrote_last_in_the_highest_term_are_refused_by_name() -> None:
    with pytest.raises(PrivateServerFailed, match=r"wrote last in term 2, found port 7001: term 2, 0-1-9, port 7002"):
        succession([left(2, "0-1-9", 1), left(2, "0-2-12", 2)], 0)
