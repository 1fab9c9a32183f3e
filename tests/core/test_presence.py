"""Is a badge that is read badly still there, and is every new badge a tap of its own?"""
from nodecore import ticks
from nodecore.presence import Presence

ANNE, BERT = b"\x01\x02\x03\x04", b"\x0a\x0b\x0c\x0d"
GONE_MS = 300


def looks(presence, *seen, start=1000, every_ms=100):
    """What `presence` says to one look after the other, each `every_ms` behind the last; `start` is the first one's time."""
    return [presence.note(uid, (start + index * every_ms) & ticks.MASK, GONE_MS) for index, uid in enumerate(seen)]


def test_an_empty_reader_is_absent_again_and_again():
    presence = Presence()
    assert looks(presence, None, None, None) == ["absent"] * 3
    assert presence.current is None


def test_a_badge_at_the_first_look_after_boot_is_a_tap():
    presence = Presence()
    assert looks(presence, ANNE) == ["tap"]
    assert presence.current == ANNE


def test_a_badge_that_stays_is_one_tap():
    presence = Presence()
    assert looks(presence, None, ANNE, ANNE, ANNE, ANNE) == ["absent", "tap", "there", "there", "there"]


def test_a_badge_that_is_missed_for_less_than_the_debounce_is_there():
    presence = Presence()
    assert looks(presence, ANNE, None, None, ANNE, None, None, ANNE) == ["tap"] + ["there"] * 6
    assert presence.current == ANNE


def test_a_badge_is_gone_at_the_debounce_and_not_a_moment_before():
    presence = Presence()
    presence.note(ANNE, 1000, GONE_MS)
    assert presence.note(None, 1000 + GONE_MS - 1, GONE_MS) == "there"
    assert presence.note(None, 1000 + GONE_MS, GONE_MS) == "absent"
    assert presence.current is None


def test_the_debounce_counts_from_the_last_time_it_was_seen():
    presence = Presence()
    assert looks(presence, ANNE, ANNE, None, None, None) == ["tap", "there", "there", "there", "absent"]


def test_without_debounce_a_missed_look_is_an_absence():
    presence = Presence()
    assert presence.note(ANNE, 1000, 0) == "tap"
    assert presence.note(ANNE, 1000, 0) == "there"
    assert presence.note(None, 1000, 0) == "absent"


def test_the_same_badge_again_is_a_new_tap_only_after_it_was_gone():
    presence = Presence()
    assert looks(presence, ANNE, None, None, None, ANNE, ANNE) == ["tap", "there", "there", "absent", "tap", "there"]


def test_another_badge_is_first_an_absence_and_then_a_tap():
    presence = Presence()
    assert looks(presence, ANNE, BERT, BERT) == ["tap", "there", "there"]
    # Whose badge counts has not changed yet: the session that runs is still the first one's.
    assert presence.current == ANNE
    assert looks(presence, BERT, BERT, BERT, start=1300) == ["absent", "tap", "there"]
    assert presence.current == BERT


def test_another_badge_that_is_seen_for_a_moment_changes_nothing():
    presence = Presence()
    assert looks(presence, ANNE, BERT, ANNE, BERT, None, ANNE) == ["tap"] + ["there"] * 5
    assert presence.current == ANNE


def test_no_absence_is_ever_skipped_between_two_badges():
    presence = Presence()
    said = looks(presence, *[ANNE] * 3 + [BERT] * 6 + [ANNE] * 6)
    taps = [index for index, word in enumerate(said) if word == "tap"]
    assert len(taps) == 3
    for index in taps[1:]:
        assert said[index - 1] == "absent"


def test_the_debounce_works_over_the_counters_wrap():
    start = ticks.MASK - 150
    presence = Presence()
    assert looks(presence, ANNE, None, None, None, start=start) == ["tap", "there", "there", "absent"]
    assert looks(presence, ANNE, None, None, ANNE, None, start=start) == ["tap", "there", "there", "there", "there"]
