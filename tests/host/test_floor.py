"""Does a card say what the machine's node said, and never more than it knows?"""
from pathlib import Path
from typing import Any

import pytest

from fabtap import floor
from fabtap.floor import DENIAL_SHOWN_S, SILENT_S, Card, Floor
from fabtap.lab import Machine
from nodecore import wire, words
from nodecore.access import STATE_NUMBERS

BOOT, NONCE = 4, 77
JOURNAL, OTHER_JOURNAL = bytes(8), b"replaced"
UTC_S = 1_800_000_000.0


def machine(name: str = "laser", node: int = 1, mode: str = "gate", shown: str = "Laser cutter") -> Machine:
    """A machine that works from 60 W up."""
    return Machine(id=name, name=shown, node=node, board="rpi-pico", link="serial", port=Path("tty"), mode=mode, training=None,
                   working_w=60, checkpoint_s=60, badge_out_ms=3000, idle_s=0, line=None)


class Told:
    """A floor with one machine, and its node's voice; the node's clock and ours run alike."""

    def __init__(self, mode: str = "gate") -> None:
        self.clock_s = 1000.0
        self.machine = machine(mode=mode)
        self.floor = Floor((self.machine,), now_s=lambda: self.clock_s, utc_s=lambda: UTC_S + self.clock_s)
        self.seq = 0

    def wait(self, seconds: float) -> None:
        self.clock_s += seconds

    def mono_ms(self) -> int:
        """The node started at our second 900."""
        return round((self.clock_s - 900) * 1000)

    def status(self, state: str, watts: float = 0, state_ms: int = 0, **more: Any) -> Card:
        fields = {"boot_nonce": NONCE, "boot": BOOT, "mono_ms": self.mono_ms(), "state": STATE_NUMBERS[state], "state_ms": state_ms,
                  "relay": int(state == "session"), "power_mw": round(watts * 1000)}
        self.floor.note(self.machine, "status", {**fields, **more})
        return self.card

    def hello(self, boot: int = BOOT, nonce: int = NONCE, journal_id: bytes = JOURNAL) -> Card:
        self.floor.note(self.machine, "hello", {"boot": boot, "boot_nonce": nonce, "journal_id": journal_id})
        return self.card

    def event(self, name: str, boot: int = BOOT, mono_ms: int | None = None, journal_id: bytes = JOURNAL, **values: int) -> Card:
        self.seq += 1
        row = {"member": 101, "energy_mwh_total": 0, "badge_hash": bytes(8), "session": 1, "on_ms": 0, "working_ms": 0, **values}
        data = wire.encode_event(name, self.seq, boot, self.mono_ms() if mono_ms is None else mono_ms, row)
        self.floor.note(self.machine, "events", {"journal_id": journal_id, "data": wire.pack_events([data])})
        return self.card

    @property
    def card(self) -> Card:
        return self.floor.cards()[0]


@pytest.fixture
def told() -> Told:
    """A laser cutter whose node was heard a moment ago: it is free for 30 s."""
    made = Told()
    made.status("idle", state_ms=30_000)
    made.wait(0.5)
    return made


def test_nothing_is_said_of_a_machine_before_its_node_speaks() -> None:
    card = Told().card
    assert (card.state, card.word, card.since_s, card.since_utc_s, card.power_mw) == ("unheard", "No word yet", None, None, None)


def test_a_free_machine_says_since_when(told: Told) -> None:
    card = told.card
    assert (card.state, card.word, card.detail) == ("free", "Free", "")
    assert card.since_s == pytest.approx(30.5)
    assert card.since_utc_s == pytest.approx(UTC_S + 970)


def test_statuses_of_one_state_do_not_move_its_beginning(told: Told) -> None:
    told.wait(4.5)
    card = told.status("idle", state_ms=34_970)
    assert card.since_utc_s == pytest.approx(UTC_S + 970)


def test_a_lost_status_does_not_make_two_sessions_one(told: Told) -> None:
    told.status("session", state_ms=10)
    told.wait(10)
    assert told.status("session", state_ms=2000).since_s == pytest.approx(2)


@pytest.mark.parametrize(("state", "shown"), [
    ("idle", "free"), ("session", "in_use"), ("settling", "ending"), ("refused", "refused"), ("spent", "badge_left")])
def test_every_state_of_the_node_has_a_card(told: Told, state: str, shown: str) -> None:
    assert told.status(state).state == shown
    assert set(STATE_NUMBERS) == {"idle", "session", "settling", "refused", "spent"}


def test_every_reason_of_the_protocol_has_its_words() -> None:
    assert set(floor.DENIALS) == set(words.REASONS.values()) - {"none"}
    assert set(floor.ENDS) == set(words.ENDS.values()) - {"badge_removed", "power_lost"}


def test_an_event_changes_the_card_before_the_next_status(told: Told) -> None:
    assert told.event("session_started").state == "in_use"
    told.wait(5)
    assert told.card.since_s == pytest.approx(5)
    assert told.event("session_ended", reason=1).state == "free"


def test_the_status_after_an_event_does_not_undo_its_moment(told: Told) -> None:
    told.event("session_started")
    told.wait(0.2)
    assert told.status("session", watts=400, state_ms=200).since_s == pytest.approx(0.2)
    assert told.card.power_mw == 400_000


@pytest.mark.parametrize(("reason", "words"), [(2, "Stop was pressed"), (3, "emergency stop"), (8, "Idle too long")])
def test_what_stopped_a_session_is_shown_while_the_badge_lies_there(told: Told, reason: int, words: str) -> None:
    told.status("session")
    told.wait(1)
    card = told.event("session_ended", reason=reason)
    assert card.state == "stopped" and words in card.detail
    told.wait(1)
    assert told.status("spent", state_ms=1000).state == "stopped"
    told.wait(1)
    assert told.status("idle").state == "free"
    told.wait(1)
    assert told.status("spent").state == "badge_left"


def test_a_denial_says_why_for_a_few_seconds(told: Told) -> None:
    card = told.event("badge_denied", reason=2)
    assert (card.state, card.detail) == ("refused", "No training for this machine")
    told.wait(1)
    card = told.status("idle")
    assert (card.state, card.detail) == ("free", "Last badge: no training for this machine")
    told.wait(DENIAL_SHOWN_S)
    assert told.card.detail == ""


def test_a_badge_that_stays_denied_keeps_its_reason(told: Told) -> None:
    told.event("badge_denied", reason=4)
    told.wait(10)
    assert told.status("refused", state_ms=10_000).detail == "On hold: ask the office"


def test_a_silent_node_is_silent_and_never_free(told: Told) -> None:
    told.wait(SILENT_S - 0.6)
    assert told.card.state == "free"
    told.wait(0.2)
    card = told.card
    assert (card.state, card.power_mw) == ("silent", None)
    assert card.since_s == pytest.approx(SILENT_S + 0.1)
    assert told.status("idle").state == "free"


def test_a_silent_node_in_a_session_is_silent_too(told: Told) -> None:
    told.status("session")
    told.wait(SILENT_S + 1)
    assert told.card.state == "silent"


def test_events_of_the_past_change_nothing_and_are_no_sign_of_life(told: Told) -> None:
    mono_ms = told.mono_ms()
    told.wait(SILENT_S + 1)
    for boot, then_ms in ((BOOT - 1, mono_ms + 9_000_000), (BOOT, mono_ms - 500), (BOOT, mono_ms - 2000)):
        assert told.event("session_started", boot=boot, mono_ms=then_ms).state == "silent"


def test_events_before_the_first_status_change_nothing() -> None:
    told = Told()
    assert told.hello().state == "starting"
    assert told.event("session_started").state == "starting"
    assert told.status("session", state_ms=90_000).since_s == pytest.approx(90)


def test_a_replayed_status_is_no_sign_of_life(told: Told) -> None:
    replayed_ms = told.mono_ms() - 500
    told.wait(SILENT_S + 1)
    assert told.status("idle", mono_ms=replayed_ms).state == "silent"
    assert told.status("session", boot=BOOT - 1, boot_nonce=1).state == "silent"


def test_a_reboot_ends_what_was(told: Told) -> None:
    told.status("session", watts=300)
    card = told.hello(BOOT + 1, 78)
    assert (card.state, card.power_mw) == ("starting", None)
    assert told.hello(BOOT, NONCE).state == "starting"
    card = told.status("idle", boot=BOOT + 1, boot_nonce=78, mono_ms=900)
    assert card.state == "free"


def test_a_board_that_was_replaced_counts_its_boots_anew(told: Told) -> None:
    told.hello()
    assert told.hello(1, 5).state == "free"  # control: an earlier boot of the same journal
    told.wait(SILENT_S + 1)
    assert told.hello(1, 5, OTHER_JOURNAL).state == "starting"
    told.wait(1)
    assert told.status("idle", boot=1, boot_nonce=5, mono_ms=900).state == "free"
    told.wait(1)
    assert told.event("session_started", boot=1, mono_ms=1900).state == "free"  # the old board's
    assert told.event("session_started", boot=1, mono_ms=1901, journal_id=OTHER_JOURNAL).state == "in_use"


def test_the_second_boot_of_a_replaced_board_is_told_too(told: Told) -> None:
    told.hello()
    told.hello(1, 5, OTHER_JOURNAL)
    told.status("session", boot=2, boot_nonce=6, mono_ms=900)
    assert told.event("session_ended", boot=2, mono_ms=901, reason=2).state == "in_use"  # the old board's
    assert told.hello(2, 6, OTHER_JOURNAL).state == "in_use"
    assert told.hello(3, 7, OTHER_JOURNAL).state == "starting"


def test_a_hello_of_the_same_boot_changes_nothing(told: Told) -> None:
    told.status("session", state_ms=5000)
    assert told.hello().state == "in_use"


def test_an_older_node_does_not_know_since_when_and_we_do_not_guess() -> None:
    told = Told()
    assert told.status("session").since_s is None
    told.wait(5)
    assert told.status("session").since_s is None
    told.wait(2)
    assert told.status("idle").since_s == pytest.approx(0)
    told.wait(5)
    assert told.status("idle").since_s == pytest.approx(5)


@pytest.mark.parametrize("more", [{"watts": 60}, {"relay": 1}])
def test_a_machine_that_runs_without_a_badge_is_not_free(told: Told, more: dict[str, Any]) -> None:
    assert told.status("idle", **more).state == "running"
    told.wait(1)
    assert told.status("idle", watts=59.9).state == "free"


def test_an_observed_machine_is_never_called_free() -> None:
    told = Told("observe")
    assert told.status("idle").state == "no_badge"
    assert told.card.observed
    told.wait(1)
    assert told.event("observation_started").state == "in_use"
    told.wait(1)
    assert told.status("idle", watts=500).state == "running"


def test_no_card_names_a_member(told: Told) -> None:
    told.event("session_started", member=424242)
    told.wait(1)
    told.event("badge_denied", member=424242, reason=2)
    assert "424242" not in repr(told.card)


def test_watchers_are_told_until_they_stop(told: Told) -> None:
    calls: list[int] = []
    stop = told.floor.watch(lambda: calls.append(1))
    told.status("session")
    told.event("session_ended", reason=1)
    assert len(calls) == 2
    stop()
    stop()
    told.wait(1)
    told.status("idle")
    assert len(calls) == 2


def test_what_the_floor_does_not_know_is_left_alone(told: Told) -> None:
    told.floor.note(machine("other", 9), "status", {})
    told.floor.note(told.machine, "reply", {})
    newer = bytearray(wire.encode_event("session_ended", 1, BOOT, told.mono_ms(), {
        "session": 1, "reason": 2, "on_ms": 0, "working_ms": 0, "energy_mwh_total": 0}))
    newer[4] = 200
    told.floor.note(told.machine, "events", {"journal_id": JOURNAL, "data": wire.pack_events([bytes(newer)])})
    denied = wire.encode_event("badge_denied", 2, BOOT, told.mono_ms() + 1, {"member": 1, "badge_hash": bytes(8), "reason": 2})
    for data in (wire.pack_events([denied[:-1]]), bytes([200, 1])):
        told.floor.note(told.machine, "events", {"journal_id": JOURNAL, "data": data})
    told.floor.note(told.machine, "status", {"state": 99, "boot": BOOT, "boot_nonce": NONCE, "mono_ms": told.mono_ms()})
    assert told.card.state == "free"
