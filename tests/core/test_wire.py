"""Are the bytes on the wire and in the journal still those of the first node that was shipped?

The golden bytes were written down once and are never changed: journals hold them. A new row gets a new line here; a row
that grew at its end keeps its old line (an old node still sends it) and gets a longer one.
"""
import struct
from binascii import hexlify, unhexlify

from helpers import raises
from nodecore import wire

HEAD = {"seq": 0x04030201, "boot": 0x14131211, "mono_ms": 0x2827262524232221}
EVENT_HEAD_HEX = "01020304" "%02x" "11121314" "2122232425262728"
HASH = unhexlify("a0a1a2a3a4a5a6a7")
DETAIL = b"watchdog" + bytes(24)

# name, kind, fields, golden bytes after the head
GOLDEN_EVENTS = [
    ("booted", 1, {"cause": 3, "roster_version": 0x34333231, "energy_epoch": 7}, "03" "31323334" "07000000"),
    ("badge_denied", 2, {"member": 0x34333231, "badge_hash": HASH, "reason": 2}, "31323334" "a0a1a2a3a4a5a6a7" "02"),
    ("session_started", 3, {"member": 0x34333231, "energy_mwh_total": 0x4847464544434241}, "31323334" "4142434445464748"),
    ("session_checkpoint", 4,
     {"session": 0x34333231, "on_ms": 60000, "working_ms": 1234, "energy_mwh_total": 0x4847464544434241},
     "31323334" "60ea0000" "d2040000" "4142434445464748"),
    ("session_ended", 5,
     {"session": 0x34333231, "reason": 3, "on_ms": 60000, "working_ms": 1234, "energy_mwh_total": 0x4847464544434241},
     "31323334" "03" "60ea0000" "d2040000" "4142434445464748"),
    ("fault_seen", 6, {"fault": 4, "detail": DETAIL}, "04" "7761746368646f67" + "00" * 24),
    ("observation_started", 7, {"member": 0x34333231, "energy_mwh_total": 0x4847464544434241}, "31323334" "4142434445464748"),
]

SESSION = {"boot_nonce": 0x34333231, "counter": 258}
SESSION_HEX = "31323334" "02010000"


def in_session(fields):
    """`fields` with the boot nonce and the counter that every command and report carries."""
    fields.update(SESSION)
    return fields


STATUS = in_session({
    "boot": 5, "mono_ms": 0x2827262524232221, "state": 1, "relay": 1, "power_mw": 1500000,
    "energy_mwh_total": 0x4847464544434241, "heap_bytes": 65536, "frames_bad": 2, "reader_restarts": 3})
STATUS_HEX = (SESSION_HEX + "05000000" "2122232425262728" "01" "01" "60e31600" "4142434445464748"
              "00000100" "02000000" "03000000")


def with_state_ms(state_ms):
    """The fields of a status, with what was appended to it."""
    fields = dict(STATUS)
    fields["state_ms"] = state_ms
    return fields


# name, direction, number, fields, golden body
GOLDEN_MESSAGES = [
    ("hello", "up", 1,
     {"protocol": 1, "boot_nonce": 0x34333231, "boot": 5, "journal_id": HASH, "first_seq": 10, "next_seq": 300,
      "roster_version": 9, "board": b"rpi-pico" + bytes(8), "firmware": b"0.1.0" + bytes(11)},
     "01" "31323334" "05000000" "a0a1a2a3a4a5a6a7" "0a000000" "2c010000" "09000000"
     "7270692d7069636f0000000000000000" "302e312e300000000000000000000000"),
    ("events", "up", 2, {"journal_id": HASH, "data": b"\x03abc"}, "a0a1a2a3a4a5a6a7" "03616263"),
    ("status", "up", 3, with_state_ms(0x54535251), STATUS_HEX + "51525354"),
    ("reply", "up", 4, in_session({"result": 1, "boot": 5, "mono_ms": 0x2827262524232221, "value": 77}),
     SESSION_HEX + "01" "05000000" "2122232425262728" "4d000000"),
    ("ack", "down", 64, {"journal_id": HASH, "seq": 300}, "a0a1a2a3a4a5a6a7" "2c010000"),
    ("clock_set", "down", 65, in_session({"utc_ms": 1767225600000, "local_offset_s": -18000}),
     SESSION_HEX + "00a8da769b010000" "b0b9ffff"),
    ("roster_begin", "down", 66,
     in_session({"version": 9, "count": 300, "made_s": 1767225600, "digest": bytes(range(32))}),
     SESSION_HEX + "09000000" "2c010000" "00b95569"
     "000102030405060708090a0b0c0d0e0f" "101112131415161718191a1b1c1d1e1f"),
    ("roster_chunk", "down", 67, in_session({"offset": 128, "data": b"rows"}), SESSION_HEX + "80000000" "726f7773"),
    ("roster_commit", "down", 68, in_session({"version": 9}), SESSION_HEX + "09000000"),
    ("greet", "down", 69, {}, ""),
]

# What nodes send that were built before a message grew: the same shape; what was appended reads as 0.
OLDER_MESSAGES = [
    ("status", "up", 3, with_state_ms(0), STATUS_HEX),
]


def encode(name, fields):
    """An event under the golden head."""
    return wire.encode_event(name, HEAD["seq"], HEAD["boot"], HEAD["mono_ms"], fields)


def test_every_row_has_golden_bytes():
    assert sorted(wire.EVENT_NUMBERS) == sorted({row[0] for row in GOLDEN_EVENTS})
    assert sorted(wire.MESSAGE_NUMBERS) == sorted({row[0] for row in GOLDEN_MESSAGES})


def test_the_protocol_version_is_the_golden_one():
    assert wire.PROTOCOL == 1


def test_event_bytes_are_the_golden_ones():
    for name, kind, fields, golden in GOLDEN_EVENTS:
        found = hexlify(encode(name, fields)).decode()
        assert found == EVENT_HEAD_HEX % kind + golden, (name, found)


def test_message_bytes_are_the_golden_ones():
    for name, _, number, fields, golden in GOLDEN_MESSAGES:
        found_number, body = wire.encode_message(name, fields)
        assert (found_number, hexlify(body).decode()) == (number, golden), (name, found_number, hexlify(body))


def test_golden_events_decode_to_their_fields():
    for name, kind, fields, golden in GOLDEN_EVENTS:
        expected = {"name": name}
        expected.update(HEAD)
        expected.update(fields)
        assert wire.decode_event(unhexlify(EVENT_HEAD_HEX % kind + golden)) == expected, name


def test_golden_messages_decode_to_their_fields():
    for name, direction, number, fields, golden in GOLDEN_MESSAGES:
        assert wire.decode_message(number, unhexlify(golden), direction) == (name, fields), name


def test_what_an_older_peer_leaves_out_reads_as_zero():
    for name, direction, number, fields, golden in OLDER_MESSAGES:
        assert wire.decode_message(number, unhexlify(golden), direction) == (name, fields), name


def test_a_part_of_an_appended_field_is_no_field():
    for name, direction, number, fields, golden in OLDER_MESSAGES:
        for size in range(1, struct.calcsize(wire.APPENDED[name][0])):
            assert wire.decode_message(number, unhexlify(golden) + b"\xff" * size, direction) == (name, fields), (name, size)


def test_every_message_that_grew_keeps_its_old_bytes():
    assert sorted(wire.APPENDED) == sorted(row[0] for row in OLDER_MESSAGES)
    for name, _, number, _, golden in OLDER_MESSAGES:
        longer = [row[4] for row in GOLDEN_MESSAGES if row[0] == name]
        assert len(golden) // 2 == struct.calcsize(wire.MESSAGES[number][2]), name
        assert [row.startswith(golden) for row in longer] == [True], name


def test_an_appended_field_is_sent_always():
    assert not isinstance(raises(KeyError, wire.encode_message, "status", STATUS), wire.WireError)


def test_an_event_tells_its_head_without_being_decoded():
    data = encode("booted", GOLDEN_EVENTS[0][2])
    assert wire.event_seq(data) == HEAD["seq"]
    assert wire.decode_event_head(data) == (HEAD["seq"], 1, HEAD["boot"], HEAD["mono_ms"])


def test_the_largest_numbers_come_back():
    fields = {"member": 2**32 - 1, "energy_mwh_total": 2**64 - 1}
    event = wire.decode_event(wire.encode_event("session_started", 2**32 - 1, 2**32 - 1, 2**64 - 1, fields))
    assert (event["seq"], event["boot"], event["mono_ms"]) == (2**32 - 1, 2**32 - 1, 2**64 - 1)
    assert (event["member"], event["energy_mwh_total"]) == (2**32 - 1, 2**64 - 1)


def test_no_event_is_longer_than_event_max():
    for name, layout, _ in wire.EVENTS.values():
        assert wire.EVENT_HEAD_BYTES + struct.calcsize(layout) <= wire.EVENT_MAX, name
    assert struct.calcsize(wire.EVENT_HEAD) == wire.EVENT_HEAD_BYTES
    # Its length stands in one byte, in the journal and in an `events` message.
    assert wire.EVENT_MAX <= 255


def test_no_fixed_body_is_longer_than_body_max():
    for name, _, layout, _ in wire.MESSAGES.values():
        size = struct.calcsize(layout)
        if name in wire.APPENDED:
            size += struct.calcsize(wire.APPENDED[name][0])
        assert size <= wire.BODY_MAX, name


def test_an_event_longer_than_event_max_is_refused():
    data = encode("booted", GOLDEN_EVENTS[0][2])
    wire.decode_event(data + bytes(wire.EVENT_MAX - len(data)))
    raises(wire.WireError, wire.decode_event, data + bytes(wire.EVENT_MAX - len(data) + 1))


def test_trailing_bytes_of_a_newer_peer_are_ignored():
    for name, kind, fields, golden in GOLDEN_EVENTS:
        event = wire.decode_event(unhexlify(EVENT_HEAD_HEX % kind + golden) + b"new")
        assert event["name"] == name
        assert [event[field] for field in fields] == [fields[field] for field in fields], name
    for name, direction, number, fields, golden in GOLDEN_MESSAGES:
        if "data" not in fields:
            assert wire.decode_message(number, unhexlify(golden) + b"new", direction) == (name, fields), name


def test_a_short_body_is_refused():
    for _, kind, _, golden in GOLDEN_EVENTS:
        data = unhexlify(EVENT_HEAD_HEX % kind + golden)
        for size in range(len(data)):
            raises(wire.WireError, wire.decode_event, data[:size])
    for _, direction, number, _, golden in GOLDEN_MESSAGES:
        shortest = struct.calcsize(wire.MESSAGES[number][2])
        for size in range(shortest):
            raises(wire.WireError, wire.decode_message, number, unhexlify(golden)[:size], direction)


def test_an_unknown_kind_is_refused():
    raises(wire.WireError, wire.decode_event, unhexlify(EVENT_HEAD_HEX % 0) + bytes(40))
    raises(wire.WireError, wire.decode_event, unhexlify(EVENT_HEAD_HEX % 255) + bytes(40))
    raises(wire.WireError, wire.decode_message, 255, b"", "up")
    raises(KeyError, encode, "no_such_event", {})
    raises(KeyError, wire.encode_message, "no_such_message", {})


def test_a_message_in_the_wrong_direction_is_refused():
    for _, direction, number, _, golden in GOLDEN_MESSAGES:
        other = "down" if direction == "up" else "up"
        raises(wire.WireError, wire.decode_message, number, unhexlify(golden), other)


def test_a_missing_field_is_our_error_and_not_the_peers():
    assert not isinstance(raises(KeyError, wire.encode_message, "ack", {"seq": 1}), wire.WireError)


def test_packed_events_come_back():
    events = [encode(name, fields) for name, _, fields, _ in GOLDEN_EVENTS]
    assert wire.unpack_events(wire.pack_events(events)) == events
    assert wire.pack_events([]) == b""
    assert wire.unpack_events(b"") == []


def test_a_length_that_leads_outside_is_refused():
    data = wire.pack_events([encode("booted", GOLDEN_EVENTS[0][2])])
    raises(wire.WireError, wire.unpack_events, data[:-1])
    raises(wire.WireError, wire.unpack_events, data + b"\x00")
    raises(wire.WireError, wire.unpack_events, data + bytes((wire.EVENT_HEAD_BYTES - 1,)) + bytes(40))
    raises(wire.WireError, wire.unpack_events, data + b"\xff")
