"""What does FabTap do, told in a minute and a half? Five machines, eight members, everything that goes wrong, and whole books.

Everything is real but the physical world: the unmodified firmware in MicroPython, serial ports, an MQTT broker, the collector in a
process of its own, SQLite on disk. The exit code is 0 only if every check at the end holds.
"""
import signal
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fabtap import books
from fabtap.demo_lab import BADGES, CHECKPOINT_S, IDLE_S, DemoLab
from fabtap.demo_summary import settle_up

MACHINE_STYLES = {"laser": "red", "sign": "yellow", "mill": "cyan", "router": "magenta", "bench": "blue"}
WIDTH_MAX = 110
REFUSED_GONE_S = 0.4
ENDED_EARLY = 130


class Story:
    """The day: what is done to the lab, and how it is told."""

    def __init__(self, folder: Path) -> None:
        self.demo = DemoLab(folder)
        self.screen = Console(highlight=False, width=min(Console().width, WIDTH_MAX))
        self._started_s = time.monotonic()
        self.faults: list[str] = []
        self.recovery_s = 0.0

    @property
    def seconds(self) -> float:
        """Since the day began; set-up apart."""
        return time.monotonic() - self._started_s

    def begin(self) -> None:
        """Set-up is over."""
        self._started_s = time.monotonic()

    def tell(self, machine: str, text: str, style: str = "") -> None:
        """One line of the story, with the time that it happened and the machine."""
        line = Text(f"{self.seconds:5.1f} s  ", style="dim")
        line.append(f"{machine:7}", style=MACHINE_STYLES.get(machine, "dim"))
        line.append(text, style=style)
        self.screen.print(line)

    def chapter(self, title: str) -> None:
        """A heading."""
        self.screen.print()
        self.screen.print(Text(title, style="bold"))

    def fault(self, machine: str, name: str, text: str) -> None:
        """Something has been broken on purpose."""
        self.faults.append(name)
        self.tell(machine, text, "red")

    def relay(self, machine: str) -> bool:
        return bool(self.demo.boards[machine].ask("status")["relay"])

    def ended(self) -> dict[str, str]:
        """Sessions that the books know as ended: id to the reason."""
        return {found.id: str(found.session.end_reason) for found in books.sessions(self.demo.lab, self.demo.lab.database)
                if found.session.state != "open"}

    def denied(self) -> list[tuple[str, str]]:
        """(machine, reason) of each refusal in the books."""
        return [(found.machine.id if found.machine else "?", found.denial.reason)
                for found in books.denials(self.demo.lab, self.demo.lab.database)]

    def booked(self, count: int) -> float:
        """Wait until so many sessions stand in the books as ended."""
        return self.demo.wait(lambda: len(self.ended()) >= count, f"{count} ended sessions in the books")

    def load(self, machine: str, watts: float) -> None:
        self.demo.boards[machine].ask("load", watts=watts)
        self.tell(machine, f"draws {watts:.0f} W")

    def tap(self, machine: str, who: str) -> None:
        """A badge that will be let in."""
        board = self.demo.boards[machine]
        board.ask("tap", uid=BADGES[who])
        self.demo.wait(lambda: self.relay(machine), f"the relay of {machine} to close")
        self.tell(machine, f"{who} taps: on after {board.ask('truth')['tap_to_relay_ms'][-1]:.0f} ms", "green")

    def leave(self, machine: str, who: str) -> None:
        """The badge is taken away."""
        self.demo.boards[machine].ask("remove")
        self.demo.wait(lambda: not self.relay(machine), f"the relay of {machine} to open")
        self.tell(machine, f"{who} takes the badge: off", "green")

    def refused(self, *taps: tuple[str, str, str]) -> None:
        """Badges that will not be let in: (machine, who, reason)."""
        before = len(self.denied())
        for machine, who, _ in taps:
            self.demo.boards[machine].ask("tap", uid=BADGES[who])
        self.demo.wait(lambda: len(self.denied()) >= before + len(taps), "the refusals in the books")
        found = self.denied()
        for machine, who, reason in taps:
            right = (machine, reason) in found
            self.tell(machine, f"{who} taps: refused, {reason.replace('_', ' ')}", "yellow" if right else "bold red")
            self.demo.boards[machine].ask("remove")
        # A node that has refused a badge wants to see its reader empty for 300 ms before the next one.
        time.sleep(REFUSED_GONE_S)


def open_the_lab(story: Story) -> None:
    """Make everything; not part of the ninety seconds."""
    demo = story.demo
    story.chapter("The lab is built")
    demo.make_files()
    demo.make_boards(lambda machine, text: story.tell(machine.id, text))
    demo.start_broker()
    assert demo.broker
    story.tell("broker", f"{demo.broker.kind} on a port of this computer")
    demo.start_collector()
    wanted = [f"{machine.id}: roster of" for machine in demo.lab.machines]
    demo.wait(lambda: all(text in demo.log_since(0) for text in wanted), "all nodes to be heard and to have their rosters")
    story.tell("office", f"all nodes are heard; floor page http://127.0.0.1:{demo.lab.floor_port}/")


def morning(story: Story) -> None:
    """Two members work at once; one leaves, one presses stop."""
    story.chapter("Two members work: one over a cable, one over MQTT")
    story.tap("laser", "Maker Two")
    story.tap("mill", "Maker One")
    story.load("laser", 480)
    story.load("mill", 350)
    time.sleep(3.0)
    story.load("laser", 40)
    time.sleep(1.0)
    story.leave("laser", "Maker Two")
    story.demo.boards["mill"].ask("press")
    story.demo.wait(lambda: not story.relay("mill"), "the stop button to act")
    story.tell("mill", "Maker One presses stop: off", "green")
    story.demo.boards["mill"].ask("remove")
    story.booked(2)


def refusals(story: Story) -> None:
    """Four badges, four reasons."""
    story.chapter("Badges that are refused")
    story.refused(("sign", "A stranger", "unknown_badge"), ("mill", "Maker Six", "no_training"),
                  ("router", "Maker Five", "training_expired"), ("laser", "Maker Eight", "member_held"))


def idle_and_emergency(story: Story) -> None:
    """A session that nobody uses ends; an emergency stop ends one at once and refuses the next."""
    story.chapter("A forgotten bench, and an emergency stop")
    story.tap("bench", "Maker Seven")
    story.load("bench", 90)
    story.tap("router", "Maker Three")
    story.load("router", 1500)
    time.sleep(1.5)
    story.load("bench", 6)
    story.demo.boards["router"].ask("estop", state="open")
    story.demo.wait(lambda: not story.relay("router"), "the emergency stop to act")
    story.tell("router", "emergency stop: off at once", "green")
    story.demo.boards["router"].ask("remove")
    time.sleep(1.6)
    story.refused(("router", "Maker Two", "machine_stopped"))
    story.demo.boards["router"].ask("estop", state="closed")
    story.demo.wait(lambda: not story.relay("bench"), "the idle bench to go off")
    story.tell("bench", f"no work for {IDLE_S} s: off by itself", "green")
    story.demo.boards["bench"].ask("remove")
    story.booked(4)


def mains_cut(story: Story) -> None:
    """The node loses its mains in mid-session."""
    story.chapter("A node's mains fail while a member works")
    story.tap("laser", "Maker Four")
    story.load("laser", 480)
    time.sleep(4.0)
    story.demo.boards["laser"].ask("power", on=False)
    story.fault("laser", "node mains cut in mid-session", "the mains fail: node dead, relay open, cable gone")
    time.sleep(0.7)
    story.demo.boards["laser"].ask("power", on=True)
    story.booked(5)
    story.tell("laser", "back: billed up to its last checkpoint, off until a new tap",
               "bold red" if story.relay("laser") else "")
    story.demo.boards["laser"].ask("remove")
    story.demo.boards["laser"].ask("load", watts=0)


def collector_killed(story: Story) -> None:
    """The collector is killed in mid-session; the node goes on."""
    story.chapter("The collector is killed while a member works")
    story.tap("sign", "Maker Four")
    story.load("sign", 120)
    time.sleep(1.5)
    story.demo.stop_collector(signal.SIGKILL)
    story.fault("office", "collector killed in mid-session", "the collector is killed (SIGKILL)")
    time.sleep(1.5)
    story.leave("sign", "Maker Four")
    story.demo.start_collector()
    story.booked(6)
    story.tell("sign", "a new collector has the whole session")


def broker_away(story: Story) -> None:
    """No broker while a member works; the node keeps everything until it is back."""
    story.chapter("The broker is away while a member works")
    story.tap("mill", "Maker One")
    story.load("mill", 350)
    time.sleep(1.0)
    story.demo.stop_broker()
    story.fault("broker", "broker away in mid-session", "the broker goes away")
    time.sleep(2.0)
    story.leave("mill", "Maker One")
    time.sleep(1.5)
    story.demo.start_broker()
    story.recovery_s = story.booked(7)
    story.tell("mill", f"the broker is back; the session is in the books {story.recovery_s:.1f} s later")


def cable_and_air(story: Story) -> None:
    """A cable pulled, and a WiFi whose addresses change."""
    story.chapter("A cable is pulled, and the WiFi gives out new addresses")
    story.tap("bench", "Maker Six")
    story.load("bench", 90)
    story.tap("router", "Maker Three")
    story.load("router", 1500)
    story.demo.boards["bench"].ask("unplug")
    story.fault("bench", "serial cable pulled in mid-session", "the cable is pulled")
    story.demo.boards["router"].ask("wifi", move=True)
    story.fault("router", "WiFi addresses changed in mid-session", "the WiFi gives the node and the broker new addresses")
    time.sleep(1.5)
    story.leave("bench", "Maker Six")
    story.leave("router", "Maker Three")
    story.demo.boards["bench"].ask("plug")
    story.tell("bench", "the cable is back")
    story.booked(9)
    story.tell("office", "both sessions are in the books")


CHAPTERS = (morning, refusals, idle_and_emergency, mains_cut, collector_killed, broker_away, cable_and_air)


def run_demo(folder: Path, stay: bool = False) -> int:
    """Tell the day; 0 when all checks hold, 1 when one does not, 130 when told to end before. With `stay` the lab then keeps
    running until Ctrl-C.
    """
    # However we are told to end, what was started is ended first. A shell's background job would ignore Ctrl-C, were it not set.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    story = Story(folder)
    good = False
    try:
        open_the_lab(story)
        # A badge within a node's first 300 ms counts as lying there since before, and is no tap.
        time.sleep(0.5)
        story.begin()
        for chapter in CHAPTERS:
            chapter(story)
        good = settle_up(story, CHECKPOINT_S)
        if stay:
            keep_open(story)
    except KeyboardInterrupt:
        story.screen.print("closing the lab")
        if not (stay and good):
            return ENDED_EARLY
    finally:
        story.demo.close()
    return 0 if good else 1


def keep_open(story: Story) -> None:
    """Visitors may play."""
    sim = story.demo.folder / "sim"
    story.screen.print(f"The lab stays open until Ctrl-C. Floor: http://127.0.0.1:{story.demo.lab.floor_port}/")
    story.screen.print(f"Tap: .venv/bin/fabtap sim tap laser {BADGES['Maker Two']} --dir {sim}   (and: sim remove laser)",
                       soft_wrap=True)
    while True:
        signal.pause()


