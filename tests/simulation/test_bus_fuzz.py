"""A short run of the fuzzer (the long one: `python -m tests.fuzz.bus --mutations 1000000`)."""

import pytest

from tests.fuzz.bus import decoder, dialled, dialogs, live, seeds
from tests.fuzz.bus.mutate import Mutator


@pytest.mark.parametrize("seed", [1, 2])
def test_the_decoder_reads_or_refuses_whatever_it_is_given(seed: int) -> None:
    outcomes = decoder.run(20_000, seed)
    assert outcomes["read"] > 500  # the mutations are not all the same nonsense
    assert min(outcomes["malformed"], outcomes["envelopes"], outcomes["attributes"]) > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_dialogs_stay_within_their_bounds_and_every_call_ends(seed: int) -> None:
    outcomes = dialogs.run(6_000, seed)
    assert outcomes["taken_AcksArrived"] > 100  # reports were acknowledged in between
    assert outcomes["malformed"] > 1_000


def test_a_seed_gives_the_same_frames_again() -> None:
    first, second = Mutator(5, seeds.frames()), Mutator(5, seeds.frames())
    assert [first.frame() for _ in range(500)] == [second.frame() for _ in range(500)]


def test_a_dialler_of_a_hostile_listener_ends_every_call_and_finds_a_proper_one() -> None:
    outcomes = dialled.run(4_000, 1)
    assert outcomes["refused_malformed"] > 300
    assert outcomes["lives"] > 10


def test_a_conductor_under_bad_frames_fails_nowhere_and_answers_its_neighbour() -> None:
    outcome = live.run(10_000, seed=1, frames_per_second=5_000, window_s=1.0)
    assert outcome.calls_failed == 0
    assert outcome.rss_growth_mb < 50
    assert outcome.refused["refused_malformed"] > 1_000
