"""Which events has this node promised to deliver, and where do they lie in flash?

Invariants:
- An event is in the journal when `append` returns, and not before: the storage's append is durable.
- `seq` starts at 1, grows, spans boots and is never used twice for different bytes. It grows by one; only damage found at
  boot makes it skip the numbers that the damaged bytes may have had.
- A record is length (1 byte), event bytes, CRC-32 of both; a torn or damaged tail ends the segment, and nothing is ever
  appended behind it.
- Nothing is dropped that the collector has not acknowledged. Acknowledged segments are dropped only when more than half the
  journal is kept: acknowledgements are not in flash, so after a boot all that is kept counts as not acknowledged, and there
  must be room for use without a network. They go a few at a time, for each costs flash time that a member may be waiting for;
  should flash be full all the same, as many more go as make room.

The journal's name, `journal_id`, is the name of its folder: random, given once at formatting. A segment's name is the
sequence number of its first record in hexadecimal. Storage is handed in; the methods used are `folders()`, `names(folder)`,
`make_folder(name)`, `read(folder, name)`, `append(folder, name, data)`, `remove(folder, name)`, and for the note
`read_note()` and `write_note(data)`.

The note is for the one event that a person waits for. An append may have to erase flash twice (90 ms on an RP2040); the note
is overwritten in a place of its own, which erases once in some 15 times. It is bound to the journal by its id. `note_ahead`
makes an event durable there; `settle` moves it into its segment, at the latest before the next append, and at boot.
"""
import binascii
import struct

from nodecore import wire

CRC_BYTES = 4
RECORD_MIN_BYTES = 1 + wire.EVENT_HEAD_BYTES + CRC_BYTES
RESERVE_RECORDS = 16
"""Room kept so that an open session can always be ended."""
TRIM_MAX = 2
"""Segments dropped in one append: more than it fills, so that the journal catches up after an outage."""
TRIM_FULL_MAX = 16
"""The same when flash has refused a record: littlefs gives blocks back only when a whole metadata block is free."""


class JournalFull(Exception):
    """The journal is full of events that the collector has not acknowledged."""


def encode_record(event):
    """Flash bytes of one event."""
    body = bytes((len(event),)) + event
    return body + struct.pack("<I", binascii.crc32(body))


def decode_records(data):
    """(list of event bytes, how many bytes of `data` are good)."""
    events = []
    position = 0
    while position < len(data):
        size = data[position]
        end = position + 1 + size
        if not wire.EVENT_HEAD_BYTES <= size <= wire.EVENT_MAX or end + CRC_BYTES > len(data):
            break
        if binascii.crc32(data[position:end]) != struct.unpack_from("<I", data, end)[0]:
            break
        events.append(bytes(data[position + 1:end]))
        position = end + CRC_BYTES
    return events, position


class Journal:
    """The node's events. `segment_bytes` suits the flash's program size; `capacity` counts records."""

    def __init__(self, storage, segment_bytes, capacity):
        self._storage = storage
        self._segment_bytes = segment_bytes
        self._capacity = capacity
        self._firsts = []
        self._folder = ""
        self._used_bytes = 0
        self._tail_good = False
        self.journal_id = b""
        self.next_seq = 1
        self.acked_seq = 0
        self.last_boot = 0
        self._ahead = b""

    def open(self, new_id):
        """Recover what is there; with nothing there, format under `new_id` (8 random bytes)."""
        folders = self._storage.folders()
        if not folders:
            self._storage.make_folder(binascii.hexlify(new_id).decode())
            folders = self._storage.folders()
        self._folder = folders[0]
        self.journal_id = binascii.unhexlify(self._folder)
        self._firsts = sorted([int(name, 16) for name in self._storage.names(self._folder)])
        noted = self._noted_event()
        self._recover_tail(encode_record(noted))
        self._recover_note(noted)
        self.acked_seq = self.first_seq - 1

    def _noted_event(self):
        note = self._storage.read_note()
        if note[:len(self.journal_id)] != self.journal_id:
            return b""
        events, _ = decode_records(note[len(self.journal_id):])
        return events[0] if events else b""

    def _recover_tail(self, noted_record):
        boots_lost = 0
        for first in reversed(list(self._firsts)):
            data = self._storage.read(self._folder, "%08x" % first)
            events, good_bytes = decode_records(data)
            rest = data[good_bytes:]
            # littlefs tears no append but does not notice flipped bits: what can't be read may have been sent. Only the noted
            # event, when its writing stopped half-way, is still to come.
            lost = 0 if noted_record.startswith(rest) else len(rest) // RECORD_MIN_BYTES
            boots_lost += lost
            self.next_seq = max(self.next_seq, first + len(events) + lost)
            if events:
                self.last_boot = wire.decode_event_head(events[-1])[2] + boots_lost
                self._used_bytes = good_bytes
                self._tail_good = good_bytes == len(data) and first == self._firsts[-1]
                return
            if not lost:
                self._storage.remove(self._folder, "%08x" % first)
                self._firsts.remove(first)
        # Nothing can be read: no earlier boot had a number above that of its own record.
        self.last_boot = self.next_seq - 1

    @property
    def first_seq(self):
        """The oldest event kept, or `next_seq` when there is none."""
        return self._firsts[0] if self._firsts else self.next_seq

    def room(self):
        """How many more records fit, acknowledged ones given up."""
        return self._capacity - (self.next_seq - 1 - self.acked_seq)

    def _recover_note(self, noted):
        if not noted or wire.event_seq(noted) < self.next_seq:
            return
        self._ahead = noted
        self.next_seq = wire.event_seq(noted)
        self.last_boot = max(self.last_boot, wire.decode_event_head(noted)[2])
        try:
            self.settle()
        except OSError:
            # It stays noted, and the next append tries again: a full flash must not keep a node from starting.
            pass

    def note_ahead(self, name, boot, mono_ms, values):
        """Make one event durable in the note and return its seq; `settle` soon. Raises JournalFull, or the storage's OSError."""
        self.settle()
        if not self._tail_good:
            # At boot the rest of a failed write could be taken for this event, damaged, and the note for an old one.
            return self.append(name, boot, mono_ms, values)
        if self.room() <= RESERVE_RECORDS:
            raise JournalFull("%d events not acknowledged" % (self.next_seq - 1 - self.acked_seq))
        event = wire.encode_event(name, self.next_seq, boot, mono_ms, values)
        self._storage.write_note(self.journal_id + encode_record(event))
        self._ahead = event
        return self.next_seq

    def settle(self):
        """Put the noted event into its segment, if there is one. Raises the storage's OSError; then it stays noted."""
        if self._ahead:
            self._write(self._ahead)
            self._ahead = b""

    def append(self, name, boot, mono_ms, values, reserve=RESERVE_RECORDS):
        """Make one event durable and return its seq. Raises JournalFull, or the storage's OSError."""
        self.settle()
        if self.room() <= reserve:
            raise JournalFull("%d events not acknowledged" % (self.next_seq - 1 - self.acked_seq))
        seq = self.next_seq
        self._write(wire.encode_event(name, seq, boot, mono_ms, values))
        return seq

    def _write(self, event):
        try:
            self._put(event)
        except OSError:
            # Full, most likely, of files that are not ours: what is acknowledged makes room. Once; else the caller hears of it.
            if not self._trim(1, TRIM_FULL_MAX):
                raise
            self._put(event)

    def _put(self, event):
        seq = self.next_seq
        record = encode_record(event)
        if not self._tail_good or self._used_bytes + len(record) > self._segment_bytes:
            self._prepare_segment(seq)
            first, used_bytes = seq, 0
        else:
            first, used_bytes = self._firsts[-1], self._used_bytes
        self._tail_good = False
        self._storage.append(self._folder, "%08x" % first, record)
        self._tail_good = True
        self._used_bytes = used_bytes + len(record)
        if first == seq:
            self._firsts.append(seq)
        self.next_seq = seq + 1

    def _prepare_segment(self, seq):
        self._trim(self._capacity // 2, TRIM_MAX)
        if not self._tail_good and "%08x" % seq in self._storage.names(self._folder):
            # A write that failed left a segment of this name: nothing in it was promised.
            self._storage.remove(self._folder, "%08x" % seq)

    def _trim(self, kept_max, count_max):
        """Drop acknowledged segments while more than `kept_max` records are kept, so many at most; returns how many."""
        dropped = 0
        while dropped < count_max and len(self._firsts) > 1 and self.next_seq - self._firsts[0] > kept_max:
            if self._firsts[1] - 1 > self.acked_seq:
                break
            self._storage.remove(self._folder, "%08x" % self._firsts[0])
            self._firsts.pop(0)
            dropped += 1
        return dropped

    def acknowledge(self, seq):
        """Believe that everything up to `seq` is durable at the collector. Never goes back; False if it claims the future."""
        if seq >= self.next_seq:
            return False
        if seq > self.acked_seq:
            self.acked_seq = seq
        return True

    def read(self, seq, bytes_max):
        """Event bytes from `seq` on, of one segment, at most `bytes_max` in all (at least one event).

        What is gone or damaged is passed over: then the first event given lies behind `seq`, or there is none.
        """
        found = []
        index = max(0, self._index_of(seq))
        while not found and seq < self.next_seq and index < len(self._firsts):
            found = self._read_segment(index, seq, bytes_max)
            index += 1
        return found

    def _read_segment(self, index, seq, bytes_max):
        # A record whose append failed may lie whole at the end: its number was given again, or will be.
        end = self._firsts[index + 1] if index + 1 < len(self._firsts) else self.next_seq
        found = []
        size = 0
        for event in decode_records(self._storage.read(self._folder, "%08x" % self._firsts[index]))[0]:
            if not seq <= wire.event_seq(event) < end:
                continue
            size += len(event) + 1
            if found and size > bytes_max:
                break
            found.append(event)
        return found

    def _index_of(self, seq):
        low, high = 0, len(self._firsts)
        while low < high:
            middle = (low + high) // 2
            if self._firsts[middle] <= seq:
                low = middle + 1
            else:
                high = middle
        return low - 1
