"""Is the demo's day whole? The bill by member and machine, both reconciliations, and summary.json.

(a) Against the journals, read out of the flash images by code that shares nothing with the collector's (audit.py). (b) Against the
physical world as the simulator knows it (reconcile.py).
"""
from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.text import Text

from fabtap import books, store
from fabtap.audit import Audit, audit
from fabtap.reconcile import Check, reconcile
from fabtap.screen import table

if TYPE_CHECKING:
    from fabtap.demo import Story

REFUSALS = {"unknown_badge": 1, "no_training": 1, "training_expired": 1, "member_held": 1, "machine_stopped": 1}
ENDS = {"badge_removed": 5, "stop_pressed": 1, "estop_opened": 1, "idle": 1, "power_lost": 1}
"""What the chapters of demo.py do."""


def settle_up(story: Story, checkpoint_s: float) -> bool:
    """Print the bill and the checks, write summary.json; True when all checks hold."""
    lab, database = story.demo.lab, story.demo.lab.database
    story.chapter("The bill")
    show_bill(story)
    story.chapter("Is it whole?")
    truths = {id_: board.ask("truth") for id_, board in story.demo.boards.items()}
    audited = audit(lab, database, {id_: story.demo.folder / "sim" / f"{id_}.img" for id_ in story.demo.boards})
    sessions = [found.session for found in books.sessions(lab, database)]
    checks = [*own_checks(story), *audited.checks()]
    for machine in lab.machines:
        mine = sorted((one for one in sessions if one.node_id == machine.node), key=lambda one: one.seq)
        checks += [check._replace(name=f"{machine.id}, {check.name}")
                   for check in reconcile(mine, truths[machine.id]["uses"], checkpoint_s)]
    show_checks(story, checks)
    target = story.demo.folder / "summary.json"
    summary = make_summary(story, audited, truths, checks)
    target.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    good = all(check.ok for check in checks)
    tell_result(story, summary, good)
    story.screen.print(f"Figures: {target}", style="dim")
    return good


def show_bill(story: Story) -> None:
    """Who owes what for which machine."""
    rows: dict[tuple[str, str], list[Any]] = {}
    for row in books.charges(story.demo.lab, story.demo.lab.database):
        session = row.booked.session
        key = (row.booked.member.name if row.booked.member else "?", row.booked.machine.name if row.booked.machine else "?")
        sums = rows.setdefault(key, [0, 0, 0, 0, Decimal(0)])
        for place, value in enumerate((1, session.on_ms, session.working_ms, session.energy_mwh,
                                       row.charge.total if row.charge else Decimal(0))):
            sums[place] += value
    shown = table("", ("member", "machine", "sessions", "on s", "working s", "Wh", story.demo.lab.currency), [],
                  right=("sessions", "on s", "working s", "Wh", story.demo.lab.currency))
    for (member, machine), (count, on_ms, working_ms, mwh, total) in sorted(rows.items()):
        shown.add_row(member, machine, str(count), f"{on_ms / 1000:.1f}", f"{working_ms / 1000:.1f}",
                      f"{mwh / 1000:.2f}", str(total))
    shown.add_section()
    shown.add_row("total", "", str(sum(sums[0] for sums in rows.values())), "", "", "", str(sum(sums[4] for sums in rows.values())),
                  style="bold")
    story.screen.print(shown)
    target = story.demo.folder / "charges.csv"
    count = books.export_charges_csv(story.demo.lab, story.demo.lab.database, target)
    story.screen.print(f"{target} holds {count} charges.", style="dim")


def own_checks(story: Story) -> list[Check]:
    """Did the day go as it was told?"""
    database = story.demo.lab.database
    refused = Counter(reason for _, reason in story.denied())
    ends = Counter(story.ended().values())
    on = [id_ for id_ in story.demo.boards if story.relay(id_)]
    return [Check("each refusal with its reason", refused == REFUSALS, str(sum(refused.values())), str(sum(REFUSALS.values()))),
            Check("each session with the reason of its end", ends == ENDS, str(sum(ends.values())), str(sum(ENDS.values()))),
            Check("nothing in quarantine, no gap", not store.quarantined(database) and not store.gaps(database)),
            Check("every relay is off", not on, ", ".join(on))]


def show_checks(story: Story, checks: list[Check]) -> None:
    """All of them, wrong ones in red."""
    shown = table("", ("", "check", "books", "world"), [], right=("books", "world"))
    for check in checks:
        mark = Text("ok", style="green") if check.ok else Text("WRONG", style="bold red")
        shown.add_row(mark, check.name, check.booked, check.world)
    story.screen.print(shown)


def tell_result(story: Story, summary: dict[str, Any], good: bool) -> None:
    """The last lines."""
    found = summary
    for line in (
        f"Journals in the flash: {found['events_in_nodes']} events, in the database {found['events_committed']}; "
        f"lost {found['lost']}, duplicated {found['duplicated']}.",
        f"Charges {found['charges_total']} {found['currency']}, from the journals by other code {found['charges_from_journals']}.",
        f"World: relays on {found['relay_seconds_world']:.1f} s, metered {found['relay_seconds_metered']:.1f} s; "
        f"{found['energy_wh_world']:.2f} Wh, metered {found['energy_wh_metered']:.2f} Wh.",
    ):
        story.screen.print(line, soft_wrap=True)
    story.screen.print(Text(f"All {len(summary['checks'])} checks hold; the day took {summary['seconds']:.0f} s." if good
                            else "A check does not hold.", style="bold green" if good else "bold red"))


def make_summary(story: Story, audited: Audit, truths: dict[str, dict[str, Any]], checks: list[Check]) -> dict[str, Any]:
    """What build/demo/summary.json says."""
    sessions = [found.session for found in books.sessions(story.demo.lab, story.demo.lab.database)]
    latencies = sorted(float(value) for truth in truths.values() for value in truth["tap_to_relay_ms"])
    return {
        "sessions": len(sessions),
        "denials": dict(Counter(reason for _, reason in story.denied())),
        "events_committed": audited.events_committed,
        "events_in_nodes": audited.events_in_nodes,
        "lost": audited.lost,
        "duplicated": audited.duplicated,
        "energy_wh_metered": round(sum(session.energy_mwh for session in sessions) / 1000, 3),
        "energy_wh_world": round(sum(float(use["energy_wh"]) for truth in truths.values() for use in truth["uses"]), 3),
        "relay_seconds_metered": round(sum(session.on_ms for session in sessions) / 1000, 3),
        "relay_seconds_world": round(sum(float(use["relay_s"]) for truth in truths.values() for use in truth["uses"]), 3),
        "charges_total": str(audited.charges_total),
        "charges_from_journals": str(audited.charges_from_journals),
        "currency": story.demo.lab.currency,
        "tap_to_relay_ms": {"p50": round(part_of(latencies, 0.5), 1), "p99": round(part_of(latencies, 0.99), 1),
                            "n": len(latencies)},
        "broker_recovery_s": round(story.recovery_s, 2),
        "faults_injected": story.faults,
        "checks": [{"name": check.name, "ok": check.ok} for check in checks],
        "seconds": round(story.seconds, 1),
    }


def part_of(values: list[float], part: float) -> float:
    """The value that `part` of the sorted values do not exceed; 0 when there are none."""
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0
