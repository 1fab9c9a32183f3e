"""How does a test play a node by hand? It holds the far end of a terminal, says what it wants and sees what the collector says.

Nothing happens by itself: bytes go out when `send` or `write` is called, and come in while one of the waiting methods runs. `obey`
carries commands out as the firmware does (a repeated piece of a roster is no harm), and can lose replies on the way or refuse
every roster.
"""
import contextlib
import hashlib
import os
import select
import time
import tty
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nodecore import frame, roster, wire

WAIT_S = 10.0
POLL_S = 0.02
JOURNAL = bytes(range(8))
BOOT_NONCE = 0xB0071
OK, STALE, BAD_ORDER, BAD_DIGEST = 0, 1, 2, 3


class Heard(NamedTuple):
    """One message from the collector, and when it came (`time.time_ns` in milliseconds)."""

    name: str
    fields: dict[str, Any]
    at_utc_ms: int


def event(seq: int, boot: int = 1, cause: int = 1) -> bytes:
    """The bytes of a small event."""
    return wire.encode_event("booted", seq, boot, seq * 10, {"cause": cause, "roster_version": 0, "energy_epoch": 0})


class ScriptedNode:
    """Node `node` behind the symlink `path`."""

    def __init__(self, path: Path, secret: bytes, node: int = 1) -> None:
        self.path = path
        self.node = node
        self.boot_nonce = BOOT_NONCE
        self.roster_version = 0
        self.roster_refused = False
        self.next_seq = 1
        self.roster = b""
        self.commands: list[Heard] = []
        self.replies_lost = 0
        self.raw = bytearray()
        self._up = frame.Mac(frame.derive_key(secret, b"up"))
        self._down = frame.Mac(frame.derive_key(secret, b"down"))
        self._heard: list[Heard] = []
        self._counter_up = 0
        self._head: tuple[int, int, bytes] | None = None
        self._arriving = b""
        self._ends: tuple[int, ...] = ()
        self.plug()

    def plug(self) -> None:
        """A new terminal takes the symlink's name."""
        self.asked = False
        self._far, near = os.openpty()
        self._ends = (self._far, near)
        tty.setraw(near)
        self._lines = frame.LineReader(frame.DOWN_LINE_MAX)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.symlink_to(os.ttyname(near))

    def unplug(self) -> None:
        """The device vanishes, its name too."""
        self.path.unlink(missing_ok=True)
        for descriptor in self._ends:
            os.close(descriptor)
        self._ends = ()

    def write(self, data: bytes) -> None:
        """Put bytes on the line as they are."""
        while data:
            data = data[os.write(self._far, data):]

    def frame(self, name: str, **fields: Any) -> bytes:
        """The frame of a message from this node."""
        number, body = wire.encode_message(name, fields)
        return bytes(frame.seal(self._up, number, self.node, body))

    def line(self, name: str, **fields: Any) -> bytes:
        """The line of a message from this node, or what else carries it; for `write`."""
        return bytes(frame.to_line(self.frame(name, **fields)))

    def send(self, name: str, **fields: Any) -> bytes:
        """Send a message; its line."""
        data = self.line(name, **fields)
        self.write(data)
        return data

    def hello(self, **changed: Any) -> None:
        """Say hello; the first time as soon as the collector asks, for what came before it opened the port is dropped."""
        if not self.asked:
            self.next("greet")
            self.asked = True
        self.send("hello", **{
            "protocol": wire.PROTOCOL, "boot_nonce": self.boot_nonce, "boot": 1, "journal_id": JOURNAL, "first_seq": 1,
            "next_seq": self.next_seq, "roster_version": self.roster_version, "board": b"rpi-pico", "firmware": b"test", **changed})

    def events(self, *events: bytes, journal_id: bytes = JOURNAL) -> bytes:
        """Send events; hello counts on behind them."""
        self.next_seq = max(self.next_seq, *(wire.event_seq(found) + 1 for found in events))
        return self.send("events", journal_id=journal_id, data=wire.pack_events(events))

    def status(self, **changed: Any) -> bytes:
        self._counter_up += 1
        return self.send("status", **{
            "boot_nonce": self.boot_nonce, "counter": self._counter_up, "boot": 1, "mono_ms": 5000, "state": 0, "relay": 0,
            "power_mw": 0, "energy_mwh_total": 0, "heap_bytes": 0, "frames_bad": 0, "reader_restarts": 0, "state_ms": 0,
            **changed})

    def reply(self, command: Heard, result: int = OK, value: int = 0, **changed: Any) -> bytes:
        return self.send("reply", **{
            "boot_nonce": self.boot_nonce, "counter": command.fields["counter"], "result": result, "boot": 1, "mono_ms": 7000,
            "value": value, **changed})

    def next(self, name: str, timeout_s: float = WAIT_S) -> Heard:
        """The next message of that name; the ones before it are dropped."""
        deadline = time.monotonic() + timeout_s
        while True:
            late = time.monotonic() >= deadline
            self._take_in()
            while self._heard:
                heard = self._heard.pop(0)
                if heard.name == name:
                    return heard
            if late:
                pytest.fail(f"the collector did not say {name} within {timeout_s} s; the last bytes: {bytes(self.raw[-300:])!r}")

    def ack(self, timeout_s: float = WAIT_S) -> int:
        """The seq of the next acknowledgement."""
        return int(self.next("ack", timeout_s).fields["seq"])

    def says_within(self, seconds: float) -> list[str]:
        """Names of all that the collector says in that time, without asking for a greeting."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._take_in()
        said = [heard.name for heard in self._heard if heard.name != "greet"]
        self._heard.clear()
        return said

    def obey(self, until: Callable[[], object], what: str, lose: Collection[int] = (), timeout_s: float = WAIT_S) -> None:
        """Carry out commands until `until()`; the replies to the commands numbered in `lose` (from 0) get lost."""
        deadline = time.monotonic() + timeout_s
        while not until():
            if time.monotonic() >= deadline:
                pytest.fail(f"not within {timeout_s} s: {what}; commands: {[heard.name for heard in self.commands]}")
            self._take_in()
            heard, self._heard = self._heard, []
            for command in heard:
                if "counter" not in command.fields:
                    continue
                result, value = self._carry_out(command)
                if len(self.commands) in lose:
                    self.replies_lost += 1
                else:
                    self.reply(command, result, value)
                self.commands.append(command)

    def longest_line(self) -> int:
        """Bytes of the longest line that came, newline included."""
        return max((len(line) + 1 for line in self.raw.split(b"\n")), default=0)

    def _carry_out(self, command: Heard) -> tuple[int, int]:
        fields = command.fields
        if command.name == "roster_begin":
            self._head, self._arriving = (fields["version"], fields["count"], fields["digest"]), b""
        elif command.name == "roster_chunk":
            if self._head is None or fields["offset"] > len(self._arriving):
                return BAD_ORDER, len(self._arriving)
            self._arriving += fields["data"][len(self._arriving) - fields["offset"]:]
            return OK, len(self._arriving)
        elif command.name == "roster_commit":
            return self._commit(fields["version"])
        return OK, 0

    def _commit(self, version: int) -> tuple[int, int]:
        if self._head is None:
            return (OK if version == self.roster_version else BAD_ORDER), self.roster_version
        made, count, digest = self._head
        self._head = None
        if self.roster_refused:
            return BAD_DIGEST, self.roster_version
        if made != version or len(self._arriving) != count * roster.ENTRY_BYTES:
            return BAD_ORDER, self.roster_version
        if hashlib.sha256(self._arriving).digest() != digest:
            return BAD_DIGEST, self.roster_version
        self.roster, self.roster_version = self._arriving, version
        return OK, version

    def _take_in(self) -> None:
        """Take what has come, waiting a moment for it."""
        for found in self._frames():
            number, node, body = frame.open_frame(self._down, found)
            assert node == self.node
            name, fields = wire.decode_message(number, body, "down")
            self._heard.append(Heard(name, fields, time.time_ns() // 1_000_000))

    def _frames(self) -> list[bytes]:
        """The frames that have come; every line must be one of ours, whole and within the limit."""
        found: list[bytes] = []
        if not select.select([self._far], [], [], POLL_S)[0]:
            return found
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._far, 4096)
            self.raw += data
            found = self._lines.push(data)
        assert (self._lines.bad_lines, self._lines.overlong_lines, self._lines.console_lines) == (0, 0, 0)
        return found
