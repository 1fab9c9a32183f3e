"""Does the log hear of refused input without drowning in it, and is everything counted?"""
import logging
import random

import pytest

from fabtap.complaints import SILENCE_S, Complaints


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def complaints(clock: Clock, caplog: pytest.LogCaptureFixture) -> Complaints:
    caplog.set_level(logging.WARNING)
    return Complaints("laser", logging.getLogger("complaints-test"), clock)


def test_the_first_of_a_kind_is_logged_at_once(complaints: Complaints, caplog: pytest.LogCaptureFixture) -> None:
    complaints.note("wrong_mac", "as seen")
    assert caplog.messages == ["laser: wrong_mac, 1 time(s) as seen"]


def test_within_a_minute_nothing_more_is_logged(complaints: Complaints, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    complaints.note("wrong_mac")
    clock.now_s += SILENCE_S - 0.001
    complaints.note("wrong_mac")
    assert len(caplog.messages) == 1


def test_after_a_minute_the_next_one_says_how_many_came_since(
        complaints: Complaints, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    complaints.note("wrong_mac")
    for _ in range(5):
        clock.now_s += 1
        complaints.note("wrong_mac", count=2)
    clock.now_s += SILENCE_S
    complaints.note("wrong_mac", "again")
    assert caplog.messages[1:] == ["laser: wrong_mac, 11 time(s) again"]
    clock.now_s += SILENCE_S
    complaints.note("wrong_mac")
    assert caplog.messages[2:] == ["laser: wrong_mac, 1 time(s) "]


def test_every_kind_has_a_minute_of_its_own(complaints: Complaints, caplog: pytest.LogCaptureFixture) -> None:
    complaints.note("wrong_mac")
    complaints.note("bad_line")
    complaints.note("bad_line")
    assert [message.split(", ")[0] for message in caplog.messages] == ["laser: wrong_mac", "laser: bad_line"]


def test_an_hour_of_floods_is_sixty_lines_a_kind_and_every_count_is_kept(
        complaints: Complaints, clock: Clock, caplog: pytest.LogCaptureFixture, rng: random.Random) -> None:
    noted = {"wrong_mac": 0, "bad_line": 0}
    taken = {"wrong_mac": 0, "bad_line": 0}
    for second in range(3600):
        for name in noted:
            count = rng.randrange(1, 20)
            complaints.note(name, count=count)
            noted[name] += count
        if second % 7 == 0:
            for name, count in complaints.take().items():
                taken[name] += count
        clock.now_s += 1
    for name, count in complaints.take().items():
        taken[name] += count
    assert taken == noted
    assert len(caplog.messages) == 2 * 60


def test_what_was_taken_is_not_taken_again(complaints: Complaints) -> None:
    complaints.note("wrong_mac", count=3)
    assert complaints.take() == {"wrong_mac": 3}
    assert complaints.take() == {}
    complaints.note("wrong_mac")
    assert complaints.take() == {"wrong_mac": 1}


def test_counts_that_could_not_be_stored_are_given_back(complaints: Complaints, caplog: pytest.LogCaptureFixture) -> None:
    complaints.note("wrong_mac", count=3)
    taken = complaints.take()
    complaints.note("wrong_mac")
    complaints.give_back(taken)
    assert complaints.take() == {"wrong_mac": 4}
    assert len(caplog.messages) == 1
