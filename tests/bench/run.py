"""How fast, how small? Measures what FabTap promises, on the real interpreter, into build/bench.json.

A list of objects: name, value, unit, and where there is one the limit and the ratio of value to limit: more than the limit is
broken. Where more is better, `better` says "more", the ratio is that to something measured in the same run, and a ratio below the
limit is broken. Ends with 1 when a limit is broken. `python -m tests.bench.run build/bench.json`
"""
import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fabtap.bench.deploy import compile_firmware, deploy, firmware_folder
from fabtap.bench.provision import provision
from fabtap.cli_options import open_lab
from fabtap.collector import Collector
from fabtap.lab import Lab
from fabtap.sim.client import SimClient, find_interpreter, start_board
from fabtap.store import Writer
from tests.bench import broker_outage, ingest

HERE = Path(__file__).parent
ROSTER_BADGES = 5000
ERASE_MS, PROGRAM_MS = 45.0, 0.4
TAP_LIMIT_MS = 100.0
HEAP_LIMIT_BYTES = 120000
HEAP_LIMIT_MQTT_BYTES = 180000
INGEST_RATIO_MIN = 0.6
RECOVERY_LIMIT_S = 10.0
WAIT_S = 60.0
LAB_TOML = """\
[lab]
id = "bench"
name = "A bench"
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
badge_out_ms = 150

[[tariff]]
machine = "laser"
class = "*"
per_minute_on = "0.60"
per_minute_working = "2.40"
per_kwh = "0.18"
"""


def figure(name: str, value: float, unit: str, limit: float | None = None) -> dict[str, Any]:
    """One object of bench.json."""
    row: dict[str, Any] = {"name": name, "value": round(value, 3), "unit": unit}
    if limit is not None:
        row["limit"] = limit
        row["ratio"] = round(value / limit, 3) if limit else (0.0 if value <= 0 else float("inf"))
    return row


def figure_of_ratio(name: str, value: float, unit: str, ratio: float, at_least: float) -> dict[str, Any]:
    """One object of bench.json where more is better: `ratio` must be `at_least` so much."""
    return {"name": name, "value": round(value, 3), "unit": unit, "limit": at_least, "ratio": round(ratio, 3), "better": "more"}


def is_broken(row: dict[str, Any]) -> bool:
    """Is the figure beyond its limit, if it has one?"""
    if "limit" not in row:
        return False
    return bool(row["ratio"] < row["limit"] if row.get("better") == "more" else row["value"] > row["limit"])


def percentile(values: list[float], part: float) -> float:
    """The value that `part` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def wait(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.005)


class RunningCollector:
    """A collector in a thread, whose statuses can be read."""

    def __init__(self, lab: Lab) -> None:
        self._writer = Writer(lab.database)
        self.collector = Collector(lab, self._writer)
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._task = self._loop.create_task(self.collector.run())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            self._loop.close()

    def stop(self) -> None:
        assert self._task
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._writer.close()


def make_lab(folder: Path, seed: int) -> tuple[Lab, list[str]]:
    """A lab with 5,000 badges; the badges as hex."""
    chosen = random.Random(seed)
    badges = sorted({chosen.randbytes(4).hex() for _ in range(ROSTER_BADGES + 50)})[:ROSTER_BADGES]
    rows = "".join(f"{number},Member {number},guest,{badge},laser,active\n" for number, badge in enumerate(badges, 1))
    (folder / "fabtap.toml").write_text(LAB_TOML)
    (folder / "members.csv").write_text("member,name,class,badges,trainings,status\n" + rows)
    return open_lab(folder / "fabtap.toml"), badges


def tap_often(board: SimClient, badges: list[str], taps: int, seed: int) -> list[float]:
    """Tap, wait for the relay, leave, wait until the next badge is welcome."""
    chosen = random.Random(seed)
    for _ in range(taps):
        time.sleep(chosen.uniform(0, 0.05))
        board.ask("tap", uid=chosen.choice(badges))
        wait(lambda: bool(board.ask("status")["relay"]), "the relay to close", 10)
        board.ask("remove")
        wait(lambda: not board.ask("status")["relay"], "the relay to open", 10)
        time.sleep(1.6)
    return [float(value) for value in board.ask("truth")["tap_to_relay_ms"]]


def bench_node(taps: int, seed: int) -> list[dict[str, Any]]:
    """Taps on a simulated board whose flash costs what an RP2040's costs."""
    folder = Path(tempfile.mkdtemp(prefix="ftb"))
    board: SimClient | None = None
    running: RunningCollector | None = None
    try:
        lab, badges = make_lab(folder, seed)
        machine = lab.machines[0]
        board = start_board(folder / "sim", "laser", "rpi-pico")
        provision(lab, machine)
        deploy(machine.port)
        board.down()
        board = start_board(folder / "sim", "laser", "rpi-pico", erase_ms=ERASE_MS, program_ms=PROGRAM_MS)
        running = RunningCollector(lab)
        statuses = running.collector.statuses
        wait(lambda: "laser" in statuses and statuses["laser"]["state"] == 1, "the first status in idle")
        heap_bytes = statuses["laser"]["heap_bytes"]
        version = running.collector.roster(machine).version
        started_s = time.monotonic()
        wait(lambda: any(link.roster_version == version for link in running.collector.links.values()), "the roster to arrive")
        roster_s = time.monotonic() - started_s
        latencies = tap_often(board, badges, taps, seed)
    finally:
        if running:
            running.stop()
        if board:
            board.down()
        shutil.rmtree(folder)
    return [figure("tap_to_relay_ms", percentile(latencies, 0.99), "ms", TAP_LIMIT_MS),
            figure("tap_to_relay_p50_ms", percentile(latencies, 0.5), "ms"),
            figure("tap_to_relay_n", len(latencies), "taps"),
            figure("roster_push_5000_s", roster_s, "s"),
            figure("heap_bytes_after_boot", heap_bytes, "bytes", HEAP_LIMIT_BYTES)]


def bench_mqtt(outage_s: float) -> list[dict[str, Any]]:
    """A node on WiFi: its heap, and how soon all is stored after an outage of the broker."""
    with tempfile.TemporaryDirectory(prefix="ftb") as folder:
        heap_bytes, recovery_s, sessions = broker_outage.measure(Path(folder) / "lab", outage_s, RunningCollector, wait)
    return [figure("heap_bytes_after_boot_mqtt", heap_bytes, "bytes", HEAP_LIMIT_MQTT_BYTES),
            figure("broker_recovery_s", recovery_s, "s", RECOVERY_LIMIT_S),
            figure("broker_outage_s", outage_s, "s"),
            figure("broker_outage_sessions", sessions, "sessions")]


def on_interpreter(script: str, folder: Path, *arguments: str, heap: str = "192k") -> dict[str, Any]:
    """Run a script of this folder in MicroPython on the compiled firmware; it prints one JSON object last."""
    for path, data in compile_firmware(firmware_folder()).items():
        target = folder / path.lstrip("/")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
    done = subprocess.run([find_interpreter(), "-X", f"heapsize={heap}", str(HERE / script), *arguments], cwd=folder,
                          capture_output=True, text=True, timeout=1800,
                          env={"MICROPYPATH": f"{folder}:.frozen", "PATH": "/usr/bin:/bin"})
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def bench_lookup(seed: int) -> list[dict[str, Any]]:
    """What a roster look-up allocates, and how that grows from 50 badges to 5,000."""
    with tempfile.TemporaryDirectory(prefix="ftb") as folder:
        found = on_interpreter("lookup.py", Path(folder), str(seed), heap="4m")
    return [figure("roster_lookup_growth_bytes", found["growth_bytes"], "bytes", 0),
            figure("roster_lookup_bytes", found["lookup_bytes"], "bytes"),
            figure("roster_lookup_us", found["lookup_us"], "us")]


def bench_cycles(cycles: int, seed: int) -> list[dict[str, Any]]:
    """Does the node's heap grow over many taps, in a heap of 192 kB?"""
    with tempfile.TemporaryDirectory(prefix="ftb") as folder:
        found = on_interpreter("cycles.py", Path(folder), str(cycles), str(seed))
    return [figure("heap_growth_10000_taps_bytes" if cycles == 10000 else f"heap_growth_{cycles}_taps_bytes",
                   found["growth_bytes"], "bytes", 0),
            figure("taps_in_192k_heap", found["sessions"], "sessions")]


def bench_ingest(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Durable events a second, against what bare SQLite does with the same rows; on the disk that holds `folder`."""
    found = ingest.measure(folder, seed)
    return [figure_of_ratio("ingest_events_per_s", found["ours"], "events/s", found["ratio"], INGEST_RATIO_MIN),
            figure("ingest_bare_sqlite_per_s", found["bare"], "rows/s")]


def main() -> int:
    """Measure all, write, print; 1 when a limit is broken."""
    options = argparse.ArgumentParser(description="Measure FabTap's figures.")
    options.add_argument("file", type=Path)
    options.add_argument("--taps", type=int, default=120)
    options.add_argument("--cycles", type=int, default=10000)
    options.add_argument("--outage", type=float, default=120.0, help="seconds without a broker")
    options.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    chosen = options.parse_args()
    print(f"seed {chosen.seed}")
    chosen.file.parent.mkdir(exist_ok=True)
    rows = bench_ingest(chosen.file.parent, chosen.seed) + bench_lookup(chosen.seed)
    rows += bench_cycles(chosen.cycles, chosen.seed) + bench_node(chosen.taps, chosen.seed) + bench_mqtt(chosen.outage)
    chosen.file.write_text(json.dumps(rows, indent=2) + "\n")
    broken = [row for row in rows if is_broken(row)]
    for row in rows:
        limit = f"  limit {row['limit']:g}, ratio {row['ratio']:g}" if "limit" in row else ""
        print(f"{row['name']:32} {row['value']:>12g} {row['unit']:9}{limit}{'  BROKEN' if row in broken else ''}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
