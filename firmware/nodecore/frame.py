"""How do messages become bytes on a port, and how are they found again among console text and garbage?

A frame is: message number (1 byte), node number (4), body, tag (16). The tag is HMAC-SHA-256 (RFC 2104) over all before it,
cut to 16 bytes, under the key of its direction. On a serial port a frame travels as one printable line: `~`, base64, newline.
Everything else on the port is console text; whatever happens, a reader is in step again at the next line.
"""
import binascii
import hashlib
import struct

HEAD = "<BI"
HEAD_BYTES = 5
TAG_BYTES = 16
FRAME_MIN = HEAD_BYTES + TAG_BYTES
DOWN_LINE_MAX = 200
"""Bytes of the longest line that travels to a node, `~` and newline included."""
UP_LINE_MAX = 1024
"""Bytes of the longest line that a node sends, `~` and newline included."""
BLOCK_BYTES = 64


class FrameError(ValueError):
    """The peer's bytes are no frame, or their tag is wrong."""


class Mac:
    """HMAC-SHA-256 under one key, its pads prepared once (a third of the time of the naive way on an RP2040)."""

    def __init__(self, key):
        if len(key) > BLOCK_BYTES:
            key = hashlib.sha256(key).digest()
        key = key + bytes(BLOCK_BYTES - len(key))
        self._inner = bytes([byte ^ 0x36 for byte in key])
        self._outer = bytes([byte ^ 0x5C for byte in key])

    def digest(self, data):
        """32 bytes over `data`."""
        inner = hashlib.sha256(self._inner)
        inner.update(data)
        outer = hashlib.sha256(self._outer)
        outer.update(inner.digest())
        return outer.digest()

    def tag(self, data):
        """The 16 bytes that a frame carries."""
        return self.digest(data)[:TAG_BYTES]


def derive_key(secret, purpose):
    """32-byte key for one purpose, b"up", b"down" or b"badge", from the node's secret."""
    return Mac(secret).digest(b"fabtap " + purpose)


def same_bytes(one, other):
    """Compare without telling by the time taken where they differ."""
    if len(one) != len(other):
        return False
    difference = 0
    for a, b in zip(one, other):
        difference |= a ^ b
    return difference == 0


def seal(mac, number, node_id, body):
    """Frame bytes of one message."""
    data = struct.pack(HEAD, number, node_id) + body
    return data + mac.tag(data)


def read_head(frame):
    """(message number, node number), not yet believed. Raises FrameError when the frame is too short."""
    if len(frame) < FRAME_MIN:
        raise FrameError("frame of %d bytes" % len(frame))
    return struct.unpack_from(HEAD, frame, 0)


def open_frame(mac, frame):
    """(message number, node number, body) of a frame whose tag is right. Raises FrameError."""
    number, node_id = read_head(frame)
    end = len(frame) - TAG_BYTES
    if not same_bytes(mac.tag(frame[:end]), frame[end:]):
        raise FrameError("wrong tag")
    return number, node_id, bytes(frame[HEAD_BYTES:end])


def to_line(frame):
    """The printable line of a frame. It starts on a new line, so that unfinished console text can't swallow it."""
    return b"\n~" + binascii.b2a_base64(frame)


class LineReader:
    """Bytes in, frames out; bounded memory; counts what is no frame.

    `console` keeps the last console lines (bytes, at most `console_max` of them) until the owner takes them.
    """

    def __init__(self, line_max, console_max=8):
        self._buffer = bytearray()
        self._line_max = line_max
        self._overlong = False
        self._console_max = console_max
        self.console = []
        self.console_lines = 0
        self.overlong_lines = 0
        self.bad_lines = 0

    def push(self, data):
        """List of the frames that `data` completes."""
        frames = []
        start = 0
        while True:
            end = data.find(b"\n", start)
            self._take(data[start:] if end < 0 else data[start:end])
            if end < 0:
                return frames
            frame = self._finish()
            if frame is not None:
                frames.append(frame)
            start = end + 1

    def _take(self, piece):
        if self._overlong:
            return
        if len(self._buffer) + len(piece) > self._line_max:
            self._overlong = True
            self.overlong_lines += 1
            self._buffer = bytearray()
            return
        self._buffer.extend(piece)

    def _finish(self):
        line = bytes(self._buffer)
        self._buffer = bytearray()
        if self._overlong:
            self._overlong = False
            return None
        line = line.rstrip(b"\r")
        mark = line.rfind(b"~")
        text = line if mark < 0 else line[:mark]
        if text:
            self._note_console(text)
        if mark < 0:
            return None
        try:
            frame = binascii.a2b_base64(line[mark + 1:])
        except ValueError:
            frame = b""
        if len(frame) < FRAME_MIN:
            self.bad_lines += 1
            return None
        return frame

    def _note_console(self, text):
        self.console_lines += 1
        self.console.append(text)
        if len(self.console) > self._console_max:
            self.console.pop(0)
