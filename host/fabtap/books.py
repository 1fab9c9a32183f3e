"""What did the members use, when, and what do they owe for it?

Joins the lab, the store, the timeline, the fold and the rating; nothing is kept, so the same database and lab give the
same books.

- Only settled events count: those up to each journal's watermark. What stands above a hole waits until it is filled or
  declared a gap.
- A session that ended and can't be rated stays a row without an amount, with the reason in `pending`: never zero.
- A charge is known by its session alone, so a newer rating of the same usage is the same charge.
- A member is priced by the class that members.csv gives them now.
- An observed session gets a shadow charge: what it would have cost. It is marked wherever it stands, and is in no total.
"""
import csv
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from fabtap import store
from fabtap.fold import Denial, Folded, Moment, Oddity, Session, fold
from fabtap.lab import Lab, Machine, Member
from fabtap.problem import Problem
from fabtap.rating import RATING_VERSION, Charge, NoTariff, rate, round_half_up
from fabtap.timeline import Instant, Timeline
from nodecore.wire import WireError, decode_event

CHARGE_COLUMNS = (
    "charge_id", "session", "machine", "member", "name", "class", "started_local", "ended_local",
    "time_uncertainty_ms", "on_seconds", "working_seconds", "energy_wh", "end_reason", "amount", "currency",
    "rating_version", "kind",
)
CHARGE = "charge"
SHADOW = "shadow"
# What a spreadsheet takes for the start of a formula, full-width signs included.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclass(frozen=True)
class BookedSession:
    """A session with its machine and member (None if the lab doesn't know them) and its dates (`end` None: open)."""

    id: str
    session: Session
    machine: Machine | None
    member: Member | None
    start: Instant
    end: Instant | None


@dataclass(frozen=True)
class BookedDenial:
    """A refused badge with its machine, its member (None for an unknown badge) and its date."""

    denial: Denial
    machine: Machine | None
    member: Member | None
    at: Instant


@dataclass(frozen=True)
class BookedCharge:
    """An ended session and its charge, or why it is `pending`: "unknown_machine", "unknown_member" or "no_tariff"."""

    id: str
    booked: BookedSession
    charge: Charge | None
    pending: str | None

    @property
    def kind(self) -> str:
        """CHARGE, or SHADOW for what was only observed: nobody owes it."""
        return SHADOW if self.booked.session.observed else CHARGE


class Totals(NamedTuple):
    """The sum of the charges, that of the shadow charges, and how many there are of each; `pending` of both are in no sum."""

    charged: Decimal
    charges: int
    shadow: Decimal
    shadows: int
    pending: int


def sessions(lab: Lab, database: str | Path) -> list[BookedSession]:
    """Every session, also the open ones, in the order of node, journal and seq. Raises Problem for the database."""
    people = _People(lab, database)
    booked = []
    for session in sorted(folded(database).sessions, key=lambda found: (found.node_id, found.journal_id, found.seq)):
        booked.append(BookedSession(
            id=f"{session.node_id}-{session.journal_id.hex()}-{session.seq}",
            session=session,
            machine=people.machines.get(session.node_id),
            member=people.members.get(session.member),
            start=people.date(session, session.start),
            end=people.date(session, session.end) if session.end else None,
        ))
    return booked


def denials(lab: Lab, database: str | Path) -> list[BookedDenial]:
    """Every refused badge, in the order of node, journal and seq. Raises Problem for the database."""
    people = _People(lab, database)
    return [BookedDenial(denial, people.machines.get(denial.node_id), people.members.get(denial.member),
                         people.date(denial, denial.at)) for denial in folded(database).denials]


def oddities(database: str | Path) -> list[Oddity]:
    """What the fold couldn't make sense of. Raises Problem for the database."""
    return folded(database).oddities


def charges(lab: Lab, database: str | Path) -> list[BookedCharge]:
    """A charge for every session that has ended, in the order of node, journal and seq. Raises Problem."""
    return [_charge(lab, booked) for booked in sessions(lab, database) if booked.session.state != "open"]


def totals(lab: Lab, rows: Iterable[BookedCharge]) -> Totals:
    """The sums of these charges, shadows apart."""
    sums = {CHARGE: Fraction(0), SHADOW: Fraction(0)}
    counts = {CHARGE: 0, SHADOW: 0}
    pending = 0
    for row in rows:
        if row.charge is None:
            pending += 1
        else:
            sums[row.kind] += Fraction(row.charge.total)
            counts[row.kind] += 1
    exponent = lab.currency_exponent
    return Totals(round_half_up(sums[CHARGE], exponent), counts[CHARGE], round_half_up(sums[SHADOW], exponent), counts[SHADOW],
                  pending)


def export_charges_csv(lab: Lab, database: str | Path, file: str | Path) -> int:
    """Write CHARGE_COLUMNS for every charge, also the shadow ones, whole or not at all; gives the number of rows.

    Times are ISO 8601 in the lab's timezone, empty where no estimate exists; an empty amount is a pending charge. The
    file holds names: only its owner may read it. Raises Problem.
    """
    rows = [_csv_row(lab, charge) for charge in charges(lab, database)]
    target = Path(file)
    try:
        _write_whole(target, [CHARGE_COLUMNS, *rows])
    except OSError as error:
        raise Problem(target, None, f"can't be written ({error.strerror})", "Name a file elsewhere.") from None
    return len(rows)


def folded(database: str | Path) -> Folded:
    """The fold of all settled events."""
    return fold(_decoded(store.settled_events(database)))


class _People:
    """Look-ups that every row of the books needs."""

    def __init__(self, lab: Lab, database: str | Path) -> None:
        self.machines = {machine.node: machine for machine in lab.machines}
        self.members = {member.number: member for member in lab.members}
        anchors: dict[tuple[int, bytes], list[tuple[int, int, int, int]]] = {}
        for anchor in store.anchors(database):
            rows = anchors.setdefault((anchor.node_id, anchor.journal_id), [])
            rows.append((anchor.boot, anchor.mono_ms, anchor.utc_ms, anchor.uncertainty_ms))
        self.timelines = {key: Timeline(rows) for key, rows in anchors.items()}

    def date(self, of: Session | Denial, moment: Moment) -> Instant:
        timeline = self.timelines.get((of.node_id, of.journal_id)) or Timeline([])
        return timeline.at(moment.boot, moment.mono_ms)


def _decoded(events: Iterable[store.StoredEvent]) -> Iterator[dict[str, Any]]:
    for stored in events:
        try:
            event = decode_event(stored.bytes)
        except WireError as error:
            event = {"name": str(error), "seq": stored.seq}
        event["node_id"] = stored.node_id
        event["journal_id"] = stored.journal_id
        yield event


def _charge(lab: Lab, booked: BookedSession) -> BookedCharge:
    charge, pending = None, None
    if booked.machine is None:
        pending = "unknown_machine"
    elif booked.member is None:
        pending = "unknown_member"
    else:
        member_class = booked.member.member_class
        tariff = lab.tariff(booked.machine.id, member_class)
        try:
            charge = rate(booked.session, member_class, tariff, lab.currency_exponent)
        except NoTariff:
            pending = "no_tariff"
    return BookedCharge(f"{lab.id}-{booked.id}", booked, charge, pending)


def _csv_row(lab: Lab, row: BookedCharge) -> list[str]:
    booked, session = row.booked, row.booked.session
    dates = [date for date in (booked.start, booked.end) if date is not None]
    uncertain = [date.uncertainty_ms for date in dates if date.uncertainty_ms is not None]
    cells = [
        row.id,
        booked.id,
        booked.machine.id if booked.machine else f"node {session.node_id}",
        str(session.member),
        booked.member.name if booked.member else "",
        booked.member.member_class if booked.member else "",
        _local(booked.start, lab.timezone),
        _local(booked.end, lab.timezone),
        str(max(uncertain)) if len(uncertain) == len(dates) else "",
        _thousandths(session.on_ms),
        _thousandths(session.working_ms),
        _thousandths(session.energy_mwh),
        session.end_reason or "",
        str(row.charge.total) if row.charge else "",
        lab.currency,
        str(RATING_VERSION),
        row.kind,
    ]
    return [harmless(cell) for cell in cells]


def harmless(cell: str) -> str:
    """The cell with an apostrophe in front if a spreadsheet would take it for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA_SIGNS) else cell


def _local(instant: Instant | None, timezone: tzinfo) -> str:
    if instant is None or instant.utc_ms is None:
        return ""
    try:
        utc = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=instant.utc_ms)
        return utc.astimezone(timezone).isoformat(timespec="seconds")
    except OverflowError:  # a damaged mono_ms dates the event to the year 10000
        return ""


def _thousandths(count: int) -> str:
    return f"{count // 1000}.{count % 1000:03d}"


def _write_whole(target: Path, rows: Iterable[Iterable[str]]) -> None:
    """Write beside the target, then take its place: a reader sees the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="") as opened:
            _write_rows(opened, rows)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _write_rows(opened: TextIO, rows: Iterable[Iterable[str]]) -> None:
    csv.writer(opened, lineterminator="\n").writerows(rows)
