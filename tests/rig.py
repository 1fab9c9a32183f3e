"""How does a test get a whole lab: a simulated board with the firmware on it, a real collector, a real database?

A Rig is a folder with all that a lab has, below the system's temporary folder under a short name (a Unix socket's path has at
most 100 characters). The firmware comes from a flash image that FlashImages makes once a test session, for a deploy takes
seconds. Whatever a test does, `close` leaves no process behind: it looks for the folder's name in every process's arguments.
"""
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fabtap import books, store
from fabtap.bench.deploy import deploy
from fabtap.bench.provision import provision
from fabtap.bench.session import BoardSession
from fabtap.lab import Lab, Machine, load_lab
from fabtap.problem import Problem
from fabtap.sim.client import SimClient, start_board
from nodecore import wire

MACHINE = "laser"
NODE = 1
ADA, BO, CY, DI = "04a1b2c3", "04958caa5c5e80", "0a0b0c0d", "01020304"
MEMBERS = (
    "101,Ada Example,worker-owner,04A1B2C3,laser,active",
    "102,Bo Example,trainee,04958CAA5C5E80,,active",
    "103,Cy Example,community-stakeholder,0A0B0C0D,laser,held",
    "104,Di Example,trainee,01020304,laser:2024-01-31,active",
)
"""Ada may use the laser; Bo has no training for it, Cy is held, Di's training has expired."""
MEMBERS_HEAD = "member,name,class,badges,trainings,status"
TOML = """\
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
board = "{board}"
port = "sim/laser.tty"
training = "laser"
working_w = {working_w}
checkpoint_s = {checkpoint_s}
badge_out_ms = {badge_out_ms}
mode = "{mode}"
idle_s = {idle_s}

[[tariff]]
machine = "laser"
class = "*"
per_minute_on = "0.10"
per_minute_working = "0.40"
per_kwh = "0.18"
"""
BOARD = "rpi-pico"
LAB_DEFAULTS: dict[str, object] = {"board": BOARD, "working_w": 60, "checkpoint_s": 2, "badge_out_ms": 600,
                                  "mode": "gate", "idle_s": 0}
POLL_S = 0.01
COMMAND_S = 60.0
START_S = 15.0
LOG_LINES = 40
FORGET_JOURNAL = """
import os
for f in ('/journal/' + n for n in os.listdir('/journal')):
    for n in os.listdir(f): os.remove(f + '/' + n)
    os.rmdir(f)
os.rmdir('/journal')
"""
T = TypeVar("T")


def short_folder() -> Path:
    """A new folder whose path is short enough for a Unix socket below it."""
    return Path(tempfile.mkdtemp(prefix="ft"))


def write_lab(folder: Path, members: Sequence[str] = MEMBERS, **settings: object) -> Path:
    """Write fabtap.toml and members.csv; `settings` replace LAB_DEFAULTS. Returns the toml."""
    file = folder / "fabtap.toml"
    file.write_text(TOML.format(**{**LAB_DEFAULTS, **settings}), encoding="utf-8")
    write_members(folder, members)
    return file


def write_members(folder: Path, members: Sequence[str]) -> None:
    """Put a new members.csv in the place of the old one, as an editor or a sync program does."""
    beside = folder / "members.csv.new"
    beside.write_text("\n".join((MEMBERS_HEAD, *members)) + "\n", encoding="utf-8")
    beside.replace(folder / "members.csv")


def run_fabtap(*arguments: str | Path, timeout_s: float = COMMAND_S, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own. `more` goes to subprocess.run."""
    return subprocess.run([sys.executable, "-m", "fabtap", *map(str, arguments)], capture_output=True, text=True,
                          timeout=timeout_s, check=False, stdin=subprocess.DEVNULL, **more)


def wait_until(condition: Callable[[], T], timeout_s: float, what: str, tell: Callable[[], str] = lambda: "") -> T:
    """What `condition` gives as soon as it is true; fails with `what` and `tell()` when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        # Asked once more after the deadline: a busy computer may not have let us look before.
        late = time.monotonic() >= deadline
        found = condition()
        if found:
            return found
        if late:
            pytest.fail(f"not within {timeout_s} s: {what}\n{tell()}")
        time.sleep(POLL_S)


def processes_naming(text: str) -> dict[int, str]:
    """Process id to command line of every other process whose arguments contain `text`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if text in line:
                    found[int(entry.name)] = line
    return found


def end_processes(process_ids: Sequence[int]) -> None:
    """Kill processes that we have started, by their ids."""
    for process_id in process_ids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


@contextlib.contextmanager
def lab_folder() -> Iterator[Path]:
    """A short folder; afterwards no process that names it is left, and it is gone. Fails when a process had to be killed."""
    folder = short_folder()
    try:
        yield folder
    finally:
        left = processes_naming(str(folder))
        deadline = time.monotonic() + 5
        while left and time.monotonic() < deadline:
            time.sleep(POLL_S)
            left = processes_naming(str(folder))
        end_processes(list(left))
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"these processes were left behind: {left}"


class FlashImages:
    """Flash images with the firmware and an identity on them, without a journal; made at the first use, then copied.

    All of them share one keys.toml and so the secret of node 1.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[tuple[str, object], ...], Path] = {}
        self.keys = folder / "keys.toml"

    def image(self, **changed: object) -> Path:
        """The image whose settings differ by `changed` (as fabtap.bench.provision takes it) from those of the default lab."""
        key = tuple(sorted(changed.items()))
        if key not in self._made:
            base = self.image() if changed else None
            self._made[key] = self._make(f"image{len(self._made)}", base, changed)
        return self._made[key]

    def _make(self, name: str, base: Path | None, changed: dict[str, object]) -> Path:
        lab = load_lab(write_lab(self._folder))
        folder = self._folder / name
        folder.mkdir()
        image = folder / "board.img"
        if base:
            shutil.copyfile(base, image)
        client = start_board(folder, "board", BOARD)
        process_id = client.ask("status")["process_id"]
        try:
            provision(lab, lab.machines[0], client.port, **changed)
            if base is None:
                deploy(client.port)
            session = BoardSession(client.port)
            session.open()
            try:
                session.enter_service_mode()
                session.execute(FORGET_JOURNAL)
            finally:
                session.close()
            client.down()
        finally:
            end_processes([process_id] if process_id in processes_naming(str(folder)) else [])
        return image


class Rig:
    """One lab with the machine `laser`; the board runs after `start_board`, the collector after `start_collector`.

    `lab_settings` replace LAB_DEFAULTS (checkpoint_s, badge_out_ms, working_w); `sim_options` go to BoardOptions.
    """

    def __init__(self, folder: Path, images: FlashImages, members: Sequence[str] = MEMBERS,
                 sim_options: dict[str, Any] | None = None, **lab_settings: object) -> None:
        self.folder = folder
        self.lab_file = write_lab(folder, members, **lab_settings)
        self.database = folder / "fabtap.db"
        self.collector_log = folder / "collector.log"
        self.board = SimClient(folder / "sim", MACHINE)
        self.collector: subprocess.Popen[bytes] | None = None
        self._sim_options = sim_options or {}
        self._board_id = 0
        (folder / "sim").mkdir()
        shutil.copyfile(images.image(**node_settings(lab_settings)), folder / "sim" / f"{MACHINE}.img")
        shutil.copy(images.keys, folder / "keys.toml")

    @property
    def lab(self) -> Lab:
        """The lab as its files say now."""
        return load_lab(self.lab_file)

    @property
    def machine(self) -> Machine:
        return self.lab.machines[0]

    @property
    def port(self) -> Path:
        """The board's serial port."""
        return self.board.port

    def start_board(self, **more: Any) -> SimClient:
        """Start the simulated board; `more` goes to BoardOptions."""
        client = start_board(self.folder / "sim", MACHINE, BOARD, **{**self._sim_options, **more})
        self._board_id = client.ask("status")["process_id"]
        return client

    def stop_board(self) -> None:
        """End the board and its world; the flash image stays."""
        self.board.down()
        self.wait_for(lambda: self._board_id not in processes_naming(str(self.folder)), 5, "the board's process is gone")

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """One request to the board's control socket: tap, remove, press, estop, load, power, unplug, plug, ..."""
        return self.board.ask(do, **values)

    def pause(self, seconds: float) -> None:
        """Let the world go on: the time itself is what the scenario is about, nothing is being waited for."""
        time.sleep(seconds)

    def truth(self) -> dict[str, Any]:
        """What a perfect clock and meter would have said."""
        return self.ask("truth")

    def board_log(self, what: str | None = None) -> list[dict[str, Any]]:
        """What happened on the board and in its world; only the entries of one kind if `what` is given."""
        entries = self.ask("logs")["entries"]
        return [entry for entry in entries if what is None or entry["what"] == what]

    def start_collector(self) -> None:
        """Start `fabtap collector run` and wait until it has looked for its port."""
        assert self.collector is None, "the collector runs already"
        begun = self.collector_log.stat().st_size if self.collector_log.exists() else 0
        with open(self.collector_log, "ab") as log:
            self.collector = subprocess.Popen(
                [sys.executable, "-m", "fabtap", "collector", "run", "--lab", str(self.lab_file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.wait_for(lambda: any(word in self.collector_log.read_bytes()[begun:]
                                  for word in (b": listening", b": no device", b"port_busy")),
                      START_S, "the collector has looked for its port")

    def stop_collector(self) -> int:
        """SIGTERM, as systemd does it; the exit code."""
        return self._end_collector(signal.SIGTERM)

    def kill_collector(self) -> None:
        """SIGKILL: it does nothing any more, as at a power cut."""
        self._end_collector(signal.SIGKILL)

    def _end_collector(self, number: int) -> int:
        assert self.collector is not None, "no collector runs"
        collector, self.collector = self.collector, None
        collector.send_signal(number)
        try:
            return collector.wait(START_S)
        except subprocess.TimeoutExpired:
            collector.kill()
            collector.wait()
            pytest.fail(f"the collector did not end on signal {number}\n{self.tell()}")

    def fabtap(self, *arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        """A command of the command line for this lab."""
        return run_fabtap(*arguments, "--lab", self.lab_file, **more)

    def wait_for(self, condition: Callable[[], T], timeout_s: float, what: str) -> T:
        """As wait_until; a failure shows the ends of both logs."""
        return wait_until(condition, timeout_s, what, self.tell)

    def wait_for_events(self, name: str, count: int = 1, timeout_s: float = 20) -> list[dict[str, Any]]:
        """The events of that name in the database, as soon as there are `count` of them."""
        return self.wait_for(lambda: found if len(found := self.events(name)) >= count else [], timeout_s,
                             f"{count} event(s) {name} in the database")

    def tell(self) -> str:
        """The ends of the logs, for a failure's message."""
        ended = "" if self.collector is None or self.collector.poll() is None else f" (ended: {self.collector.returncode})"
        parts = [f"--- the collector's log{ended}", tail(self.collector_log)]
        for suffix in (".log", ".err"):
            parts += [f"--- the simulator's {suffix[1:]}", tail(self.folder / "sim" / (MACHINE + suffix))]
        return "\n".join(parts)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Decoded events in the order of journal and seq, those of one name if it is given; none before there is a database."""
        found = []
        for stored in self._read(lambda: list(store.events(self.database))):
            event = wire.decode_event(stored.bytes)
            if name is None or event["name"] == name:
                found.append({**event, "journal_id": stored.journal_id, "received_utc_ms": stored.received_utc_ms})
        return found

    def sessions(self) -> list[books.BookedSession]:
        return self._read(lambda: books.sessions(self.lab, self.database))

    def denials(self) -> list[books.BookedDenial]:
        return self._read(lambda: books.denials(self.lab, self.database))

    def charges(self) -> list[books.BookedCharge]:
        return self._read(lambda: books.charges(self.lab, self.database))

    def oddities(self) -> list[books.Oddity]:
        return self._read(lambda: books.oddities(self.database))

    def _read(self, read: Callable[[], list[T]]) -> list[T]:
        """What a reader gives; nothing while the collector has not made the database yet."""
        try:
            return read()
        except Problem as problem:
            if self.database.exists() and "older than this program" not in problem.what:
                raise
            return []

    def write_members(self, members: Sequence[str]) -> None:
        """Give the lab other members; the collector notices by itself."""
        write_members(self.folder, members)

    def close(self) -> None:
        """End everything, also what a failed test has left in a bad state."""
        if self.collector is not None:
            self.collector.kill()
            self.collector.wait()
        try:
            with contextlib.suppress(Problem, OSError, ValueError):
                self.board.down()
        finally:
            end_processes([self._board_id] if self._board_id in processes_naming(str(self.folder)) else [])


def node_settings(lab_settings: dict[str, object]) -> dict[str, object]:
    """How the node's settings differ from the default lab's, for FlashImages.image."""
    factors = {"checkpoint_s": ("checkpoint_ms", 1000), "badge_out_ms": ("badge_out_ms", 1), "working_w": ("working_mw", 1000),
               "idle_s": ("idle_ms", 1000)}
    changed: dict[str, object] = {"gates": 0} if lab_settings.get("mode") == "observe" else {}
    for name, value in lab_settings.items():
        if value != LAB_DEFAULTS[name] and name in factors:
            setting, factor = factors[name]
            changed[setting] = int(str(value)) * factor
    return changed


def tail(path: Path) -> str:
    """The last lines of a log."""
    if not path.exists():
        return "(there is none)"
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
