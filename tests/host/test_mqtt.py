"""Do events come through a broker exactly once, whoever else speaks there and whatever happens to it?

The brokers are the real ones, each on a port of its own; the test plays the nodes.
"""
import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fabtap import mqtt, node_link, store
from fabtap.broker import RunningBroker, find_mosquitto, start_broker
from fabtap.complaints import Complaints
from fabtap.keys import broker_password, load_secrets, node_password
from fabtap.lab import Broker, load_lab
from fabtap.peer import DOWN_FRAME_MAX, UP_FRAME_MAX
from nodecore import frame, wire
from tests.host.mqtt_lab import BOTH, MILL, ROUTER, free_port, open_acl, write_mqtt_lab
from tests.host.mqtt_node import MqttClient, MqttNode
from tests.host.running_collector import WAIT_S, Running, in_step, make_haste, settle, stored
from tests.host.scripted_node import JOURNAL, ScriptedNode, event
from tests.rig import wait_until

QUIET_S = 0.5
"""How long we listen for what must not come; the controls show that it would have come by then."""
RECOVERY_S = 10.0
NOTICE_S = 15.0
KIND = "mosquitto" if find_mosquitto() else "amqtt"
"""The broker of the tests that need only one."""


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    make_haste(monkeypatch)


class Place:
    """A lab with its broker and collector and nodes, started one by one."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.port = free_port()
        self.file = write_mqtt_lab(folder, self.port)
        self.lab = load_lab(self.file)
        self.secrets = load_secrets(self.lab.keys)
        self._stack = stack

    def broker(self, kind: str = KIND) -> RunningBroker:
        return self._stack.enter_context(start_broker(self.lab, self.folder / "broker", kind))

    def collector(self) -> Running:
        running = Running(self.file)
        self._stack.callback(running.stop)
        return running

    def node(self, number: int = MILL) -> MqttNode:
        node = MqttNode(self.port, self.lab.id, self.secrets[number], number)
        self._stack.callback(node.unplug)
        return node

    def client(self, number: int) -> MqttClient:
        """A client with a node's own name and password, and no manners."""
        client = MqttClient(self.port, str(number), node_password(self.secrets[number]))
        self._stack.callback(client.drop)
        return client

    def watcher(self) -> MqttClient:
        """A client with the collector's rights."""
        client = MqttClient(self.port, "collector", broker_password(self.lab.keys))
        self._stack.callback(client.drop)
        return client


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


def events_of(node: MqttNode, *events: bytes) -> bytes:
    return node.frame("events", journal_id=JOURNAL, data=wire.pack_events(list(events)))


# The way there and back

@pytest.mark.parametrize("kind", BOTH)
def test_events_are_stored_once_and_acknowledged_and_clock_and_roster_come(place: Place, kind: str) -> None:
    place.broker(kind)
    running = place.collector()
    node = place.node()
    settle(node)
    assert node.roster_version
    again = node.events(event(1), event(2))
    assert node.ack() == 2
    for _ in range(3):
        node.write(again)
        assert node.ack() == 2
    assert stored(running) == [1, 2]
    assert len(store.anchors(running.lab.database)) == 1


def test_serial_and_broker_are_served_at_once(place: Place) -> None:
    place.broker()
    running = place.collector()
    laser = ScriptedNode(place.folder / "sim" / "laser.tty", place.secrets[1], 1)
    try:
        nodes = [laser, place.node(MILL), place.node(ROUTER)]
        for node in nodes:
            settle(node)
        for seq in range(1, 4):
            for node in nodes:
                assert in_step(node, seq)
    finally:
        laser.unplug()
    assert [(found.node_id, found.watermark) for found in store.journals(running.lab.database)] == [(1, 3), (2, 3), (3, 3)]


def test_the_same_events_over_serial_and_over_mqtt_are_stored_once(place: Place) -> None:
    """A mill that had a cable gets WiFi: what was not acknowledged over the one comes again over the other."""
    write_mqtt_lab(place.folder, place.port, mill_link="serial")
    place.broker()
    running = Running(place.file)
    serial = ScriptedNode(place.folder / "sim" / "mill.tty", place.secrets[MILL], MILL)
    try:
        settle(serial)
        serial.events(event(1), event(2), event(3))
        assert serial.ack() == 3
    finally:
        serial.unplug()
        running.stop()
    write_mqtt_lab(place.folder, place.port)
    running = place.collector()
    node = place.node()
    settle(node, next_seq=6)
    node.events(event(2), event(3), event(4), event(5))
    assert node.ack() == 5
    assert stored(running) == [1, 2, 3, 4, 5]
    assert store.quarantined(running.lab.database) == []


def test_nothing_is_acknowledged_before_its_commit(place: Place) -> None:
    place.broker()
    running = place.collector()
    node = place.node()
    settle(node)
    running.writer.go.clear()
    node.events(event(1))
    assert node.says_within(QUIET_S) == []
    running.writer.go.set()
    assert node.ack() == 1


def test_a_node_that_appears_is_greeted_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "GREET_S", 1000.0)
    place.broker()
    running = place.collector()
    wait_until(lambda: "mill" in running.collector.links, WAIT_S, "the collector is there")
    first = place.node(ROUTER)
    first.next("greet")  # the collector listens
    node = place.node()
    node.next("greet", 1.0)
    node.client.publish(f"{node.topic}/state", b"0", retain=True)
    assert node.client.received(QUIET_S) == []  # control: no other state is a reason


@pytest.mark.parametrize("kind", BOTH)
def test_a_node_that_vanishes_is_off_by_its_last_will(place: Place, kind: str) -> None:
    place.broker(kind)
    watcher = place.watcher()
    assert watcher.subscribe(f"fabtap/1/{place.lab.id}/+/state") == 0
    node = place.node()
    states: list[tuple[str, bytes]] = []

    def has_come(count: int) -> bool:
        states.extend((topic, payload) for topic, payload, _ in watcher.received())
        return len(states) >= count

    wait_until(lambda: has_come(1), WAIT_S, "it is on")
    node.unplug()
    wait_until(lambda: has_come(2), WAIT_S, "it is off")
    assert states == [(f"{node.topic}/state", b"1"), (f"{node.topic}/state", b"0")]
    late = place.watcher()
    late.subscribe(f"fabtap/1/{place.lab.id}/+/state")
    assert wait_until(lambda: late.received(), WAIT_S, "what was retained") == [(f"{node.topic}/state", b"0", True)]


# Who is not believed

@pytest.mark.parametrize("kind", BOTH)
def test_a_node_can_not_write_under_another_ones_name(place: Place, kind: str) -> None:
    """Even bytes that are right, which a thief has copied, do not get through, and nobody hears what another one is told."""
    place.broker(kind)
    running = place.collector()
    node = place.node()
    settle(node)
    thief = place.client(ROUTER)
    assert thief.subscribe(f"{node.topic}/down") == 128 or kind == "mosquitto"  # mosquitto refuses at each delivery instead
    thief.publish(f"{node.topic}/up", events_of(node, event(1)))
    thief.publish(f"{node.topic}/state", b"1")
    thief.publish(f"fabtap/1/{place.lab.id}/77/up", b"x" * 40)
    assert node.says_within(QUIET_S) == []
    assert in_step(node, 1)
    assert stored(running) == [1] and not store.port_counts(running.lab.database).get("mqtt")
    assert [found for found in thief.received(QUIET_S) if found[0].endswith("/down")] == []


@pytest.mark.parametrize("kind", BOTH)
def test_control_without_the_acl_it_gets_through_and_the_collector_believes_only_the_mac(
        place: Place, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    open_acl(monkeypatch)
    place.broker(kind)
    running = place.collector()
    node, router = place.node(), place.node(ROUTER)
    settle(node)
    settle(router)
    thief = place.client(ROUTER)
    thief.publish(f"{node.topic}/up", events_of(node, event(1)))
    assert node.ack() == 1
    thief.publish(f"{node.topic}/up", b"\2" + events_of(router, event(1))[1:])  # the router's own frame under the mill's name
    running.wait_counted("node_on_wrong_port", port="mill")
    tampered = bytearray(events_of(node, event(2)))
    tampered[30] ^= 1
    thief.publish(f"{node.topic}/up", bytes(tampered))
    running.wait_counted("wrong_mac", port="mill")
    for number in ("77", "1", "mill", "9" * 40, ""):
        thief.publish(f"fabtap/1/{place.lab.id}/{number}/up", events_of(node, event(2)))
    running.wait_counted("unknown_node", 5, port="mqtt")
    assert in_step(node, 2)
    assert stored(running) == [1, 2]


def test_an_overlong_payload_is_refused_and_counted(place: Place) -> None:
    place.broker()
    running = place.collector()
    node = place.node()
    settle(node)
    node.write(bytes(UP_FRAME_MAX))
    node.write(bytes(UP_FRAME_MAX + 1))
    node.write(b"")
    running.wait_counted("overlong_frame", port="mill")
    running.wait_counted("unknown_node", port="mill")  # the longest that is allowed is looked at
    running.wait_counted("short_frame", port="mill")
    assert in_step(node, 1)


def test_the_longest_down_frame_makes_a_line_that_fits() -> None:
    assert len(frame.to_line(bytes(DOWN_FRAME_MAX))) - 1 <= frame.DOWN_LINE_MAX
    assert len(frame.to_line(bytes(DOWN_FRAME_MAX + 1))) - 1 > frame.DOWN_LINE_MAX


def test_a_flood_is_dropped_and_counted_and_the_other_node_is_served(place: Place) -> None:
    place.broker()
    running = place.collector()
    node, router = place.node(), place.node(ROUTER)
    settle(node)
    settle(router)
    sent = 3 * mqtt.QUEUE_FRAMES
    again = events_of(node, event(1))
    running.writer.go.clear()
    for _ in range(sent):
        node.write(again)
    router.events(event(1))
    assert router.says_within(QUIET_S) == []
    running.writer.go.set()
    assert node.ack() == 1
    # A queue is full, one frame may be with the writer by then, the rest is gone.
    expected = sent - mqtt.QUEUE_FRAMES
    wait_until(lambda: running.counted("flooded", "mill") >= expected - 1, WAIT_S, "it is counted")
    assert expected - 1 <= running.counted("flooded", "mill") <= expected
    assert router.ack() == 1
    assert running.counted("flooded", "router") == 0
    assert in_step(node, 2)
    for _ in range(2000):
        node.write(bytes(100))
    started_s = time.monotonic()
    assert in_step(router, 2)
    assert time.monotonic() - started_s < 2


# What can happen to the broker

def test_a_broker_that_is_not_there_yet_is_waited_for(place: Place) -> None:
    running = place.collector()
    running.wait_counted("broker_gone", port="mqtt")
    place.broker()
    node = place.node()
    settle(node)
    assert in_step(node, 1)


def test_a_wrong_password_is_a_message_with_its_mend(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    keys = place.lab.keys
    broker_password(keys)
    right = keys.read_text("utf-8")
    place.broker()
    keys.write_text(right.replace(broker_password(keys), "0" * 32), encoding="utf-8")
    running = place.collector()
    running.wait_counted("broker_gone", port="mqtt")
    assert any("run fabtap broker config" in message for message in caplog.messages)
    running.stop()
    keys.write_text(right, encoding="utf-8")
    place.collector()
    settle(place.node())


def test_a_broker_that_does_not_let_the_collector_read_is_a_message_with_its_mend(
        place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("fabtap.broker._acl", lambda lab_id: "")
    place.broker("amqtt")  # mosquitto grants every subscription, and then delivers nothing
    place.collector().wait_counted("broker_gone", port="mqtt")
    assert any("not read; run fabtap broker config" in message for message in caplog.messages)


@pytest.mark.parametrize("says", [b"", b"\x20\x02\x00\x03", b"HTTP/1.1 400 Bad Request\r\n\r\n"],
                         ids=["nothing", "busy", "another program"])
def test_a_broker_that_hangs_up_is_tried_again_soon(place: Place, says: bytes) -> None:
    with socket.create_server(("127.0.0.1", place.port)) as server:
        server.settimeout(WAIT_S)
        running = place.collector()
        for _ in range(2):
            made, _ = server.accept()
            made.sendall(says)
            made.close()
            answered_s = time.monotonic()
        assert running.counted("broker_gone", "mqtt") <= 2
        running.wait_counted("broker_gone", 2, port="mqtt")
        assert time.monotonic() - answered_s < 2  # far below the deadline for an answer


@pytest.mark.parametrize("kind", BOTH)
def test_a_broker_that_was_killed_is_found_again_in_time(
        place: Place, kind: str, record_property: Callable[[str, object], None]) -> None:
    broker = place.broker(kind)
    running = place.collector()
    node = place.node()
    settle(node)
    assert in_step(node, 1)
    os.kill(broker.process_id, signal.SIGKILL)
    running.wait_counted("broker_gone", port="mqtt")
    time.sleep(2)  # the outage itself
    place.broker(kind)
    back_s = time.monotonic()
    node.plug_again(RECOVERY_S)
    node.hello(next_seq=3)
    assert in_step(node, 2)
    took_s = time.monotonic() - back_s
    record_property("recovery_s", round(took_s, 2))
    print(f"recovery after {took_s:.2f} s ({kind})")
    assert took_s <= RECOVERY_S
    assert stored(running) == [1, 2]


def test_a_broker_that_stands_still_is_noticed_and_found_again(place: Place) -> None:
    broker = place.broker()
    running = place.collector()
    node = place.node()
    settle(node)
    os.kill(broker.process_id, signal.SIGSTOP)
    try:
        stopped_s = time.monotonic()
        wait_until(lambda: running.counted("broker_gone", "mqtt"), NOTICE_S, "it is noticed")
        print(f"noticed after {time.monotonic() - stopped_s:.2f} s")
        # Its computer still takes connections, and nobody answers them.
        wait_until(lambda: running.counted("broker_gone", "mqtt") >= 2, mqtt.CONNECT_S + mqtt.RETRY_MAX_S + 3,
                   "the next attempt ends")
    finally:
        os.kill(broker.process_id, signal.SIGCONT)
    back_s = time.monotonic()
    node.plug_again(RECOVERY_S)
    node.hello()
    assert in_step(node, 1)
    assert time.monotonic() - back_s <= RECOVERY_S


def test_what_a_broker_does_not_take_is_dropped_and_counted(place: Place) -> None:
    """A computer's own buffers take some megabytes for it; what comes then must not pile up in the collector."""
    broker = place.broker()
    running = place.collector()
    node = place.node()
    settle(node)
    connection = running.collector.links["mill"]._send_frame.func.__self__
    assert isinstance(connection, mqtt.Connection)
    size, sent_bytes_max = 4096, 64 * 2**20

    async def send_until_dropped() -> int:
        """The most bytes that waited."""
        most = sent_bytes = 0
        before = running.collector.complaints("mill")._counts.get("broker_takes_nothing", 0)
        while running.collector.complaints("mill")._counts.get("broker_takes_nothing", 0) == before:
            assert sent_bytes < sent_bytes_max, f"{most} bytes wait"
            connection._send(MILL, bytes(size))
            sent_bytes += size
            most = max(most, connection._transport().get_write_buffer_size())
        return most

    os.kill(broker.process_id, signal.SIGSTOP)
    try:
        most = asyncio.run_coroutine_threadsafe(send_until_dropped(), running.loop()).result(WAIT_S)
        assert mqtt.UNSENT_BYTES_MAX < most <= mqtt.UNSENT_BYTES_MAX + size + 100
        wait_until(lambda: running.counted("broker_takes_nothing", "mill"), WAIT_S, "it is counted")
    finally:
        os.kill(broker.process_id, signal.SIGCONT)


@pytest.mark.parametrize("where", ["open", "serve"])
def test_a_fault_of_one_connection_is_counted_and_ends_nothing(
        place: Place, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    faults = [ValueError("not as gmqtt expects it")]
    right = getattr(mqtt.Connection, where)

    async def faulty(self: mqtt.Connection, *arguments: object) -> None:
        if faults:
            raise faults.pop()
        await right(self, *arguments)

    monkeypatch.setattr(mqtt.Connection, where, faulty)
    place.broker()
    running = place.collector()
    wait_until(lambda: running.counted("broker_gone", "mqtt") or not running.is_up, WAIT_S, "it is counted")
    assert running.is_up and running.counted("program_fault", "mqtt") == 1
    node = place.node()
    settle(node)
    assert in_step(node, 1)


def test_a_fault_of_the_farewell_keeps_nobody_from_ending(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def faulty(self: object) -> None:
        raise ValueError("not as gmqtt expects it")

    monkeypatch.setattr(mqtt.Client, "disconnect", faulty)
    place.broker()
    running = place.collector()
    settle(place.node())
    running.stop()


def test_a_host_that_no_name_server_can_be_asked_for_is_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own fault is a UnicodeError; fabtap.lab lets no such host pass."""
    monkeypatch.setattr(mqtt, "RETRY_MIN_S", 0.01)
    monkeypatch.setattr(mqtt, "RETRY_MAX_S", 0.02)
    complaints = Complaints("mqtt", logging.getLogger("fabtap.collector"))

    async def try_for_a_while() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                await mqtt.Broker(Broker("a..b", 1883), "lab", "password", complaints).serve(lambda send: {})

    asyncio.run(try_for_a_while())
    counts = complaints.take()
    assert counts["broker_gone"] == counts["program_fault"] >= 2


@pytest.mark.parametrize("when", ["connected", "connecting", "away"])
def test_the_collector_ends_at_once_whatever_the_broker_does(place: Place, when: str) -> None:
    broker = place.broker() if when != "away" else None
    if broker and when == "connecting":
        os.kill(broker.process_id, signal.SIGSTOP)
    running = place.collector()
    if when == "connected":
        settle(place.node())
    wait_until(lambda: running.collector.links, WAIT_S, "it has begun")
    if broker and when == "connected":
        os.kill(broker.process_id, signal.SIGSTOP)
    started_s = time.monotonic()
    running.stop()
    assert time.monotonic() - started_s < mqtt.CLOSE_S + 2
    if broker:
        os.kill(broker.process_id, signal.SIGCONT)
