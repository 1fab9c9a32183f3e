"""Which sessions do the events of a journal tell of, and what was used in them?

PURE, and versioned: the same events give the same sessions for ever under one FOLD_VERSION. Version 2 knows observed sessions,
which to version 1 were undecodable.

- A session is known by (node_id, journal_id, seq of its start), and it lives within one boot.
- What the node only observed is a session like any other, and marked: the event says so, for the lab's file may have changed
  since.
- Usage is what the session's last record says, counter by counter the highest: a prefix of a journal never bills more
  than the whole.
- Energy is a difference of the cumulative counter within the boot; a smaller counter is an oddity, never a reset.
- A boot while a session is open cuts it off: it ends as "power_lost" at its LAST checkpoint, with nothing if there is
  none. A session that another one follows without an end is cut likewise, as "end_missing".
- Nothing is lost in silence: what fits no session becomes an Oddity.
"""
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nodecore.wire import EVENT_NUMBERS
from nodecore.words import ENDS, REASONS

FOLD_VERSION = 2

ODDITIES = {
    "undecodable": "the collector's program doesn't know this event",
    "missing_events": "the events before this one were lost by the node",
    "boot_unannounced": "the boot number changed without a `booted`",
    "time_backwards": "the node's clock ran backwards within a boot",
    "end_missing": "a session started while one was open",
    "start_unknown": "a record of a session that isn't open",
    "smaller_on_ms": "on_ms is smaller than before",
    "smaller_working_ms": "working_ms is smaller than before",
    "smaller_energy": "energy_mwh_total is smaller than before",
    "reason_unknown": "the number of a reason isn't in the table",
}


class Moment(NamedTuple):
    """A node's own date: milliseconds since the start of a boot."""

    boot: int
    mono_ms: int


@dataclass(frozen=True)
class Session:
    """What one member used of one machine; `observed` if the node switched nothing, so that nobody owes anything for it.

    `state` is "closed" (the node wrote the end), "cut" (the fold ended it at its last checkpoint) or "open" (`end` and
    `end_reason` are None; usage as of the last checkpoint). `energy_mwh` is in milliwatt-hours.
    """

    node_id: int
    journal_id: bytes
    seq: int
    member: int
    start: Moment
    end: Moment | None
    end_reason: str | None
    on_ms: int
    working_ms: int
    energy_mwh: int
    state: str
    observed: bool = False


@dataclass(frozen=True)
class Denial:
    """A badge that was refused; `member` is 0 for an unknown one, `reason` a name of nodecore.words.REASONS."""

    node_id: int
    journal_id: bytes
    seq: int
    member: int
    badge_hash: bytes
    reason: str
    at: Moment


@dataclass(frozen=True)
class Oddity:
    """An event that doesn't fit; `kind` is a key of ODDITIES."""

    node_id: int
    journal_id: bytes
    seq: int
    kind: str
    detail: str


@dataclass
class Folded:
    """All that a fold finds, in the order of the events."""

    sessions: list[Session] = field(default_factory=list)
    denials: list[Denial] = field(default_factory=list)
    oddities: list[Oddity] = field(default_factory=list)


@dataclass
class _Open:
    """The open session of a journal: its start, and the counters of its last record."""

    seq: int
    member: int
    start: Moment
    last: Moment
    energy_start: int
    energy_last: int
    observed: bool
    on_ms: int = 0
    working_ms: int = 0


def fold(events: Iterable[Mapping[str, Any]]) -> Folded:
    """Sessions, denials and oddities of decoded events.

    An event is what nodecore.wire.decode_event gives, with `node_id` and `journal_id`; one that can't be decoded needs
    only `seq` beside them, and a `name` of no event. Within a journal they come in the order of seq; journals may mix.
    Raises ValueError for a seq that comes twice or too late. Sessions that are still open stand at the end.
    """
    found = Folded()
    walks: dict[tuple[int, bytes], _Walk] = {}
    for event in events:
        key = event["node_id"], event["journal_id"]
        if key not in walks:
            walks[key] = _Walk(*key, found)
        walks[key].step(event)
    for walk in walks.values():
        if walk.open:
            found.sessions.append(walk.session(walk.open, None, None, "open"))
    return found


def fold_sessions(events: Iterable[Mapping[str, Any]]) -> list[Session]:
    """The sessions alone; see fold."""
    return fold(events).sessions


def fold_denials(events: Iterable[Mapping[str, Any]]) -> list[Denial]:
    """The denials alone; see fold."""
    return fold(events).denials


class _Walk:
    """One journal, event by event."""

    def __init__(self, node_id: int, journal_id: bytes, found: Folded) -> None:
        self.node_id = node_id
        self.journal_id = journal_id
        self.found = found
        self.seq = 0
        self.now: Moment | None = None
        self.open: _Open | None = None

    def step(self, event: Mapping[str, Any]) -> None:
        if event["seq"] <= self.seq:
            raise ValueError(f"event {event['seq']} after {self.seq} of node {self.node_id}")
        if event["seq"] != self.seq + 1:
            self._odd(event, "missing_events", f"{self.seq + 1} to {event['seq'] - 1}")
        self.seq = event["seq"]
        if event["name"] not in EVENT_NUMBERS:
            self._odd(event, "undecodable", str(event["name"]))
            return
        self._clock(event)
        rule = _RULES.get(event["name"])
        if rule:
            rule(self, event)

    def session(self, of: _Open, end: Moment | None, end_reason: str | None, state: str) -> Session:
        if end:
            # The last record comes later than the end: the relay opened when its time on was over.
            end = Moment(of.start.boot, of.start.mono_ms + of.on_ms)
        return Session(self.node_id, self.journal_id, of.seq, of.member, of.start, end, end_reason, of.on_ms,
                       of.working_ms, of.energy_last - of.energy_start, state, of.observed)

    def _clock(self, event: Mapping[str, Any]) -> None:
        """Notice a boot that wasn't announced, and a clock that runs backwards."""
        now = Moment(event["boot"], event["mono_ms"])
        if self.now and event["name"] != "booted":
            if now.boot != self.now.boot:
                self._odd(event, "boot_unannounced", f"boot {now.boot} after {self.now.boot}")
                self._cut("power_lost")
            elif now.mono_ms < self.now.mono_ms:
                self._odd(event, "time_backwards", f"{now.mono_ms} ms after {self.now.mono_ms} ms")
        self.now = now

    def _booted(self, event: Mapping[str, Any]) -> None:
        self._cut("power_lost")

    def _started(self, event: Mapping[str, Any]) -> None:
        if self.open:
            self._odd(event, "end_missing", f"session {self.open.seq}")
            self._cut("end_missing")
        now = Moment(event["boot"], event["mono_ms"])
        energy = event["energy_mwh_total"]
        self.open = _Open(event["seq"], event["member"], now, now, energy, energy, event["name"] == "observation_started")

    def _checkpoint(self, event: Mapping[str, Any]) -> None:
        if self._belongs(event):
            self._count(event)

    def _ended(self, event: Mapping[str, Any]) -> None:
        if self._belongs(event) and self.open:
            self._count(event)
            reason = self._reason(event, ENDS)
            self.found.sessions.append(self.session(self.open, self.open.last, reason, "closed"))
            self.open = None

    def _denied(self, event: Mapping[str, Any]) -> None:
        self.found.denials.append(Denial(
            self.node_id, self.journal_id, event["seq"], event["member"], event["badge_hash"],
            self._reason(event, REASONS), Moment(event["boot"], event["mono_ms"])))

    def _belongs(self, event: Mapping[str, Any]) -> bool:
        if self.open and self.open.seq == event["session"]:
            return True
        self._odd(event, "start_unknown", f"{event['name']} of session {event['session']}")
        return False

    def _count(self, event: Mapping[str, Any]) -> None:
        """Raise the open session's counters to those of its new record; none ever falls."""
        now = self.open
        if now is None:
            return
        for kind, before, after in (("smaller_on_ms", now.on_ms, event["on_ms"]),
                                    ("smaller_working_ms", now.working_ms, event["working_ms"]),
                                    ("smaller_energy", now.energy_last, event["energy_mwh_total"])):
            if after < before:
                self._odd(event, kind, f"{after} after {before}")
        now.on_ms = max(now.on_ms, event["on_ms"])
        now.working_ms = max(now.working_ms, event["working_ms"])
        now.energy_last = max(now.energy_last, event["energy_mwh_total"])
        now.last = Moment(event["boot"], event["mono_ms"])

    def _cut(self, reason: str) -> None:
        """End the open session, if there is one, at its last checkpoint."""
        if self.open:
            self.found.sessions.append(self.session(self.open, self.open.last, reason, "cut"))
            self.open = None

    def _reason(self, event: Mapping[str, Any], names: Mapping[int, str]) -> str:
        number = event["reason"]
        if number not in names:
            self._odd(event, "reason_unknown", f"reason {number}")
        return names.get(number, f"reason_{number}")

    def _odd(self, event: Mapping[str, Any], kind: str, detail: str) -> None:
        self.found.oddities.append(Oddity(self.node_id, self.journal_id, event["seq"], kind, detail))


_RULES = {
    "booted": _Walk._booted,
    "badge_denied": _Walk._denied,
    "session_started": _Walk._started,
    "observation_started": _Walk._started,
    "session_checkpoint": _Walk._checkpoint,
    "session_ended": _Walk._ended,
}
