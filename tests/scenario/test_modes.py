"""Does a machine that is only observed gate nothing and cost nothing, and does a forgotten session end by itself?"""
from collections.abc import Callable

from fabtap import books
from tests.rig import ADA, BO, Rig
from tests.scenario.steps import ended, leave, ready, refuse, relay_is_on, tap, wait_relay_open, whole, work

IDLE_S = 2


def test_an_observed_machine_is_metered_and_never_switched(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(mode="observe", sim_options={"always_on": True})
    ready(rig)
    rig.ask("tap", uid=ADA)
    rig.wait_for(lambda: rig.sessions(), 10, "the observation has begun")
    began_wh = rig.truth()["energy_wh"]
    work(rig, (500, 3.0))
    assert not relay_is_on(rig)
    used_wh = rig.truth()["energy_wh"] - began_wh
    rig.ask("remove")
    ended(rig, 1)
    work(rig, (0, 1.5))  # the meter tells late, and what is drawn after the end is nobody's
    assert rig.truth()["uses"] == [], "the relay was closed"
    assert [event["name"] for event in rig.events() if "started" in event["name"]] == ["observation_started"]
    session = rig.sessions()[0].session
    assert session.observed and session.end_reason == "badge_removed"
    assert 0 < session.energy_mwh / 1000 <= used_wh + 0.2
    assert session.working_ms > 1000
    assert refuse(rig, BO) == "no_training"
    whole(rig)


def test_what_was_observed_is_owed_by_nobody(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(mode="observe", sim_options={"always_on": True})
    ready(rig)
    rig.ask("tap", uid=ADA)
    rig.wait_for(lambda: rig.sessions(), 10, "the observation has begun")
    work(rig, (500, 3.0))
    rig.ask("remove")
    ended(rig, 1)
    found = rig.charges()
    totals = books.totals(rig.lab, found)
    assert [row.kind for row in found] == ["shadow"]
    assert found[0].charge and found[0].charge.total > 0, "the shadow says what it would have cost"
    assert totals.charged == 0 and totals.shadow == found[0].charge.total


def test_a_session_without_work_ends_by_itself(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(idle_s=IDLE_S)
    ready(rig)
    rig.ask("load", watts=500)
    tap(rig, ADA)
    work(rig, (500, IDLE_S + 1.5))
    assert relay_is_on(rig), "it worked all the time"
    work(rig, (10, 0.0))
    wait_relay_open(rig)
    ended(rig, 1)
    assert rig.sessions()[0].session.end_reason == "idle"
    rig.pause(1.5)
    assert not relay_is_on(rig), "the badge still lies there: only a new tap starts again"
    rig.ask("remove")
    rig.pause(1.0)
    tap(rig, ADA)
    leave(rig)
    ended(rig, 2)
    whole(rig)
