"""Which messages and events exist, and what are their bytes?

One table row a message: number, name, struct layout, field names. Rows and trailing fields are only ever appended; golden
bytes in tests/core/test_wire.py guard the old ones. A layout that ends in `data` carries the rest of the body as bytes.
Units stand last in a field's name: `_ms` milliseconds, `_mwh` milliwatt-hours, `_mw` milliwatts, `_s` seconds of UTC.

An event's bytes are made once, by `encode_event`, when it happens. They are the bytes in the node's flash journal, the
bytes on the wire and the bytes that the collector keeps. What the numbers in them mean stands in words.py.
"""
import struct

PROTOCOL = 1
"""The protocol version that `hello` carries."""

BODY_MAX = 700
"""Bytes of the longest message body that a node sends; its line then is within frame.UP_LINE_MAX, which a receiver enforces."""

EVENT_MAX = 96
"""Bytes of the longest event."""

EVENT_HEAD = "<IBIQ"
EVENT_HEAD_FIELDS = ("seq", "kind", "boot", "mono_ms")
EVENT_HEAD_BYTES = 17


# number: (name, layout after the head, field names)
EVENTS = {
    1: ("booted", "<BII", ("cause", "roster_version", "energy_epoch")),
    2: ("badge_denied", "<I8sB", ("member", "badge_hash", "reason")),
    3: ("session_started", "<IQ", ("member", "energy_mwh_total")),
    4: ("session_checkpoint", "<IIIQ", ("session", "on_ms", "working_ms", "energy_mwh_total")),
    5: ("session_ended", "<IBIIQ", ("session", "reason", "on_ms", "working_ms", "energy_mwh_total")),
    6: ("fault_seen", "<B32s", ("fault", "detail")),
    # As session_started, on a machine that is only observed: the relay was not switched, and nobody owes anything.
    7: ("observation_started", "<IQ", ("member", "energy_mwh_total")),
}

# number: (name, direction, layout, field names)
MESSAGES = {
    1: ("hello", "up", "<BII8sIII16s16s", (
        "protocol", "boot_nonce", "boot", "journal_id", "first_seq", "next_seq", "roster_version", "board", "firmware")),
    2: ("events", "up", "<8s", ("journal_id", "data")),
    3: ("status", "up", "<IIIQBBIQIII", (
        "boot_nonce", "counter", "boot", "mono_ms", "state", "relay", "power_mw", "energy_mwh_total", "heap_bytes",
        "frames_bad", "reader_restarts")),
    4: ("reply", "up", "<IIBIQI", ("boot_nonce", "counter", "result", "boot", "mono_ms", "value")),
    64: ("ack", "down", "<8sI", ("journal_id", "seq")),
    65: ("clock_set", "down", "<IIQi", ("boot_nonce", "counter", "utc_ms", "local_offset_s")),
    66: ("roster_begin", "down", "<IIIII32s", ("boot_nonce", "counter", "version", "count", "made_s", "digest")),
    67: ("roster_chunk", "down", "<III", ("boot_nonce", "counter", "offset", "data")),
    68: ("roster_commit", "down", "<III", ("boot_nonce", "counter", "version")),
    69: ("greet", "down", "<", ()),
}

# What was appended to a message after others had been built without it: an older peer leaves it out, and it reads as 0.
APPENDED = {
    "status": ("<I", ("state_ms",)),
}


class WireError(ValueError):
    """The peer's bytes are no message of the table."""


def _numbers(table):
    return {row[0]: number for number, row in table.items()}


EVENT_NUMBERS = _numbers(EVENTS)
MESSAGE_NUMBERS = _numbers(MESSAGES)


def _pack(layout, fields, values):
    if fields and fields[-1] == "data":
        head = struct.pack(layout, *[values[name] for name in fields[:-1]])
        return head + values["data"]
    return struct.pack(layout, *[values[name] for name in fields])


def _unpack(layout, fields, body, start):
    size = struct.calcsize(layout)
    if len(body) - start < size:
        raise WireError("body of %d bytes, at least %d needed" % (len(body) - start, size))
    values = struct.unpack_from(layout, body, start)
    found = {}
    for name, value in zip(fields, values):
        found[name] = value
    if fields and fields[-1] == "data":
        found["data"] = bytes(body[start + size:])
    return found


def encode_event(name, seq, boot, mono_ms, values):
    """Bytes of one event; `values` holds the row's fields by name."""
    kind = EVENT_NUMBERS[name]
    _, layout, fields = EVENTS[kind]
    return struct.pack(EVENT_HEAD, seq, kind, boot, mono_ms) + _pack(layout, fields, values)


def event_seq(data):
    """Sequence number of an event's bytes, without decoding the rest."""
    return struct.unpack_from("<I", data, 0)[0]


def decode_event_head(data):
    """(seq, kind, boot, mono_ms) of an event's bytes."""
    return struct.unpack_from(EVENT_HEAD, data, 0)


def decode_event(data):
    """A dict with `name`, the head's fields and the row's fields. Trailing bytes of a newer node are ignored.

    Raises WireError for an unknown kind or too few bytes.
    """
    if not EVENT_HEAD_BYTES <= len(data) <= EVENT_MAX:
        raise WireError("event of %d bytes" % len(data))
    seq, kind, boot, mono_ms = struct.unpack_from(EVENT_HEAD, data, 0)
    if kind not in EVENTS:
        raise WireError("unknown event %d" % kind)
    name, layout, fields = EVENTS[kind]
    event = _unpack(layout, fields, data, EVENT_HEAD_BYTES)
    event["name"] = name
    event["seq"] = seq
    event["boot"] = boot
    event["mono_ms"] = mono_ms
    return event


def encode_message(name, values):
    """(number, body bytes) of one message."""
    number = MESSAGE_NUMBERS[name]
    _, _, layout, fields = MESSAGES[number]
    body = _pack(layout, fields, values)
    if name in APPENDED:
        body += _pack(APPENDED[name][0], APPENDED[name][1], values)
    return number, body


def decode_message(number, body, direction):
    """(name, dict of fields) of a message that travels in `direction`, "up" or "down". Raises WireError."""
    if number not in MESSAGES or MESSAGES[number][1] != direction:
        raise WireError("unknown message %d" % number)
    name, _, layout, fields = MESSAGES[number]
    found = _unpack(layout, fields, body, 0)
    if name in APPENDED:
        layout_more, fields_more = APPENDED[name]
        size = struct.calcsize(layout)
        if len(body) - size >= struct.calcsize(layout_more):
            found.update(_unpack(layout_more, fields_more, body, size))
        else:
            for field in fields_more:
                found[field] = 0
    return name, found


def pack_events(events):
    """Event bytes, each behind its length, for the `data` of an `events` message."""
    return b"".join([bytes((len(event),)) + event for event in events])


def unpack_events(data):
    """The list of event bytes in an `events` message. Raises WireError for a length that leads outside."""
    found = []
    position = 0
    while position < len(data):
        size = data[position]
        position += 1
        if size < EVENT_HEAD_BYTES or position + size > len(data):
            raise WireError("event of %d bytes at %d of %d" % (size, position, len(data)))
        found.append(bytes(data[position:position + size]))
        position += size
    return found
