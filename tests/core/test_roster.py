"""Is every badge of a roster found, is no other one, and what does a roster decide?"""
import gc
import io

from helpers import raises
from nodecore import frame, roster, words

TODAY = 2000


def hash_of(number):
    """Badge hashes that rise with `number`, with holes in between, over all 8 bytes."""
    return bytes((number >> 8 & 0xFF, number & 0xFF, 0xFF, 0x80, 0, 1, 0x7F, number * 7 & 0xFF))


def image(count):
    """The file of a roster with the badges 2, 4, 6, ..."""
    entries = [roster.pack_entry(hash_of(2 * number + 2), number + 1, roster.NEVER, 0) for number in range(count)]
    return roster.pack_head(7, count, 1767225600, bytes(32)) + b"".join(entries)


def find(data, count, hashed):
    """(found, buffer) of one look-up."""
    buffer = bytearray(roster.ENTRY_BYTES)
    return roster.find(io.BytesIO(data), count, hashed, buffer), buffer


def decide(last_day, reason, today=TODAY):
    """The reason that a roster gives to the member 42."""
    member, found = roster.decide(roster.pack_entry(hash_of(2), 42, last_day, reason), today)
    assert member == 42
    return found


def test_a_roster_has_the_bytes_of_the_first_one():
    assert roster.pack_head(0x04030201, 2, 0x14131211, b"d" * 32) == (
        b"FTR1" b"\x01\x02\x03\x04" b"\x02\x00\x00\x00" b"\x11\x12\x13\x14" + b"d" * 32)
    assert roster.pack_entry(b"hashhash", 0x04030201, 0x0605, 3) == b"hashhash" b"\x01\x02\x03\x04" b"\x05\x06" b"\x03" b"\x00"
    assert (roster.HEAD_BYTES, roster.ENTRY_BYTES, roster.NEVER, roster.MEMBERS_MAX) == (48, 16, 0xFFFF, 20000)


def test_days_count_from_the_first_of_2020():
    # Between 1970 and 2020 there were 12 leap years, 1972 to 2016.
    assert roster.DAY_ZERO == 50 * 365 + 12


def test_a_badge_is_known_by_the_first_8_bytes_of_its_mac():
    mac = frame.Mac(b"Jefe")
    uid = b"what do ya want for nothing?"
    assert roster.badge_hash(mac, uid) == mac.digest(uid)[:8] and len(roster.badge_hash(mac, uid)) == 8


def test_a_head_comes_back():
    head = roster.pack_head(9, roster.MEMBERS_MAX, 1767225600, b"d" * 32)
    assert roster.unpack_head(head) == (9, roster.MEMBERS_MAX, 1767225600, b"d" * 32)
    assert roster.unpack_head(head + b"entries")[0] == 9


def test_what_is_no_head_is_refused():
    head = roster.pack_head(9, 5, 1767225600, b"d" * 32)
    for size in range(roster.HEAD_BYTES):
        raises(roster.RosterError, roster.unpack_head, head[:size])
    raises(roster.RosterError, roster.unpack_head, b"FTR2" + head[4:])
    raises(roster.RosterError, roster.unpack_head, roster.pack_head(9, roster.MEMBERS_MAX + 1, 0, bytes(32)))


def test_the_order_of_hashes_is_that_of_their_bytes():
    hashes = [bytes(8), b"\x00" * 7 + b"\x01", hash_of(1), hash_of(256), b"\x7f" * 8, b"\x80" + bytes(7), b"\xff" * 8]
    for one in hashes:
        for other in hashes:
            expected = (one > other) - (one < other)
            assert roster.compare(one, roster.pack_entry(other, 0xFFFFFFFF, 1, 1)) == expected, (one, other)


def test_every_badge_is_found_and_none_in_between():
    for count in (1, 2, 3, 4, 7):
        data = image(count)
        for number in range(2 * count + 2):
            found, buffer = find(data, count, hash_of(number + 1))
            assert found == (number % 2 == 1 and number < 2 * count), (count, number)
            if found:
                assert bytes(buffer) == roster.pack_entry(hash_of(number + 1), (number + 1) // 2, roster.NEVER, 0)


def test_in_an_empty_roster_nobody_is_found():
    assert not find(image(0), 0, hash_of(2))[0]


def test_in_a_large_roster_first_middle_and_last_are_found():
    count = 5000
    data = image(count)
    for number in (1, 2, 2499, 2500, 2501, 4999, 5000):
        found, buffer = find(data, count, hash_of(2 * number))
        assert found and roster.decide(buffer, None) == (number, 0), number
    for number in (0, 1, 5001, 10001, 10002):
        assert not find(data, count, hash_of(number))[0], number
    for hashed in (bytes(8), b"\xff" * 8):
        assert not find(data, count, hashed)[0]


def test_a_truncated_file_is_an_error_and_no_refusal():
    data = image(4)
    for size in range(roster.HEAD_BYTES, len(data)):
        raises(roster.RosterError, find, data[:size], 4, hash_of(99))
    assert not find(data, 4, hash_of(99))[0]


def test_a_training_without_end_needs_no_clock():
    assert decide(roster.NEVER, 0) == 0
    assert decide(roster.NEVER, 0, None) == 0


def test_a_training_is_valid_on_its_last_day():
    assert decide(TODAY, 0) == 0
    assert decide(TODAY - 1, 0) == roster.TRAINING_EXPIRED
    assert decide(TODAY + 1, 0) == 0
    assert decide(0, 0) == roster.TRAINING_EXPIRED
    assert decide(0, 0, 0) == 0
    assert decide(roster.NEVER - 1, 0) == 0


def test_without_a_clock_a_training_with_an_end_is_refused():
    assert decide(TODAY, 0, None) == roster.CLOCK_UNKNOWN
    # The first day there is is not the same as no clock.
    assert decide(5, 0, 0) == 0


def test_a_reason_of_the_roster_stands_whatever_the_day():
    for reason in (2, 4):
        for last_day in (roster.NEVER, TODAY, TODAY - 1):
            for today in (TODAY, None):
                assert decide(last_day, reason, today) == reason


def test_the_reasons_are_those_of_the_wire():
    assert words.REASONS[roster.UNKNOWN_BADGE] == "unknown_badge"
    assert words.REASONS[roster.TRAINING_EXPIRED] == "training_expired"
    assert words.REASONS[roster.CLOCK_UNKNOWN] == "clock_unknown"


def find_reading_anew(file, count, hashed, buffer):
    """A look-up that reads each entry into new memory: the control."""
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        file.seek(roster.HEAD_BYTES + middle * roster.ENTRY_BYTES)
        if file.read(roster.ENTRY_BYTES)[:roster.HASH_BYTES] < hashed:
            low = middle + 1
        else:
            high = middle
    return False


def allocated_bytes(look_up, count):
    """Bytes that 20 look-ups leave on the heap; the collector is off meanwhile."""
    file = io.BytesIO(image(count))
    buffer = bytearray(roster.ENTRY_BYTES)
    hashed = hash_of(2 * count + 1)
    look_up(file, count, hashed, buffer)
    gc.collect()
    gc.disable()
    try:
        before = gc.mem_alloc()
        for _ in range(20):
            look_up(file, count, hashed, buffer)
        return gc.mem_alloc() - before
    finally:
        gc.enable()


def test_what_a_look_up_allocates_does_not_grow_with_the_roster():
    if hasattr(gc, "mem_alloc"):
        assert allocated_bytes(roster.find, 50) == allocated_bytes(roster.find, 5000)


def test_a_look_up_that_reads_anew_would_be_seen_to_grow():
    if hasattr(gc, "mem_alloc"):
        assert allocated_bytes(find_reading_anew, 50) < allocated_bytes(find_reading_anew, 5000)
