"""Which sessions, refusals and charges do a journal's events tell of? The auditor's own answer.

PURE, and written a second time on purpose: layouts and numbers from docs/PROTOCOL.md, nothing of nodecore, fold.py or rating.py.
It knows no oddities: where the books would shrug at one, the two answers differ, and that is the finding.
"""
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import NamedTuple

HEAD = struct.Struct("<IBIQ")
BOOTED, DENIED, STARTED, CHECKPOINT, ENDED, OBSERVED = 1, 2, 3, 4, 5, 7
LAYOUTS = {DENIED: struct.Struct("<I8sB"), STARTED: struct.Struct("<IQ"), OBSERVED: struct.Struct("<IQ"),
           CHECKPOINT: struct.Struct("<IIIQ"), ENDED: struct.Struct("<IBIIQ")}
REASONS = ("none", "unknown_badge", "no_training", "training_expired", "member_held", "journal_full", "machine_stopped",
           "meter_silent", "no_roster", "clock_unknown", "flash_fault")
ENDS = ("", "badge_removed", "stop_pressed", "estop_opened", "meter_silent", "power_lost", "flash_fault", "program_fault", "idle")
MONEY = Context(prec=100)
"""Enough digits that a division is either exact or far from any half of a cent."""


@dataclass(frozen=True)
class Session:
    """One use of a machine; `end_reason` None while it is open. `observed`: nobody owes anything for it."""

    id: str
    node: int
    member: int
    boot: int
    start_ms: int
    end_reason: str | None
    on_ms: int
    working_ms: int
    energy_mwh: int
    observed: bool


class Denial(NamedTuple):
    """One refused badge; `id` as a session's."""

    id: str
    member: int
    badge_hash: bytes
    reason: str


def tell(node: int, journal_id: bytes, events: Mapping[int, bytes]) -> tuple[list[Session], list[Denial]]:
    """Sessions and denials of one journal, in the order of seq."""
    sessions: dict[int, Session] = {}
    denials = []
    energies: dict[int, int] = {}
    under_way, last_boot = 0, 0
    for seq in sorted(events):
        _, kind, boot, mono_ms = HEAD.unpack_from(events[seq])
        layout = LAYOUTS.get(kind)
        fields = layout.unpack_from(events[seq], HEAD.size) if layout else ()
        name = f"{node}-{journal_id.hex()}-{seq}"
        if under_way and (kind == BOOTED or boot != last_boot):
            sessions[under_way] = replace(sessions[under_way], end_reason="power_lost")
            under_way = 0
        last_boot = boot
        if kind == DENIED:
            denials.append(Denial(name, fields[0], fields[1], _name(REASONS, fields[2])))
        elif kind in (STARTED, OBSERVED):
            if under_way:
                sessions[under_way] = replace(sessions[under_way], end_reason="end_missing")
            under_way, energies[seq] = seq, fields[1]
            sessions[seq] = Session(name, node, fields[0], boot, mono_ms, None, 0, 0, 0, kind == OBSERVED)
        elif kind in (CHECKPOINT, ENDED) and fields[0] == under_way:
            on_ms, working_ms, energy = fields[-3:]
            before = sessions[under_way]
            sessions[under_way] = replace(
                before, on_ms=max(before.on_ms, on_ms), working_ms=max(before.working_ms, working_ms),
                energy_mwh=max(before.energy_mwh, energy - energies[under_way]),
                end_reason=_name(ENDS, fields[1]) if kind == ENDED else None)
            under_way = 0 if kind == ENDED else under_way
    return list(sessions.values()), denials


def price(session: Session, per_minute_on: Decimal, per_minute_working: Decimal, per_kwh: Decimal, exponent: int) -> Decimal:
    """What a session costs, rounded once, half up, to `exponent` decimals."""
    # In three-millionths, so that there is only one division: a minute has 60,000 ms, a kWh 1,000,000 mWh.
    exact = MONEY.add(MONEY.add(MONEY.multiply(per_minute_on, Decimal(50 * session.on_ms)),
                                MONEY.multiply(per_minute_working, Decimal(50 * session.working_ms))),
                      MONEY.multiply(per_kwh, Decimal(3 * session.energy_mwh)))
    return MONEY.divide(exact, Decimal(3_000_000)).quantize(Decimal(1).scaleb(-exponent), ROUND_HALF_UP, MONEY)


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else f"reason_{number}"


def thousandths(count: int) -> str:
    """A number of thousandths, written with three decimals."""
    return str(Decimal(count).scaleb(-3, MONEY).quantize(Decimal("0.001")))
