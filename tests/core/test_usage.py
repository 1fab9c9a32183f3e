"""Is a session's time what the relay and the meter say, and does it stop when the relay opens?"""
from nodecore import ticks
from nodecore.usage import Usage


def test_a_session_bears_the_number_of_its_first_event():
    used = Usage(17, 4, 1000)
    assert (used.seq, used.member, used.working_ms, used.reason) == (17, 4, 0, 0)


def test_time_runs_while_the_relay_is_on():
    used = Usage(17, 4, 1000)
    assert [used.on_ms(now) for now in (1000, 1001, 61000)] == [0, 1, 60000]


def test_time_stands_still_once_the_relay_is_open():
    used = Usage(17, 4, 1000)
    used.close(5000, 2)
    assert [used.on_ms(now) for now in (5000, 9000)] == [4000, 4000]
    assert used.reason == 2


def test_a_session_of_no_time_at_all_stays_at_zero():
    used = Usage(17, 4, 1000)
    used.close(1000, 1)
    assert used.on_ms(9000) == 0


def test_only_the_first_end_counts():
    for first in (1000, 5000):
        used = Usage(17, 4, 1000)
        used.close(first, 3)
        used.close(8000, 7)
        assert (used.on_ms(9000), used.reason) == (first - 1000, 3)


def test_the_meters_intervals_of_work_are_added_up():
    used = Usage(17, 4, 1000)
    for duration_ms, now in ((1000, 2000), (0, 2500), (1, 2501), (499, 3500)):
        used.note(duration_ms, now)
    assert used.working_ms == 1500


def test_the_meters_last_interval_counts_after_the_relay_opened():
    used = Usage(17, 4, 1000)
    used.note(3000, 4000)
    used.close(5000, 1)
    used.note(700, 5400)
    assert (used.working_ms, used.on_ms(9000)) == (3700, 4000)


def test_work_never_lasts_longer_than_the_relay_was_on():
    used = Usage(17, 4, 1000)
    # The first interval had begun before the relay closed.
    used.note(1000, 1300)
    assert used.working_ms == 300
    used.close(2000, 1)
    used.note(1000, 2600)
    assert (used.working_ms, used.on_ms(2600)) == (1000, 1000)


def test_time_runs_over_the_counters_wrap():
    used = Usage(17, 4, ticks.MASK - 99)
    assert used.on_ms(400) == 500
    used.close(400, 1)
    assert used.on_ms(900) == 500
