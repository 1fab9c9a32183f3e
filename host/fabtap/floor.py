"""What does the floor look like now: which machine is free, in use, stopped, silent, and how much does it draw?

Pure: believed messages go in with the moment they came, cards come out.

- Free is said only of a machine whose node said so within SILENT_S, and which draws no working power. A node that has never
  spoken or no longer speaks leaves its machine's state unknown, for it may be in use.
- An event changes the card as well as a status, for it may come sooner. What a journal tells again, of an earlier boot or of
  before the last status, changes nothing and is no sign of life: only a status is protected against being replayed.
- Boots are counted within a journal. A board that was replaced or formatted has another journal and counts from 1 again: its
  hello begins anew.
- A card names no member: it hangs on a wall.
- Whoever watches is told that something has changed, never what. Then nothing queues up: a slow watcher looks less often.
"""
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fabtap.lab import Machine
from nodecore import wire, words
from nodecore.access import STATE_NUMBERS

SILENT_S = 15.0
"""A node tells its status at least every 5 s: three in a row are missing."""

DENIAL_SHOWN_S = 6.0
"""So long the reason stays after the tap, also when the badge is gone sooner."""

SINCE_TOLERANCE_S = 1.0
"""Two statuses of one state tell its beginning so exactly, for they travel for different times."""

SHOWN_KINDS = {wire.EVENT_NUMBERS[name] for name in ("session_started", "observation_started", "badge_denied", "session_ended")}
"""A long journal that is being told is decoded no further than needed."""

STATES = {number: name for name, number in STATE_NUMBERS.items()}

WORDS = {
    "free": "Free",
    "in_use": "In use",
    "ending": "Ending",
    "refused": "Refused",
    "stopped": "Stopped",
    "badge_left": "Badge left",
    "running": "Running",
    "no_badge": "No badge",
    "starting": "Starting",
    "silent": "Silent",
    "unheard": "No word yet",
}
"""What a card can say. `no_badge`: an observed machine has a switch of its own, so without a badge nobody knows if it is free.
`running`: it draws power, and no badge lies there."""

DETAILS = {
    "ending": "Switched off, metering the rest",
    "badge_left": "Take the badge away",
    "running": "Draws power without a badge",
    "no_badge": "FabTap does not switch this machine",
    "starting": "Its node has just started",
    "silent": "Its node says nothing: it may be in use",
    "unheard": "Its node has not spoken since the collector started",
}

DENIALS = {
    "unknown_badge": "Unknown badge",
    "no_training": "No training for this machine",
    "training_expired": "Training has expired",
    "member_held": "On hold: ask the office",
    "journal_full": "The node's memory is full: call a technician",
    "machine_stopped": "The emergency stop is open",
    "meter_silent": "The power meter is silent: call a technician",
    "no_roster": "The node has no list of members yet",
    "clock_unknown": "The node does not know the date yet",
    "flash_fault": "The node cannot write: call a technician",
}

ENDS = {
    "stop_pressed": "Stop was pressed: take the badge away",
    "estop_opened": "The emergency stop has opened",
    "meter_silent": "The power meter fell silent: call a technician",
    "flash_fault": "The node cannot write: call a technician",
    "program_fault": "The node had a fault: call a technician",
    "idle": "Idle too long: take the badge away",
}


@dataclass(frozen=True)
class Card:
    """One machine as people see it.

    `state` is a key of WORDS, `since_s` the seconds since the change to it (None: unknown) and `since_utc_s` the UTC of that,
    `power_mw` None without a reading that is fresh.
    """

    id: str
    name: str
    observed: bool
    state: str
    word: str
    detail: str
    since_s: float | None
    since_utc_s: float | None
    power_mw: int | None


class _Told:
    """What one node has told in one boot, of which nothing is true in the next; moments are in the floor's seconds."""

    def __init__(self, boot: int = -1, boot_nonce: int | None = None, journal_id: bytes = b"") -> None:
        self.journal_id = journal_id
        self.boot = boot
        self.boot_nonce = boot_nonce
        self.state: str | None = None
        self.since_s: float | None = None
        self.heard_s: float | None = None
        self.mono_ms = -1
        self.status_mono_ms = -1
        self.mono_zero_s: float | None = None
        self.power_mw: int | None = None
        self.running = False
        self.end_reason = ""
        self.denial = ""
        self.denied_s = 0.0

    def enter(self, state: str, since_s: float | None) -> None:
        """Take a state over; the same state with about the same beginning keeps the one it has."""
        same = state == self.state
        if not same and state != "spent" and state != "settling":
            self.end_reason = ""
        if not same or self.since_s is None or (since_s is not None and abs(since_s - self.since_s) > SINCE_TOLERANCE_S):
            self.since_s = since_s
        self.state = state


class Floor:
    """The state of every machine, as its node told it last. `now_s` is a monotonic clock, `utc_s` the time of day."""

    def __init__(self, machines: tuple[Machine, ...], now_s: Callable[[], float] = time.monotonic,
                 utc_s: Callable[[], float] = time.time) -> None:
        self._machines = machines
        self._now_s = now_s
        self._utc_s = utc_s
        self._told = {machine.id: _Told() for machine in machines}
        self._watchers: set[Callable[[], None]] = set()

    def note(self, machine: Machine, name: str, fields: dict[str, Any]) -> None:
        """A believed message has come from the machine's node: its name in nodecore.wire.MESSAGES, and its fields."""
        told = self._told.get(machine.id)
        take = {"hello": self._hello, "events": self._events, "status": self._status}.get(name)
        if told is None or take is None:
            return
        # What can't be read is the collector's to complain of, who stores it all the same.
        with contextlib.suppress(wire.WireError):
            take(machine, told, fields)
        for changed in tuple(self._watchers):
            changed()

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after every message, until the returned function is called. What has changed, `cards` tells."""
        self._watchers.add(changed)
        return lambda: self._watchers.discard(changed)

    def cards(self) -> list[Card]:
        """Every machine as it is now, in the order of the lab's file."""
        now_s = self._now_s()
        return [self._card(machine, self._told[machine.id], now_s) for machine in self._machines]

    def _hello(self, machine: Machine, told: _Told, fields: dict[str, Any]) -> None:
        other_journal = told.journal_id not in (b"", fields["journal_id"])
        other_boot = fields["boot"] == told.boot and told.boot_nonce not in (None, fields["boot_nonce"])
        if other_journal or other_boot or fields["boot"] > told.boot:
            told = self._told[machine.id] = _Told(fields["boot"], fields["boot_nonce"])
            told.heard_s = self._now_s()
            told.enter("starting", None)
        told.journal_id = fields["journal_id"]

    def _status(self, machine: Machine, told: _Told, fields: dict[str, Any]) -> None:
        state = STATES.get(fields["state"])
        if state is None or fields["boot"] < told.boot:
            return
        if fields["boot_nonce"] != told.boot_nonce:
            told = self._told[machine.id] = _Told(fields["boot"], fields["boot_nonce"], told.journal_id)
        if fields["mono_ms"] <= told.status_mono_ms:
            return
        told.status_mono_ms = fields["mono_ms"]
        now_s = told.heard_s = self._now_s()
        told.mono_ms = max(told.mono_ms, fields["mono_ms"])
        told.mono_zero_s = now_s - fields["mono_ms"] / 1000
        told.power_mw = fields["power_mw"]
        told.enter(state, self._began_s(told, state, fields["state_ms"], now_s))
        told.running = state == "idle" and (
            told.power_mw >= machine.working_w * 1000 or (machine.mode == "gate" and fields["relay"] != 0))

    def _began_s(self, told: _Told, state: str, state_ms: int, now_s: float) -> float | None:
        if state_ms or told.state not in (None, "starting", state):
            return now_s - state_ms / 1000
        # An older node does not tell how long it has been so: what we have seen ourselves stays, else it is unknown.
        return told.since_s if told.state == state else None

    def _events(self, machine: Machine, told: _Told, fields: dict[str, Any]) -> None:
        if told.mono_zero_s is None or (told.journal_id and fields["journal_id"] != told.journal_id):
            return
        for data in wire.unpack_events(fields["data"]):
            _, kind, boot, mono_ms = wire.decode_event_head(data)
            if boot != told.boot or mono_ms <= told.mono_ms:
                continue
            told.mono_ms = mono_ms
            told.heard_s = self._now_s()
            if kind in SHOWN_KINDS:
                self._event(told, wire.decode_event(data), min(told.heard_s, told.mono_zero_s + mono_ms / 1000))

    def _event(self, told: _Told, event: dict[str, Any], at_s: float) -> None:
        if event["name"] in ("session_started", "observation_started"):
            told.enter("session", at_s)
        elif event["name"] == "badge_denied":
            told.denial = DENIALS.get(words.REASONS.get(event["reason"], ""), "Refused")
            told.denied_s = at_s
            told.enter("refused", at_s)
        elif event["name"] == "session_ended":
            reason = words.ENDS.get(event["reason"], "")
            # The badge is gone already where that was the end; elsewhere it still lies there.
            told.enter("idle" if reason == "badge_removed" else "spent", at_s)
            told.end_reason = ENDS.get(reason, "")

    def _card(self, machine: Machine, told: _Told, now_s: float) -> Card:
        state, since_s = self._state(machine, told, now_s)
        fresh = state not in ("silent", "unheard", "starting")
        return Card(
            id=machine.id, name=machine.name, observed=machine.mode == "observe", state=state, word=WORDS[state],
            detail=self._detail(told, state, now_s),
            since_s=None if since_s is None else max(0.0, now_s - since_s),
            since_utc_s=None if since_s is None else self._utc_s() - (now_s - since_s),
            power_mw=told.power_mw if fresh else None)

    def _state(self, machine: Machine, told: _Told, now_s: float) -> tuple[str, float | None]:
        if told.heard_s is None or told.state is None:
            return "unheard", None
        if now_s - told.heard_s > SILENT_S:
            return "silent", told.heard_s
        if told.state == "spent":
            return ("stopped" if told.end_reason else "badge_left"), told.since_s
        if told.state == "idle":
            free = "no_badge" if machine.mode == "observe" else "free"
            return ("running" if told.running else free), told.since_s
        return {"session": "in_use", "settling": "ending"}.get(told.state, told.state), told.since_s

    def _detail(self, told: _Told, state: str, now_s: float) -> str:
        if state == "stopped":
            return told.end_reason
        if state == "refused":
            return told.denial
        if state in ("free", "no_badge") and told.denial and now_s - told.denied_s < DENIAL_SHOWN_S:
            return f"Last badge: {told.denial[0].lower()}{told.denial[1:]}"
        return DETAILS.get(state, "")
