from zcompute.conductor.cell.liveness import Liveness
from zcompute.objects.host import HOST_DOWN, HOST_UNKNOWN, HOST_UP


def up(*hosts: str, at: float = 0.0) -> Liveness:
    liveness = Liveness()
    for host in hosts:
        liveness.begun(host, at)
    return liveness


def test_three_missed_beats_are_down_and_not_before():
    liveness = up("h1")
    assert liveness.check(6.0).down == ()
    assert liveness.check(6.1).down == ("h1",)


def test_a_finding_is_repeated_until_it_was_committed():
    liveness = up("h1")
    assert liveness.check(7.0).down == liveness.check(8.0).down == ("h1",)
    liveness.declared("h1", HOST_DOWN)
    assert liveness.check(9.0).down == ()


def test_three_beats_in_a_row_are_up_again():
    liveness = up("h1")
    liveness.check(7.0)
    liveness.declared("h1", HOST_DOWN)
    for at, expected in ((20.0, ()), (22.0, ()), (24.0, ("h1",))):
        liveness.beat("h1", at)
        assert liveness.check(at).up == expected


def test_a_beat_that_two_relays_hand_on_is_one():
    liveness = up("h1")
    liveness.declared("h1", HOST_DOWN)
    for at, expected in ((20.0, ()), (20.1, ()), (22.0, ()), (22.1, ()), (24.0, ("h1",))):
        assert liveness.beat("h1", at)
        assert liveness.check(at).up == expected
    assert not liveness.beat("h2", 24.0), "another's to watch"


def test_beats_with_a_gap_begin_to_count_anew():
    liveness = up("h1")
    liveness.declared("h1", HOST_DOWN)
    for at in (20.0, 22.0, 27.0, 29.0):
        liveness.beat("h1", at)
    assert liveness.check(29.0).up == ()
    liveness.beat("h1", 31.0)
    assert liveness.check(31.0).up == ("h1",)


def test_a_new_owner_knows_nothing_and_waits_as_long_as_for_any_other():
    liveness = Liveness()
    liveness.watch("h1", 100.0)
    assert liveness.state("h1") == HOST_UNKNOWN
    assert liveness.check(105.0).down == ()
    assert liveness.check(106.5).down == ("h1",)


def test_hosts_of_others_are_not_watched():
    liveness = up("h1")
    liveness.forget(["h1", "never seen"])
    liveness.beat("h1", 1.0)
    assert liveness.check(100.0).down == ()


def test_more_than_a_tenth_together_is_an_alarm_and_nobody_is_down():
    names = [f"h{number:02d}" for number in range(20)]
    liveness = up(*names)
    for name in names[3:]:
        liveness.beat(name, 5.0)
    findings = liveness.check(7.0)
    assert (findings.down, findings.vanished) == ((), ("h00", "h01", "h02"))
    liveness.beat("h00", 7.5)
    assert liveness.check(8.0).down == ("h01", "h02")


def test_few_hosts_may_all_be_down():
    names = [f"h{number:02d}" for number in range(10)]
    assert up(*names).check(7.0).down == tuple(names)


def test_state_follows_what_was_declared():
    liveness = up("h1")
    assert liveness.state("h1") == HOST_UP
    liveness.declared("h1", HOST_DOWN)
    assert liveness.state("h1") == HOST_DOWN
