"""Does the collector believe only whom it should, promise only what is durable, and outlive what a port can do to it?

The collector runs in a thread (running_collector.py); the test plays the node on a serial port.
"""
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fabtap import collector as collecting
from fabtap import node_link, store
from fabtap.keys import secret_of
from fabtap.lab import access_entries
from fabtap.node_link import NodeLink
from fabtap.port import open_port
from fabtap.problem import Problem
from fabtap.roster_image import build_roster
from nodecore import frame, roster, wire
from tests.host.running_collector import WAIT_S, Running, in_step, make_haste, settle, stored
from tests.host.scripted_node import JOURNAL, STALE, ScriptedNode, event
from tests.rig import MEMBERS, run_fabtap, wait_until, write_lab, write_members

QUIET_S = 0.5
"""How long we listen for what must not come; the controls show that it would have come by then."""
MILL = """
[[machine]]
id = "mill"
name = "Mill"
node = 2
board = "rpi-pico"
port = "sim/mill.tty"
working_w = 60

[[tariff]]
machine = "mill"
class = "*"
per_minute_on = "0.10"
per_minute_working = "0.40"
per_kwh = "0.18"
"""


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    make_haste(monkeypatch)


@pytest.fixture
def lab_file(tmp_path: Path) -> Path:
    file = write_lab(tmp_path)
    with open(file, "a", encoding="utf-8") as toml:
        toml.write(MILL)
    return file


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[[str, int], ScriptedNode]]:
    """Makes nodes by the name of their port and their number."""
    with ExitStack() as stack:
        def make(name: str, number: int) -> ScriptedNode:
            node = ScriptedNode(tmp_path / "sim" / f"{name}.tty", secret_of(tmp_path / "keys.toml", number), number)
            stack.callback(node.unplug)
            return node

        yield make


@pytest.fixture
def node(nodes: Callable[[str, int], ScriptedNode], tmp_path: Path) -> ScriptedNode:
    secret_of(tmp_path / "keys.toml", 2)
    return nodes("laser", 1)


@pytest.fixture
def running(lab_file: Path, node: ScriptedNode) -> Iterator[Running]:
    made = Running(lab_file)
    yield made
    made.stop()


# What is no frame

@pytest.mark.parametrize("junk, name, count", [
    (b"\nTraceback (most recent call last):\n", "console_line", 1),
    (b"\n" + b"x" * (frame.UP_LINE_MAX + 1) + b"\n", "overlong_line", 1),
    (b"\n~!!!!\n~AAAA\n", "bad_line", 2),
    (b"\n\x00\xff\xfe\x80garbage\x1b[2J\n", "console_line", 1),
    (b"x" * 50_000, "overlong_line", 1),
    (b"half a line of a print", "console_line", 1),
], ids=["console", "overlong", "no base64 and too short", "binary", "endless", "unfinished print"])
def test_junk_is_counted_and_the_next_line_is_in_step(
        running: Running, node: ScriptedNode, junk: bytes, name: str, count: int) -> None:
    node.hello()
    node.ack()
    node.write(junk)
    assert in_step(node, 1)
    running.wait_counted(name, count)


def test_half_a_frame_is_counted_and_the_next_line_is_in_step(running: Running, node: ScriptedNode) -> None:
    node.hello()
    node.ack()
    whole = node.line("events", journal_id=JOURNAL, data=wire.pack_events([event(1)]))
    node.write(whole[:len(whole) // 2])
    assert in_step(node, 1)
    assert wait_until(lambda: running.counted("bad_line") + running.counted("wrong_mac"), WAIT_S, "it is counted") == 1


def test_a_line_in_single_bytes_is_a_line(running: Running, node: ScriptedNode) -> None:
    node.hello()
    node.ack()
    for byte in node.line("events", journal_id=JOURNAL, data=wire.pack_events([event(1)])):
        node.write(bytes((byte,)))
    assert node.ack() == 1


# Whom it does not believe

class Stranger(ScriptedNode):
    """Makes lines without a port; its key is not the lab's."""

    def __init__(self, node: int, secret: bytes = b"x" * 32) -> None:
        self.node = node
        self._up = frame.Mac(frame.derive_key(secret, b"up"))


def refused_lines(tmp_path: Path) -> dict[str, bytes]:
    """Lines that must not be believed, by the name under which they are counted."""
    secret = secret_of(tmp_path / "keys.toml", 1)
    fields = {"journal_id": JOURNAL, "data": wire.pack_events([event(1)])}
    ours = Stranger(1, secret)
    tampered = bytearray(frame.seal(ours._up, 2, 1, JOURNAL + wire.pack_events([event(1)])))
    tampered[20] ^= 1
    down = frame.Mac(frame.derive_key(secret, b"down"))
    return {
        "wrong_mac": Stranger(1).line("events", **fields),
        "wrong_mac tampered": bytes(frame.to_line(tampered)),
        "wrong_mac without": bytes(frame.to_line(frame.seal(ours._up, 2, 1, JOURNAL)[:-frame.TAG_BYTES] + bytes(frame.TAG_BYTES))),
        "wrong_mac reflected": bytes(frame.to_line(frame.seal(down, 2, 1, JOURNAL))),
        "unknown_node": Stranger(77, secret).line("events", **fields),
        "unknown_message": bytes(frame.to_line(frame.seal(ours._up, 99, 1, JOURNAL))),
        "unknown_message down": bytes(frame.to_line(frame.seal(ours._up, wire.MESSAGE_NUMBERS["ack"], 1, bytes(12)))),
        "unknown_message short": bytes(frame.to_line(frame.seal(ours._up, wire.MESSAGE_NUMBERS["hello"], 1, b"\1"))),
        "bad_event": bytes(frame.to_line(frame.seal(ours._up, wire.MESSAGE_NUMBERS["events"], 1, JOURNAL + b"\x20short"))),
        "store_error": ours.line("events", journal_id=JOURNAL, data=wire.pack_events([event(0)])),
        "node_on_wrong_port": Stranger(2, secret_of(tmp_path / "keys.toml", 2)).line("events", **fields),
    }


REFUSED = ["wrong_mac", "wrong_mac tampered", "wrong_mac without", "wrong_mac reflected", "unknown_node", "unknown_message",
           "unknown_message down", "unknown_message short", "bad_event", "store_error", "node_on_wrong_port"]


@pytest.mark.parametrize("which", REFUSED)
def test_a_frame_that_is_not_believed_is_counted_and_not_answered(
        running: Running, node: ScriptedNode, tmp_path: Path, which: str) -> None:
    settle(node)
    node.write(refused_lines(tmp_path)[which])
    assert node.says_within(QUIET_S) == []
    assert stored(running) == []
    running.wait_counted(which.split()[0])
    assert in_step(node, 1)


def test_control_a_frame_that_is_believed_is_answered_within_that_time(
        running: Running, node: ScriptedNode, tmp_path: Path) -> None:
    settle(node)
    assert set(refused_lines(tmp_path)) == set(REFUSED)
    node.write(Stranger(1, secret_of(tmp_path / "keys.toml", 1)).line(
        "events", journal_id=JOURNAL, data=wire.pack_events([event(1)])))
    assert node.says_within(QUIET_S) == ["ack"]


def test_what_was_refused_is_shown_by_the_command_line(
        running: Running, node: ScriptedNode, lab_file: Path, tmp_path: Path) -> None:
    settle(node)
    lines = refused_lines(tmp_path)
    for _ in range(3):
        node.write(lines["wrong_mac"])
    node.write(lines["unknown_node"])
    assert in_step(node, 1)
    running.wait_counted("wrong_mac", 3)
    running.wait_counted("unknown_node")
    done = run_fabtap("collector", "status", "--json", "--lab", lab_file)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["refused"]["laser"] == {"wrong_mac": 3, "unknown_node": 1}
    assert said["journals"] == [{"node": 1, "journal_id": JOURNAL.hex(), "watermark": 1}]


def test_counts_that_the_disk_refuses_are_stored_later(running: Running, node: ScriptedNode, tmp_path: Path) -> None:
    settle(node)
    running.writer.full.set()
    node.write(refused_lines(tmp_path)["wrong_mac"])
    assert node.says_within(QUIET_S) == []
    assert running.counted("wrong_mac") == 0
    running.writer.full.clear()
    running.wait_counted("wrong_mac")


# What it promises

def test_nothing_is_acknowledged_before_its_commit(running: Running, node: ScriptedNode) -> None:
    settle(node)
    running.writer.go.clear()
    node.events(event(1), event(2))
    assert node.says_within(QUIET_S) == []
    assert stored(running) == []
    running.writer.go.set()
    assert node.ack() == 2
    assert stored(running) == [1, 2]


class HastyLink(NodeLink):
    """Says "ack" as soon as it has read the events: the mistake that the test above is for."""

    async def _events(self, fields: dict[str, Any]) -> None:
        self._send("ack", {"journal_id": fields["journal_id"], "seq": wire.event_seq(wire.unpack_events(fields["data"])[-1])})
        await super()._events(fields)


def test_control_an_acknowledgement_before_the_commit_is_seen(
        lab_file: Path, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "NodeLink", HastyLink)
    running = Running(lab_file)
    try:
        settle(node)
        running.writer.go.clear()
        node.events(event(1), event(2))
        assert node.says_within(QUIET_S) == ["ack"]
        assert stored(running) == []
    finally:
        running.writer.go.set()
        running.stop()


def test_a_commit_that_fails_is_not_acknowledged_until_the_events_come_again(running: Running, node: ScriptedNode) -> None:
    settle(node)
    running.writer.full.set()
    node.events(event(1))
    assert node.says_within(QUIET_S) == []
    running.writer.full.clear()
    assert stored(running) == []
    running.wait_counted("store_error")
    node.events(event(1))
    assert node.ack() == 1
    assert stored(running) == [1]


def test_events_that_come_again_are_acknowledged_again_and_stored_once(running: Running, node: ScriptedNode) -> None:
    settle(node)
    line = node.events(event(1), event(2))
    assert node.ack() == 2
    for _ in range(3):
        node.write(line)
        assert node.ack() == 2
    assert stored(running) == [1, 2]
    assert store.quarantined(running.lab.database) == []


def test_other_bytes_under_a_known_number_go_to_quarantine(
        running: Running, node: ScriptedNode, caplog: pytest.LogCaptureFixture) -> None:
    settle(node)
    node.events(event(1))
    assert node.ack() == 1
    node.events(event(1, cause=3))
    assert node.ack() == 1
    assert [found.bytes for found in store.events(running.lab.database)] == [event(1)]
    assert [found.bytes for found in store.quarantined(running.lab.database)] == [event(1, cause=3)]
    assert any("a clone or a fault" in message for message in caplog.messages)


def test_events_above_a_hole_are_kept_but_not_acknowledged(running: Running, node: ScriptedNode) -> None:
    settle(node)
    node.events(event(3))
    assert node.ack() == 0
    node.events(event(1), event(2))
    assert node.ack() == 3


def test_events_that_the_node_no_longer_has_are_a_declared_gap(running: Running, node: ScriptedNode) -> None:
    settle(node)
    assert in_step(node, 1)
    node.hello(first_seq=5, next_seq=7)
    assert node.ack() == 4
    assert [(gap.first_seq, gap.last_seq) for gap in store.gaps(running.lab.database)] == [(2, 4)]
    node.events(event(5), event(6))
    assert node.ack() == 6


def test_a_hello_without_a_hole_declares_no_gap(running: Running, node: ScriptedNode) -> None:
    settle(node)
    assert in_step(node, 1)
    node.hello(first_seq=2, next_seq=2)
    assert node.ack() == 1
    assert store.gaps(running.lab.database) == []


# Status and protocol

def test_a_status_is_believed_once(running: Running, node: ScriptedNode) -> None:
    settle(node)
    line = node.status(power_mw=5)
    node.ack()
    node.status(power_mw=6)
    node.ack()
    node.write(line)
    assert node.says_within(QUIET_S) == []
    running.wait_counted("replayed_status")
    assert running.collector.statuses["laser"]["power_mw"] == 6


def test_a_status_of_another_boot_is_answered_with_a_greeting(running: Running, node: ScriptedNode) -> None:
    settle(node)
    node.status(boot_nonce=node.boot_nonce + 1)
    node.next("greet")
    assert running.collector.statuses == {}


def test_counters_of_a_new_boot_begin_anew(running: Running, node: ScriptedNode) -> None:
    settle(node)
    node.status(counter=1000)
    node.ack()
    node.boot_nonce += 1
    node.hello(boot=2)
    node.ack()
    node.status(counter=1, boot=2, power_mw=7)
    wait_until(lambda: running.collector.statuses["laser"]["power_mw"] == 7, WAIT_S, "the new boot's status is believed")


def test_a_node_of_another_protocol_version_is_not_served(running: Running, node: ScriptedNode) -> None:
    node.hello(protocol=wire.PROTOCOL + 1)
    assert node.says_within(QUIET_S) == []
    running.wait_counted("other_protocol")
    node.hello()
    assert {"ack", "clock_set"} <= set(node.says_within(QUIET_S))  # control


# Commands

def test_a_stale_counter_is_raised_and_the_command_repeated(running: Running, node: ScriptedNode) -> None:
    node.hello()
    first = node.next("clock_set")
    node.reply(first, STALE, value=500)
    second = node.next("clock_set")
    assert second.fields["counter"] > 500
    node.reply(second)
    later = node.next("roster_begin")
    assert later.fields["counter"] > second.fields["counter"]


def test_no_counter_is_used_twice_for_a_boot_also_after_a_restart(
        lab_file: Path, node: ScriptedNode, nodes: Callable[[str, int], ScriptedNode]) -> None:
    for _ in range(2):
        running = Running(lab_file)
        before = len(node.commands)
        node.asked = False
        node.roster_version = 0
        node.hello()
        node.obey(lambda so_far=before: len(node.commands) >= so_far + 4, "four commands more")
        running.stop()
    counters = [heard.fields["counter"] for heard in node.commands]
    assert counters == sorted(set(counters))


def many_members(count: int) -> list[str]:
    return [f"{number},Member {number},trainee,{number:08X},laser,active" for number in range(1, count + 1)]


@pytest.mark.parametrize("lose", [(), {0, 1, 3, 4, 9, 15, 20}], ids=["none", "some"])
def test_the_roster_comes_whole_in_lines_that_fit_whatever_replies_get_lost(
        lab_file: Path, tmp_path: Path, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch, lose: set[int]) -> None:
    monkeypatch.setattr(node_link, "REPLY_S", 0.3)
    write_members(tmp_path, many_members(100))
    running = Running(lab_file)
    try:
        node.hello()
        node.obey(lambda: node.roster_version, "the roster is in force", lose, 30)
    finally:
        running.stop()
    lab = running.lab
    image = build_roster(secret_of(lab.keys, 1), access_entries(lab, lab.machines[0], datetime.now(lab.timezone).date()))
    assert (node.roster, node.roster_version) == (image.entries, image.version)
    assert len(node.roster) == 100 * roster.ENTRY_BYTES
    assert node.replies_lost == len(lose)
    chunks = [heard for heard in node.commands if heard.name == "roster_chunk"]
    assert len(chunks) >= 100 / 6
    assert 150 < node.longest_line() <= frame.DOWN_LINE_MAX


def test_a_roster_in_force_is_not_sent_again(running: Running, node: ScriptedNode) -> None:
    settle(node)
    node.commands.clear()
    node.hello()
    node.obey(lambda: node.commands, "the clock is set again")
    assert node.says_within(QUIET_S) == []
    assert [heard.name for heard in node.commands] == ["clock_set"]


@pytest.mark.parametrize("timezone, offset_s", [("Asia/Kathmandu", 20700), ("America/Phoenix", -25200), ("UTC", 0)])
def test_the_clock_carries_utc_and_the_labs_offset(
        lab_file: Path, node: ScriptedNode, timezone: str, offset_s: int) -> None:
    lab_file.write_text(lab_file.read_text("utf-8").replace("America/Chicago", timezone), encoding="utf-8")
    running = Running(lab_file)
    try:
        node.hello()
        heard = node.next("clock_set")
    finally:
        running.stop()
    assert heard.fields["local_offset_s"] == offset_s
    assert 0 <= heard.at_utc_ms - heard.fields["utc_ms"] < 5000


def test_an_anchor_is_stored_with_half_the_round_trip(running: Running, node: ScriptedNode) -> None:
    node.hello()
    heard = node.next("clock_set")
    time.sleep(0.2)  # the round trip itself
    node.reply(heard, mono_ms=123_456)
    said_ms = time.time_ns() // 1_000_000
    anchors = wait_until(lambda: store.anchors(running.lab.database), WAIT_S, "an anchor")
    (anchor,) = anchors
    half_ms = anchor.utc_ms - heard.fields["utc_ms"]
    assert (anchor.node_id, anchor.journal_id, anchor.boot, anchor.mono_ms) == (1, JOURNAL, 1, 123_456)
    assert anchor.uncertainty_ms == half_ms + 1
    assert half_ms >= 100
    assert heard.fields["utc_ms"] <= anchor.utc_ms <= said_ms + anchor.uncertainty_ms


def test_a_round_trip_that_took_too_long_is_no_anchor(
        running: Running, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "ROUND_TRIP_MAX_MS", 50)
    node.hello()
    heard = node.next("clock_set")
    time.sleep(0.1)
    node.reply(heard)
    running.wait_counted("slow_round_trip")
    assert store.anchors(running.lab.database) == []


def test_a_reply_that_nobody_waits_for_is_counted(running: Running, node: ScriptedNode) -> None:
    settle(node)
    node.reply(node.commands[0])
    running.wait_counted("late_reply")


def test_a_reply_of_another_boot_does_not_take_the_place_of_the_answer(running: Running, node: ScriptedNode) -> None:
    node.hello()
    heard = node.next("clock_set")
    node.reply(heard, boot_nonce=node.boot_nonce - 1, mono_ms=1)
    node.reply(heard, mono_ms=2)
    (anchor,) = wait_until(lambda: store.anchors(running.lab.database), WAIT_S, "an anchor")
    assert anchor.mono_ms == 2
    running.wait_counted("late_reply")


def test_a_node_that_does_not_answer_is_still_heard(
        running: Running, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "REPLY_S", 0.05)
    node.hello()
    wait_until(lambda: running.counted("no_answer"), WAIT_S, "the silence is counted")
    assert in_step(node, 1)


@pytest.mark.parametrize("answer", [
    {"mono_ms": 2**64 - 1}, {"result": STALE, "value": 2**32 - 1}, {"result": 200},
], ids=["time beyond the database", "counter at its end", "unknown result"])
def test_a_nodes_absurd_answer_ends_nothing(running: Running, node: ScriptedNode, answer: dict[str, int]) -> None:
    node.hello()
    node.reply(node.next("clock_set"), **answer)
    assert in_step(node, 1)
    wait_until(lambda: not running.is_up or sum(store.port_counts(running.lab.database).get("laser", {}).values()), WAIT_S,
               "it is counted")
    assert running.is_up and in_step(node, 2)


def test_a_node_that_never_takes_a_piece_of_the_roster_is_given_up(running: Running, node: ScriptedNode) -> None:
    node.hello()
    node.reply(node.next("clock_set"))
    node.reply(node.next("roster_begin"))
    node.reply(node.next("roster_chunk"), value=0)
    commit = node.next("roster_commit")
    node.reply(commit, result=2)
    running.wait_counted("roster_refused")


# The port

def test_a_port_that_vanishes_is_served_again_when_it_is_back(running: Running, node: ScriptedNode) -> None:
    settle(node)
    assert in_step(node, 1)
    for seq in (2, 3):
        node.unplug()
        wait_until(lambda: not running.collector.links["laser"].machine.port.exists(), WAIT_S, "it is gone")
        node.plug()
        node.next("greet")
        node.hello()
        assert node.ack() == seq - 1
        assert in_step(node, seq)
    assert stored(running) == [1, 2, 3]


def test_a_port_that_vanishes_amid_a_command_is_served_again(running: Running, node: ScriptedNode) -> None:
    node.hello()
    node.next("clock_set")
    node.unplug()
    node.plug()
    node.next("greet")
    settle(node)


def test_one_port_that_is_missing_does_not_hold_up_another(
        running: Running, node: ScriptedNode, nodes: Callable[[str, int], ScriptedNode]) -> None:
    settle(node)
    mill = nodes("mill", 2)
    mill.next("greet")
    settle(mill)
    node.unplug()
    assert in_step(mill, 1)
    node.plug()
    assert [(found.node_id, found.watermark) for found in store.journals(running.lab.database) if found.watermark] == [(2, 1)]


def test_a_port_that_may_not_be_opened_is_a_message_with_its_mend_and_is_tried_again(
        running: Running, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    settle(node)

    def denied(path: Path) -> None:
        raise Problem(path, None, "may not be opened by this user", "Add the user to the port's group.")

    monkeypatch.setattr(collecting, "open_port", denied)
    node.unplug()
    wait_until(lambda: running.counted("port_busy") >= 2, WAIT_S, "it is tried again")
    assert any("Add the user to the port's group." in message for message in caplog.messages)
    monkeypatch.setattr(collecting, "open_port", open_port)
    node.plug()
    node.hello()
    assert in_step(node, 1)


# The floor

def test_the_floor_hears_what_is_believed_and_nothing_else(running: Running, node: ScriptedNode, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple[str, str]] = []
    monkeypatch.setattr(running.collector.floor, "note", lambda machine, name, fields: noted.append((machine.id, name)))
    node.hello()
    node.ack()
    line = node.status()
    node.ack()
    node.write(line)
    node.write(refused_lines(tmp_path)["wrong_mac"])
    assert in_step(node, 1)
    assert [name for name in noted if name[1] != "reply"] == [("laser", "hello"), ("laser", "status"), ("laser", "events")]


def test_an_event_that_the_floor_does_not_understand_is_stored_all_the_same(
        running: Running, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise wire.WireError("unknown event")

    settle(node)
    monkeypatch.setattr(running.collector.floor, "note", broken)
    assert in_step(node, 1)
    assert stored(running) == [1]
    wait_until(lambda: running.counted("floor_fault"), WAIT_S, "the fault is counted")


def test_a_floor_port_that_is_taken_is_a_problem_at_the_start(lab_file: Path, node: ScriptedNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        lab_file.write_text(f"{lab_file.read_text('utf-8')}\n[floor]\nport = {port}\n", encoding="utf-8")
        done = run_fabtap("collector", "run", "--lab", lab_file)
    assert done.returncode == 2, done.stderr
    assert str(port) in done.stderr and "[floor]" in done.stderr and "Traceback" not in done.stderr


def test_a_floor_page_that_fails_stops_no_event(
        lab_file: Path, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("no templates")

    monkeypatch.setattr("fabtap.web.serve_floor", broken)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lab_file.write_text(f"{lab_file.read_text('utf-8')}\n[floor]\nport = {port}\n", encoding="utf-8")
    running = Running(lab_file)
    try:
        settle(node)
        assert in_step(node, 1)
    finally:
        running.stop()
    assert any("floor page is down" in message for message in caplog.messages)


# Members

def test_a_file_that_vanishes_while_it_is_looked_at_is_no_fault(
        running: Running, node: ScriptedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(node)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    (tmp_path / "members.csv").unlink()
    assert node.says_within(QUIET_S) == []
    assert in_step(node, 1)


@pytest.mark.parametrize("number", [errno.ELOOP, errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_fails_while_it_is_looked_at_is_no_fault(
        running: Running, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    settle(node)
    looked: list[Path] = []
    stat = Path.stat

    def failing(self: Path, **more: Any) -> os.stat_result:
        if self.name == "members.csv":
            looked.append(self)
            raise OSError(number, os.strerror(number))
        return stat(self, **more)

    monkeypatch.setattr(Path, "stat", failing)
    wait_until(lambda: len(looked) >= 2 or not running.is_up, WAIT_S, "it is looked at, and again")
    assert running.is_up and in_step(node, 1)


def test_members_behind_a_link_to_itself_change_nothing(
        running: Running, node: ScriptedNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settle(node)
    before = node.roster_version
    (tmp_path / "members.csv").unlink()
    (tmp_path / "members.csv").symlink_to("members.csv")
    wait_until(lambda: [message for message in caplog.messages if "the members stay as they were" in message] or not running.is_up,
               WAIT_S, "the log says so")
    assert running.is_up and in_step(node, 1)
    (tmp_path / "members.csv").unlink()
    write_members(tmp_path, MEMBERS[:1])
    node.obey(lambda: node.roster_version != before, "the file that is back is taken over")


def test_changed_members_are_taken_over(running: Running, node: ScriptedNode, tmp_path: Path) -> None:
    settle(node)
    before = node.roster_version
    write_members(tmp_path, [*MEMBERS, "105,Ed Example,trainee,0F0F0F0F,laser,active"])
    node.obey(lambda: node.roster_version != before, "the changed roster is in force")
    assert len(node.roster) == (len(MEMBERS) + 1) * roster.ENTRY_BYTES


def wrong_members(kind: str) -> list[str]:
    if kind == "too many":
        return many_members(roster.MEMBERS_MAX + 1)
    return [*MEMBERS, {"class": "105,Ed Example,king,0F0F0F0F,,active", "badge": "105,Ed Example,trainee,0F,,active",
                       "number": MEMBERS[0]}[kind]]


@pytest.mark.parametrize("kind", ["class", "badge", "number", "too many"])
def test_members_with_a_mistake_change_nothing_but_the_log(
        running: Running, node: ScriptedNode, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    settle(node)
    before = node.roster_version
    write_members(tmp_path, wrong_members(kind))
    wait_until(lambda: [message for message in caplog.messages if "the members stay as they were" in message], WAIT_S,
               "the log says so")
    assert node.says_within(QUIET_S) == []
    assert in_step(node, 1)
    write_members(tmp_path, MEMBERS[:2])
    node.obey(lambda: node.roster_version != before, "the mended file is taken over")
    assert len(node.roster) == 2 * roster.ENTRY_BYTES


def test_members_that_are_gone_for_a_while_change_nothing(
        running: Running, node: ScriptedNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settle(node)
    before = node.roster_version
    (tmp_path / "members.csv").unlink()
    wait_until(lambda: [message for message in caplog.messages if "the members stay as they were" in message], WAIT_S,
               "the log says so")
    assert node.says_within(QUIET_S) == []
    write_members(tmp_path, MEMBERS[:1])
    node.obey(lambda: node.roster_version != before, "the file that is back is taken over")
