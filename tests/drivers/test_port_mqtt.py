"""Does the node's MQTT port live through brokers that refuse, babble, hang up or say nothing, without ever waiting or raising?"""
import asyncio
import importlib.util
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fabtap.sim.client import find_interpreter

HERE = Path(__file__).parent
FIRMWARE = HERE.parents[1] / "firmware"
STEP_MAX_MS = 250
"""No step may come near the relay's two seconds; this computer is shared, so not the milliseconds that it takes alone."""
CONNACK, SUBACK_OK, SUBACK_REFUSED = b"\x20\x02\x00\x00", b"\x90\x03%c%c\x00", b"\x90\x03%c%c\x80"
Scene = Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """(first byte, body) of the next packet; all here are shorter than 16,384 bytes."""
    first = (await reader.readexactly(1))[0]
    size = (await reader.readexactly(1))[0]
    if size > 127:
        size = (size & 127) + (await reader.readexactly(1))[0] * 128
    return first, await reader.readexactly(size)


def publish(topic: bytes, payload: bytes) -> bytes:
    return bytes((0x30, 2 + len(topic) + len(payload), 0, len(topic))) + topic + payload


async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, suback: bytes = SUBACK_OK) -> int:
    """Answer CONNECT and the first SUBSCRIBE; how many subscriptions came before a publication of a frame."""
    assert (await packet(reader))[0] == 0x10
    writer.write(CONNACK)
    subscriptions = 0
    while True:
        first, body = await packet(reader)
        if first == 0x82:
            subscriptions += 1
            writer.write(suback % (body[0], body[1]))
        if first & 0xF0 == 0x30 and body.endswith(b"frame"):
            return subscriptions


async def enough(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A good broker: the script ends when it gets this."""
    assert await welcome(reader, writer) == 1, "the node has not subscribed"
    writer.write(publish(b"fabtap/1/lab/1/down", b"enough"))
    await writer.drain()
    await reader.read()


def play(scene: Scene, folder: Path, seconds: int = 20, fault: str = "") -> dict[str, Any]:
    """Run the script against a broker whose n-th connection (from 1) goes as `scene` tells; the JSON that it prints."""
    found = importlib.util.find_spec("chumicro_mqtt")
    assert found and found.submodule_search_locations
    shutil.copytree(found.submodule_search_locations[0], folder / "chumicro_mqtt", ignore=shutil.ignore_patterns("__pycache__"))

    async def run() -> dict[str, Any]:
        count = 0
        wrong: list[BaseException] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            count += 1
            try:
                await scene(count, reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the node has hung up, as it should
            except AssertionError as error:
                wrong.append(error)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            find_interpreter(), "-X", "heapsize=1m", str(HERE / "mqtt_script.py"), str(port), str(seconds), fault, cwd=folder,
            env={"MICROPYPATH": f"{folder}:{FIRMWARE}:.frozen", "PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        async with asyncio.timeout(seconds + 20):
            said, _ = await process.communicate()
        server.close()
        assert not wrong, wrong
        assert process.returncode == 0, said.decode()
        return dict(json.loads(said.decode().strip().splitlines()[-1]))

    return asyncio.run(run())


def is_well(found: dict[str, Any]) -> None:
    assert found["received"][-1:] == ["enough"]
    assert found["longest_ms"] <= STEP_MAX_MS


def test_frames_go_both_ways(tmp_path: Path) -> None:
    found = play(lambda number, reader, writer: enough(reader, writer), tmp_path)
    is_well(found)
    assert (found["connections"], found["back"], found["faults"], found["bad"]) == (1, 1, 0, 0)


def test_a_subscription_that_is_refused_once_is_made_again(tmp_path: Path) -> None:
    async def scene(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if number == 1:
            await welcome(reader, writer, SUBACK_REFUSED)
            await reader.read()
        else:
            await enough(reader, writer)
    found = play(scene, tmp_path)
    is_well(found)
    assert found["connections"] == 2


@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"\x00" * 64, b"\x20\x02\x00\x00\x30\xff\xff\xff\x7f" + b"x" * 400, b"\x20\x7f",
                                     b"\x90\x03\x00\x07\x00\x20\x02\x00\x00"])
def test_a_broker_that_babbles_is_left(tmp_path: Path, garbage: bytes) -> None:
    async def scene(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if number == 1:
            await packet(reader)
            writer.write(garbage)
            await writer.drain()
            await reader.read()
        else:
            await enough(reader, writer)
    is_well(play(scene, tmp_path))


def test_a_broker_that_hangs_up_at_once_is_asked_again_and_again(tmp_path: Path) -> None:
    async def scene(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if number > 3:
            await enough(reader, writer)
    is_well(play(scene, tmp_path))


def test_a_broker_that_never_answers_is_left_at_the_deadline(tmp_path: Path) -> None:
    async def scene(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if number == 1:
            await reader.read()
        else:
            await enough(reader, writer)
    is_well(play(scene, tmp_path))


@pytest.mark.parametrize("fault", ["memory", "index", "attribute"])
def test_a_fault_of_the_library_ends_the_connection_and_nothing_else(tmp_path: Path, fault: str) -> None:
    """Three connections die by it; the fourth works. It is counted where a status tells it."""
    found = play(lambda number, reader, writer: enough(reader, writer), tmp_path, 30, fault)
    is_well(found)
    assert (found["faults"], found["bad"], found["connections"]) == (3, 3, 4)
