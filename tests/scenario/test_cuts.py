"""Do the books stay whole when mains and collector fail again and again, at any moment? `make test` runs a small sample."""
import random
from collections.abc import Callable

import pytest

from fabtap.reconcile import reconcile
from tests.rig import ADA, Rig
from tests.scenario.steps import ended, ready, relay_is_on, tap, whole

CHECKPOINT_S = 2
FLASH = {"erase_ms": 45.0, "program_ms": 0.4}
"""With these costs most cuts fall into a write."""


def one_round(rig: Rig, rng: random.Random) -> None:
    """A session with a fault at a random moment, to its end in the books."""
    fault = rng.choice(["mains", "mains", "collector", "cable"])
    boots = len(rig.events("booted"))
    tap(rig, ADA)
    rig.ask("load", watts=rng.uniform(0, 1500))
    rig.pause(rng.uniform(0.0, 5.0))
    if fault == "mains":
        rig.ask("power", on=False)
        rig.pause(rng.uniform(0.0, 0.4))
        rig.ask("power", on=True)
        if rng.random() < 0.5:
            # A second cut, into the recovery.
            rig.pause(rng.uniform(0.0, 0.5))
            rig.ask("power", on=False)
            rig.ask("power", on=True)
        rig.wait_for_events("booted", boots + 1)
    elif fault == "collector":
        rig.kill_collector()
        rig.start_collector()
    else:
        rig.ask("unplug")
        rig.pause(rng.uniform(0.0, 1.0))
        rig.ask("plug")
    rig.ask("remove")
    rig.wait_for(lambda: not relay_is_on(rig), 10, "the relay opens")
    ended(rig, len(rig.truth()["uses"]))
    # Long enough for the reader to see that the badge is gone, so that the next tap is one.
    rig.pause(1.0)


def rounds(rig: Rig, rng: random.Random, count: int) -> None:
    ready(rig)
    for _ in range(count):
        one_round(rig, rng)
    whole(rig)
    sessions = [found.session for found in rig.sessions()]
    assert len(sessions) == count
    assert [check for check in reconcile(sessions, rig.truth()["uses"], CHECKPOINT_S) if not check.ok] == []


def test_a_few_faults_at_random_moments(make_rig: Callable[..., Rig], rng: random.Random) -> None:
    rounds(make_rig(sim_options=FLASH), rng, 3)


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_many_faults_at_random_moments(make_rig: Callable[..., Rig], rng: random.Random) -> None:
    rounds(make_rig(sim_options=FLASH), rng, 60)
