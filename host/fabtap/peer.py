"""What does a frame from a node mean, and what is the frame that answers it?

Pure: bytes in, fields out, and back. One Peer is one node as one port sees it. A frame is believed only if its tag is right
under that node's key; `Refused` says why not, in a word that is counted.
"""
import hmac
from collections.abc import Mapping
from typing import Any, NamedTuple

from nodecore import frame, wire

CHUNK_BYTES = 96
"""Roster bytes in one down frame: six entries, so that the line stays within frame.DOWN_LINE_MAX."""

DOWN_FRAME_MAX = (frame.DOWN_LINE_MAX - 2) // 4 * 3
"""Bytes of the longest frame whose line is within frame.DOWN_LINE_MAX: base64 makes 4 of 3; `~` and newline are there too."""
UP_FRAME_MAX = frame.HEAD_BYTES + wire.BODY_MAX + frame.TAG_BYTES
"""Bytes of the longest frame that a node sends."""


class Refused(Exception):
    """A frame that is not believed; its text is the name under which it is counted."""


class Message(NamedTuple):
    """One believed message."""

    node: int
    name: str
    fields: dict[str, Any]


class Peers:
    """All nodes whose frames may come; secrets by node number."""

    def __init__(self, secrets: Mapping[int, bytes]) -> None:
        self._up = {node: frame.Mac(frame.derive_key(secret, b"up")) for node, secret in secrets.items()}
        self._down = {node: frame.Mac(frame.derive_key(secret, b"down")) for node, secret in secrets.items()}

    def open(self, data: bytes) -> Message:
        """The message in a frame. Raises Refused: `short_frame`, `unknown_node`, `wrong_mac`, `unknown_message`."""
        try:
            number, node = frame.read_head(data)
        except frame.FrameError:
            raise Refused("short_frame") from None
        mac = self._up.get(node)
        if mac is None:
            raise Refused("unknown_node")
        end = len(data) - frame.TAG_BYTES
        # As frame.open_frame, with the computer's own comparison: a collector opens thousands a second.
        if not hmac.compare_digest(mac.tag(data[:end]), data[end:]):
            raise Refused("wrong_mac")
        try:
            name, fields = wire.decode_message(number, data[frame.HEAD_BYTES:end], "up")
        except wire.WireError:
            raise Refused("unknown_message") from None
        return Message(node, name, fields)

    def frame(self, node: int, name: str, fields: Mapping[str, Any]) -> bytes:
        """The frame of a message to a node; its line would be at most frame.DOWN_LINE_MAX bytes, whatever carries it."""
        number, body = wire.encode_message(name, fields)
        sealed = bytes(frame.seal(self._down[node], number, node, body))
        if len(sealed) > DOWN_FRAME_MAX:
            raise ValueError(f"{name} makes a frame of {len(sealed)} bytes")
        return sealed

    def line(self, node: int, name: str, fields: Mapping[str, Any]) -> bytes:
        """The line of a message to a node, as a serial port carries it."""
        return bytes(frame.to_line(self.frame(node, name, fields)))


def text_of(field: bytes) -> str:
    """A name that was padded with zero bytes."""
    return field.rstrip(b"\0").decode("utf-8", "replace")
