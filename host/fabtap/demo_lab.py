"""What is the demo's lab? Five machines, eight members, a broker, a WiFi: files, boards and processes, made anew each time."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fabtap.bench.deploy import deploy
from fabtap.bench.provision import provision
from fabtap.broker import RunningBroker, start_broker
from fabtap.cli_options import open_lab
from fabtap.lab import Lab, Machine
from fabtap.problem import Problem
from fabtap.sim.client import SimClient, start_board

CHECKPOINT_S = 2
IDLE_S = 3
WORKING_W = 60
NETWORK, PASSWORD = "FabLab", "simulated-air"
BROKER_HOST = "localhost"
"""A name that this computer knows, and that the simulated WiFi's name server knows too."""
NAME_SERVER_PORT = 5353
ERASE_MS, PROGRAM_MS = 45.0, 0.4
"""What a flash erase and a page cost on an RP2040 (docs/simulator.md)."""
MQTT_HEAP = "320k"
"""The interpreter's objects take twice a chip's place, so this is what a Pico W has beside its WiFi."""
WAIT_S = 20.0
PROCESSES = "processes.txt"

# machine: name, node, board, link, more keys, price per minute on and working for the co-operative's own members
MACHINES = (
    ("laser", "Laser cutter", 1, "rpi-pico", "serial", 'training = "laser"', "0.60", "2.40"),
    ("sign", "Sign cutter", 2, "esp32-devkit", "serial", 'training = "sign"', "0.30", "0.90"),
    ("mill", "NC mill", 3, "rpi-pico-w", "mqtt", 'training = "mill"', "0.80", "3.20"),
    ("router", "Wood router", 4, "rpi-pico-w", "mqtt", 'training = "router"', "0.80", "3.00"),
    ("bench", "Electronics bench", 5, "rpi-pico", "serial", f"idle_s = {IDLE_S}", "0.10", "0.20"),
)
MEMBERS_CSV = """\
member,name,class,badges,trainings,status
101,Maker One,parent-cooperative,04A1B2C3,laser;mill;router;sign,active
102,Maker Two,worker-owner,04D4E5F6071829,laser;mill;router;sign,active
103,Maker Three,worker-owner,04112233,mill;router,active
104,Maker Four,community-stakeholder,04445566778899,sign;laser:2099-12-31,active
105,Maker Five,community-stakeholder,04556677,router:2024-06-30,active
106,Maker Six,trainee,047788AA,,active
107,Maker Seven,guest,0499AABB,,active
108,Maker Eight,trainee,04CCDDEE,laser,held
"""
BADGES = {"Maker One": "04a1b2c3", "Maker Two": "04d4e5f6071829", "Maker Three": "04112233", "Maker Four": "04445566778899",
          "Maker Five": "04556677", "Maker Six": "047788aa", "Maker Seven": "0499aabb", "Maker Eight": "04ccddee",
          "A stranger": "08123456"}


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lab_toml(broker_port: int, floor_port: int, only: Collection[str] = ()) -> str:
    """The text of fabtap.toml, with all machines or only some."""
    parts = [f"""\
[lab]
id = "ccp"
name = "Center for Community Production"
currency = "USD"
timezone = "America/Chicago"
members = "members.csv"
database = "fabtap.db"
keys = "keys.toml"

[broker]
host = "{BROKER_HOST}"
port = {broker_port}

[wifi]
network = "{NETWORK}"

[floor]
port = {floor_port}
"""]
    for id_, name, node, board, link, more, per_minute_on, per_minute_working in MACHINES:
        if only and id_ not in only:
            continue
        parts.append(f"""
[[machine]]
id = "{id_}"
name = "{name}"
node = {node}
board = "{board}"
link = "{link}"
port = "sim/{id_}.tty"
working_w = {WORKING_W}
checkpoint_s = {CHECKPOINT_S}      # every minute in a real lab; the demo has less time
badge_out_ms = 500
{more}

[[tariff]]
machine = "{id_}"
class = ["parent-cooperative", "worker-owner"]
per_minute_on = "{per_minute_on}"
per_minute_working = "{per_minute_working}"
per_kwh = "0.18"

[[tariff]]
machine = "{id_}"
class = ["community-stakeholder", "trainee", "guest"]
per_minute_on = "{float(per_minute_on) * 1.5:.2f}"
per_minute_working = "{float(per_minute_working) * 1.5:.2f}"
per_kwh = "0.18"
""")
    return "".join(parts)


class DemoLab:
    """The lab's files, boards and processes; `close` ends whatever was started, by its process id. `only` some of its machines."""

    def __init__(self, folder: Path, only: Collection[str] = ()) -> None:
        self.folder = folder
        self._only = only
        self.boards: dict[str, SimClient] = {}
        self.broker: RunningBroker | None = None
        self._collector: subprocess.Popen[bytes] | None = None
        self.lab: Lab

    def make_files(self) -> None:
        """fabtap.toml, members.csv and the WiFi's password."""
        self._end_leftovers()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "fabtap.toml").write_text(lab_toml(free_port(), free_port(), self._only), encoding="utf-8")
        (self.folder / "members.csv").write_text(MEMBERS_CSV, encoding="utf-8")
        keys = os.open(self.folder / "keys.toml", os.O_WRONLY | os.O_CREAT, 0o600)
        with open(keys, "w", encoding="utf-8") as file:
            file.write(f'[wifi]\npassword = "{PASSWORD}"\n\n[nodes]\n')
        self.lab = open_lab(self.folder / "fabtap.toml")

    def _end_leftovers(self) -> None:
        """What a demo that was killed has left running."""
        noted = self.folder / PROCESSES
        for process_id in noted.read_text().split() if noted.exists() else ():
            try:
                if str(self.folder) in Path(f"/proc/{process_id}/cmdline").read_text():
                    os.kill(int(process_id), signal.SIGTERM)
            except (FileNotFoundError, ProcessLookupError):
                continue
        for path in (self.folder / "sim").glob("*.sock"):
            try:
                SimClient(path.parent, path.stem).down()
            except Problem:
                path.unlink(missing_ok=True)

    def make_boards(self, told: Callable[[Machine, str], None]) -> None:
        """Bare boards, provisioned and deployed as a technician does it; two at a time, as this computer has cores."""
        for machine in self.lab.machines:
            self.start_board(machine, erase_ms=0.0, program_ms=0.0)
            provision(self.lab, machine, name_server_port=NAME_SERVER_PORT)
        with ThreadPoolExecutor(2) as pool:
            try:
                for machine, text in zip(self.lab.machines, pool.map(self._deploy, self.lab.machines), strict=True):
                    told(machine, text)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for machine in self.lab.machines:
            self.boards[machine.id].down()
            self.start_board(machine)

    def start_board(self, machine: Machine, **more: object) -> None:
        """Start a machine's board, with flash costs; `more` goes to fabtap.sim.supervisor.BoardOptions."""
        options: dict[str, object] = {"working_w": WORKING_W, "erase_ms": ERASE_MS, "program_ms": PROGRAM_MS}
        if machine.link == "mqtt":
            assert self.lab.broker
            options |= {"heap": MQTT_HEAP, "wifi": {"network": NETWORK, "password": PASSWORD, "name_server_port": NAME_SERVER_PORT,
                                                    "names": {BROKER_HOST: ["127.0.0.1", self.lab.broker.port]}}}
        self.boards[machine.id] = start_board(self.folder / "sim", machine.id, machine.board, **{**options, **more})

    def _deploy(self, machine: Machine) -> str:
        done = deploy(machine.plugged_port(), mqtt=machine.link == "mqtt")
        return f"{machine.board}, {machine.link}: {len(done.written)} files, each checked on the board"

    def start_broker(self) -> None:
        """mosquitto if it is here, else the embedded one."""
        self.broker = start_broker(self.lab, self.folder / "broker")
        self._note_process(self.broker.process_id)

    def _note_process(self, process_id: int) -> None:
        with open(self.folder / PROCESSES, "a", encoding="ascii") as file:
            file.write(f"{process_id}\n")

    def stop_broker(self) -> None:
        """The broker goes away."""
        if self.broker:
            self.broker.stop()
            self.broker = None

    def start_collector(self) -> None:
        """Run the real command."""
        with open(self.folder / "collector.log", "ab") as log:
            self._collector = subprocess.Popen(
                [sys.executable, "-m", "fabtap", "collector", "run", "--lab", str(self.folder / "fabtap.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._note_process(self._collector.pid)

    def stop_collector(self, number: signal.Signals) -> None:
        """End the collector by its process id."""
        if self._collector:
            self._collector.send_signal(number)
            self._collector.wait(WAIT_S)
            self._collector = None

    def log_size(self) -> int:
        """Where the collector's log ends now."""
        path = self.folder / "collector.log"
        return path.stat().st_size if path.exists() else 0

    def log_since(self, position: int) -> str:
        """What the collector has logged since."""
        return (self.folder / "collector.log").read_bytes()[position:].decode("utf-8", "replace")

    def wait(self, condition: Callable[[], bool], what: str) -> float:
        """Wait for something that must happen, with a deadline; how many seconds it took."""
        begun_s = time.monotonic()
        while not condition():
            if self._collector and self._collector.poll() is not None:
                raise Problem("the demo", None, "the collector has ended", f"See {self.folder / 'collector.log'}.")
            if time.monotonic() - begun_s > WAIT_S:
                raise Problem("the demo", None, f"waited {WAIT_S:.0f} s for {what}",
                              f"See {self.folder / 'collector.log'} and the logs in {self.folder / 'sim'}.")
            time.sleep(0.05)
        return time.monotonic() - begun_s

    def close(self) -> None:
        """End everything."""
        self.stop_collector(signal.SIGTERM)
        self.stop_broker()
        for board in self.boards.values():
            try:
                board.down()
            except Problem as problem:
                print(problem, file=sys.stderr)
