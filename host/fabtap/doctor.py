"""What is wrong with this installation, and how is it mended?

Each check looks at one thing and gives a Finding. Checks only look: nothing is started, nothing is written (a database without
a -wal file is opened as immutable, or SQLite would make two files), no serial port is opened (that may reset a board), and
every wait is bounded. `wrong` means that FabTap doesn't work as it should; `warn` that somebody should know.
"""
import grp
import importlib.metadata
import os
import pwd
import re
import shutil
import socket
import sqlite3
import stat
import sys
import threading
import time
import zoneinfo
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from fabtap import store
from fabtap.boards import board_names
from fabtap.keys import load_secrets, wifi_password
from fabtap.lab import Broker, Lab, Machine, load_lab
from fabtap.problem import Problem
from fabtap.sim.client import find_interpreter

OK, WARN, WRONG = "ok", "warn", "wrong"
PYTHON_MIN, PYTHON_MAX = (3, 11), (3, 13)
YEAR_MIN = 2026
CLOCK_BACK_MS = 60_000
"""By how much the newest stored event may lie ahead of the clock: less is the usual correction of a clock."""
SILENT_MS = 24 * 3600 * 1000
FREE_WARN_BYTES, FREE_WRONG_BYTES = 500_000_000, 50_000_000
WAIT_S = 2.0
QUICK_CHECK_S = 10.0
PAGE_BYTES = 16_384
FLOOR_MARKS = ("FabTap", "floor.css")
SBIN = ":/usr/local/sbin:/usr/sbin"
"""Where Debian has mosquitto, and where an ordinary user's PATH doesn't lead."""

CLOCK_MEND = "Set the clock (Debian: sudo timedatectl set-ntp true), then start the collector anew."

NEWEST_EVENT = "SELECT max(received_utc_ms) FROM event"
COUNTS = "SELECT (SELECT count(*) FROM quarantine), (SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM gap)"
NODE_HEARD = ("SELECT max(heard) FROM (SELECT max(received_utc_ms) AS heard FROM event WHERE node_id = :node "
              "UNION ALL SELECT max(utc_ms) FROM anchor WHERE node_id = :node)")


class Finding(NamedTuple):
    """What a check found: `state` is OK, WARN or WRONG; `mend` says what to do next, and is empty when all is well."""

    name: str
    state: str
    what: str
    mend: str = ""


def examine(lab_file: Path) -> Iterator[Finding]:
    """Every check, in an order in which the first thing to mend comes first."""
    yield python_version()
    yield packages()
    yield interpreter()
    yield timezones()
    yield clock(utc_ms())
    found, lab = lab_of(lab_file)
    yield found
    if lab is None:
        return
    yield members(lab)
    yield from keys(lab)
    yield disk(lab.database)
    yield from database(lab, utc_ms())
    for machine in lab.machines:
        if machine.port is not None:
            yield serial_port(machine)
    if lab.broker is not None:
        yield broker(lab.broker)
        yield mosquitto()
    if lab.floor_port is not None:
        yield floor_port(lab.floor_port)


def utc_ms() -> int:
    """The computer's UTC in milliseconds."""
    return time.time_ns() // 1_000_000


# The program

def python_version(version: tuple[int, int] | None = None) -> Finding:
    """Is this a Python that FabTap was tried with?"""
    found = version or sys.version_info[:2]
    what = f"Python {found[0]}.{found[1]}"
    mend = f"Make the venv anew with Python {PYTHON_MIN[0]}.{PYTHON_MIN[1]} to {PYTHON_MAX[0]}.{PYTHON_MAX[1]}."
    if found < PYTHON_MIN:
        return Finding("Python", WRONG, f"{what} is too old", mend)
    if found > PYTHON_MAX:
        return Finding("Python", WARN, f"{what} is newer than what FabTap was tried with", mend)
    return Finding("Python", OK, what)


def packages(needs: Sequence[str] | None = None) -> Finding:
    """Are all packages there in the versions that FabTap's own metadata asks for? `needs` as in Requires-Dist."""
    mend = "Install FabTap anew, in a venv of its own: pip install --upgrade fabtap (in a checkout: make setup)."
    try:
        listed = importlib.metadata.requires("fabtap") or [] if needs is None else needs
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", WRONG, "fabtap itself isn't installed", mend)
    wanted = [need for need in listed if "extra ==" not in need]
    wrong = [complaint for complaint in map(_package_complaint, wanted) if complaint]
    if wrong:
        return Finding("packages", WRONG, "; ".join(wrong), mend)
    return Finding("packages", OK, f"{len(wanted)} packages as required")


def _package_complaint(need: str) -> str:
    """What is wrong with one requirement, `name==version` or `name>=version`; "" if nothing."""
    found = re.match(r"([\w.-]+?)\s*(==|>=)\s*([\w.]+)", need)
    name, sign, version = found.groups() if found else (need, ">=", "0")
    try:
        here = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    good = here == version if sign == "==" else _numbers(here) >= _numbers(version)
    return "" if good else f"{name} is {here}, not {sign}{version}"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def interpreter() -> Finding:
    """Is there a MicroPython for simulated boards?"""
    try:
        return Finding("simulator", OK, find_interpreter())
    except Problem as problem:
        return Finding("simulator", WARN, f"{problem.what}; real boards don't need it", problem.mend)


def timezones() -> Finding:
    """Is there timezone data?"""
    count = len(zoneinfo.available_timezones())
    if not count:
        return Finding("timezones", WRONG, "there is no timezone data", "Run: pip install tzdata.")
    return Finding("timezones", OK, f"{count} timezones")


def clock(now_ms: int) -> Finding:
    """Can the computer's clock be right?"""
    if datetime.fromtimestamp(now_ms / 1000, UTC).year < YEAR_MIN:
        return Finding("clock", WRONG, f"it says {_day(now_ms)}, which is before this program was written", CLOCK_MEND)
    return Finding("clock", OK, _day(now_ms))


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


# The lab's files

def lab_of(file: Path) -> tuple[Finding, Lab | None]:
    """Does the lab's file load? Its Problem as it is, with the line."""
    try:
        lab = load_lab(file, board_names())
    except Problem as problem:
        return _of_problem("lab", problem), None
    return Finding("lab", OK, f"{file}: {len(lab.machines)} machine(s), {len(lab.tariffs)} tariff(s)"), lab


def _of_problem(name: str, problem: Problem) -> Finding:
    place = problem.where if problem.line is None else f"{problem.where}:{problem.line}"
    return Finding(name, WRONG, f"{place}: {problem.what}", problem.mend)


def members(lab: Lab) -> Finding:
    """Are there members? (Their file is checked with the lab's.)"""
    badges = sum(len(member.badges) for member in lab.members)
    if not badges:
        return Finding("members", WARN, f"{lab.members_file}: nobody has a badge", "Add members and their badges.")
    return Finding("members", OK, f"{lab.members_file}: {len(lab.members)} member(s), {badges} badge(s)")


def keys(lab: Lab) -> Iterator[Finding]:
    """Does the keys' file have a secret for every node, and WiFi's password if it is needed, and keep them?"""
    try:
        mode = lab.keys.stat().st_mode
        secrets = load_secrets(lab.keys)
    except FileNotFoundError:
        yield Finding("keys", WRONG, f"{lab.keys}: there is no such file", _provision(lab.machines[0]))
        return
    except OSError as error:
        yield Finding("keys", WRONG, f"{lab.keys}: can't be read ({error.strerror})", "Run this as the collector's user.")
        return
    except Problem as problem:
        yield _of_problem("keys", problem)
        return
    yield _keys_mode(lab.keys, mode)
    for machine in lab.machines:
        if machine.node not in secrets:
            yield Finding("keys", WRONG, f"{lab.keys}: no secret for node {machine.node} ({machine.id})", _provision(machine))
    if any(machine.link == "mqtt" for machine in lab.machines):
        try:
            wifi_password(lab.keys)
        except Problem as problem:
            yield _of_problem("keys", problem)


def _keys_mode(file: Path, mode: int) -> Finding:
    if mode & 0o077:
        return Finding("keys", WRONG, f"{file}: others may read it (mode {stat.S_IMODE(mode):o})", f"Run: chmod 600 {file}.")
    return Finding("keys", OK, f"{file}: readable by its owner only")


def _provision(machine: Machine) -> str:
    return f"Provision the node: fabtap board provision {machine.id}."


# The database

def disk(file: Path) -> Finding:
    """Is there room where the database lies?"""
    try:
        free_bytes = shutil.disk_usage(file.parent).free
    except OSError as error:
        return Finding("disk", WRONG, f"{file.parent}: {error.strerror}", "Create this folder, or mend database =.")
    what = f"{file.parent}: {free_bytes // 1_000_000} MB free"
    if free_bytes < FREE_WARN_BYTES:
        return Finding("disk", WRONG if free_bytes < FREE_WRONG_BYTES else WARN, what,
                       "Free some space: when the disk is full, events wait in the nodes, and then nodes refuse sessions.")
    return Finding("disk", OK, what)


def database(lab: Lab, now_ms: int) -> Iterator[Finding]:
    """Is the database sound, writable, of this program's version, and what does it tell of the nodes?"""
    file = lab.database
    if not file.exists():
        yield Finding("database", WARN, f"{file}: there is none yet", "Start the collector once; it makes one.")
        return
    yield writable(file)
    try:
        with closing(_connect(file)) as connection:
            version = migrations(file, connection)
            yield version
            if version.state == OK:
                yield integrity(file, connection)
                yield from losses(connection)
                yield newest_event(connection, now_ms)
                yield from (heard(connection, machine, now_ms) for machine in lab.machines)
    except sqlite3.Error as error:
        yield Finding("database", WRONG, f"{file}: can't be used ({error})",
                      "Stop the collector, keep this file for whoever repairs it, and restore the last backup.")


def _connect(file: Path) -> sqlite3.Connection:
    """Read-only. Without a -wal nobody is writing, so the file may be taken as it is, which leaves no file behind."""
    quiet = not file.with_name(file.name + "-wal").exists()
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro{'&immutable=1' if quiet else ''}", uri=True, timeout=WAIT_S)


def writable(file: Path) -> Finding:
    """May this user write the database, and the two files that SQLite keeps beside it?"""
    for path in (file, file.parent, *(file.with_name(file.name + end) for end in ("-wal", "-shm"))):
        if path.exists() and not os.access(path, os.W_OK):
            return Finding("database", WRONG, f"{path}: {_user()} may not write it (it belongs to {_user(path.stat().st_uid)})",
                           f"Run this as the collector's user, or: sudo chown {_user()} {path}.")
    return Finding("database", OK, f"{file}: writable")


def migrations(file: Path, connection: sqlite3.Connection) -> Finding:
    """Is the database's version this program's?"""
    version, tables = connection.execute(store.SQL["version_and_tables"]).fetchone()
    known = len(list((store.SQL_FOLDER / "migrations").glob("*.sql")))
    if version == 0 and tables:
        return Finding("database", WRONG, f"{file}: this is some other program's", "Name another file in database =.")
    if version > known:
        return Finding("database", WRONG, f"{file}: version {version}, this program knows {known}",
                       "Update FabTap, or restore the backup from before the update.")
    if version < known:
        return Finding("database", WARN, f"{file}: version {version}, older than this program ({known})",
                       "Back it up, then start the collector once; it brings it up to date.")
    return Finding("database", OK, f"version {version}")


def integrity(file: Path, connection: sqlite3.Connection, limit_s: float = QUICK_CHECK_S) -> Finding:
    """Is the file whole? SQLite's quick_check, for at most `limit_s`."""
    until = time.monotonic() + limit_s
    connection.set_progress_handler(lambda: time.monotonic() > until, 1000)
    try:
        said = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return Finding("database", WARN, f"not checked to the end within {limit_s:g} s; no damage found so far",
                       f"Check it when the collector is stopped: sqlite3 {file} 'PRAGMA quick_check'.")
    finally:
        connection.set_progress_handler(None, 0)
    if said != ["ok"]:
        return Finding("database", WRONG, f"{file}: damaged ({said[0].splitlines()[-1]})",
                       "Stop the collector, keep this file for whoever repairs it, and restore the last backup.")
    return Finding("database", OK, "quick_check found no damage")


def losses(connection: sqlite3.Connection) -> Iterator[Finding]:
    """Was something quarantined or lost?"""
    quarantined, lost = connection.execute(COUNTS).fetchone()
    if quarantined:
        yield Finding("events", WARN, f"{quarantined} event(s) in quarantine: another event came under the same number",
                      "Look for a board whose flash was copied to another; the log names its node.")
    if lost:
        yield Finding("events", WARN, f"{lost} event(s) were gone from a node before they were stored",
                      "Look at that time's use by hand; session list --json names them under oddities.")
    if not quarantined and not lost:
        yield Finding("events", OK, "none lost, none in quarantine")


def newest_event(connection: sqlite3.Connection, now_ms: int) -> Finding:
    """Does the computer's clock lie before what it has dated itself?"""
    newest_ms = connection.execute(NEWEST_EVENT).fetchone()[0]
    if newest_ms is None:
        return Finding("events", OK, "none yet")
    if now_ms + CLOCK_BACK_MS < newest_ms:
        return Finding("clock", WRONG, f"it says {_day(now_ms)}, but an event was stored at {_day(newest_ms)}", CLOCK_MEND)
    return Finding("events", OK, f"newest stored {_day(newest_ms)}")


def heard(connection: sqlite3.Connection, machine: Machine, now_ms: int) -> Finding:
    """When did this machine's node last say something that was stored?"""
    name = f"node {machine.node}"
    mend = f"Is {machine.id} powered and connected, and does the collector run?"
    if machine.link == "mqtt":
        mend += " Are the network's name and password right, and does its name server know the broker's name?"
    last_ms = connection.execute(NODE_HEARD, {"node": machine.node}).fetchone()[0]
    if last_ms is None:
        return Finding(name, WARN, f"{machine.id}: never heard", mend)
    what = f"{machine.id}: last heard {_day(last_ms)}"
    return Finding(name, WARN, f"{what}, more than a day ago", mend) if now_ms - last_ms > SILENT_MS else Finding(name, OK, what)


# Serial ports

def serial_port(machine: Machine) -> Finding:
    """Is the machine's port there, may this user use it, and does somebody else? It is not opened."""
    assert machine.port is not None
    port, name = machine.port, f"port of {machine.id}"
    try:
        found = port.stat()
    except OSError:
        if machine.link == "mqtt":
            return Finding(name, OK, f"{port}: not plugged in, and needn't be")
        return Finding(name, WRONG, f"{port}: there is no such device", "Plug the board in, or mend port = in the lab's file.")
    if not stat.S_ISCHR(found.st_mode):
        return Finding(name, WRONG, f"{port}: is no device", "Mend port = in the lab's file; look into /dev/serial/by-id.")
    if not os.access(port, os.R_OK | os.W_OK):
        return Finding(name, WRONG, f"{port}: {_user()} may not read and write it", _port_mend(found))
    users = port_users(port)
    if not users:
        return Finding(name, OK, f"{port}: free")
    process, words = users[0]
    if "collector" in words and "run" in words:
        return Finding(name, OK, f"{port}: the collector has it (process {process})")
    return Finding(name, WRONG, f"{port}: in use by {Path(words[0]).name} (process {process})", "End that program.")


def _port_mend(found: os.stat_result) -> str:
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    if found.st_mode & 0o060 != 0o060 or group == "root":
        return f"It belongs to group {group}, which may not use it either: give it to dialout by a udev rule."
    return f"Add yourself to group {group} (sudo usermod -aG {group} {_user()}), then log in again."


def _user(number: int | None = None) -> str:
    """The name of this user, or of another."""
    number = os.geteuid() if number is None else number
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def port_users(port: Path) -> list[tuple[int, list[str]]]:
    """(process, its command's words) of those who have the port locked or open; only Linux tells, and only of one's own open
    files. A simulated board holds its own port."""
    device = port.resolve()
    found = []
    for process in sorted(_lockers(device) | _openers(device)):
        words = _command(process)
        if words and process != os.getpid() and "fabtap.sim.supervisor" not in words and Path(words[0]).name != "micropython":
            found.append((process, words))
    return found


def _lockers(device: Path) -> set[int]:
    """Who has a flock on it, as pyserial's exclusive open does; /proc/locks tells of everybody's."""
    found = device.stat()
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return set()
    return {int(words[4]) for words in map(str.split, lines) if len(words) > 5 and words[5] == place and words[4].isdigit()}


def _openers(device: Path) -> set[int]:
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == str(device):
                found.add(int(link.parts[2]))
    return found


def _command(process: int) -> list[str]:
    with suppress(OSError):
        return [word.decode(errors="replace") for word in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0") if word]
    return []


# The network

def broker(where: Broker, wait_s: float = WAIT_S) -> Finding:
    """Does the broker's name lead to an address, and does something answer there?"""
    addresses = _resolve(where.host_from_here, where.port, wait_s)
    if not addresses:
        return Finding("broker", WRONG, f"{where.host}: the name leads to no address",
                       "Mend host = below [broker], or the name server; an address works too.")
    until, said = time.monotonic() + wait_s, "no answer"
    for address in addresses:
        try:
            with socket.create_connection(address, max(0.05, until - time.monotonic())):
                return Finding("broker", OK, f"{where.host}:{where.port} answers")
        except OSError as error:
            said = error.strerror or str(error)
    return Finding("broker", WRONG, f"{where.host}:{where.port}: no connection within {wait_s:g} s ({said})",
                   "Start the broker, or open its port in the firewall.")


def _resolve(host: str, port: int, wait_s: float) -> list[tuple[str, int]]:
    """The name's addresses. getaddrinfo has no limit of its own, so it waits in a thread that may be left behind."""
    found: list[tuple[str, int]] = []

    def look() -> None:
        with suppress(OSError, UnicodeError):
            found.extend((str(row[4][0]), port) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(wait_s)
    return found


def mosquitto() -> Finding:
    """Is there a broker's program on this computer?"""
    found = shutil.which("mosquitto", path=os.environ.get("PATH", "") + SBIN)
    if found:
        return Finding("mosquitto", OK, found)
    return Finding("mosquitto", WARN, "isn't on this computer", "Install it here, unless the broker runs elsewhere.")


def floor_port(port: int, wait_s: float = WAIT_S) -> Finding:
    """Is the floor page's port free, or does the floor page answer there?"""
    name = "floor page"
    try:
        with socket.create_connection(("127.0.0.1", port), wait_s) as connection:
            connection.settimeout(wait_s)
            page = _first_page(connection, wait_s)
            ours = any(mark in page for mark in FLOOR_MARKS)
    except ConnectionRefusedError:
        return Finding(name, OK, f"port {port} is free; the collector serves the page")
    except OSError:
        ours = False
    if ours:
        return Finding(name, OK, f"http://127.0.0.1:{port}")
    return Finding(name, WRONG, f"port {port} is taken by another program", "Name another port below [floor].")


def _first_page(connection: socket.socket, wait_s: float) -> str:
    """The beginning of what a web server answers; an event stream would never end, so time and bytes are bounded."""
    connection.sendall(b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
    until, page = time.monotonic() + wait_s, b""
    while len(page) < PAGE_BYTES and time.monotonic() < until:
        data = connection.recv(PAGE_BYTES)
        if not data:
            break
        page += data
    return page.decode("utf-8", "replace")
