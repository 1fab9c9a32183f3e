"""Is a badge that is read badly still there, and is every new badge a tap of its own?"""
from nodecore import ticks
from nodecore.presence import Presence

ANNE, BERT = b"\x01\x02\x03\x04", b"\x0a\x0b\x0c\x0d"
GONE_MS = 300


def looks(presence, *seen, start=1000, every_ms=100):
    """What `presence` says to one look after the other, each `every_ms` behind the last; `start` is the first one's time."""
    return [presence.note(uid, (start + index * every_ms) & ticks.MASK, GONE_MS) for index, uid in enumerate(seen)]


def empty(now=1000):
    """A Presence that knows that no badge is there."""
    presence = Presence((now - GONE_MS) & ticks.MASK)
    assert presence.note(None, now & ticks.MASK, GONE_MS) == "absent"
    return presence


def test_an_empty_reader_is_absent_again_and_again():
    presence = empty()
    assert looks(presence, None, None, None) == ["absent"] * 3
    assert presence.current is None


def test_a_tap_is_told_at_the_first_look():
    presence = empty()
    assert looks(presence, ANNE) == ["tap"]
    assert presence.current == ANNE


def test_a_badge_that_lay_there_at_boot_is_no_tap_until_it_has_been_away():
    presence = Presence(900)
    assert looks(presence, ANNE, ANNE, None, None, None, ANNE) == ["there"] * 4 + ["absent", "tap"]


def test_a_badge_that_is_first_read_late_after_boot_is_no_tap_either():
    for first_look in (1000, 1000 + GONE_MS, 1000 + 50 * GONE_MS):
        presence = Presence(1000)
        assert looks(presence, ANNE, ANNE, start=first_look) == ["there", "there"], first_look
        assert presence.current == ANNE


def test_after_boot_an_empty_reader_is_absent_only_after_the_debounce():
    presence = Presence(1000)
    assert presence.note(None, 1000 + GONE_MS - 1, GONE_MS) == "there"
    assert presence.note(None, 1000 + GONE_MS, GONE_MS) == "absent"
    assert presence.note(ANNE, 1000 + GONE_MS + 1, GONE_MS) == "tap"


def test_a_badge_that_replaces_the_one_at_boot_is_first_an_absence():
    presence = Presence(900)
    assert looks(presence, ANNE, BERT, BERT, BERT, BERT) == ["there"] * 3 + ["absent", "tap"]


def test_after_a_reader_was_deaf_what_it_sees_is_no_tap():
    presence = empty()
    presence.forget(1000)
    assert looks(presence, ANNE, ANNE, None, None, None, ANNE) == ["there"] * 4 + ["absent", "tap"]
    presence.forget(2000)
    assert looks(presence, BERT, start=2100) == ["there"]
    assert presence.current == BERT


def test_a_badge_that_stays_is_one_tap():
    presence = empty()
    assert looks(presence, None, ANNE, ANNE, ANNE, ANNE) == ["absent", "tap", "there", "there", "there"]


def test_a_badge_that_is_missed_for_less_than_the_debounce_is_there():
    presence = empty()
    assert looks(presence, ANNE, None, None, ANNE, None, None, ANNE) == ["tap"] + ["there"] * 6
    assert presence.current == ANNE


def test_a_badge_is_gone_at_the_debounce_and_not_a_moment_before():
    presence = empty()
    presence.note(ANNE, 1000, GONE_MS)
    assert presence.note(None, 1000 + GONE_MS - 1, GONE_MS) == "there"
    assert presence.note(None, 1000 + GONE_MS, GONE_MS) == "absent"
    assert presence.current is None


def test_the_debounce_counts_from_the_last_time_it_was_seen():
    presence = empty()
    assert looks(presence, ANNE, ANNE, None, None, None) == ["tap", "there", "there", "there", "absent"]


def test_without_debounce_a_missed_look_is_an_absence():
    presence = empty()
    assert presence.note(ANNE, 1000, 0) == "tap"
    assert presence.note(ANNE, 1000, 0) == "there"
    assert presence.note(None, 1000, 0) == "absent"


def test_the_same_badge_again_is_a_new_tap_only_after_it_was_gone():
    presence = empty()
    assert looks(presence, ANNE, None, None, None, ANNE, ANNE) == ["tap", "there", "there", "absent", "tap", "there"]


def test_another_badge_is_first_an_absence_and_then_a_tap():
    presence = empty()
    assert looks(presence, ANNE, BERT, BERT) == ["tap", "there", "there"]
    # Whose badge counts has not changed yet: the session that runs is still the first one's.
    assert presence.current == ANNE
    assert looks(presence, BERT, BERT, BERT, start=1300) == ["absent", "tap", "there"]
    assert presence.current == BERT


def test_another_badge_that_is_seen_for_a_moment_changes_nothing():
    presence = empty()
    assert looks(presence, ANNE, BERT, ANNE, BERT, None, ANNE) == ["tap"] + ["there"] * 5
    assert presence.current == ANNE


def test_no_absence_is_ever_skipped_between_two_badges():
    presence = empty()
    said = looks(presence, *[ANNE] * 3 + [BERT] * 6 + [ANNE] * 6)
    taps = [index for index, word in enumerate(said) if word == "tap"]
    assert len(taps) == 3
    for index in taps[1:]:
        assert said[index - 1] == "absent"


def test_the_debounce_works_over_the_counters_wrap():
    start = ticks.MASK - 150
    presence = empty(start)
    assert looks(presence, ANNE, None, None, None, start=start) == ["tap", "there", "there", "absent"]
    assert looks(presence, ANNE, None, None, ANNE, None, start=start) == ["tap", "there", "there", "there", "there"]
