"""Does the main job hold from end to end? The unmodified firmware, a real collector, a real database, told as stories."""
import csv
import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from fabtap.books import export_charges_csv
from fabtap.fold import fold_sessions
from fabtap.reconcile import reconcile
from tests.rig import ADA, BO, CY, DI, MEMBERS, NODE, Rig
from tests.scenario.steps import ended, leave, ready, refuse, relay_is_on, tap, wait_relay_open, whole, work

CHECKPOINT_S = 2
STRANGER = "08123456"


def agree(rig: Rig) -> None:
    """The books agree with the world, and are whole."""
    whole(rig)
    sessions = [found.session for found in rig.sessions()]
    wrong = [check for check in reconcile(sessions, rig.truth()["uses"], CHECKPOINT_S) if not check.ok]
    assert wrong == []


def test_a_tap_becomes_a_line_on_the_bill(rig: Rig) -> None:
    ready(rig)
    tap(rig, ADA)
    work(rig, (40, 1.0), (600, 3.0), (40, 1.0))
    leave(rig)
    ended(rig, 1)
    agree(rig)
    use = rig.truth()["uses"][0]
    target = rig.folder / "charges.csv"
    assert export_charges_csv(rig.lab, rig.database, target) == 1
    with open(target, encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["machine"], row["member"], row["name"], row["end_reason"]) == ("laser", "101", "Ada Example", "badge_removed")
    assert float(row["on_seconds"]) == pytest.approx(use["relay_s"], abs=0.05)
    assert float(row["energy_wh"]) == pytest.approx(use["energy_wh"], rel=0.01, abs=0.1)
    assert float(row["working_seconds"]) == pytest.approx(use["working_s"], abs=0.9)
    amount = (float(row["on_seconds"]) / 60 * 0.10 + float(row["working_seconds"]) / 60 * 0.40
              + float(row["energy_wh"]) / 1000 * 0.18)
    assert float(row["amount"]) == pytest.approx(amount, abs=0.0051)
    assert row["currency"] == "USD"
    assert row["started_local"].startswith("20")
    assert int(row["time_uncertainty_ms"]) < 1000


def test_each_refusal_has_its_reason(rig: Rig) -> None:
    ready(rig)
    assert [refuse(rig, badge) for badge in (STRANGER, BO, CY, DI)] == [
        "unknown_badge", "no_training", "member_held", "training_expired"]
    assert rig.truth()["uses"] == []
    assert [found.denial.member for found in rig.denials()] == [0, 102, 103, 104]


def test_random_loads_are_metered_within_the_tolerance(rig: Rig, rng: random.Random) -> None:
    ready(rig)
    for _ in range(2):
        tap(rig, ADA)
        work(rig, *[(rng.uniform(0, 1500), rng.uniform(0.1, 1.5)) for _ in range(6)])
        leave(rig)
        rig.wait_for(lambda: rig.ask("status")["led"] is not None, 1, "the board answers")
        ended(rig, len(rig.truth()["uses"]))
    agree(rig)


def cut_in_mid_session(rig: Rig, seconds: float) -> None:
    """Tap, work, lose the mains, get them back with the badge still lying there."""
    tap(rig, ADA)
    work(rig, (600, seconds))
    rig.ask("power", on=False)
    assert not relay_is_on(rig)
    rig.ask("power", on=True)
    rig.wait_for_events("booted", 2)


def test_a_mains_cut_bills_to_the_last_checkpoint_and_nothing_restarts(rig: Rig, rng: random.Random) -> None:
    ready(rig)
    cut_in_mid_session(rig, rng.uniform(2.5, 6.5))
    ended(rig, 1)
    agree(rig)
    assert rig.sessions()[0].session.end_reason == "power_lost"
    # The badge that lies there must not start the machine again; long enough for many looks of the reader.
    time.sleep(1.5)
    assert len(rig.truth()["uses"]) == 1 and not relay_is_on(rig)
    rig.ask("remove")
    time.sleep(0.6)
    tap(rig, ADA)
    leave(rig)
    ended(rig, 2)
    agree(rig)


def test_losing_a_checkpoint_or_inventing_energy_turns_the_comparison_red(rig: Rig) -> None:
    """The control of the test above: it must be able to fail."""
    ready(rig)
    cut_in_mid_session(rig, 4.85)
    ended(rig, 1)
    agree(rig)
    uses = rig.truth()["uses"]
    events = [{**event, "node_id": NODE} for event in rig.events()]
    checkpoints = [event for event in events if event["name"] == "session_checkpoint"]
    assert len(checkpoints) == 3

    def wrong(changed: list[dict[str, object]]) -> list[str]:
        sessions = fold_sessions(changed)
        return [check.name for check in reconcile(sessions, uses, CHECKPOINT_S) if not check.ok]

    assert wrong(events) == []
    assert any("time" in name for name in wrong([event for event in events if event is not checkpoints[-1]]))
    inflated = {**checkpoints[-1], "energy_mwh_total": checkpoints[-1]["energy_mwh_total"] + 1000}
    assert any("energy" in name for name in wrong([inflated if event is checkpoints[-1] else event for event in events]))
    late = {**checkpoints[-1], "on_ms": checkpoints[-1]["on_ms"] + 1500}
    assert any("time" in name for name in wrong([late if event is checkpoints[-1] else event for event in events]))


def test_a_killed_collector_costs_nothing(rig: Rig) -> None:
    ready(rig)
    tap(rig, ADA)
    work(rig, (600, 1.5))
    rig.kill_collector()
    work(rig, (600, 1.5))
    leave(rig)
    rig.start_collector()
    ended(rig, 1)
    agree(rig)


def test_the_node_works_alone_and_tells_later(rig: Rig) -> None:
    ready(rig)
    rig.stop_collector()
    tap(rig, ADA)
    work(rig, (300, 1.5))
    leave(rig)
    rig.ask("unplug")
    time.sleep(1.5)
    rig.ask("plug")
    rig.start_collector()
    ended(rig, 1)
    agree(rig)
    assert rig.sessions()[0].start.quality in ("interpolated", "extrapolated")


def test_a_pulled_cable_in_mid_session_costs_nothing(rig: Rig) -> None:
    ready(rig)
    tap(rig, ADA)
    work(rig, (300, 1.0))
    rig.ask("unplug")
    work(rig, (500, 1.5))
    rig.ask("plug")
    leave(rig)
    ended(rig, 1)
    agree(rig)


@pytest.mark.parametrize(("do", "values", "reason"), [
    ("press", {}, "stop_pressed"), ("estop", {"state": "open"}, "estop_opened"), ("meter", {"silent": True}, "meter_silent")])
def test_what_ends_a_session_has_its_reason(rig: Rig, do: str, values: dict[str, object], reason: str) -> None:
    ready(rig)
    tap(rig, ADA)
    work(rig, (300, 1.0))
    rig.ask(do, **values)
    wait_relay_open(rig)
    ended(rig, 1)
    assert rig.sessions()[0].session.end_reason == reason
    whole(rig)
    # The badge still lies there: no new session without a new tap.
    time.sleep(1.0)
    assert not relay_is_on(rig)
    if do != "press":
        rig.ask("remove")
        time.sleep(0.6)
        assert refuse(rig, ADA) == {"estop_opened": "machine_stopped", "meter_silent": "meter_silent"}[reason]


def test_a_frozen_node_is_reset_by_its_watchdog_and_the_relay_opens(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    ready(rig)
    tap(rig, ADA)
    work(rig, (300, 2.5))
    os.kill(rig.ask("status")["interpreter_id"], signal.SIGSTOP)
    started_s = time.monotonic()
    wait_relay_open(rig)
    assert time.monotonic() - started_s < 8.5
    assert [entry["what"] for entry in rig.board_log("watchdog")] == ["watchdog"]
    rig.wait_for_events("booted", 2)
    ended(rig, 1)
    assert rig.events("booted")[-1]["cause"] == 3
    assert rig.sessions()[0].session.end_reason == "power_lost"
    whole(rig)


def test_the_counter_wraps_in_mid_session(make_rig: Callable[..., Rig]) -> None:
    """The node's milliseconds wrap at 2**30; a session across the wrap is timed as any other."""
    rig = make_rig(board_up=False)
    offset = 2**30 - (int(time.monotonic() * 1000) & (2**30 - 1)) - 9000
    rig.start_board(ticks_offset=offset)
    ready(rig)
    tap(rig, ADA)
    work(rig, (300, 9.0))
    leave(rig)
    ended(rig, 1)
    agree(rig)


def test_a_member_put_on_hold_is_refused_at_the_next_tap(rig: Rig) -> None:
    ready(rig)
    tap(rig, ADA)
    leave(rig)
    ended(rig, 1)
    before = rig.collector_log.read_bytes().count(b"is in force")
    rig.write_members([row.replace("laser,active", "laser,held") for row in MEMBERS])
    rig.wait_for(lambda: rig.collector_log.read_bytes().count(b"is in force") > before, 15, "the new roster is in force")
    assert refuse(rig, ADA) == "member_held"


def test_a_mistake_in_the_members_changes_nothing(rig: Rig) -> None:
    ready(rig)
    rig.write_members([*MEMBERS, "nonsense,,,,,"])
    rig.wait_for(lambda: b"the members stay as they were" in rig.collector_log.read_bytes(), 15, "the mistake in the log")
    rig.write_members(MEMBERS)
    tap(rig, ADA)
    leave(rig)
    ended(rig, 1)
    agree(rig)
