"""Do the database and the charges say what the nodes wrote into their flash?

The nodes' side is read by code of its own: audit_flash.py finds the events in the flash images, audit_usage.py makes sessions and
charges of them. The database's side is what a member sees: the stored bytes, the books' sessions, the charges' CSV.

- Every event that a node keeps must be stored, once, with the same bytes; every stored event must be in its node's flash.
- Sessions and refusals must be equal; of a charge every column that does not need the time of day, to the byte.
- `lost` are events in the flash that are not in the database. As long as nodes may still be sending (`everything_arrived` False),
  those behind the last acknowledged one are only `waiting`, and the rest is compared up to there.
- What was only observed has its charge compared, and is in neither total.
"""
import csv
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from fabtap import books
from fabtap.audit_flash import read_journals, seq_of
from fabtap.audit_usage import Denial, Session, price, tell, thousandths
from fabtap.boards import load_board
from fabtap.lab import Lab
from fabtap.problem import Problem
from fabtap.reconcile import Check

DIFFERENCES_SHOWN = 3
EVENTS = "SELECT node_id, journal_id, seq, bytes FROM event"
WATERMARKS = "SELECT node_id, journal_id, watermark FROM journal"
QUARANTINED = "SELECT count(*) FROM quarantine"

ABOUT: dict[str, str] = {
    "flash": "every journal can be read",
    "events": "events are equal to the byte",
    "sessions": "sessions and refusals are equal",
    "charges": "charges are equal to the byte",
}
"""What differences can be about, and what is said when there is none."""

Key = tuple[int, bytes, int]
Row = dict[str, str]


@dataclass
class Audit:
    """What was found; `differences` are sentences, by ABOUT.

    `charges_total` is the sum of the database's charges, `charges_from_journals` that of the nodes'.
    """

    currency: str
    events_committed: int = 0
    events_in_nodes: int = 0
    lost: int = 0
    waiting: int = 0
    duplicated: int = 0
    sessions: int = 0
    charges_total: Decimal = Decimal(0)
    charges_from_journals: Decimal = Decimal(0)
    differences: dict[str, list[str]] = field(default_factory=lambda: {about: [] for about in ABOUT})

    @property
    def ok(self) -> bool:
        """Nothing is lost, twice or different."""
        return all(check.ok for check in self.checks())

    def checks(self) -> list[Check]:
        """As lines of a report: `booked` is the database's side, `world` the journals'."""
        totals = (f"{self.charges_total} {self.currency}", f"{self.charges_from_journals} {self.currency}")
        return [Check("journals: no event lost", self.lost == 0, f"{self.lost} lost", f"{self.events_in_nodes} events"),
                Check("journals: no event, session or charge twice", self.duplicated == 0, f"{self.duplicated} twice"),
                *[Check(f"journals: {words}", not self.differences[about],
                        "; ".join(self.differences[about][:DIFFERENCES_SHOWN]) or self._counted(about))
                  for about, words in ABOUT.items()],
                Check("journals: the charges' sums are equal", self.charges_total == self.charges_from_journals, *totals)]

    def _counted(self, about: str) -> str:
        return {"events": f"{self.events_committed} events", "sessions": f"{self.sessions} sessions"}.get(about, "")


def audit(lab: Lab, database: str | Path, images: Mapping[str, Path], everything_arrived: bool = True,
          charges_csv: Path | None = None) -> Audit:
    """Compare. `images` are the boards' flash images by machine id; without a `charges_csv` the books write one anew.

    Raises Problem for an image or a database that can't be read.
    """
    found = Audit(lab.currency)
    stored, watermarks = _database(Path(database), found)
    in_nodes = _flash(lab, images, found)
    _compare_events(found, lab, stored, in_nodes, None if everything_arrived else watermarks)
    if not everything_arrived:
        in_nodes = {key: event for key, event in in_nodes.items() if key[2] <= watermarks.get(key[:2], 0)}
    sessions, denials = _told(in_nodes)
    found.sessions = len(sessions)
    _compare_usage(found, lab, database, sessions, denials)
    _compare_charges(found, lab, sessions, _charges(lab, database, charges_csv))
    return found


def _database(path: Path, found: Audit) -> tuple[dict[Key, bytes], dict[tuple[int, bytes], int]]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute(EVENTS).fetchall()
            watermarks = {(node, journal_id): seq for node, journal_id, seq in connection.execute(WATERMARKS)}
            (quarantined,) = connection.execute(QUARANTINED).fetchone()
    except sqlite3.Error as error:
        raise Problem(path, None, f"the database can't be read ({error})", "Start the collector once; it makes it.") from None
    found.events_committed = len(rows)
    # The table has a key, yet the same event could lie there under another number.
    found.duplicated = len(rows) - len({(node, journal_id, data) for node, journal_id, _, data in rows})
    if quarantined:
        found.differences["events"].append(f"{quarantined} event(s) in quarantine")
    return {(node, journal_id, seq): data for node, journal_id, seq, data in rows}, watermarks


def _flash(lab: Lab, images: Mapping[str, Path], found: Audit) -> dict[Key, bytes]:
    in_nodes: dict[Key, bytes] = {}
    for machine in lab.machines:
        if machine.id not in images:
            found.differences["flash"].append(f"{machine.id}: there is no flash image")
            continue
        for journal in read_journals(images[machine.id], load_board(machine.board)):
            found.differences["flash"] += [f"{machine.id}: {complaint}" for complaint in journal.complaints]
            in_nodes.update({(machine.node, journal.journal_id, seq): event for seq, event in journal.events.items()})
    found.events_in_nodes = len(in_nodes)
    return in_nodes


def _compare_events(found: Audit, lab: Lab, stored: Mapping[Key, bytes], in_nodes: Mapping[Key, bytes],
                    watermarks: Mapping[tuple[int, bytes], int] | None) -> None:
    machines = {machine.node: machine.id for machine in lab.machines}
    for key in sorted(stored.keys() | in_nodes.keys()):
        name = f"{machines.get(key[0], f'node {key[0]}')}, event {key[2]}"
        if key not in stored:
            if watermarks is not None and key[2] > watermarks.get(key[:2], 0):
                found.waiting += 1
                continue
            found.lost += 1
            found.differences["events"].append(f"{name} is not in the database")
        elif key not in in_nodes:
            found.differences["events"].append(f"{name} is not in the flash")
        elif stored[key] != in_nodes[key]:
            found.differences["events"].append(f"{name} differs")
        elif seq_of(stored[key]) != key[2]:
            found.differences["events"].append(f"{name} says that it is event {seq_of(stored[key])}")


def _told(in_nodes: Mapping[Key, bytes]) -> tuple[list[Session], list[Denial]]:
    journals: dict[tuple[int, bytes], dict[int, bytes]] = {}
    for (node, journal_id, seq), event in in_nodes.items():
        journals.setdefault((node, journal_id), {})[seq] = event
    sessions, denials = [], []
    for (node, journal_id), events in sorted(journals.items()):
        more_sessions, more_denials = tell(node, journal_id, events)
        sessions += more_sessions
        denials += more_denials
    return sessions, denials


def _compare_usage(found: Audit, lab: Lab, database: str | Path, sessions: Iterable[Session], denials: Iterable[Denial]) -> None:
    booked = [_as_audited(one) for one in books.sessions(lab, database)]
    refused = [Denial(f"{one.denial.node_id}-{one.denial.journal_id.hex()}-{one.denial.seq}", one.denial.member,
                      one.denial.badge_hash, one.denial.reason) for one in books.denials(lab, database)]
    found.duplicated += _twice(one.id for one in booked) + _twice(one.id for one in refused)
    found.differences["sessions"] += _unequal("session", {one.id: one for one in booked}, {one.id: one for one in sessions})
    found.differences["sessions"] += _unequal("refusal", {one.id: one for one in refused}, {one.id: one for one in denials})


def _as_audited(booked: books.BookedSession) -> Session:
    session = booked.session
    return Session(booked.id, session.node_id, session.member, session.start.boot, session.start.mono_ms, session.end_reason,
                   session.on_ms, session.working_ms, session.energy_mwh, session.observed)


def _compare_charges(found: Audit, lab: Lab, sessions: Iterable[Session], rows: list[Row]) -> None:
    own = {}
    for session in sessions:
        if session.end_reason is not None:
            own[session.id] = row = _row(lab, session)
            if not session.observed:
                found.charges_from_journals += Decimal(row["amount"] or 0)
    observed = {session.id for session in sessions if session.observed}
    columns = set(next(iter(own.values()), {}))
    theirs = {row["session"]: {name: value for name, value in row.items() if name in columns} for row in rows}
    found.charges_total = sum((Decimal(row["amount"] or 0) for row in rows if row["session"] not in observed), Decimal(0))
    found.duplicated += _twice(row["session"] for row in rows)
    found.differences["charges"] += _unequal("charge", theirs, own)


def _row(lab: Lab, session: Session) -> Row:
    """The columns of a charge that do not need the time of day."""
    machine = next((one for one in lab.machines if one.node == session.node), None)
    member = next((one for one in lab.members if one.number == session.member), None)
    amount = ""
    tariff = lab.tariff(machine.id, member.member_class) if machine and member else None
    if tariff:
        amount = str(price(session, tariff.per_minute_on, tariff.per_minute_working, tariff.per_kwh, lab.currency_exponent))
    return {
        "charge_id": f"{lab.id}-{session.id}", "session": session.id, "machine": machine.id if machine else f"node {session.node}",
        "member": str(session.member), "class": member.member_class if member else "",
        "on_seconds": thousandths(session.on_ms), "working_seconds": thousandths(session.working_ms),
        "energy_wh": thousandths(session.energy_mwh), "end_reason": session.end_reason or "", "amount": amount,
        "currency": lab.currency, "kind": "shadow" if session.observed else "charge",
    }


def _charges(lab: Lab, database: str | Path, charges_csv: Path | None) -> list[Row]:
    if charges_csv is None:
        with tempfile.TemporaryDirectory(prefix="fabtap") as folder:
            written = Path(folder) / "charges.csv"
            books.export_charges_csv(lab, database, written)
            return _charges(lab, database, written)
    try:
        with open(charges_csv, encoding="utf-8", newline="") as opened:
            return list(csv.DictReader(opened))
    except OSError as error:
        raise Problem(charges_csv, None, f"the charges can't be read ({error.strerror})", "Export them once more.") from None


def _twice(names: Iterable[str]) -> int:
    return sum(count - 1 for count in Counter(names).values())


def _unequal(what: str, theirs: Mapping[str, object], own: Mapping[str, object]) -> list[str]:
    """Sentences: what only one side has, and what both have in different words."""
    found = []
    for name in sorted(theirs.keys() | own.keys()):
        if name not in theirs:
            found.append(f"{what} {name} is only in the journals")
        elif name not in own:
            found.append(f"{what} {name} is only in the books")
        elif theirs[name] != own[name]:
            found.append(f"{what} {name}: {theirs[name]} in the books, {own[name]} in the journals")
    return found
