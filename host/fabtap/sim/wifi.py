"""What is the simulated node's radio world: an access point that can fail, an address that can change, names that move?

The node's sockets are the computer's own, so all of it is on loopback addresses that only this board uses: a name server (UDP)
and, for each name, a relay to the real server behind it. A radio that fails says nothing to anybody: bytes stop flowing and no
connection is closed. `address` moves the node and what it reached: the old way stays dead, the name server knows the new one.
"""
import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

JOIN_S = 0.3
LOST_S = 1.0
"""How long the node's WLAN goes on believing in an access point that has gone."""
READ_BYTES = 4096
TRIES = 20
DNS_HEAD = struct.Struct(">HHHHHH")
OFF, IDLE, JOINING, JOINED = 0, 1, 2, 3


@dataclass(frozen=True)
class Network:
    """The access point. `names` maps what the node may look up to the (host, port) behind it."""

    network: str
    password: str
    names: dict[str, tuple[str, int]]
    name_server_port: int


def loopback_address() -> str:
    """An address on loopback that hardly anybody else uses."""
    return ".".join(("127", *(str(random.randrange(1, 255)) for _ in range(3))))


class NameServer(asyncio.DatagramProtocol):
    """Answers A questions while the radio works."""

    def __init__(self, wifi: "Wifi") -> None:
        self._wifi = wifi
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance of it before Python 3.12.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if not self._wifi.on_air or self._transport is None or len(data) < DNS_HEAD.size + 5:
            return
        number = DNS_HEAD.unpack_from(data)[0]
        labels, position = [], DNS_HEAD.size
        while position < len(data) and data[position]:
            labels.append(data[position + 1:position + 1 + data[position]].decode("ascii", "replace"))
            position += 1 + data[position]
        question = data[DNS_HEAD.size:position + 5]
        found = self._wifi.addresses.get(".".join(labels))
        head = DNS_HEAD.pack(number, 0x8180 if found else 0x8183, 1, 1 if found else 0, 0, 0)
        answer = b"" if not found else struct.pack(">HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(found)
        self._transport.sendto(head + question + answer, address)


class Wifi:
    """One board's radio world. All methods run in the event loop."""

    def __init__(self, network: Network, noted: Callable[[str, object], None]) -> None:
        self._network = network
        self._noted = noted
        self.on_air = True
        self.node_address = loopback_address()
        self.name_server = loopback_address()
        self.addresses: dict[str, str] = {}
        self._state = OFF
        self._changed_s = 0.0
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None
        self._era = 0

    async def start(self) -> None:
        """Open the name server and the way to everything that has a name."""
        loop = asyncio.get_running_loop()
        for _ in range(TRIES):
            with contextlib.suppress(OSError):
                self._transport, _ = await loop.create_datagram_endpoint(
                    lambda: NameServer(self), (self.name_server, self._network.name_server_port))
                break
            self.name_server = loopback_address()
        else:
            raise OSError(f"no loopback address is free on port {self._network.name_server_port}")
        await self._open_ways()

    async def _open_ways(self) -> None:
        for name, (_, port) in self._network.names.items():
            address = loopback_address()
            self._servers.append(await asyncio.start_server(partial(self._serve, name), address, port))
            self.addresses[name] = address

    async def move(self) -> None:
        """DHCP and the name server have new addresses; what was open stays open, and dead."""
        self._era += 1
        old, self._servers = self._servers, []
        self.node_address = loopback_address()
        await self._open_ways()
        for server in old:
            server.close()
        self._noted("wifi address", self.node_address)

    def radio(self, on: bool) -> None:
        """The access point goes off or on."""
        self._noted("wifi", "on" if on else "off")
        self.on_air = on
        self._changed_s = time.monotonic()
        if on and self._state == JOINED:
            self._state = JOINING

    def stop(self) -> None:
        """Close everything."""
        if self._transport:
            self._transport.close()
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()

    def node_reset(self) -> None:
        """The node's radio has lost its power or was reset."""
        self._state = OFF
        self._era += 1
        for task in self._tasks:
            task.cancel()

    def call(self, number: int, data: bytes) -> bytes:
        """One call of the node's `network` module: 0 active, 1 connect, 2 disconnect, 3 state, 4 ifconfig."""
        if number == 0:
            self._state = (self._state or IDLE) if data == b"\1" else OFF
        elif number == 1:
            name, _, password = data.partition(b"\0")
            right = (name.decode(), password.decode()) == (self._network.network, self._network.password)
            self._state = JOINING if right else IDLE
            self._changed_s = time.monotonic()
        elif number == 2:
            self._state = min(self._state, IDLE)
        elif number == 3:
            return bytes((self._now(),))
        elif self._now() == JOINED:
            return f"{self.node_address} 255.0.0.0 {self.name_server} {self.name_server}".encode()
        else:
            return b"0.0.0.0 0.0.0.0 0.0.0.0 0.0.0.0"
        return b"\0"

    def _now(self) -> int:
        since_s = time.monotonic() - self._changed_s
        if self._state == JOINING and self.on_air and since_s >= JOIN_S:
            self._state = JOINED
        elif self._state == JOINED and not self.on_air and since_s >= LOST_S:
            self._state = IDLE
        return self._state

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        era = self._era
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            if not self.on_air:
                await asyncio.Event().wait()
            there = await asyncio.open_connection(*self._network.names[name])
            try:
                await self._both_ways(era, (reader, writer), there)
            finally:
                there[1].close()
        except OSError as error:
            self._noted("wifi", f"{name}: {error}")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _both_ways(self, era: int, node: tuple[asyncio.StreamReader, asyncio.StreamWriter],
                         there: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        ways = [asyncio.create_task(self._one_way(era, node[0], there[1])),
                asyncio.create_task(self._one_way(era, there[0], node[1]))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _one_way(self, era: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(READ_BYTES)
            if era != self._era or not self.on_air:
                # Lost on the air, and so is the end of the connection. TCP would send again; this one never gets through.
                await asyncio.Event().wait()
            if not data:
                return
            writer.write(data)
            await writer.drain()
