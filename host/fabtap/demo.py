"""What does FabTap do, told in a minute? One laser cutter, three badges, a power cut, a killed collector, and whole books.

Everything is real but the physical world: the unmodified firmware in MicroPython, a serial port, the collector in a process of
its own, SQLite on disk. The lab is made anew in a folder; the exit code is 0 only if every check at the end holds.
"""
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fabtap import books, store
from fabtap.bench.deploy import deploy
from fabtap.bench.provision import provision
from fabtap.cli_options import open_lab
from fabtap.problem import Problem
from fabtap.reconcile import Check, reconcile
from fabtap.screen import table
from fabtap.sim.client import SimClient, start_board

CHECKPOINT_S = 2
LAB_TOML = f"""\
[lab]
id = "ccp"
name = "Center for Community Production"
currency = "USD"
timezone = "America/Chicago"
members = "members.csv"
database = "fabtap.db"
keys = "keys.toml"

[[machine]]
id = "laser"
name = "Laser cutter"
node = 1
board = "rpi-pico"
port = "sim/laser.tty"
training = "laser"
working_w = 100
checkpoint_s = {CHECKPOINT_S}      # every minute in a real lab; the demo has less time
badge_out_ms = 500

[[tariff]]
machine = "laser"
class = ["parent-cooperative", "worker-owner"]
per_minute_on = "0.60"
per_minute_working = "2.40"
per_kwh = "0.18"

[[tariff]]
machine = "laser"
class = ["community-stakeholder", "trainee", "guest"]
per_minute_on = "0.90"
per_minute_working = "3.60"
per_kwh = "0.18"
"""
MEMBERS_CSV = """\
member,name,class,badges,trainings,status
101,Maker One,worker-owner,04A1B2C3,laser,active
102,Maker Two,community-stakeholder,04D4E5F6071829,laser:2099-12-31,active
103,Maker Three,trainee,047788AA,,active
"""
MAKER_ONE, MAKER_TWO, MAKER_THREE, STRANGER = "04a1b2c3", "04d4e5f6071829", "047788aa", "08123456"
WAIT_S = 20.0


class Story:
    """The demo's lab and what is being done to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.screen = Console(highlight=False, width=min(Console().width, 110))
        self._started_s = time.monotonic()
        self._collector: subprocess.Popen[bytes] | None = None
        self.board: SimClient
        self.faults: list[str] = []

    def tell(self, text: str, style: str = "") -> None:
        """One line of the story, with the time that it happened."""
        line = Text(f"{time.monotonic() - self._started_s:5.1f} s  ", style="dim")
        line.append(text, style=style)
        self.screen.print(line)

    def chapter(self, title: str) -> None:
        """A heading."""
        self.screen.print()
        self.screen.print(Text(title, style="bold cyan"))

    def build(self) -> None:
        """Make the lab, the board and the collector."""
        self.chapter("A lab with one laser cutter")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "fabtap.toml").write_text(LAB_TOML, encoding="utf-8")
        (self.folder / "members.csv").write_text(MEMBERS_CSV, encoding="utf-8")
        self.lab = open_lab(self.folder / "fabtap.toml")
        self.board = start_board(self.folder / "sim", "laser", "rpi-pico", working_w=100)
        self.tell("a bare board is plugged in (MicroPython, 1.4 MB of littlefs)")
        provision(self.lab, self.lab.machines[0])
        self.tell("provisioned: identity, secret, pins")
        done = deploy(self.lab.machines[0].plugged_port())
        self.tell(f"deployed: {len(done.written)} files, compiled, each checked on the board")
        self.start_collector()
        # A badge within the node's first 300 ms counts as lying there since before, and is no tap.
        time.sleep(0.5)

    def start_collector(self) -> None:
        """Run the real command; wait until the node has its roster."""
        since = self._log_size()
        log = open(self.folder / "collector.log", "ab")  # noqa: SIM115 the child keeps it
        with log:
            self._collector = subprocess.Popen(
                [sys.executable, "-m", "fabtap", "collector", "run", "--lab", str(self.folder / "fabtap.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait(lambda: b"firmware fabtap" in self._log_since(since), "the collector to hear the node")

    def stop_collector(self, number: signal.Signals) -> None:
        """End the collector by its process id."""
        if self._collector:
            self._collector.send_signal(number)
            self._collector.wait(WAIT_S)
            self._collector = None

    def _log_size(self) -> int:
        path = self.folder / "collector.log"
        return path.stat().st_size if path.exists() else 0

    def _log_since(self, position: int) -> bytes:
        return (self.folder / "collector.log").read_bytes()[position:]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that must happen, with a deadline."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise Problem("the demo", None, f"waited {WAIT_S:.0f} s for {what}",
                              f"See {self.folder / 'collector.log'} and {self.folder / 'sim' / 'laser.log'}.")
            time.sleep(0.05)

    def relay(self) -> bool:
        return bool(self.board.ask("status")["relay"])

    def ended(self) -> int:
        """How many sessions the books know as ended."""
        return sum(found.session.state != "open" for found in books.sessions(self.lab, self.lab.database))

    def denied(self) -> list[str]:
        return [found.denial.reason for found in books.denials(self.lab, self.lab.database)]

    def work(self, *loads: tuple[float, float]) -> None:
        """Run the machine: (watts, seconds) after one another."""
        for watts, seconds in loads:
            self.board.ask("load", watts=watts)
            self.tell(f"   the laser draws {watts:.0f} W")
            time.sleep(seconds)

    def tap(self, who: str, badge: str) -> None:
        """A badge that will be let in."""
        self.board.ask("tap", uid=badge)
        self.wait(self.relay, "the relay to close")
        self.tell(f"{who} taps: the relay closes after {self.board.ask('truth')['tap_to_relay_ms'][-1]:.0f} ms", "green")

    def leave(self, who: str) -> None:
        """The badge is taken away; the session ends and is booked."""
        self.board.ask("remove")
        self.wait(lambda: not self.relay(), "the relay to open")
        self.tell(f"{who} takes the badge: the relay opens", "green")


def plain_session(story: Story) -> None:
    """Tap, work, leave."""
    story.chapter("A member works")
    before = story.ended()
    story.tap("Maker One", MAKER_ONE)
    story.work((40, 1.5), (480, 4.0), (40, 1.0))
    story.leave("Maker One")
    story.wait(lambda: story.ended() > before, "the session in the books")
    story.tell("   stored: SQLite has the whole session")


def refusals(story: Story) -> None:
    """Badges that are not let in."""
    story.chapter("Badges that are refused")
    for who, badge, reason in (("a stranger", STRANGER, "unknown_badge"), ("Maker Three", MAKER_THREE, "no_training")):
        before = len(story.denied())
        story.board.ask("tap", uid=badge)
        story.wait(lambda seen=before: len(story.denied()) > seen, "the denial")  # type: ignore[misc]
        found = story.denied()[-1]
        story.tell(f"{who} taps: denied, {found.replace('_', ' ')}; the relay stays open", "yellow" if found == reason else "red")
        story.board.ask("remove")
        time.sleep(0.6)


def mains_cut(story: Story) -> None:
    """The node loses its mains in mid-session."""
    story.chapter("The node's mains fail while a member works")
    before = story.ended()
    story.tap("Maker Two", MAKER_TWO)
    story.work((480, 5.0))
    story.board.ask("power", on=False)
    story.faults.append("node mains cut in mid-session")
    story.tell("the mains fail: node dead, relay open, cable gone", "red")
    time.sleep(1.0)
    story.board.ask("power", on=True)
    story.tell("the mains are back; the badge still lies there")
    story.wait(lambda: story.ended() > before, "the cut session in the books")
    story.tell("   stored up to its last checkpoint; no restart without a new tap",
               "red" if story.relay() else "")
    story.board.ask("remove")
    story.work((0, 1.0))


def collector_killed(story: Story) -> None:
    """The collector is killed in mid-session; the node goes on."""
    story.chapter("The collector is killed while a member works")
    before = story.ended()
    story.tap("Maker One", MAKER_ONE)
    story.work((480, 2.5))
    story.stop_collector(signal.SIGKILL)
    story.faults.append("collector killed in mid-session")
    story.tell("the collector is killed (SIGKILL)", "red")
    story.work((480, 2.0))
    story.leave("Maker One")
    story.start_collector()
    story.tell("a new collector listens; the node sends what is not acknowledged")
    story.wait(lambda: story.ended() > before, "the session in the books")
    story.tell("   stored: the whole session")


def settle_up(story: Story) -> list[Check]:
    """The bill, and the checks against the world."""
    story.chapter("The bill")
    target = story.folder / "charges.csv"
    books.export_charges_csv(story.lab, story.lab.database, target)
    rows = [line.split(",") for line in target.read_text(encoding="utf-8").splitlines()]
    shown = [rows[0].index(name) for name in ("name", "on_seconds", "working_seconds", "energy_wh", "end_reason", "amount")]
    story.screen.print(table("", ("who", "on s", "working s", "Wh", "end", "USD"),
                             [[row[index] for index in shown] for row in rows[1:]],
                             right=("on s", "working s", "Wh", "USD")))
    story.screen.print(f"{target} holds {len(rows) - 1} charges; its first lines:")
    for row in rows[:2]:
        story.screen.print(Text(",".join(row), style="dim"), soft_wrap=True)
    story.chapter("Is it whole?")
    truth = story.board.ask("truth")
    sessions = [found.session for found in books.sessions(story.lab, story.lab.database)]
    seqs = [found.seq for found in store.events(story.lab.database)]
    checks = [Check("every event once, none missing", seqs == list(range(1, len(seqs) + 1)), f"1 to {len(seqs)}"),
              Check("nothing in quarantine, no gap",
                    not store.quarantined(story.lab.database) and not store.gaps(story.lab.database)),
              Check("each refusal with its reason", story.denied() == ["unknown_badge", "no_training"],
                    str(len(story.denied())), "2"),
              *reconcile(sessions, truth["uses"], CHECKPOINT_S)]
    shown_checks = table("", ("", "check", "books", "world"), [], right=("books", "world"))
    for check in checks:
        mark = Text("ok", style="green") if check.ok else Text("WRONG", style="bold red")
        shown_checks.add_row(mark, check.name, check.booked, check.world)
    story.screen.print(shown_checks)
    return checks


def run_demo(folder: Path) -> int:
    """Tell the story; 0 when all checks hold, else 1. Everything started is ended by its process id."""
    story = Story(folder)
    stale = SimClient(folder / "sim", "laser")
    if stale.path.exists():
        try:
            stale.down()
        except Problem:
            os.unlink(stale.path)
    try:
        story.build()
        for part in (plain_session, refusals, mains_cut, collector_killed):
            part(story)
        checks = settle_up(story)
    finally:
        story.stop_collector(signal.SIGTERM)
        if hasattr(story, "board"):
            story.board.down()
    good = all(check.ok for check in checks)
    story.screen.print()
    story.screen.print(Text("All checks hold." if good else "A check does not hold.", style="bold green" if good else "bold red"))
    return 0 if good else 1
