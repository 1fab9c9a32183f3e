"""Does a node on MQTT, and one on a UART that loses bytes, deliver everything, whatever happens on the way?

Told on the demo's own lab (host/fabtap/demo_lab.py) with one machine: the real firmware with flash costs on, the real collector,
a real broker.
"""
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from fabtap import books, store
from fabtap.demo_lab import BADGES, DemoLab
from fabtap.sim.client import SimClient
from tests.rig import lab_folder, wait_until, write_members

WHO = "Maker Two"
CLEAN_BROKER_SILENCE_S = 12.0
"""Within this a node notices that its broker has stopped answering: it asks after 5 s, and waits 5 s for the answer."""
BADGES_ON_UART = 500
FIFO_BYTES = 16
SLOW_PAGE_MS = 15.0


class Lab:
    """One machine of the demo's lab, running."""

    def __init__(self, demo: DemoLab, machine: str) -> None:
        self.demo = demo
        self.board: SimClient = demo.boards[machine]

    def ask(self, do: str, **values: object) -> dict[str, object]:
        return self.board.ask(do, **values)

    def relay(self) -> bool:
        return bool(self.ask("status")["relay"])

    def wait(self, condition: Callable[[], object], timeout_s: float, what: str) -> None:
        wait_until(condition, timeout_s, what, lambda: self.demo.log_since(0)[-3000:])

    def sessions(self) -> list[books.BookedSession]:
        return [found for found in books.sessions(self.demo.lab, self.demo.lab.database) if found.session.state != "open"]

    def tap(self) -> None:
        self.wait(lambda: not self.relay(), 10, "the relay is off")
        self.ask("remove")
        time.sleep(0.6)  # the node must see an empty reader, or the badge is none that was tapped
        self.ask("tap", uid=BADGES[WHO])
        self.wait(self.relay, 10, "the relay closes")

    def leave(self) -> None:
        self.ask("remove")
        self.wait(lambda: not self.relay(), 10, "the relay opens")

    def is_whole(self) -> None:
        """Every event once, none missing, and the books agree with the world."""
        seqs = [found.seq for found in store.events(self.demo.lab.database)]
        assert seqs == list(range(1, len(seqs) + 1))
        assert not store.quarantined(self.demo.lab.database) and not store.gaps(self.demo.lab.database)
        uses = self.ask("truth")["uses"]
        assert isinstance(uses, list)
        found = self.sessions()
        assert len(found) == len(uses)
        for session, use in zip(found, uses, strict=True):
            assert abs(session.session.on_ms / 1000 - use["relay_s"]) <= 0.05


def running(machine: str, roster: str = ": roster of") -> Iterator[Lab]:
    with lab_folder() as folder:
        demo = DemoLab(folder / "lab", only=(machine,))
        try:
            demo.make_files()
            demo.make_boards(lambda one, text: None)
            demo.start_broker()
            demo.start_collector()
            demo.wait(lambda: machine + roster in demo.log_since(0), "the roster")
            yield Lab(demo, machine)
        finally:
            demo.close()


@pytest.fixture(scope="module")
def router() -> Iterator[Lab]:
    yield from running("router")


@pytest.fixture
def sign() -> Iterator[Lab]:
    """The ESP32 on its UART, whose FIFO is made smaller than a real one's 128 bytes, and its flash slower: so more gets lost."""
    for lab in running("sign"):
        lab.board.down()
        lab.demo.start_board(lab.demo.lab.machines[0], program_ms=SLOW_PAGE_MS,
                             uart={"baud": 115200, "ring_bytes": 260, "fifo_bytes": FIFO_BYTES})
        yield lab


def use_while(lab: Lab, happening: Callable[[], None], timeout_s: float) -> float:
    """A session in which something happens; it must not end by that. Seconds from its end until it is in the books."""
    before = len(lab.sessions())
    lab.tap()
    happening()
    assert lab.relay(), "the network ended a session"
    lab.leave()
    begun_s = time.monotonic()
    lab.wait(lambda: len(lab.sessions()) > before, timeout_s, "the session in the books")
    assert lab.sessions()[-1].session.end_reason == "badge_removed"
    lab.is_whole()
    return time.monotonic() - begun_s


def test_a_session_over_mqtt_is_booked(router: Lab) -> None:
    assert use_while(router, lambda: time.sleep(1.0), 10) < 5


def test_a_broker_that_goes_away_in_mid_session_costs_nothing(router: Lab) -> None:
    def away() -> None:
        router.demo.stop_broker()
        time.sleep(2.0)
        router.demo.start_broker()
    assert use_while(router, away, 10) <= 10


def test_a_broker_that_falls_silent_is_left_and_found_again(router: Lab) -> None:
    """SIGSTOP: connections stay open, and nobody answers. The node must not wait for ever, nor drop the relay."""
    assert router.demo.broker

    def silent() -> None:
        assert router.demo.broker
        os.kill(router.demo.broker.process_id, signal.SIGSTOP)
        try:
            until_s = time.monotonic() + CLEAN_BROKER_SILENCE_S
            while time.monotonic() < until_s:
                assert router.relay(), "the silent broker ended a session"
                time.sleep(0.2)
        finally:
            os.kill(router.demo.broker.process_id, signal.SIGCONT)
    assert use_while(router, silent, 15) <= 10


def test_a_wifi_that_fails_and_returns_costs_nothing(router: Lab) -> None:
    def fail() -> None:
        router.ask("wifi", on=False)
        time.sleep(3.0)
        router.ask("wifi", on=True)
    use_while(router, fail, 20)


def test_new_addresses_are_found_by_name(router: Lab) -> None:
    before = router.ask("status")["wifi"]
    use_while(router, lambda: router.ask("wifi", move=True) and time.sleep(1.0), 20)
    assert router.ask("status")["wifi"] != before


def test_a_node_that_boots_without_wifi_works_from_its_roster(router: Lab) -> None:
    router.ask("wifi", on=False)
    try:
        router.ask("power", on=False)
        router.ask("power", on=True)
        time.sleep(1.5)
        before = len(router.sessions())
        router.tap()
        router.leave()
        time.sleep(1.5)
        assert len(router.sessions()) == before, "there was no way for it"
    finally:
        router.ask("wifi", on=True)
    router.wait(lambda: len(router.sessions()) > before, 20, "the session in the books")
    router.is_whole()


def test_a_uart_that_loses_bytes_while_flash_is_busy_delivers_everything(sign: Lab) -> None:
    """A long roster's frames come while refused badges are written into flash; all of it arrives, sessions too."""
    more = [f"{1000 + number},Maker {1000 + number},guest,{0x0A000000 + number:08x},sign,active"
            for number in range(BADGES_ON_UART)]
    mine = [line for line in (sign.demo.folder / "members.csv").read_text().splitlines()[1:] if line]
    write_members(sign.demo.folder, mine + more)
    in_force = f"sign: roster of {len(mine) + len(more)} badges"
    refused = 0
    until_s = time.monotonic() + 90
    while in_force not in sign.demo.log_since(0):
        assert time.monotonic() < until_s, sign.demo.log_since(0)[-2000:]
        sign.ask("tap", uid=BADGES["A stranger"])
        time.sleep(0.2)
        sign.ask("remove")
        time.sleep(0.45)
        refused += 1
    use_while(sign, lambda: time.sleep(0.5), 20)
    lost_bytes = sign.ask("status")["uart_lost_bytes"]
    print(f"{lost_bytes} bytes lost on the UART, {refused} badges refused meanwhile")
    assert isinstance(lost_bytes, int) and lost_bytes > 0, "nothing was lost, so nothing was proved"
    assert len(books.denials(sign.demo.lab, sign.demo.lab.database)) >= refused // 2
    sign.is_whole()
