"""Who may use this machine, as of the last roster?

A roster is one file: a head, then entries sorted by badge hash. A badge's number is nowhere in it: an entry holds the first 8
bytes of HMAC-SHA-256 of the number under the node's own badge key. A look-up reads log2(count) entries into one buffer and
compares bytes in place: what it allocates does not grow with the roster.

Head: magic, version, count, time made (UTC seconds), SHA-256 of the entries. Entry: hash, member number, last valid day
(days since 2020-01-01, `NEVER` for none), reason (0 permits, else a number of words.REASONS), one spare byte.
"""
import struct

MAGIC = b"FTR1"
HEAD = "<4sIII32s"
HEAD_BYTES = 48
ENTRY = "<8sIHBB"
ENTRY_BYTES = 16
HASH_BYTES = 8
NEVER = 0xFFFF
DAY_ZERO = 18262
"""Days from 1970-01-01 to 2020-01-01."""
MEMBERS_MAX = 20000

UNKNOWN_BADGE = 1
TRAINING_EXPIRED = 3
CLOCK_UNKNOWN = 9


class RosterError(ValueError):
    """The bytes are no roster."""


def badge_hash(mac, uid):
    """The 8 bytes under which a roster knows a badge."""
    return mac.digest(uid)[:HASH_BYTES]


def pack_head(version, count, made_s, digest):
    """Head bytes; `digest` is the SHA-256 of the entries."""
    return struct.pack(HEAD, MAGIC, version, count, made_s, digest)


def unpack_head(data):
    """(version, count, made_s, digest). Raises RosterError."""
    if len(data) < HEAD_BYTES:
        raise RosterError("head of %d bytes" % len(data))
    magic, version, count, made_s, digest = struct.unpack_from(HEAD, data, 0)
    if magic != MAGIC or count > MEMBERS_MAX:
        raise RosterError("not a roster")
    return version, count, made_s, digest


def pack_entry(hashed, member, last_day, reason):
    """Entry bytes."""
    return struct.pack(ENTRY, hashed, member, last_day, reason, 0)


def compare(hashed, buffer):
    """-1, 0 or 1 as `hashed` lies before, at or behind the entry in `buffer`."""
    for index in range(HASH_BYTES):
        if hashed[index] != buffer[index]:
            return -1 if hashed[index] < buffer[index] else 1
    return 0


def find(file, count, hashed, buffer):
    """True when the entry of `hashed` stands in `buffer` (16 bytes). `file` is the open roster."""
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        file.seek(HEAD_BYTES + middle * ENTRY_BYTES)
        if file.readinto(buffer) != ENTRY_BYTES:
            raise RosterError("ends before entry %d" % middle)
        order = compare(hashed, buffer)
        if order == 0:
            return True
        if order < 0:
            high = middle
        else:
            low = middle + 1
    return False


def decide(buffer, today):
    """(member, reason) of a found entry; `today` in days since 2020-01-01, or None without wall time."""
    _, member, last_day, reason, _ = struct.unpack_from(ENTRY, buffer, 0)
    if reason == 0 and last_day != NEVER:
        if today is None:
            reason = CLOCK_UNKNOWN
        elif today > last_day:
            reason = TRAINING_EXPIRED
    return member, reason
