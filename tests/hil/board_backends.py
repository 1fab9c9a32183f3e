"""How does one test talk to a simulated board, to a scripted serial port and to a real board alike?

All three open the port with fabtap.port.open_port. `expect` tells the mock what will be written and what it answers; a board
that answers by itself needs no script, there it does nothing. A MockedBoard's bytes are exact: any other write fails, and so does
a script that was not played to its end.
"""
import os
import termios
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fabtap.peer import Message, Peers, Refused
from fabtap.port import open_port
from fabtap.sim.client import SimClient
from nodecore import frame, wire

ANSWER_S = 10.0
POLL_S = 0.002
MOCK_SECRET = bytes(range(32))


class PlainBoard:
    """A board with the firmware on it, behind `path`; `secret` is that of its node. The base of all three kinds."""

    kind = ""

    def __init__(self, path: Path, node: int, secret: bytes) -> None:
        self.path = path
        self.node = node
        self.secret = secret
        self.peers = Peers({node: secret})
        self.port: Any = None
        self.text = bytearray()
        self.messages: deque[Message] = deque()
        self.refused: list[str] = []
        self.counter = 0
        self.nonce = 0
        self._lines = frame.LineReader(frame.UP_LINE_MAX)

    def expect(self, written: bytes, *answers: bytes) -> None:
        """What the next write must be and what the port then gives; only the mock needs to be told."""

    def open(self) -> None:
        """Open the port as the collector does."""
        self.port = open_port(self.path)
        self.text.clear()
        self.messages.clear()
        self._lines = frame.LineReader(frame.UP_LINE_MAX)

    def close(self) -> None:
        """Close the port."""
        if self.port is not None:
            self.port.close()
            self.port = None

    def write(self, data: bytes) -> None:
        """Write all of it."""
        deadline = time.monotonic() + ANSWER_S
        while data:
            data = data[self.port.write(data):]
            if data and time.monotonic() > deadline:
                pytest.fail(f"the port does not take the last {len(data)} bytes")

    def send(self, name: str, **fields: Any) -> bytes:
        """Send a message that needs no counter, or whose counter is given; the line that was sent."""
        line = self.peers.line(self.node, name, fields)
        self.write(line)
        return line

    def pump(self) -> None:
        """Take in what has come."""
        data = self.port.read(4096)
        self.text.extend(data)
        for found in self._lines.push(data):
            try:
                self.messages.append(self.peers.open(found))
            except Refused as refused:
                # Who opens a port may find the rest of a line there, and a reset cuts one off.
                self.refused.append(str(refused))

    def read_until(self, condition: Callable[[], Any], what: str, timeout_s: float = ANSWER_S) -> Any:
        """Take in bytes until `condition()`; what it gives."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.pump()
            found = condition()
            if found:
                return found
            if time.monotonic() >= deadline:
                pytest.fail(f"not within {timeout_s} s: {what}; the last bytes: {bytes(self.text[-400:])!r}")
            time.sleep(POLL_S)

    def message(self, name: str, timeout_s: float = ANSWER_S, **wanted: Any) -> dict[str, Any]:
        """The fields of the next message of that name (and with these fields); the ones before it are dropped."""
        def look() -> dict[str, Any] | None:
            while self.messages:
                got = self.messages.popleft()
                if got.name == name and all(got.fields[key] == value for key, value in wanted.items()):
                    return got.fields
            return None
        found: dict[str, Any] = self.read_until(look, f"a message {name} {wanted or ''}", timeout_s)
        return found

    def text_until(self, ending: bytes, timeout_s: float = ANSWER_S) -> bytes:
        """Console text (everything, frames too) up to `ending`; it is consumed."""
        self.read_until(lambda: ending in self.text, f"text {ending!r}", timeout_s)
        end = self.text.index(ending) + len(ending)
        found = bytes(self.text[:end])
        del self.text[:end]
        return found

    def greet(self) -> dict[str, Any]:
        """Ask for a hello and acknowledge all events, as a collector that has them; the hello's fields."""
        self.messages.clear()
        self.send("greet")
        hello = self.message("hello")
        self.nonce = hello["boot_nonce"]
        self.send("ack", journal_id=hello["journal_id"], seq=hello["next_seq"] - 1)
        return hello

    def command(self, name: str, **fields: Any) -> dict[str, Any]:
        """Send a command under the next counter; the reply's fields."""
        self.counter += 1
        self.send(name, boot_nonce=self.nonce, counter=self.counter, **fields)
        return self.message("reply", counter=self.counter)

    def frames_bad(self) -> int:
        """What the node's next status says; one is sent every 5 s."""
        return int(self.message("status", timeout_s=15)["frames_bad"])


class SimulatedBoard(PlainBoard):
    """A simulated board; `control` drives its world."""

    kind = "simulated"

    def __init__(self, control: SimClient, node: int, secret: bytes) -> None:
        super().__init__(control.port, node, secret)
        self.control = control


class RealBoard(PlainBoard):
    """A real board at --board-port."""

    kind = "real"


class ScriptedPort:
    """In the place of `serial.Serial`: it has a real terminal's descriptor, but its bytes come from a script."""

    def __init__(self, script: deque[tuple[bytes, tuple[bytes, ...]]], descriptor: int) -> None:
        self._script = script
        self._inbox = bytearray()
        self._descriptor = descriptor
        self.lines_set: list[str] = []
        self.is_open = True

    def fileno(self) -> int:
        return self._descriptor

    def read(self, count: int = 1) -> bytes:
        data = bytes(self._inbox[:count])
        del self._inbox[:count]
        return data

    def write(self, data: bytes) -> int:
        assert self._script, f"nobody expected this write: {data!r}"
        expected, answers = self._script.popleft()
        assert data == expected, f"{data!r} was written, {expected!r} expected"
        for answer in answers:
            self._inbox.extend(answer)
        return len(data)

    def close(self) -> None:
        self.is_open = False

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("dtr", "rts", "break_condition"):
            self.lines_set.append(name)
        else:
            super().__setattr__(name, value)

    def setDTR(self, level: bool = True) -> None:  # noqa: N802 pyserial's own name
        self.lines_set.append("dtr")

    def setRTS(self, level: bool = True) -> None:  # noqa: N802 pyserial's own name
        self.lines_set.append("rts")


class MockedBoard(PlainBoard):
    """No board at all: `mocker` puts a ScriptedPort in the place of serial.Serial in fabtap.port."""

    kind = "mocked"

    def __init__(self, mocker: Any, path: Path) -> None:
        super().__init__(path, 1, MOCK_SECRET)
        self.script: deque[tuple[bytes, tuple[bytes, ...]]] = deque()
        self.master, self.slave = os.openpty()
        self.ports: list[ScriptedPort] = []
        self.constructor = mocker.patch("fabtap.port.serial.Serial", side_effect=self._construct)

    def _construct(self, *arguments: object, **more: object) -> ScriptedPort:
        self.ports.append(ScriptedPort(self.script, self.slave))
        return self.ports[-1]

    def expect(self, written: bytes, *answers: bytes) -> None:
        self.script.append((written, answers))

    def finish(self) -> None:
        """Give the descriptors back; the script must have been played to its end."""
        os.close(self.master)
        os.close(self.slave)
        assert not self.script, f"these writes never came: {list(self.script)}"


def node_frame(secret: bytes, node: int, name: str, fields: Mapping[str, Any], key: bytes = b"up") -> bytes:
    """The frame that a node with this secret sends; another `key` makes one of the wrong direction."""
    number, body = wire.encode_message(name, fields)
    return bytes(frame.seal(frame.Mac(frame.derive_key(secret, key)), number, node, body))


def node_line(secret: bytes, node: int, name: str, fields: Mapping[str, Any]) -> bytes:
    """The line that a node with this secret sends."""
    return bytes(frame.to_line(node_frame(secret, node, name, fields)))


def drops_lines_on_close(descriptor: int) -> bool:
    """Whether the terminal would drop DTR and RTS at the next close (HUPCL)."""
    return bool(termios.tcgetattr(descriptor)[2] & termios.HUPCL)


def drop_lines_on_close(path: Path) -> None:
    """Set HUPCL, as a fresh device has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        mode = termios.tcgetattr(descriptor)
        mode[2] |= termios.HUPCL
        termios.tcsetattr(descriptor, termios.TCSANOW, mode)
    finally:
        os.close(descriptor)
