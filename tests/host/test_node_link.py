"""Does a link with one node keep its temper when the node refuses a roster, and its word when the node's journal went back?

The collector runs in a thread (running_collector.py); the test plays the node on a serial port.
"""
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabtap import node_link, store
from fabtap.keys import secret_of
from tests.host.running_collector import WAIT_S, Running, in_step, make_haste, settle, stored
from tests.host.scripted_node import JOURNAL, ScriptedNode, event
from tests.rig import MEMBERS, wait_until, write_lab, write_members

QUIET_S = 0.5
"""How long we listen for what must not come; the controls show that it would have come by then."""
NEW_JOURNAL = b"new life"


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    make_haste(monkeypatch)


@pytest.fixture
def lab_file(tmp_path: Path) -> Path:
    return write_lab(tmp_path)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ScriptedNode]:
    made = ScriptedNode(tmp_path / "sim" / "laser.tty", secret_of(tmp_path / "keys.toml", 1), 1)
    yield made
    made.unplug()


@pytest.fixture
def running(lab_file: Path, node: ScriptedNode) -> Iterator[Running]:
    made = Running(lab_file)
    yield made
    made.stop()


# A roster that is refused

def commits(node: ScriptedNode) -> int:
    return [heard.name for heard in node.commands].count("roster_commit")


def obey_for(node: ScriptedNode, seconds: float) -> None:
    """Carry out all that comes in that time."""
    deadline_s = time.monotonic() + seconds
    node.obey(lambda: time.monotonic() >= deadline_s, "the time is over")


def test_a_refused_roster_is_not_sent_again_at_once_and_another_one_is(
        running: Running, node: ScriptedNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node.roster_refused = True
    settle(node)
    obey_for(node, 10 * node_link.LOOK_S)
    assert commits(node) == 1
    running.wait_counted("roster_refused")
    assert any("sent again in 60 s" in message for message in caplog.messages)
    write_members(tmp_path, MEMBERS[:2])
    node.obey(lambda: commits(node) == 2, "another version is tried at once")
    node.roster_refused = False
    write_members(tmp_path, MEMBERS[:1])
    node.obey(lambda: node.roster_version, "the one that is accepted is in force")


def test_the_wait_doubles_up_to_its_end(running: Running, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "ROSTER_RETRY_MIN_S", 0.4)
    monkeypatch.setattr(node_link, "ROSTER_RETRY_MAX_S", 0.8)
    node.roster_refused = True
    node.hello()
    moments: list[float] = []
    for count in range(1, 5):
        node.obey(lambda wanted=count: commits(node) == wanted, "it is sent again")
        moments.append(time.monotonic())
    waits = [later - earlier for earlier, later in zip(moments, moments[1:], strict=False)]
    for wait_s, expected_s in zip(waits, (0.4, 0.8, 0.8), strict=True):
        assert expected_s - 0.05 <= wait_s < expected_s + 4 * node_link.LOOK_S
    node.roster_refused = False
    node.obey(lambda: node.roster_version, "it is accepted in the end")


def test_a_restart_of_the_node_ends_the_wait(running: Running, node: ScriptedNode) -> None:
    node.roster_refused = True
    settle(node)
    obey_for(node, QUIET_S)
    assert commits(node) == 1
    node.roster_refused = False
    node.boot_nonce += 1
    node.hello(boot=2)
    node.obey(lambda: node.roster_version, "it is tried at once")


# A journal that went back

def ten_are_stored(running: Running, node: ScriptedNode) -> None:
    settle(node)
    node.events(*(event(seq) for seq in range(1, 6)))
    node.events(*(event(seq) for seq in range(6, 11)))
    while node.ack() < 10:
        pass
    assert stored(running) == list(range(1, 11))
    node.commands.clear()


def go_back(node: ScriptedNode, next_seq: int = 5) -> None:
    """The node restarts from an older image of its flash."""
    node.boot_nonce += 1
    node.next_seq = next_seq
    node.hello(boot=2)


def test_a_journal_that_went_back_is_told_and_never_acknowledged(
        running: Running, node: ScriptedNode, caplog: pytest.LogCaptureFixture) -> None:
    ten_are_stored(running, node)
    go_back(node)
    assert node.says_within(QUIET_S) == []
    running.wait_counted("journal_went_back")
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith("laser: the journal of node 1 went back: its next event is number 5, and 10 are stored")
    assert "remove that folder and restart the node" in said
    new = [event(seq, boot=2, cause=3) for seq in (5, 6)]
    node.events(*new)
    node.status(boot=2)
    assert node.says_within(QUIET_S) == []
    assert [found.bytes for found in store.quarantined(running.lab.database)] == new
    assert [found.bytes for found in store.events(running.lab.database)] == [event(seq) for seq in range(1, 11)]


@pytest.mark.parametrize("next_seq", [10, 11])
def test_the_border_is_the_last_number_that_is_durable(running: Running, node: ScriptedNode, next_seq: int) -> None:
    ten_are_stored(running, node)
    go_back(node, next_seq)
    assert ("ack" in node.says_within(QUIET_S)) == (next_seq == 11)


def test_what_it_records_past_the_watermark_is_not_acknowledged_either(running: Running, node: ScriptedNode) -> None:
    """By then its hello looks right, and numbers 5 to 10 would be thrown away by the node, unsent."""
    ten_are_stored(running, node)
    go_back(node)
    running.wait_counted("journal_went_back")
    for plugged_again in (False, True):
        if plugged_again:
            node.unplug()
            node.plug()
        go_back(node, 13)
        assert node.says_within(QUIET_S) == []
    node.events(event(11, boot=2), event(12, boot=2))
    assert node.says_within(QUIET_S) == []


def test_with_a_new_journal_it_is_served_again(running: Running, node: ScriptedNode) -> None:
    ten_are_stored(running, node)
    go_back(node)
    running.wait_counted("journal_went_back")
    node.boot_nonce += 1
    node.next_seq = 1
    node.hello(journal_id=NEW_JOURNAL)
    assert node.ack() == 0
    node.events(event(1), journal_id=NEW_JOURNAL)
    assert node.ack() == 1
    node.obey(lambda: node.commands, "it gets the clock")


def test_a_journal_that_goes_back_amid_a_command_ends_nothing(
        running: Running, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "REPLY_S", 0.1)
    ten_are_stored(running, node)
    node.hello()
    node.next("clock_set")
    go_back(node)
    wait_until(lambda: running.counted("no_answer") or not running.is_up, WAIT_S, "the command is given up")
    assert running.is_up


def test_events_before_the_first_hello_are_stored_and_acknowledged_after_it(running: Running, node: ScriptedNode) -> None:
    node.next("greet")
    node.events(event(1))
    assert node.says_within(QUIET_S) == []
    assert stored(running) == [1]
    node.hello()
    assert node.ack() == 1


def test_events_of_a_journal_that_no_hello_told_are_not_acknowledged(running: Running, node: ScriptedNode) -> None:
    settle(node)
    assert in_step(node, 1)
    node.events(event(1), journal_id=NEW_JOURNAL)
    assert node.says_within(QUIET_S) == []
    assert [(found.journal_id, found.watermark) for found in store.journals(running.lab.database)] == [
        (JOURNAL, 1), (NEW_JOURNAL, 1)]
    assert in_step(node, 2)
