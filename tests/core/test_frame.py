"""Are frames found among anything that a port can bring, and is none believed that the peer did not seal?"""
import random
import struct
from binascii import b2a_base64, unhexlify

from helpers import raises
from nodecore import frame

try:
    # The WebAssembly port has a binascii in Python over its own, which raises no ValueError. Chips have only the port's own.
    import ubinascii
    frame.binascii = ubinascii
except ImportError:
    pass

SECRET = bytes(range(32))
DOWN = frame.Mac(frame.derive_key(SECRET, b"down"))
UP = frame.Mac(frame.derive_key(SECRET, b"up"))
NODE = 0x04030201

# RFC 4231, section 4: key, data, HMAC-SHA-256 (case 5 is given there cut to 16 bytes, as our tag is).
RFC_4231 = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
    (b"\x0c" * 20, b"Test With Truncation", "a3b6167473100ee06e0c796c2955552b"),
    (b"\xaa" * 131, b"Test Using Larger Than Block-Size Key - Hash Key First",
     "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
    (b"\xaa" * 131, b"This is a test using a larger than block-size key and a larger than block-size data. The key needs "
     b"to be hashed before being used by the HMAC algorithm.", "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"),
]

# Worked out once with CPython's hmac module.
DERIVED = {
    b"up": "63049bbd83f2046def4ee3074e9cc8142a6f628325623b2e52ea84c082f27161",
    b"down": "dcb94770a5472b9ba4e6cfbc48048546b8bab2dbc7dbabe49f46793acc109b72",
    b"badge": "0576ca46a00309b27191b662b2518eeeacb90366705641eaac96910799d9c319",
}
GOLDEN_FRAME = "4001020304626f6479e1783dd81ef5de4f62c45b9d697b76c6"
GOLDEN_LINE = b"\n~QAECAwRib2R54Xg92B713k9ixFudaXt2xg==\n"


def seal(count, size=12):
    """A frame that no other number of this file has."""
    return frame.seal(DOWN, 64, NODE, struct.pack("<I", count) + bytes([count & 0xFF]) * size)


def frames_of(data, piece_bytes=0, line_max=frame.DOWN_LINE_MAX):
    """What a new reader finds in `data`, given in pieces or all at once."""
    reader = frame.LineReader(line_max)
    if not piece_bytes:
        return reader.push(data)
    found = []
    for start in range(0, len(data), piece_bytes):
        found += reader.push(data[start:start + piece_bytes])
    return found


def believed(found):
    """Those of the frames whose tag is right."""
    good = []
    for data in found:
        try:
            frame.open_frame(DOWN, data)
        except frame.FrameError:
            continue
        good.append(data)
    return good


def test_the_mac_is_hmac_sha_256():
    for key, data, expected in RFC_4231:
        digest = frame.Mac(key).digest(data)
        assert len(digest) == 32
        assert digest[:len(expected) // 2] == unhexlify(expected), data


def test_a_mac_is_used_many_times():
    mac = frame.Mac(b"Jefe")
    for _ in range(3):
        assert mac.digest(RFC_4231[1][1]) == unhexlify(RFC_4231[1][2])
        assert mac.digest(b"other") != unhexlify(RFC_4231[1][2])


def test_the_tag_is_the_mac_cut_to_16_bytes():
    assert frame.TAG_BYTES == 16
    assert frame.Mac(RFC_4231[4][0]).tag(RFC_4231[4][1]) == unhexlify(RFC_4231[4][2])


def test_each_purpose_has_the_key_of_the_first_node():
    for purpose, golden in DERIVED.items():
        assert frame.derive_key(SECRET, purpose) == unhexlify(golden), purpose


def test_frame_and_line_are_those_of_the_first_node():
    data = frame.seal(DOWN, 64, NODE, b"body")
    assert data == unhexlify(GOLDEN_FRAME)
    assert frame.to_line(data) == GOLDEN_LINE


def test_a_sealed_frame_opens():
    for body in (b"", b"x", bytes(700)):
        data = frame.seal(DOWN, 64, NODE, body)
        assert len(data) == frame.FRAME_MIN + len(body)
        assert frame.read_head(data) == (64, NODE)
        assert frame.open_frame(DOWN, data) == (64, NODE, body)


def test_every_flipped_bit_is_refused():
    data = seal(1)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        raises(frame.FrameError, frame.open_frame, DOWN, bytes(damaged))


def test_a_truncated_or_longer_frame_is_refused():
    data = seal(1)
    for size in range(len(data)):
        raises(frame.FrameError, frame.open_frame, DOWN, data[:size])
    raises(frame.FrameError, frame.open_frame, DOWN, data + b"\x00")
    for size in range(frame.FRAME_MIN):
        raises(frame.FrameError, frame.read_head, data[:size])


def test_the_other_directions_and_another_nodes_key_are_refused():
    other = frame.Mac(frame.derive_key(bytes(32), b"down"))
    for mac in (UP, other):
        raises(frame.FrameError, frame.open_frame, mac, seal(1))
        raises(frame.FrameError, frame.open_frame, DOWN, frame.seal(mac, 64, NODE, b"body"))


def test_same_bytes_compares_all_of_them():
    assert frame.same_bytes(b"", b"")
    assert frame.same_bytes(b"abc", b"abc")
    for other in (b"xbc", b"axc", b"abx", b"ab", b"abcd", b""):
        assert not frame.same_bytes(b"abc", other), other


def test_frames_are_found_however_the_bytes_are_cut():
    expected = [seal(count) for count in range(3)]
    data = b"".join([frame.to_line(item) for item in expected])
    for piece_bytes in (0, 1, 2, 7, 64):
        assert frames_of(data, piece_bytes) == expected, piece_bytes


def test_the_bounds_of_lines_are_those_of_the_first_node():
    # Both ends have them built in: a shorter one would drop what an older peer sends.
    assert (frame.DOWN_LINE_MAX, frame.UP_LINE_MAX) == (200, 1024)


def test_an_unfinished_line_is_no_frame_yet():
    reader = frame.LineReader(frame.DOWN_LINE_MAX)
    line = frame.to_line(seal(1))
    assert reader.push(line[:-1]) == []
    assert reader.push(b"") == []
    assert reader.push(b"\n") == [seal(1)]
    assert reader.push(b"\n") == []


def test_a_line_may_end_in_carriage_return_and_newline():
    line = frame.to_line(seal(1)).replace(b"\n", b"\r\n")
    assert frames_of(line) == [seal(1)]
    assert frames_of(line, 1) == [seal(1)]
    reader = frame.LineReader(frame.DOWN_LINE_MAX)
    reader.push(line)
    assert (reader.console_lines, reader.bad_lines) == (0, 0)


def test_console_text_before_a_frame_costs_no_frame():
    reader = frame.LineReader(frame.DOWN_LINE_MAX)
    line = frame.to_line(seal(1))
    assert reader.push(b">>> print(1)" + line) == [seal(1)]
    assert reader.push(b"cd ~/x" + line[1:]) == [seal(1)]
    assert reader.console == [b">>> print(1)", b"cd ~/x"]
    assert reader.bad_lines == 0


def test_console_text_behind_a_frame_may_cost_it_but_never_another():
    reader = frame.LineReader(frame.DOWN_LINE_MAX)
    line = frame.to_line(seal(1))
    found = reader.push(line[:-1] + b" Traceback\n" + frame.to_line(seal(2)))
    assert believed(found) in ([seal(1), seal(2)], [seal(2)])
    assert reader.push(line[:-1] + b"\nTraceback\n") == [seal(1)]
    assert reader.console[-1] == b"Traceback"


def test_the_console_keeps_its_last_lines_until_they_are_taken():
    reader = frame.LineReader(frame.DOWN_LINE_MAX, 3)
    for number in range(5):
        assert reader.push(b"line %d\r\n" % number) == []
    assert reader.console == [b"line 2", b"line 3", b"line 4"]
    assert reader.console_lines == 5
    reader.console.clear()
    reader.push(b"\n\r\nlast\n")
    assert (reader.console, reader.console_lines, reader.bad_lines) == ([b"last"], 6, 0)


def test_half_a_frame_is_bad_and_the_next_line_is_in_step():
    line = frame.to_line(seal(1))
    for size in range(3, len(line) - 1):
        reader = frame.LineReader(frame.DOWN_LINE_MAX)
        found = reader.push(line[:size] + frame.to_line(seal(2)))
        assert believed(found) == [seal(2)], size
        assert len(found) == 2 or reader.bad_lines == 1, size


def test_what_is_too_short_for_a_frame_is_bad():
    reader = frame.LineReader(frame.DOWN_LINE_MAX)
    shortest = frame.seal(DOWN, 64, NODE, b"")
    for data in (b"~\n", b"~A\n", b"~====\n", b"~" + b2a_base64(shortest[:-1])):
        assert reader.push(data) == [], data
    assert reader.bad_lines == 4
    assert reader.push(b"~" + b2a_base64(shortest)) == [shortest]


def test_a_line_that_is_too_long_is_dropped_and_the_next_is_in_step():
    for piece_bytes in (0, 1, 50):
        reader = frame.LineReader(frame.DOWN_LINE_MAX)
        data = b"x" * 1000 + frame.to_line(seal(1)) + b"~" + b"A" * 1000 + frame.to_line(seal(2))
        step = piece_bytes or len(data)
        found = []
        for start in range(0, len(data), step):
            found += reader.push(data[start:start + step])
        assert found == [seal(1), seal(2)], piece_bytes
        assert (reader.overlong_lines, reader.bad_lines, reader.console_lines) == (2, 0, 0)


def test_the_longest_line_is_a_frame_and_a_longer_one_is_not():
    body_bytes = (frame.DOWN_LINE_MAX - 3) // 4 * 3 - frame.FRAME_MIN
    longest = frame.seal(DOWN, 64, NODE, bytes(body_bytes))
    line = frame.to_line(longest)
    assert frame.DOWN_LINE_MAX - 4 < len(line) <= frame.DOWN_LINE_MAX
    assert frames_of(line) == [longest]
    assert frames_of(frame.to_line(frame.seal(DOWN, 64, NODE, bytes(body_bytes + 6)))) == []


def test_memory_is_bounded_whatever_comes():
    reader = frame.LineReader(frame.DOWN_LINE_MAX)
    reader.push(b"z" * 5000)
    assert len(reader._buffer) <= frame.DOWN_LINE_MAX
    for piece in (b"x" * 150, b"~" + b"A" * 99, b"\x00" * 333, b"y" * 180 + b"\n"):
        for _ in range(50):
            assert reader.push(piece) == []
            assert len(reader._buffer) <= frame.DOWN_LINE_MAX
            assert len(reader.console) <= 8
            assert max([0] + [len(line) for line in reader.console]) <= frame.DOWN_LINE_MAX


def test_garbage_is_no_frame_and_the_next_line_is_in_step():
    random.seed(4)
    reader = frame.LineReader(frame.DOWN_LINE_MAX)
    for count in range(60):
        garbage = bytes([random.getrandbits(8) for _ in range(random.randrange(300))])
        found = reader.push(garbage + frame.to_line(seal(count)))
        assert believed(found) == [seal(count)], garbage


def flip(line):
    """One bit of the line is another one."""
    damaged = bytearray(line)
    damaged[random.randrange(len(line))] ^= 1 << random.randrange(8)
    return bytes(damaged)


def drop(line):
    """Some bytes of the line are lost, as when flash is busy."""
    start = random.randrange(len(line))
    return line[:start] + line[start + 1 + random.randrange(6):]


def insert(line):
    """Some bytes have come in between."""
    start = random.randrange(len(line))
    return line[:start] + bytes([random.getrandbits(8) for _ in range(1 + random.randrange(300))]) + line[start:]


def swap(line):
    """One character of the base64 is another one: to base64 all is well."""
    start = 2 + random.randrange(len(line) - 5)
    return line[:start] + b"ABCDEFGHIJKLMNOP"[random.randrange(16):][:1] + line[start + 1:]


def cut(line):
    """The line stops."""
    return line[:random.randrange(len(line))]


def stream(count_total):
    """(bytes, frames sent whole, all frames): a third of the lines damaged, console text of all kinds in between."""
    random.seed(11)
    data = bytearray()
    whole, sent = [], []
    for count in range(count_total):
        item = seal(count, random.randrange(60))
        sent.append(item)
        line = frame.to_line(item)
        kind = random.randrange(15)
        if kind < 5:
            line = (flip, drop, insert, swap, cut)[kind](line)
        else:
            whole.append(item)
        data.extend(line)
        data.extend((b"", b"", b"text\r\n", b"unfinished ~/text", b"x" * 250)[random.randrange(5)])
    # The last text must not be taken for damage of the last frame.
    return bytes(data) + b"\n", whole, sent


def received(data):
    """The frames that a reader finds in pieces of any size."""
    reader = frame.LineReader(frame.DOWN_LINE_MAX)
    found = []
    position = 0
    while position < len(data):
        size = 1 + random.randrange(90)
        found += reader.push(data[position:position + size])
        position += size
    return found


def forged(found, sent):
    """Frames that nobody has sent."""
    known = set(sent)
    return [data for data in found if data not in known]


def test_random_damage_loses_no_whole_frame_and_forges_none():
    data, whole, sent = stream(600)
    assert 300 < len(whole) < 500
    good = believed(received(data))
    assert forged(good, sent) == []
    assert len(set(good)) == len(good)
    kept = set(whole)
    assert [item for item in good if item in kept] == whole


def test_without_the_tag_damaged_frames_would_be_believed():
    data, _, sent = stream(600)
    assert len(forged(received(data), sent)) > 20


def test_without_its_own_newline_a_frame_would_be_swallowed():
    lines = [b"x" * 250, b"~" + b2a_base64(seal(1))]
    assert frames_of(b"".join(lines)) == []
    assert frames_of(lines[0] + frame.to_line(seal(1))) == [seal(1)]
