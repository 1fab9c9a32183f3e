"""How does a test play a node behind a broker? With the few packets of MQTT 3.1.1 that it needs, by hand, over a plain socket.

`MqttClient` is any client, also one that lies; `MqttNode` is the scripted node that carries its frames through one.
"""
import select
import socket
import struct
import time
from pathlib import Path

from fabtap.keys import node_password
from nodecore import frame
from tests.host.scripted_node import POLL_S, ScriptedNode

CONNECT, CONNACK, PUBLISH, SUBSCRIBE, SUBACK = 0x10, 0x20, 0x30, 0x82, 0x90
ANSWER_S = 5.0
KEEP_ALIVE_S = 60
RETRY_S = 0.1


class Refused(Exception):
    """The broker refused the connection; the number of its CONNACK."""


def text(value: str) -> bytes:
    return struct.pack(">H", len(value.encode())) + value.encode()


def packet(kind: int, body: bytes) -> bytes:
    size, length = len(body), b""
    while True:
        size, digit = divmod(size, 128)
        length += bytes((digit | (0x80 if size else 0),))
        if not size:
            return bytes((kind,)) + length + body


class MqttClient:
    """A connected client. Raises Refused, or ConnectionError when the broker hangs up."""

    def __init__(self, port: int, user: str | None, password: str, will_topic: str | None = None) -> None:
        self._bytes = b""
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_S)
        flags = 0x02 | (0xC0 if user else 0) | (0x24 if will_topic else 0)
        body = text("MQTT") + bytes((4, flags)) + struct.pack(">H", KEEP_ALIVE_S) + text(f"test-{user}-{time.monotonic_ns()}")
        body += text(will_topic) + text("0") if will_topic else b""
        body += text(user) + text(password) if user else b""
        self._socket.sendall(packet(CONNECT, body))
        try:
            code = self._answer(CONNACK)[1]
        except BaseException:
            self.drop()
            raise
        if code:
            self.drop()
            raise Refused(code)

    def subscribe(self, topic: str) -> int:
        """What the broker granted: 0, or 128 for no."""
        self._socket.sendall(packet(SUBSCRIBE, b"\0\1" + text(topic) + b"\0"))
        return self._answer(SUBACK)[2]

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self._socket.sendall(packet(PUBLISH | retain, text(topic) + payload))

    def received(self, wait_s: float = POLL_S) -> list[tuple[str, bytes, bool]]:
        """(topic, payload, retained) of what has come, waiting a moment for it. Raises ConnectionError at the end."""
        if select.select([self._socket], [], [], wait_s)[0]:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the broker has hung up")
            self._bytes += data
        found = []
        while (taken := self._take()) is not None:
            kind, body = taken
            if kind & 0xF0 == PUBLISH:
                size = struct.unpack_from(">H", body)[0]
                found.append((body[2:2 + size].decode(), body[2 + size:], bool(kind & 1)))
        return found

    def drop(self) -> None:
        """Hang up without a word, as a node without power."""
        self._socket.close()

    def _answer(self, wanted: int) -> bytes:
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            while (taken := self._take()) is not None:
                if taken[0] == wanted:
                    return taken[1]
            if select.select([self._socket], [], [], POLL_S)[0]:
                data = self._socket.recv(65536)
                if not data:
                    raise ConnectionError("the broker has hung up")
                self._bytes += data
        raise TimeoutError("the broker does not answer")

    def _take(self) -> tuple[int, bytes] | None:
        size = shift = 0
        for at, byte in enumerate(self._bytes[1:5], 1):
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                if len(self._bytes) <= at + size:
                    return None
                kind, body = self._bytes[0], self._bytes[at + 1:at + 1 + size]
                self._bytes = self._bytes[at + 1 + size:]
                return kind, body
        return None


class MqttNode(ScriptedNode):
    """Node `node` behind the broker on `port`."""

    def __init__(self, port: int, lab_id: str, secret: bytes, node: int) -> None:
        self._port = port
        self._password = node_password(secret)
        self.topic = f"fabtap/1/{lab_id}/{node}"
        self.client: MqttClient | None = None
        super().__init__(Path(), secret, node)

    def plug(self) -> None:
        """Connect as firmware/drivers/port_mqtt.py does."""
        self.asked = False
        self.client = MqttClient(self._port, str(self.node), self._password, f"{self.topic}/state")
        assert self.client.subscribe(f"{self.topic}/down") == 0
        self.client.publish(f"{self.topic}/state", b"1", retain=True)

    def unplug(self) -> None:
        if self.client:
            self.client.drop()
            self.client = None

    def line(self, name: str, **fields: object) -> bytes:
        return self.frame(name, **fields)

    def write(self, data: bytes) -> None:
        assert self.client
        self.client.publish(f"{self.topic}/up", data)

    def _frames(self) -> list[bytes]:
        assert self.client
        found = []
        for topic, payload, _ in self.client.received():
            assert topic == f"{self.topic}/down"
            assert len(frame.to_line(payload)) - 1 <= frame.DOWN_LINE_MAX
            found.append(payload)
        return found

    def plug_again(self, timeout_s: float) -> None:
        """Connect as soon as the broker lets us."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.unplug()
            try:
                return self.plug()
            except (OSError, Refused):
                if time.monotonic() >= deadline:
                    raise
            time.sleep(RETRY_S)
