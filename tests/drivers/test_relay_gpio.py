"""Does the relay drop by itself when nobody renews its permission? On a simulated board, against the world's clock."""
import time

from fabtap.bench.session import BoardSession
from tests.rig import Rig

MAKE = """
import machine, time
from drivers import relay_gpio
relay = relay_gpio.Relay(machine.Pin(15, machine.Pin.OUT, value=0), time.ticks_ms)
"""
BUSY = """
started = time.ticks_ms()
while time.ticks_diff(time.ticks_ms(), started) < 1200:
    {inside}
print(relay.is_on(), relay.cuts_by_timer)
"""
FOR_S = 0.4
CHECK_S = 0.05
TICK_S = 0.002
"""The node counts whole milliseconds: it may take up to one at either end for a whole one."""
SLACK_S = 0.1
"""The simulator's timers are soft, and this computer has other things to do."""


def play(rig: Rig, prepare: str, inside: str) -> tuple[str, float]:
    """Close the relay for 0.4 s, be busy for 1.2 s; what the driver says, and how long the world's relay was closed."""
    session = BoardSession(rig.port)
    session.open()
    session.enter_service_mode()
    try:
        said = session.execute(MAKE + prepare + "relay.allow(400)\n" + BUSY.format(inside=inside)).strip()
    finally:
        session.close()
    return said, rig.truth()["relay_s"]


def test_a_stuck_loop_loses_the_relay(rig: Rig) -> None:
    said, relay_s = play(rig, "", "pass")
    assert said == "False 1"
    assert FOR_S - TICK_S <= relay_s <= FOR_S + CHECK_S + SLACK_S


def test_renewing_keeps_it_closed(rig: Rig) -> None:
    said, relay_s = play(rig, "", "relay.renew(400)")
    assert said == "True 0"
    assert relay_s >= 1.15


def test_renewing_never_closes_it_again(rig: Rig) -> None:
    """The timer's interrupt may come between a look at the relay and its renewal."""
    said, relay_s = play(rig, "", "time.sleep_ms(600); relay.renew(400)")
    assert said == "False 1"
    assert relay_s <= FOR_S + CHECK_S + SLACK_S


def test_without_the_timer_a_stuck_loop_keeps_the_relay(rig: Rig) -> None:
    """The control: it is the timer that opens the relay."""
    said, relay_s = play(rig, "relay._timer.deinit()\n", "pass")
    assert said == "True 0"
    assert relay_s >= 1.15


def test_a_hard_reset_opens_it_and_a_soft_reset_starts_with_it_low(rig: Rig) -> None:
    session = BoardSession(rig.port)
    session.open()
    session.enter_service_mode()
    session.execute(MAKE + "relay.allow(100000)")
    assert rig.ask("status")["relay"]
    session.hard_reset()
    rig.wait_for(lambda: not rig.ask("status")["relay"], 3, "the relay opens")
    time.sleep(0.5)
    assert not rig.ask("status")["relay"]
