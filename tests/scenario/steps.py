"""What do people do in a scenario? Taps, work, leaving: each step waits for what must follow, with a deadline."""
import time

from tests.rig import Rig

STEP_S = 15.0


def ready(rig: Rig) -> None:
    """The collector runs and the node has its roster."""
    rig.start_collector()
    rig.wait_for(lambda: b"is in force" in rig.collector_log.read_bytes(), STEP_S, "the roster is in force")
    # A badge within the node's first 300 ms has lain there at boot and is no tap.
    rig.pause(0.5)


def relay_is_on(rig: Rig) -> bool:
    return bool(rig.ask("status")["relay"])


def tap(rig: Rig, badge: str) -> None:
    """A badge that is let in."""
    rig.ask("tap", uid=badge)
    rig.wait_for(lambda: relay_is_on(rig), STEP_S, "the relay closes")


def wait_relay_open(rig: Rig) -> None:
    rig.wait_for(lambda: not relay_is_on(rig), STEP_S, "the relay opens")


def leave(rig: Rig) -> None:
    """The badge is taken away; the relay opens."""
    rig.ask("remove")
    wait_relay_open(rig)


def work(rig: Rig, *loads: tuple[float, float]) -> None:
    """(watts, seconds) after one another: the machine's own time, which is what is being measured."""
    for watts, seconds in loads:
        rig.ask("load", watts=watts)
        time.sleep(seconds)


def refuse(rig: Rig, badge: str) -> str:
    """A badge that is not let in; the reason in the books."""
    before = len(rig.denials())
    rig.ask("tap", uid=badge)
    rig.wait_for(lambda: len(rig.denials()) > before, STEP_S, "the denial is booked")
    assert not relay_is_on(rig)
    rig.ask("remove")
    rig.wait_for(lambda: len(rig.denials()) == before + 1, STEP_S, "one denial")
    return rig.denials()[-1].denial.reason


def ended(rig: Rig, count: int) -> None:
    """So many sessions have ended in the books."""
    rig.wait_for(lambda: sum(found.session.state != "open" for found in rig.sessions()) >= count, STEP_S,
                 f"{count} ended session(s) in the books")


def whole(rig: Rig) -> None:
    """Every event once, none missing, nothing odd."""
    seqs = [event["seq"] for event in rig.events()]
    assert seqs == list(range(1, len(seqs) + 1))
    assert rig.oddities() == []
