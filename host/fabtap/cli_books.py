"""`fabtap event|session|charge ...`: what happened, what was used, what it costs."""
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Annotated, Any

import typer

from fabtap import books, store
from fabtap.cli_options import LAB_DEFAULT, AsJson, LabFile, open_lab
from fabtap.screen import OUT, show_json, table
from fabtap.timeline import Instant
from nodecore import wire

event = typer.Typer(no_args_is_help=True, help="The raw events, as the nodes wrote them.")
session = typer.Typer(no_args_is_help=True, help="Who used which machine, and who was refused.")
charge = typer.Typer(no_args_is_help=True, help="What the sessions cost.")


@event.command("list")
def event_list(lab_file: LabFile = LAB_DEFAULT, as_json: AsJson = False) -> None:
    """List all events."""
    lab = open_lab(lab_file)
    rows = [_event(found) for found in store.events(lab.database)]
    if as_json:
        show_json(rows)
        return
    shown = [(row["node"], row["seq"], row["name"], row["boot"], row["mono_ms"],
              ", ".join(f"{key} {value}" for key, value in row["fields"].items())) for row in rows]
    OUT.print(table("Events", ("node", "seq", "event", "boot", "mono ms", "fields"), shown,
                    right=("node", "seq", "boot", "mono ms")))


def _event(found: store.StoredEvent) -> dict[str, Any]:
    row: dict[str, Any] = {"node": found.node_id, "journal_id": found.journal_id.hex(), "seq": found.seq,
                           "name": "unknown", "boot": None, "mono_ms": None, "fields": {}, "bytes": found.bytes.hex()}
    try:
        decoded = wire.decode_event(found.bytes)
    except wire.WireError as error:
        return {**row, "fields": {"error": str(error)}}
    head = {name: decoded.pop(name) for name in ("name", "seq", "boot", "mono_ms")}
    fields = {name: value.rstrip(b"\0").hex() if isinstance(value, bytes) else value for name, value in decoded.items()}
    return {**row, **head, "fields": fields}


@session.command("list")
def session_list(lab_file: LabFile = LAB_DEFAULT, as_json: AsJson = False) -> None:
    """List sessions and denials."""
    lab = open_lab(lab_file)
    sessions: list[dict[str, Any]] = [{
        "session": found.id, "machine": found.machine.id if found.machine else None, "member": found.session.member,
        "name": found.member.name if found.member else None, "started": _local(found.start, lab.timezone),
        "ended": _local(found.end, lab.timezone), "on_s": found.session.on_ms / 1000,
        "working_s": found.session.working_ms / 1000, "energy_mwh": found.session.energy_mwh,
        "state": found.session.state, "end_reason": found.session.end_reason, "observed": found.session.observed,
    } for found in books.sessions(lab, lab.database)]
    denials: list[dict[str, Any]] = [{
        "machine": found.machine.id if found.machine else None, "member": found.denial.member,
        "name": found.member.name if found.member else None, "at": _local(found.at, lab.timezone),
        "reason": found.denial.reason,
    } for found in books.denials(lab, lab.database)]
    if as_json:
        show_json({"sessions": sessions, "denials": denials,
                   "oddities": [f"{odd.node_id}/{odd.seq}: {odd.kind} {odd.detail}" for odd in books.oddities(lab.database)]})
        return
    sessions.sort(key=_when)
    denials.sort(key=_when)
    OUT.print(table(f"Sessions, times in {lab.timezone.key}", ("machine", "member", "started", "on s", "work s", "Wh", "end"), [
        (row["machine"], row["name"] or row["member"], _minute(row["started"]), f"{row['on_s']:.1f}", f"{row['working_s']:.1f}",
         _wh(row["energy_mwh"]), _end(row)) for row in sessions], right=("on s", "work s", "Wh"), whole=("started", "end")))
    OUT.print(table("Denials", ("machine", "member", "at", "reason"), [
        (row["machine"], row["name"] or row["member"] or "unknown", _minute(row["at"]), row["reason"]) for row in denials],
        whole=("at", "reason")))


def _end(row: dict[str, Any]) -> str:
    end = row["end_reason"] or "in use"
    return f"{end}, observed" if row["observed"] else end


@charge.command("list")
def charge_list(lab_file: LabFile = LAB_DEFAULT, as_json: AsJson = False) -> None:
    """List charges and their total; shadow charges, of machines that are only observed, are in no total."""
    lab = open_lab(lab_file)
    charges = books.charges(lab, lab.database)
    total = books.totals(lab, charges)
    rows: list[dict[str, Any]] = [{
        "charge": found.id, "session": found.booked.id,
        "machine": found.booked.machine.id if found.booked.machine else None,
        "name": found.booked.member.name if found.booked.member else None, "pending": found.pending,
        "started": _local(found.booked.start, lab.timezone), "end_reason": found.booked.session.end_reason,
        "lines": [{"what": line.what, "quantity": str(line.quantity), "unit": line.unit, "unit_price": str(line.unit_price),
                   "amount": str(line.amount)} for line in found.charge.lines] if found.charge else [],
        "amount": str(found.charge.total) if found.charge else None, "currency": lab.currency, "kind": found.kind,
    } for found in charges]
    if as_json:
        show_json({"charges": rows, "total": str(total.charged), "shadow_total": str(total.shadow), "pending": total.pending,
                   "currency": lab.currency})
        return
    rows.sort(key=_when)
    OUT.print(table(f"Charges, times in {lab.timezone.key}", ("machine", "member", "started", "end", "kind", "amount"), [
        (row["machine"], row["name"], _minute(row["started"]), row["end_reason"], row["kind"],
         f"{row['amount']} {lab.currency}" if row["amount"] else f"pending: {row['pending']}") for row in rows],
        right=("amount",), whole=("started", "end")))
    OUT.print(_total(total, lab.currency), highlight=False)


def _total(total: books.Totals, currency: str) -> str:
    """What is owed, and what is left out of it."""
    said = f"Total: {total.charged} {currency} in {total.charges} charge(s)."
    if total.shadows:
        said += f" Not in it: {total.shadow} {currency} in {total.shadows} shadow charge(s), of machines that are only observed."
    if total.pending:
        said += f" Not in it: {total.pending} pending, without an amount."
    return said


@charge.command("export")
def charge_export(
    file: Annotated[Path, typer.Argument(help="The CSV file to write.")],
    lab_file: LabFile = LAB_DEFAULT, as_json: AsJson = False,
) -> None:
    """Write the charges as CSV."""
    lab = open_lab(lab_file)
    count = books.export_charges_csv(lab, lab.database, file)
    if as_json:
        show_json({"file": str(file), "charges": count})
    else:
        OUT.print(f"{count} charge(s) written to {file}", highlight=False)


def _when(row: dict[str, Any]) -> tuple[bool, str]:
    """Oldest first; what can't be dated comes last."""
    at = row.get("started") or row.get("at")
    return at is None, at or ""


def _minute(local: str | None) -> str:
    """A time as a person reads it in a table; --json has the seconds and the offset."""
    return local[:16] if local else ""


def _wh(energy_mwh: int) -> str:
    return f"{energy_mwh // 1000}.{energy_mwh % 1000:03d}"


def _local(instant: Instant | None, timezone: tzinfo) -> str | None:
    if instant is None or instant.utc_ms is None:
        return None
    return datetime.fromtimestamp(instant.utc_ms / 1000, timezone).isoformat(sep=" ", timespec="seconds")
