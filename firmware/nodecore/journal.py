"""Which events has this node promised to deliver, and where do they lie in flash?

Invariants:
- An event is in the journal when `append` returns, and not before: the storage's append is durable.
- `seq` starts at 1, grows by one, spans boots and is never used twice for different bytes.
- A record is length (1 byte), event bytes, CRC-32 of both; a torn or damaged tail ends the segment, and nothing is ever
  appended behind it.
- Nothing is dropped that the collector has not acknowledged. Acknowledged segments are dropped only when space is needed.

The journal's name, `journal_id`, is the name of its folder: random, given once at formatting. A segment's name is the
sequence number of its first record in hexadecimal. Storage is handed in; the methods used are `folders()`, `names(folder)`,
`make_folder(name)`, `read(folder, name)`, `append(folder, name, data)` and `remove(folder, name)`.
"""
import binascii
import struct

from nodecore import wire

CRC_BYTES = 4
RECORD_MORE_BYTES = 1 + CRC_BYTES
RESERVE_RECORDS = 16
"""Room kept so that an open session can always be ended."""


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
        self.damaged_records = 0

    def open(self, new_id):
        """Recover what is there; with nothing there, format under `new_id` (8 random bytes)."""
        folders = self._storage.folders()
        if not folders:
            self._storage.make_folder(binascii.hexlify(new_id).decode())
            folders = self._storage.folders()
        self._folder = folders[0]
        self.journal_id = binascii.unhexlify(self._folder)
        self._firsts = sorted([int(name, 16) for name in self._storage.names(self._folder)])
        self._recover_tail()

    def _recover_tail(self):
        while self._firsts:
            first = self._firsts[-1]
            data = self._storage.read(self._folder, "%08x" % first)
            events, good_bytes = decode_records(data)
            if events:
                self.next_seq = wire.event_seq(events[-1]) + 1
                self.last_boot = wire.decode_event_head(events[-1])[2]
                self._used_bytes = good_bytes
                self._tail_good = good_bytes == len(data)
                return
            self.next_seq = first
            self._storage.remove(self._folder, "%08x" % first)
            self._firsts.pop()

    @property
    def first_seq(self):
        """The oldest event kept, or `next_seq` when there is none."""
        return self._firsts[0] if self._firsts else self.next_seq

    def room(self):
        """How many more records fit, acknowledged ones given up."""
        return self._capacity - (self.next_seq - 1 - self.acked_seq)

    def append(self, name, boot, mono_ms, values, reserve=RESERVE_RECORDS):
        """Make one event durable and return its seq. Raises JournalFull, or the storage's OSError."""
        if self.room() <= reserve:
            raise JournalFull("%d events not acknowledged" % (self.next_seq - 1 - self.acked_seq))
        seq = self.next_seq
        record = encode_record(wire.encode_event(name, seq, boot, mono_ms, values))
        if not self._tail_good or self._used_bytes + len(record) > self._segment_bytes:
            self._start_segment(seq)
        self._tail_good = False
        self._storage.append(self._folder, "%08x" % self._firsts[-1], record)
        self._tail_good = True
        self._used_bytes += len(record)
        self.next_seq = seq + 1
        return seq

    def _start_segment(self, seq):
        self._trim()
        if self._firsts and self._firsts[-1] == seq:
            # A write that failed left a segment of this name without one whole record.
            self._storage.remove(self._folder, "%08x" % seq)
            self._firsts.pop()
        self._firsts.append(seq)
        self._used_bytes = 0

    def _trim(self):
        while len(self._firsts) > 1 and self.next_seq - self._firsts[0] >= self._capacity:
            if self._firsts[1] - 1 > self.acked_seq:
                return
            self._storage.remove(self._folder, "%08x" % self._firsts[0])
            self._firsts.pop(0)

    def acknowledge(self, seq):
        """Believe that everything up to `seq` is durable at the collector. Never goes back; False if it claims the future."""
        if seq >= self.next_seq:
            return False
        if seq > self.acked_seq:
            self.acked_seq = seq
        return True

    def read(self, seq, bytes_max):
        """Event bytes from `seq` on, of one segment, at most `bytes_max` in all (at least one event)."""
        index = self._index_of(seq)
        if index < 0 or seq >= self.next_seq:
            return []
        data = self._storage.read(self._folder, "%08x" % self._firsts[index])
        found = []
        size = 0
        for event in decode_records(data)[0]:
            if wire.event_seq(event) < seq:
                continue
            size += len(event) + 1
            if found and size > bytes_max:
                break
            found.append(event)
        if found and wire.event_seq(found[0]) != seq:
            self.damaged_records += 1
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
