"""Does the simulated WiFi do what a radio does: join, fail without a word, come back, give out other addresses?"""
import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fabtap.sim.wifi import JOIN_S, LOST_S, Network, Wifi

sys.path.insert(0, str(Path(__file__).parents[2] / "firmware"))
NAME_SERVER_PORT = 5353
JOINED = 3


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The real server behind the name."""
    while data := await reader.read(100):
        writer.write(data)
        await writer.drain()
    writer.close()


def with_wifi(scene: Callable[[Wifi, int], Coroutine[Any, Any, None]]) -> None:
    """Run a scene with a WiFi whose `server.lab` is an echo server on this computer."""
    async def play() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        wifi = Wifi(Network("FabLab", "secret", {"server.lab": ("127.0.0.1", port)}, NAME_SERVER_PORT), lambda what, detail: None)
        await wifi.start()
        try:
            async with asyncio.timeout(20):
                await scene(wifi, port)
        finally:
            wifi.stop()
            server.close()
    asyncio.run(play())


async def joined(wifi: Wifi, password: str = "secret") -> bool:
    """Does the node get in?"""
    wifi.call(0, b"\1")
    wifi.call(1, b"FabLab\0" + password.encode())
    await asyncio.sleep(JOIN_S + 0.05)
    return wifi.call(3, b"")[0] == JOINED


async def ask(wifi: Wifi, name: str, wait_s: float = 1.0) -> str | None:
    """The node's own resolver asks; "" for no such name, None for no answer."""
    from drivers.resolver_udp import Resolver
    resolver = Resolver(name, wifi.name_server, NAME_SERVER_PORT)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    try:
        while loop.time() - begun_s < wait_s:
            try:
                found = resolver.poll(int(loop.time() * 1000), lambda after, before: after - before)
            except OSError:
                return ""
            if found:
                return str(found)
            await asyncio.sleep(0.005)
        return None
    finally:
        resolver.close()


def test_a_node_joins_with_the_right_password_only() -> None:
    async def scene(wifi: Wifi, port: int) -> None:
        assert not await joined(wifi, "wrong")
        assert wifi.call(4, b"").startswith(b"0.0.0.0")
        assert await joined(wifi)
        address, _, _, name_server = wifi.call(4, b"").decode().split()
        assert address == wifi.node_address and name_server == wifi.name_server
    with_wifi(scene)


def test_the_resolver_finds_names_and_hears_of_names_that_are_not_there() -> None:
    async def scene(wifi: Wifi, port: int) -> None:
        assert await ask(wifi, "server.lab") == wifi.addresses["server.lab"]
        assert await ask(wifi, "nobody.lab") == ""
    with_wifi(scene)


def test_a_name_leads_to_the_real_server() -> None:
    async def scene(wifi: Wifi, port: int) -> None:
        reader, writer = await asyncio.open_connection(wifi.addresses["server.lab"], port)
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        writer.close()
    with_wifi(scene)


def test_a_radio_that_fails_says_nothing_and_the_node_notices_late() -> None:
    async def scene(wifi: Wifi, port: int) -> None:
        assert await joined(wifi)
        reader, writer = await asyncio.open_connection(wifi.addresses["server.lab"], port)
        wifi.radio(False)
        writer.write(b"ping")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await reader.read(4)
        assert await ask(wifi, "server.lab", 0.3) is None
        assert wifi.call(3, b"")[0] == JOINED, "the WLAN goes on believing for a while"
        await asyncio.sleep(LOST_S)
        assert wifi.call(3, b"")[0] != JOINED
        wifi.radio(True)
        assert await joined(wifi) and await ask(wifi, "server.lab")
        writer.close()
    with_wifi(scene)


def test_new_addresses_leave_what_was_open_open_and_dead() -> None:
    async def scene(wifi: Wifi, port: int) -> None:
        assert await joined(wifi)
        old_node, old_server = wifi.node_address, wifi.addresses["server.lab"]
        reader, writer = await asyncio.open_connection(old_server, port)
        await wifi.move()
        assert wifi.node_address != old_node and wifi.call(4, b"").decode().split()[0] == wifi.node_address
        writer.write(b"ping")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await reader.read(4)
        assert await ask(wifi, "server.lab") == wifi.addresses["server.lab"] != old_server
        with pytest.raises(OSError):
            socket.create_connection((old_server, port), 1)
        writer.close()
    with_wifi(scene)
