"""Which address has a name? One question to a DNS server, never waited for.

The ports' own `getaddrinfo` blocks for seconds when the server is away, longer than the relay's permission. This asks over UDP
(RFC 1035: one question of type A, class IN) and looks for the answer each time it is polled.
"""
import os
import socket
import struct

ASK_AGAIN_MS = 1000
ANSWER_MAX = 512
HEAD = ">HHHHHH"
HEAD_BYTES = 12
LABELS_MAX = 64


class Resolver:
    """One name's question to the DNS server at `server` (a dotted address)."""

    def __init__(self, name, server, port):
        self._number = struct.unpack("<H", os.urandom(2))[0]
        labels = b"".join([bytes((len(label),)) + label.encode() for label in name.split(".")])
        self._question = struct.pack(HEAD, self._number, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
        self._server = socket.getaddrinfo(server, port)[0][-1]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._asked_ms = None

    def poll(self, now_ms, ticks_diff):
        """The address, or None while there is none. Raises OSError when the server says that there is no such name."""
        if self._asked_ms is None or ticks_diff(now_ms, self._asked_ms) >= ASK_AGAIN_MS:
            self._asked_ms = now_ms
            try:
                self._socket.sendto(self._question, self._server)
            except OSError:
                # No way to the server now; asked again in a second, until the caller's deadline.
                return None
        try:
            answer = self._socket.recv(ANSWER_MAX)
        except OSError:
            return None
        return self._read(answer)

    def close(self):
        """Give the socket back."""
        self._socket.close()

    def _read(self, answer):
        size = len(self._question)
        if len(answer) < size or answer[HEAD_BYTES:size] != self._question[HEAD_BYTES:]:
            return None
        number, flags, _, answers, _, _ = struct.unpack_from(HEAD, answer, 0)
        if number != self._number or not flags & 0x8000:
            return None
        if flags & 15:
            raise OSError("no such name")
        return first_address(answer, size, answers)


def first_address(answer, position, answers):
    """The first A record among the `answers` records at `position`; None if there is none. Raises OSError for nonsense."""
    try:
        for _ in range(answers):
            position = behind_name(answer, position)
            kind, _, _, size = struct.unpack_from(">HHIH", answer, position)
            position += 10
            if kind == 1 and size == 4:
                return "%d.%d.%d.%d" % tuple(answer[position:position + 4])
            position += size
    except (IndexError, ValueError, TypeError):
        raise OSError("damaged answer") from None
    return None


def behind_name(answer, position):
    """Where the name at `position` ends; a name may end in a pointer to another."""
    for _ in range(LABELS_MAX):
        size = answer[position]
        if size >= 0xC0:
            return position + 2
        position += 1 + size
        if size == 0:
            return position
    raise ValueError("endless name")
