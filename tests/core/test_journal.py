"""Is an event that was promised ever lost, changed or given a number that another one had, whatever flash does?"""
import random
from binascii import crc32, hexlify

from helpers import raises
from nodecore import wire
from nodecore.journal import RECORD_MIN_BYTES, RESERVE_RECORDS, TRIM_MAX, Journal, JournalFull, decode_records, encode_record

NEW_ID = bytes(range(1, 9))
SEGMENT_BYTES = 120
CAPACITY = 60
SEED = 21


class MemoryStorage:
    """Flash in memory, with the methods that journal.py's docstring lists.

    `fail_bytes` makes the next append write only so many bytes and raise OSError; -1 lets it not even make the file.
    `fail_note_bytes` does the same to the next note; -1 leaves the old one. `removed` keeps (name, bytes) of every file that was
    removed.
    """

    def __init__(self):
        self.files = {}
        self.removed = []
        self.reads = 0
        self.fail_bytes = None
        self.note = b""
        self.fail_note_bytes = None

    def read_note(self):
        return self.note

    def write_note(self, data):
        if self.fail_note_bytes is None:
            self.note = data
            return
        written, self.fail_note_bytes = self.fail_note_bytes, None
        if written >= 0:
            self.note = data[:written]
        raise OSError(5)

    def folders(self):
        return list(self.files)

    def names(self, folder):
        return list(self.files[folder])

    def make_folder(self, name):
        self.files[name] = {}

    def read(self, folder, name):
        self._must_be(folder, name)
        self.reads += 1
        return self.files[folder][name]

    def append(self, folder, name, data):
        files = self.files[folder]
        if self.fail_bytes is None:
            files[name] = files.get(name, b"") + data
            return
        written, self.fail_bytes = self.fail_bytes, None
        if written >= 0:
            files[name] = files.get(name, b"") + data[:written]
        raise OSError(5)

    def remove(self, folder, name):
        self._must_be(folder, name)
        self.removed.append((name, self.files[folder].pop(name)))

    def _must_be(self, folder, name):
        if name not in self.files[folder]:
            raise OSError(2)

    def segments(self):
        """Names of all segments, in order."""
        return sorted(self.files[self.folders()[0]])

    def flip(self, name, bit):
        """One bit of a segment turns over."""
        files = self.files[self.folders()[0]]
        data = bytearray(files[name])
        data[bit >> 3] ^= 1 << (bit & 7)
        files[name] = bytes(data)

    def copy(self):
        """The same flash, before anything more happens to it."""
        other = MemoryStorage()
        other.files = {folder: dict(files) for folder, files in self.files.items()}
        other.note = self.note
        return other


def opened(storage, segment_bytes=SEGMENT_BYTES, capacity=CAPACITY):
    """The journal after a boot."""
    journal = Journal(storage, segment_bytes, capacity)
    journal.open(NEW_ID)
    return journal


def note(journal, boot=1, member=7, reserve=RESERVE_RECORDS):
    """Append one event of 29 bytes, of 34 in flash; returns its seq."""
    return journal.append("session_started", boot, 1000, {"member": member, "energy_mwh_total": member}, reserve)


def note_ahead(journal, boot=1, member=7):
    """The same event by way of the note, not settled yet."""
    return journal.note_ahead("session_started", boot, 1000, {"member": member, "energy_mwh_total": member})


def filled(count, storage=None):
    """(storage, journal) with `count` events; three of them make a segment."""
    storage = storage or MemoryStorage()
    journal = opened(storage)
    for number in range(count):
        note(journal, 1 + number // 4, 100 + number, 0)
    return storage, journal


def all_events(journal, seq=1, bytes_max=400):
    """What a reader gets that goes on behind what it got."""
    found = []
    while True:
        events = journal.read(seq, bytes_max)
        if not events:
            return found
        found += events
        seq = wire.event_seq(events[-1]) + 1


def seqs(events):
    """Their numbers."""
    return [wire.event_seq(event) for event in events]


def decode_without_crc(data):
    """What decode_records would be without its check: the control."""
    events, position = [], 0
    while position < len(data):
        end = position + 1 + data[position]
        if not wire.EVENT_HEAD_BYTES <= data[position] <= wire.EVENT_MAX or end + 4 > len(data):
            break
        events.append(bytes(data[position + 1:end]))
        position = end + 4
    return events


# Records.

def test_a_record_is_length_event_and_crc():
    event = bytes(range(20))
    body = b"\x14" + event
    crc = crc32(body)
    assert encode_record(event) == body + bytes([crc >> shift & 0xFF for shift in (0, 8, 16, 24)])


def test_records_of_every_size_come_back():
    data, events = b"", []
    for size in range(wire.EVENT_HEAD_BYTES, wire.EVENT_MAX + 1):
        events.append(bytes([size]) * size)
        data += encode_record(events[-1])
    assert decode_records(data) == (events, len(data))
    assert decode_records(b"") == ([], 0)
    assert len(encode_record(bytes(wire.EVENT_HEAD_BYTES))) == RECORD_MIN_BYTES


def test_an_event_of_a_size_that_none_has_is_no_record():
    for size in (0, 1, wire.EVENT_HEAD_BYTES - 1, wire.EVENT_MAX + 1, 255):
        assert decode_records(encode_record(bytes(size))) == ([], 0), size


def test_a_torn_tail_leaves_the_records_before_it():
    events = [bytes([number]) * 20 for number in range(3)]
    data = b"".join([encode_record(event) for event in events])
    for size in range(len(data)):
        assert decode_records(data[:size]) == (events[:size // 25], size // 25 * 25), size


def flipped_records():
    """(events, data with one bit flipped, in which event) for every bit of three records."""
    events = [bytes([number]) * 20 for number in range(3)]
    data = b"".join([encode_record(event) for event in events])
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        yield events, bytes(damaged), bit // 200


def test_no_flipped_bit_is_taken_for_an_event():
    for events, damaged, index in flipped_records():
        assert decode_records(damaged) == (events[:index], index * 25)


def test_without_the_crc_flipped_bits_would_be_taken_for_events():
    wrong = 0
    for events, damaged, _ in flipped_records():
        wrong += any(event not in events for event in decode_without_crc(damaged))
    assert wrong > 400


# Formatting and boots.

def test_an_empty_flash_is_formatted_under_the_new_name():
    storage = MemoryStorage()
    journal = opened(storage)
    assert journal.journal_id == NEW_ID and storage.folders() == [hexlify(NEW_ID).decode()]
    assert (journal.first_seq, journal.next_seq, journal.acked_seq, journal.last_boot) == (1, 1, 0, 0)
    assert journal.read(1, 400) == []


def test_a_second_boot_keeps_name_numbers_and_events():
    storage, journal = filled(7)
    before = all_events(journal)
    again = Journal(storage, SEGMENT_BYTES, CAPACITY)
    again.open(b"otherone")
    assert again.journal_id == NEW_ID and len(storage.folders()) == 1
    assert (again.first_seq, again.next_seq, again.last_boot) == (1, 8, 2)
    assert all_events(again) == before and len(before) == 7
    assert note(again) == 8


def test_a_boot_that_wrote_nothing_changes_nothing():
    storage, _ = filled(4)
    before = storage.copy().files
    for _ in range(3):
        assert opened(storage).next_seq == 5
    assert storage.files == before


def test_numbers_begin_at_one_and_grow_by_one():
    journal = opened(MemoryStorage())
    assert [note(journal) for _ in range(10)] == list(range(1, 11))
    assert seqs(all_events(journal)) == list(range(1, 11))


def test_an_event_is_the_wires_bytes():
    journal = opened(MemoryStorage())
    values = {"member": 5, "energy_mwh_total": 6}
    journal.append("session_started", 3, 2**40, values)
    assert journal.read(1, 400) == [wire.encode_event("session_started", 1, 3, 2**40, values)]


def test_a_segment_is_named_for_its_first_event_and_keeps_its_size():
    storage, _ = filled(10)
    assert storage.segments() == ["00000001", "00000004", "00000007", "0000000a"]
    assert max([len(data) for data in storage.files[storage.folders()[0]].values()]) <= SEGMENT_BYTES


def test_a_segment_may_be_filled_to_its_last_byte():
    storage = MemoryStorage()
    journal = opened(storage, 3 * 34)
    for _ in range(4):
        note(journal)
    assert storage.segments() == ["00000001", "00000004"]


def test_a_segment_keeps_its_size_over_boots():
    storage = MemoryStorage()
    for _ in range(7):
        note(opened(storage))
    assert storage.segments() == ["00000001", "00000004", "00000007"]


def test_a_boot_goes_on_in_the_last_segment():
    storage, _ = filled(4)
    note(opened(storage))
    assert storage.segments() == ["00000001", "00000004"]


def test_an_event_that_the_table_does_not_know_costs_no_number():
    storage, journal = filled(2)
    raises(KeyError, journal.append, "no_such_event", 1, 1, {})
    assert note(journal) == 3 and seqs(all_events(opened(storage))) == [1, 2, 3]


# Torn writes.

def torn_at(count, written):
    """Storage with `count` events and one whose writing stopped after so many bytes."""
    storage, journal = filled(count)
    storage.fail_bytes = written
    raises(OSError, note, journal, 9, 999)
    return storage, journal


def test_a_failed_append_is_no_event_and_the_next_one_has_its_number():
    # Behind two events there is room in the segment, behind three the write begins a new one.
    for count in (0, 2, 3):
        for written in range(-1, 35):
            storage, journal = torn_at(count, written)
            before = seqs(all_events(journal))
            assert before == list(range(1, count + 1)), (count, written)
            assert note(journal, 9, 500) == count + 1, (count, written)
            events = all_events(journal)
            assert seqs(events) == list(range(1, count + 2)), (count, written)
            assert wire.decode_event(events[-1])["member"] == 500, (count, written)
            assert all_events(opened(storage)) == events, (count, written)


def test_one_append_that_fails_again_and_again_is_made_up_for():
    for written in (-1, 0, 10, 30, 34):
        storage, journal = filled(3)
        for _ in range(4):
            storage.fail_bytes = written
            raises(OSError, note, journal)
        assert note(journal, 9, 500) == 4, written
        assert seqs(all_events(opened(storage))) == [1, 2, 3, 4], written


def test_a_torn_tail_loses_no_promised_event_and_no_number_is_used_twice():
    for count in (0, 2, 3):
        for written in range(-1, 35):
            storage, journal = torn_at(count, written)
            promised = all_events(journal)
            again = opened(storage)
            assert all_events(again)[:count] == promised
            seq = note(again, 10, 500)
            # A record that is there as a whole counts as written; the number of one that is not may be used or left out.
            assert seq == count + 2 if written == 34 else count < seq <= count + 1 + max(0, written) // RECORD_MIN_BYTES
            assert wire.event_seq(all_events(again)[-1]) == seq
            assert all_events(opened(storage)) == all_events(again)


def test_a_short_torn_tail_leaves_no_hole():
    for written in range(RECORD_MIN_BYTES):
        storage, _ = torn_at(2, written)
        assert note(opened(storage)) == 3


def test_two_torn_boots_in_a_row_do_no_harm():
    for first in range(-1, 35):
        for second in range(-1, 35):
            storage, journal = torn_at(2, first)
            promised = all_events(journal)
            again = opened(storage)
            storage.fail_bytes = second
            raises(OSError, note, again, 10, 998)
            last = opened(storage)
            assert all_events(last)[:2] == promised
            used = seqs(all_events(last))
            seq = note(last, 11, 500)
            assert seq not in used and used == sorted(used), (first, second)
            assert all_events(opened(storage)) == all_events(last), (first, second)


def test_an_empty_segment_is_removed_at_boot():
    storage, _ = filled(3)
    storage.append(storage.folders()[0], "00000004", b"")
    again = opened(storage)
    assert (again.first_seq, again.next_seq, storage.segments()) == (1, 4, ["00000001"])
    assert note(again) == 4


def test_an_empty_segment_alone_is_a_new_journal():
    storage = MemoryStorage()
    storage.make_folder(hexlify(NEW_ID).decode())
    storage.append(storage.folders()[0], "00000001", b"")
    again = opened(storage)
    assert (again.first_seq, again.next_seq) == (1, 1) and note(again) == 1


# The note.

def noted(count):
    """(storage, journal) with `count` events and one that is only noted."""
    storage, journal = filled(count)
    assert note_ahead(journal, 9, 500) == count + 1
    return storage, journal


def members(journal):
    """Whom the events name, in order."""
    return [wire.decode_event(event)["member"] for event in all_events(journal)]


def test_a_noted_event_is_appended_to_nothing_until_it_is_settled():
    storage, journal = noted(2)
    assert seqs(all_events(journal)) == [1, 2] and not journal.acknowledge(3)
    journal.settle()
    assert members(journal) == [100, 101, 500] and journal.acknowledge(3)
    journal.settle()
    assert members(journal) == [100, 101, 500] and len(decode_records(storage.read(storage.folders()[0], "00000001"))[0]) == 3


def test_the_next_event_is_behind_the_noted_one():
    for count in (0, 2, 3):
        _, journal = noted(count)
        assert note(journal, 9, 501) == count + 2
        assert note_ahead(journal, 9, 502) == count + 3
        assert note_ahead(journal, 9, 503) == count + 4
        journal.settle()
        assert members(journal)[count:] == [500, 501, 502, 503]


def test_a_noted_event_survives_a_boot_once():
    for count in (0, 2, 3):
        storage, _ = noted(count)
        again = opened(storage)
        assert members(again)[count:] == [500] and again.last_boot == 9, count
        assert members(opened(storage)) == members(again)
        assert note(again, 10, 501) == count + 2
        assert members(opened(storage))[count:] == [500, 501]


def test_a_noted_event_keeps_its_number_though_all_segments_are_gone():
    storage, _ = noted(2)
    storage.files[storage.folders()[0]].clear()
    again = opened(storage)
    assert (again.first_seq, again.next_seq, again.acked_seq, again.last_boot) == (3, 4, 2, 9)
    assert members(again) == [500]


def test_a_note_that_was_settled_is_not_taken_again():
    storage, journal = noted(2)
    journal.settle()
    assert members(opened(storage)) == [100, 101, 500]
    note(journal, 9, 501)
    assert members(opened(storage)) == [100, 101, 500, 501] and opened(storage).next_seq == 5


def test_a_noted_event_survives_every_way_in_which_settling_stops():
    for count in (2, 3):
        for written in range(-1, 35):
            storage, journal = noted(count)
            storage.fail_bytes = written
            raises(OSError, journal.settle)
            again = opened(storage.copy())
            assert members(again)[count:] == [500] and again.next_seq == count + 2, (count, written)
            assert seqs(all_events(again)) == list(range(1, count + 2)), (count, written)
            note(journal, 9, 501)
            assert members(journal)[count:] == members(opened(storage))[count:] == [500, 501], (count, written)


def test_an_event_whose_note_failed_is_none_and_its_number_is_used():
    for written in range(-1, 42):
        storage, journal = filled(2)
        storage.fail_note_bytes = written
        raises(OSError, note_ahead, journal, 9, 500)
        assert members(journal) == [100, 101]
        # Unless all of it is there, the boot does not find it either.
        assert members(opened(storage.copy())) == [100, 101], written
        assert note(journal, 9, 501) == 3
        assert members(opened(storage)) == [100, 101, 501]


def test_a_failed_note_that_is_there_as_a_whole_never_takes_the_number_of_another_event():
    storage, journal = filled(2)
    storage.fail_note_bytes = 42
    raises(OSError, note_ahead, journal, 9, 500)
    assert members(opened(storage.copy())) == [100, 101, 500]
    assert note(journal, 9, 501) == 3
    assert members(opened(storage)) == [100, 101, 501]


def test_a_damaged_or_foreign_note_is_not_taken():
    origin, _ = noted(2)
    assert len(origin.note) == len(NEW_ID) + 34
    for bit in range(len(origin.note) * 8):
        storage = origin.copy()
        data = bytearray(storage.note)
        data[bit >> 3] ^= 1 << (bit & 7)
        storage.note = bytes(data)
        assert members(opened(storage)) == [100, 101], bit
    empty = MemoryStorage()
    empty.note = b"otherone" + origin.note[8:]
    assert opened(empty).next_seq == 1


def test_a_flash_that_refuses_at_boot_keeps_the_note_and_lets_the_node_start():
    storage, _ = noted(2)
    storage.fail_bytes = -1
    again = opened(storage)
    assert members(again) == [100, 101] and again.next_seq == 3
    assert note(again, 10, 501) == 4
    assert members(again) == [100, 101, 500, 501]


def test_a_note_behind_a_failed_append_survives_a_boot():
    for count in (2, 3):
        for written in range(-1, 35):
            storage, journal = torn_at(count, written)
            note_ahead(journal, 9, 500)
            again = opened(storage)
            assert members(again)[-1] == 500 and members(again)[:count] == [100, 101, 102][:count], (count, written)


def test_a_full_journal_refuses_a_note_and_keeps_its_reserve():
    storage, journal = filled(CAPACITY - RESERVE_RECORDS - 1)
    note_ahead(journal)
    raises(JournalFull, note_ahead, journal)
    raises(JournalFull, note, journal)
    for _ in range(RESERVE_RECORDS):
        note(journal, reserve=0)
    raises(JournalFull, note, journal, 1, 1, 0)
    assert len(all_events(journal)) == CAPACITY


def test_a_note_does_not_fill_a_journal_beyond_its_capacity():
    _, journal = filled(CAPACITY - RESERVE_RECORDS - 1)
    note_ahead(journal)
    for _ in range(RESERVE_RECORDS):
        note(journal, reserve=0)
    assert journal.room() == 0


# Flipped bits: littlefs does not see them.

def test_no_flipped_bit_makes_a_number_or_a_boot_be_used_twice():
    origin, journal = filled(8)
    promised = all_events(journal)
    for name in origin.segments():
        for bit in range(len(origin.read(origin.folders()[0], name)) * 8):
            storage = origin.copy()
            storage.flip(name, bit)
            again = opened(storage)
            assert again.last_boot >= 2, (name, bit)
            seq = note(again, 3, 500)
            assert seq > 8, (name, bit)
            events = all_events(again)
            # What can be read is what was promised, the other segments are whole, and the new event is reached.
            assert all([event in promised for event in events[:-1]]), (name, bit)
            assert len(events) >= 8 - 3 + 1 and wire.event_seq(events[-1]) == seq, (name, bit)
            assert seqs(events) == sorted(seqs(events))


def test_a_boot_whose_only_event_is_damaged_still_counts():
    for count in (2, 3):
        # The last boot's event is the third of a segment, or the first of one.
        origin = MemoryStorage()
        for boot in range(1, count + 2):
            note(opened(origin), boot)
        name = origin.segments()[-1]
        for bit in range(34 * 8):
            storage = origin.copy()
            storage.flip(name, count % 3 * 34 * 8 + bit)
            assert opened(storage).last_boot >= count + 1, (count, bit)
        assert opened(origin).last_boot == count + 1


def test_a_journal_of_which_nothing_can_be_read_gives_no_boot_number_twice():
    origin = MemoryStorage()
    for boot in range(1, 9):
        note(opened(origin), boot)
    for bits in range(0, 20 * 8, 7):
        storage = origin.copy()
        for name in storage.segments():
            for start in range(0, len(storage.read(storage.folders()[0], name)), 34):
                storage.flip(name, start * 8 + bits)
        again = opened(storage)
        assert again.last_boot >= 8 and again.next_seq > 8, bits


def test_damage_costs_the_same_numbers_at_every_boot():
    for bit in range(0, 64, 5):
        storage, _ = filled(7)
        storage.flip("00000007", bit)
        first = opened(storage)
        assert note(opened(storage.copy()), 3) == first.next_seq == opened(storage).next_seq >= 8
        # And a torn write behind it does not give them back.
        storage.fail_bytes = 5
        raises(OSError, note, first)
        assert opened(storage).next_seq == first.next_seq


def test_reading_goes_on_behind_a_damaged_record():
    storage, journal = filled(9)
    storage.flip("00000004", 34 * 8 + 50)
    assert seqs(all_events(journal)) == [1, 2, 3, 4, 7, 8, 9]
    assert seqs(journal.read(5, 400)) == [7, 8, 9]
    assert seqs(all_events(opened(storage))) == [1, 2, 3, 4, 7, 8, 9]


# Reading.

def test_a_batch_ends_at_its_size_and_at_its_segment():
    _, journal = filled(7)
    for bytes_max, expected in ((400, [1, 2, 3]), (90, [1, 2, 3]), (89, [1, 2]), (60, [1, 2]), (59, [1]), (1, [1]), (0, [1])):
        assert seqs(journal.read(1, bytes_max)) == expected, bytes_max
    assert seqs(journal.read(2, 400)) == [2, 3]
    assert seqs(journal.read(3, 400)) == [3]
    assert seqs(journal.read(4, 400)) == [4, 5, 6]
    assert journal.read(8, 400) == [] and journal.read(9000, 400) == []


def test_what_was_dropped_is_passed_over():
    _, journal = filled(0)
    for _ in range(2 * CAPACITY):
        journal.acknowledge(note(journal))
    assert journal.first_seq > 10
    for seq in (1, 10, journal.first_seq):
        assert wire.event_seq(journal.read(seq, 400)[0]) == journal.first_seq


def test_reading_looks_into_one_segment():
    storage, journal = filled(30)
    for seq in range(1, 31):
        storage.reads = 0
        assert wire.event_seq(journal.read(seq, 400)[0]) == seq
        assert storage.reads == 1, seq


def test_every_batch_size_gives_every_event_once():
    _, journal = filled(20)
    for bytes_max in (1, 30, 60, 61, 400):
        assert seqs(all_events(journal, 1, bytes_max)) == list(range(1, 21)), bytes_max


# Acknowledgements, space.

def test_an_acknowledgement_never_goes_back_and_never_claims_the_future():
    _, journal = filled(5)
    assert journal.acknowledge(3) and journal.acked_seq == 3
    assert journal.acknowledge(2) and journal.acked_seq == 3
    assert journal.acknowledge(0) and journal.acked_seq == 3
    assert not journal.acknowledge(6) and journal.acked_seq == 3
    assert not journal.acknowledge(2**32 - 1) and journal.acked_seq == 3
    assert journal.acknowledge(5) and journal.acked_seq == 5


def test_a_full_journal_refuses_sessions_but_lets_one_end():
    journal = opened(MemoryStorage())
    for _ in range(CAPACITY - RESERVE_RECORDS):
        note(journal)
    assert journal.room() == RESERVE_RECORDS
    raises(JournalFull, note, journal)
    for _ in range(RESERVE_RECORDS):
        note(journal, reserve=0)
    assert journal.room() == 0
    raises(JournalFull, note, journal, 1, 1, 0)
    assert len(all_events(journal)) == CAPACITY == journal.next_seq - 1


def test_a_full_journal_loses_nothing_and_takes_events_again_when_acknowledged():
    storage, journal = filled(CAPACITY)
    raises(JournalFull, note, journal, 1, 1, 0)
    assert storage.removed == [] and len(all_events(journal)) == CAPACITY
    raises(JournalFull, note, opened(storage.copy()), 1, 1, 0)
    assert journal.acknowledge(RESERVE_RECORDS)
    raises(JournalFull, note, journal)
    assert journal.acknowledge(RESERVE_RECORDS + 1)
    assert note(journal) == CAPACITY + 1
    raises(JournalFull, note, journal)


def test_what_is_acknowledged_stays_until_half_the_journal_is_kept():
    storage, journal = filled(0)
    for _ in range(CAPACITY // 2):
        journal.acknowledge(note(journal))
    assert storage.removed == [] and journal.first_seq == 1
    for _ in range(5 * CAPACITY):
        journal.acknowledge(note(journal))
        assert CAPACITY // 2 - 2 <= journal.next_seq - journal.first_seq <= CAPACITY // 2 + 3
    assert seqs(all_events(journal, journal.first_seq)) == list(range(journal.first_seq, journal.next_seq))


def test_only_acknowledged_events_are_dropped():
    for acked, dropped in ((5, ["00000001"]), (6, ["00000001", "00000004"]), (8, ["00000001", "00000004"])):
        storage, journal = filled(8)
        journal.acknowledge(acked)
        for _ in range(CAPACITY - 8):
            note(journal, reserve=0)
        # A segment goes only when all of it is acknowledged.
        assert [name for name, _ in storage.removed] == dropped, acked
        assert seqs(all_events(journal)) == list(range(3 * len(dropped) + 1, CAPACITY + 1))


def test_after_an_outage_segments_go_a_few_at_a_time():
    """Each costs flash time, and a member may be waiting for the append."""
    storage, journal = filled(CAPACITY)
    journal.acknowledge(CAPACITY)
    most, kept = 0, []
    for _ in range(60):
        before = len(storage.removed)
        note(journal)
        journal.acknowledge(journal.next_seq - 1)
        most = max(most, len(storage.removed) - before)
        kept.append(journal.next_seq - journal.first_seq)
    assert most == TRIM_MAX
    assert max(kept[-9:]) <= CAPACITY // 2 + 3, "it never catches up"


class SmallStorage(MemoryStorage):
    """Flash that holds only so many segments; what is full says so with OSError 28."""

    segments_max = 8

    def append(self, folder, name, data):
        if name not in self.files[folder] and len(self.files[folder]) >= self.segments_max:
            raise OSError(28)
        MemoryStorage.append(self, folder, name, data)


def test_a_flash_that_is_full_too_early_gets_back_what_is_acknowledged():
    storage, journal = filled(24, SmallStorage())
    raises(OSError, note, journal, 2, 7, 0)
    assert seqs(all_events(journal)) == list(range(1, 25)), "what nobody has was dropped"
    journal.acknowledge(20)
    for seq in range(25, 60):
        assert note(journal, 2, 7, 0) == seq
        journal.acknowledge(seq - 2)
    assert seqs(all_events(opened(storage)))[-1] == 59


def test_the_segment_that_is_written_is_never_dropped():
    storage = MemoryStorage()
    journal = opened(storage, 34 * CAPACITY)
    for _ in range(CAPACITY + 1):
        journal.acknowledge(note(journal))
    assert storage.segments() == ["00000001", "%08x" % (CAPACITY + 1)] and storage.removed == []
    note(journal)
    assert seqs(all_events(journal, CAPACITY)) == [CAPACITY, CAPACITY + 1, CAPACITY + 2]


def test_after_a_boot_without_network_an_acknowledged_journal_has_room():
    storage, journal = filled(0)
    for _ in range(5 * CAPACITY):
        journal.acknowledge(note(journal))
    again = opened(storage)
    assert again.acked_seq == again.first_seq - 1 > 0
    assert again.room() >= CAPACITY // 2 - 3 > RESERVE_RECORDS
    note(again)


# Everything at once.

class Soak:
    """Random use of one journal, with a collector that takes what it is given; every step is checked."""

    def __init__(self):
        self.storage = MemoryStorage()
        self.journal = opened(self.storage)
        self.promised = {}
        self.given = {}
        self.durable = 0
        self.boot = 1

    def append(self):
        """One event, in the journal or only noted; one of four writes fails, anywhere."""
        member = random.getrandbits(30)
        if random.randrange(4) == 0:
            self.storage.fail_bytes = random.randrange(-1, 35)
        if random.randrange(8) == 0:
            self.storage.fail_note_bytes = random.randrange(-1, 43)
        try:
            seq = note_ahead(self.journal, self.boot, member) if random.randrange(3) == 0 else note(
                self.journal, self.boot, member, 0)
        except (OSError, JournalFull):
            return
        finally:
            self.storage.fail_bytes = self.storage.fail_note_bytes = None
        assert seq not in self.promised and seq not in self.given
        self.promised[seq] = wire.encode_event("session_started", seq, self.boot, 1000,
                                               {"member": member, "energy_mwh_total": member})

    def drain(self):
        """The collector asks for what it lacks, and acknowledges some of it."""
        self.journal.settle()
        events = all_events(self.journal, self.durable + 1)
        for event in events:
            seq = wire.event_seq(event)
            assert self.promised.get(seq, event) == event and self.given.get(seq, event) == event
            self.given[seq] = event
        lacking = [seq for seq in self.promised if seq > self.durable and seq not in seqs(events)]
        assert lacking == [], lacking
        if events:
            self.durable = wire.event_seq(events[random.randrange(len(events))])
            assert self.journal.acknowledge(self.durable)

    def reboot(self):
        """Power off and on."""
        self.journal = opened(self.storage)
        self.boot += 1

    def check_removed(self):
        """Whatever was removed is at the collector, was never promised, or is still there (a settling that is done again)."""
        for _, data in self.storage.removed:
            for event in decode_records(data)[0]:
                seq = wire.event_seq(event)
                is_kept = event in self.journal.read(seq, 1) or encode_record(event) in self.storage.note
                assert seq <= self.durable or self.promised.get(seq) != event or is_kept, seq
        self.storage.removed.clear()


def test_no_promise_is_broken_in_random_use():
    random.seed(SEED)
    promised = trimmed = 0
    for _ in range(12):
        soak = Soak()
        for _ in range(250):
            kind = random.randrange(20)
            (soak.drain if kind == 0 else soak.reboot if kind < 3 else soak.append)()
            soak.check_removed()
        soak.drain()
        promised += len(soak.promised)
        trimmed += soak.journal.first_seq - 1
    assert promised > 1000 and trimmed > 500
