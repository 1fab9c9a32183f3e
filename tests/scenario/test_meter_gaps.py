"""Can a meter that is silent for a moment make a bill exceed what the world has seen?"""
from collections.abc import Callable

import pytest

from fabtap.reconcile import reconcile
from tests.rig import ADA, Rig
from tests.scenario.steps import ended, leave, ready, relay_is_on, tap, whole, work

CHECKPOINT_S = 1
GAP_S = 1.0
"""Long enough to count for something, so short that with SEEN_S and a poll it is within what the node still bills."""
SEEN_S = 0.5
"""After this the meter's next reading is all of the new load."""


def gap(rig: Rig) -> None:
    rig.ask("meter", silent=True)
    rig.pause(GAP_S)


def checked(rig: Rig) -> None:
    whole(rig)
    sessions = [found.session for found in rig.sessions()]
    assert [check for check in reconcile(sessions, rig.truth()["uses"], CHECKPOINT_S) if not check.ok] == []


def not_above(rig: Rig) -> None:
    """What flowed in a gap nobody knows: the member is not charged for it, so only the upper bound holds."""
    whole(rig)
    session, use = rig.sessions()[0].session, rig.truth()["uses"][0]
    assert session.end_reason == "power_lost"
    assert 0 < session.energy_mwh / 1000 <= use["energy_wh"]
    assert session.on_ms / 1000 <= use["relay_s"]


@pytest.mark.parametrize("watts", [5000, 12000])
def test_a_gap_before_the_tap_is_not_billed(make_rig: Callable[..., Rig], watts: int) -> None:
    """The first reading after it speaks of the time before the relay closed too."""
    rig = make_rig(checkpoint_s=CHECKPOINT_S)
    ready(rig)
    rig.ask("load", watts=watts)
    gap(rig)
    tap(rig, ADA)
    rig.pause(SEEN_S)
    rig.ask("meter", silent=False)
    rig.pause(2.5)
    rig.ask("power", on=False)
    rig.ask("power", on=True)
    ended(rig, 1)
    not_above(rig)


def test_a_gap_in_which_the_load_rises_is_billed_at_the_lesser_power(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(checkpoint_s=CHECKPOINT_S)
    ready(rig)
    tap(rig, ADA)
    work(rig, (20, 1.5))
    gap(rig)
    rig.ask("load", watts=5000)
    rig.pause(SEEN_S)
    rig.ask("meter", silent=False)
    rig.pause(1.2)
    assert relay_is_on(rig)
    rig.ask("power", on=False)
    rig.ask("power", on=True)
    ended(rig, 1)
    not_above(rig)


def test_an_undisturbed_meter_bills_all(make_rig: Callable[..., Rig]) -> None:
    """What protects the member in a gap takes nothing from the lab without one."""
    rig = make_rig(checkpoint_s=CHECKPOINT_S)
    ready(rig)
    tap(rig, ADA)
    work(rig, (300, 1.0), (5000, 1.5), (300, 1.0))
    leave(rig)
    ended(rig, 1)
    checked(rig)
