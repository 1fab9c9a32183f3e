"""Does lab.py load a good lab, and does every mistake name its file, its line and its mend?"""
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from fabtap.lab import Broker, Machine, access_entries, load_lab, load_members
from fabtap.problem import Problem, find_line
from nodecore.words import REASONS

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
board = "rpi-pico"
port = "sim/laser.tty"
training = "laser"
working_w = 60
checkpoint_s = 60
badge_out_ms = 3000

[[machine]]
id = "bench"
name = "Electronics bench"
node = 2
board = "rpi-pico"
port = "/dev/bench"
working_w = 20

[[tariff]]
machine = "laser"
class = ["worker-owner", "trainee"]
per_minute_on = "0.10"
per_minute_working = "0.40"
per_kwh = "0.18"

[[tariff]]
machine = "bench"
class = "*"
per_minute_on = "0"
per_minute_working = "0"
per_kwh = "0.18"
"""

CSV = """\
member,name,class,badges,trainings,status
7,Ada Example,worker-owner,04:95:8c:aa:5c:5e:80;01020304,laser;mill:2027-01-31,active
8,"Example, Bo",trainee,0102030405060708090A,laser:2026-06-30,active
9,Cy Example,trainee,AABBCCDD,,held
10,Di Example,trainee,11223344,mill,active
"""


def write(folder: Path, toml: str | bytes = TOML, members: str | bytes = CSV) -> Path:
    for name, text in (("fabtap.toml", toml), ("members.csv", members)):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "fabtap.toml"


def problem_of(file: Path, boards: list[str] | None = None) -> Problem:
    with pytest.raises(Problem) as caught:
        load_lab(file, boards)
    assert caught.value.mend.endswith((".", "?"))
    assert not caught.value.what.endswith(".")
    return caught.value


def test_a_good_lab(tmp_path: Path) -> None:
    lab = load_lab(write(tmp_path), ["rpi-pico"])
    assert (lab.id, lab.currency, lab.currency_exponent, lab.timezone.key) == ("ccp", "USD", 2, "America/Chicago")
    assert (lab.database, lab.keys) == (tmp_path / "fabtap.db", tmp_path / "keys.toml")
    laser, bench = lab.machines
    assert (laser.port, laser.training, laser.working_w) == (tmp_path / "sim/laser.tty", "laser", 60)
    assert (bench.port, bench.training) == (Path("/dev/bench"), None)
    assert (bench.checkpoint_s, bench.badge_out_ms) == (60, 3000)
    tariff = lab.tariff("laser", "trainee")
    assert tariff is not None and tariff.per_minute_on == Decimal("0.10")
    assert lab.tariff("laser", "guest") is None
    bench_tariff = lab.tariff("bench", "guest")
    assert bench_tariff is not None and len(bench_tariff.classes) == 5
    ada, bo, *_ = lab.members
    assert [badge.uid.hex() for badge in ada.badges] == ["04958caa5c5e80", "01020304"]
    assert ada.trainings[1].last_valid_day == date(2027, 1, 31)
    assert bo.name == "Example, Bo"


def test_paths_are_named_as_the_person_named_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, TOML.replace('per_kwh = "0.18"', 'per_kwh = "abc"', 1))
    monkeypatch.chdir(tmp_path)
    assert str(problem_of(Path("fabtap.toml"))) == (
        'fabtap.toml:34: tariff 1: per_kwh is "abc", not an amount of money. '
        'Write a number in quotes, e.g. per_kwh = "0.15".')


# old text, new text, line, words in the message
TOML_MISTAKES = {
    "open quote": ('id = "ccp"', 'id = "ccp', 2, "not TOML"),
    "key twice": ('id = "ccp"', 'id = "ccp"\nid = "x"', 3, "not TOML"),
    "unknown table": ("[[tariff]]", "[[tarif]]", 29, 'Did you mean "tariff"?'),
    "key above the tables": ("[lab]", "spare = 1\n[lab]", 1, "unknown table or key 'spare'"),
    "no lab": (TOML[:TOML.index("[[machine]]")], "", 1, "there is no table [lab]"),
    "two kinds of one table": ("[lab]", "[machine]", 10, "not TOML"),
    "one machine table": ("[[machine]]\nid = \"bench\"", "[machine]\nid = \"bench\"", 21, "not TOML"),
    "missing key": ('timezone = "America/Chicago"\n', "", 1, "lab: timezone is missing"),
    "missing in the second machine": ("node = 2\n", "", 21, "machine 2: node is missing"),
    "unknown key": ("working_w = 20", "working_watts = 20", 27, 'Did you mean "working_w"?'),
    "a number for text": ('name = "Laser cutter"', "name = 5", 12, "machine 1: name is 5, not text"),
    "text for a number": ("node = 1", 'node = "1"', 13, 'machine 1: node is "1", not a whole number'),
    "a boolean for a number": ("node = 1", "node = true", 13, "not a whole number"),
    "node too big": ("node = 1", "node = 2147483648", 13, "not a whole number from 1 to 2147483647"),
    "checkpoint too long": ("checkpoint_s = 60", "checkpoint_s = 61", 18, "from 1 to 60"),
    "blank name": ('name = "Laser cutter"', 'name = " "', 12, "blank"),
    "id in capitals": ('id = "laser"', 'id = "Laser"', 11, "not a plain name"),
    "machine id twice": ('id = "bench"', 'id = "laser"', 22, 'machine 2: id "laser" is taken by machine 1 (line 11)'),
    "node twice": ("node = 2", "node = 1", 24, "machine 2: node 1 is taken by machine 1 (line 13)"),
    "port twice": ('port = "/dev/bench"', 'port = "sim/laser.tty"', 26, "is taken by machine 1 (line 15)"),
    "unknown board": ('board = "rpi-pico"\nport = "/dev', 'board = "rpi-pica"\nport = "/dev', 25, 'mean "rpi-pico"?'),
    "tariff of no machine": ('machine = "bench"', 'machine = "bensh"', 37, 'Did you mean "bench"?'),
    "tariff of no class": ('class = "*"', 'class = "guests"', 38, 'tariff 2: there is no class "guests"'),
    "class twice in a tariff": ('"trainee"]', '"worker-owner"]', 31, "a class twice"),
    "class of a wrong type": ('class = "*"', "class = 5", 38, "there is no class 5"),
    "no classes": ('class = "*"', "class = []", 38, "empty"),
    "overlap": ('machine = "bench"\nclass = "*"', 'machine = "laser"\nclass = "trainee"', 38,
                'machine "laser" and class "trainee" have a tariff already: tariff 1 (line 31)'),
    "overlap with *": ('machine = "bench"', 'machine = "laser"', 38, "tariff 1 (line 31)"),
    "class without a tariff": ('["worker-owner", "trainee"]', '["worker-owner"]', 10,
                               'no tariff for class "trainee", which member 8 has'),
    "a float for money": ('per_minute_on = "0.10"', "per_minute_on = 0.10", 32,
                          "per_minute_on is 0.10, a number without quotes"),
    "a whole number for money": ('per_minute_on = "0.10"', "per_minute_on = 1", 32, "a number without quotes"),
    "less than nothing": ('per_minute_on = "0.10"', 'per_minute_on = "-0.10"', 32, "less than nothing"),
    "an exponent": ('per_minute_on = "0.10"', 'per_minute_on = "1e2"', 32, "not an amount of money"),
    "not a number": ('per_minute_on = "0.10"', 'per_minute_on = "NaN"', 32, "not an amount of money"),
    "a decimal comma": ('per_minute_on = "0.10"', 'per_minute_on = "0,10"', 32, "not an amount of money"),
    "unknown timezone": ("America/Chicago", "America/Chigaco", 5, 'Did you mean "America/Chicago"?'),
    "a folder for a timezone": ("America/Chicago", "America", 5, "there is no timezone"),
    "a path for a timezone": ("America/Chicago", "../etc", 5, "there is no timezone"),
    "currency": ('"USD"', '"dollars"', 4, "not three capitals"),
}


@pytest.mark.parametrize("mistake", TOML_MISTAKES)
def test_a_mistake_in_the_toml(tmp_path: Path, mistake: str) -> None:
    old, new, line, words = TOML_MISTAKES[mistake]
    assert TOML.count(old) >= 1
    file = write(tmp_path, TOML.replace(old, new, 1))
    problem = problem_of(file, ["rpi-pico"])
    assert problem.where == str(file)
    assert words in str(problem)
    assert problem.line == line


def test_no_machine(tmp_path: Path) -> None:
    assert "there is no machine" in str(problem_of(write(tmp_path, TOML[:TOML.index("[[machine]]")])))


def test_a_machine_that_is_no_list(tmp_path: Path) -> None:
    only = TOML[:TOML.index("[[machine]]")] + '[machine]\nid = "laser"\n'
    problem = problem_of(write(tmp_path, only))
    assert (problem.line, problem.mend) == (10, "Write [[machine]] above each.")


NETWORK = """
[broker]
host = "broker.lab"

[wifi]
network = "FabLab"

[floor]
port = 8080
"""
WIRELESS = TOML.replace('port = "/dev/bench"', 'link = "mqtt"\nmode = "observe"\nidle_s = 900') + NETWORK
WIRELESS_LINES = {line: number for number, line in reversed(list(enumerate(WIRELESS.splitlines(), 1)))}


def test_a_lab_with_a_broker_wifi_a_floor_and_an_observed_machine(tmp_path: Path) -> None:
    lab = load_lab(write(tmp_path, WIRELESS))
    laser, bench = lab.machines
    assert (bench.link, bench.port, bench.mode, bench.idle_s) == ("mqtt", None, "observe", 900)
    assert (lab.broker, lab.wifi_network, lab.floor_port) == (Broker("broker.lab", 1883), "FabLab", 8080)
    assert (laser.link, laser.mode, laser.idle_s) == ("serial", "gate", 0)


def test_a_lab_without_them_has_none(tmp_path: Path) -> None:
    lab = load_lab(write(tmp_path))
    assert (lab.broker, lab.wifi_network, lab.floor_port) == (None, None, None)
    assert {(machine.link, machine.mode, machine.idle_s) for machine in lab.machines} == {("serial", "gate", 0)}


def test_the_longest_part_of_a_brokers_name_is_allowed(tmp_path: Path) -> None:
    host = "b" * 63
    assert load_lab(write(tmp_path, WIRELESS.replace("broker.lab", host))).broker == Broker(host, 1883)


def test_a_broker_on_another_port_or_under_an_address(tmp_path: Path) -> None:
    toml = WIRELESS.replace('host = "broker.lab"', 'host = "192.168.1.10"\nport = 8883')
    assert load_lab(write(tmp_path, toml)).broker == Broker("192.168.1.10", 8883)


def test_a_machine_over_mqtt_may_say_where_its_board_is_plugged_in(tmp_path: Path) -> None:
    bench = load_lab(write(tmp_path, WIRELESS.replace('link = "mqtt"', 'link = "mqtt"\nport = "/dev/bench"'))).machines[1]
    assert bench.plugged_port() == Path("/dev/bench")
    assert bench.plugged_port(Path("/dev/other")) == Path("/dev/other")
    bare = load_lab(write(tmp_path, WIRELESS)).machines[1]
    assert bare.plugged_port(Path("/dev/other")) == Path("/dev/other")
    with pytest.raises(Problem) as caught:
        bare.plugged_port()
    assert str(caught.value) == "bench: has no serial port in fabtap.toml. Plug the board in and name it with --port."


# old text, new text, line of which text, words of what, words of mend
WIRELESS_MISTAKES = {
    "unknown link": ('link = "mqtt"', 'link = "mqqt"', 'link = "mqtt"', 'machine 2: link is "mqqt"', 'Did you mean "mqtt"?'),
    "link of a wrong type": ('link = "mqtt"', "link = 1", 'link = "mqtt"', "link is 1, not text", "Use quotes"),
    "unknown mode": ('mode = "observe"', 'mode = "watch"', 'mode = "observe"', 'mode is "watch"', "Use one of: gate, observe."),
    "mode misspelt": ('mode = "observe"', 'mode = "observ"', 'mode = "observe"', 'mode is "observ"', 'Did you mean "observe"?'),
    "idle below nothing": ("idle_s = 900", "idle_s = -1", "idle_s = 900", "from 0 to 14400", "idle_s ="),
    "idle over 4 hours": ("idle_s = 900", "idle_s = 14401", "idle_s = 900", "idle_s is 14401, not a whole number", "idle_s ="),
    "idle with a point": ("idle_s = 900", "idle_s = 1.5", "idle_s = 900", "idle_s is 1.5, not a whole number", "without quotes"),
    "idle as text": ("idle_s = 900", 'idle_s = "900"', "idle_s = 900", 'idle_s is "900"', "without quotes"),
    "serial without a port": ('link = "mqtt"\n', "", "[[machine]]", "machine 2: port is missing", 'port = "/dev/serial/by-id/..."'),
    "mqtt without a broker": ('[broker]\nhost = "broker.lab"\n', "", "[[machine]]",
                              'machine "bench" has link = "mqtt", and there is no [broker]', "Add [broker]"),
    "mqtt without WiFi": ('[wifi]\nnetwork = "FabLab"\n', "", "[[machine]]", "there is no [wifi]", '[wifi] with network = "..."'),
    "broker twice": ("[wifi]", "[broker]", "[wifi]", "not TOML", "Write each table once"),
    "a list of brokers": ("[broker]", "[[broker]]", "[broker]", "broker is a list", "Write [broker], once."),
    "broker without a host": ('host = "broker.lab"\n', "", "[broker]", "broker: host is missing", 'host = "broker.lab"'),
    "a URL for a host": ('"broker.lab"', '"mqtt://broker.lab"', 'host = "broker.lab"', "no name or address", '"192.168.1.10"'),
    "a host that only mDNS knows": ('"broker.lab"', '"pi.local"', 'host = "broker.lab"', "no .local names", "the broker's address"),
    "a host with a port": ('"broker.lab"', '"broker.lab:1883"', 'host = "broker.lab"', "no name or address", '"192.168.1.10"'),
    "a host that is too long": ('"broker.lab"', f'"{"b" * 65}"', 'host = "broker.lab"', "no name or address",
                                'host = "broker.lab"'),
    "a host with an empty part": ('"broker.lab"', '"broker..lab"', 'host = "broker.lab"', "not 1 to 63", '"192.168.1.10"'),
    "a host with too long a part": ('"broker.lab"', f'"{"b" * 64}"', 'host = "broker.lab"', "not 1 to 63", '"192.168.1.10"'),
    "broker's port": ('host = "broker.lab"', 'host = "broker.lab"\nport = 65536', "", "broker: port is 65536", "port = 1883"),
    "an unknown key of the broker": ('host = "broker.lab"', 'hots = "broker.lab"', 'host = "broker.lab"',
                                     "unknown key 'hots'", 'Did you mean "host"?'),
    "the password in the wrong file": ('network = "FabLab"', 'network = "FabLab"\npassword = "x"', "[floor]",
                                       "wifi: unknown key 'password'", "Use one of: network."),
    "WiFi without a name": ('network = "FabLab"\n', "", "[wifi]", "wifi: network is missing", 'network = "FabLab"'),
    "a WiFi name that is too long": ('"FabLab"', f'"{"é" * 17}"', 'network = "FabLab"', "longer than 32 bytes", "own name"),
    "floor without a port": ("port = 8080\n", "", "[floor]", "floor: port is missing", "port = 1"),
    "floor's port as text": ("port = 8080", 'port = "8080"', "port = 8080", 'port is "8080"', "without quotes"),
    "floor's port 0": ("port = 8080", "port = 0", "port = 8080", "from 1 to 65535", "without quotes"),
    "floor misspelt": ("[floor]", "[flor]", "[floor]", "unknown table or key 'flor'", 'Did you mean "floor"?'),
}
MOVED_LINES = {"broker's port": 2, "the password in the wrong file": -1}
"""Where the mistake stands in a line that was added: how far from the place that is named."""


@pytest.mark.parametrize("mistake", WIRELESS_MISTAKES)
def test_a_mistake_in_what_came_with_mqtt(tmp_path: Path, mistake: str) -> None:
    old, new, place, what, mend = WIRELESS_MISTAKES[mistake]
    assert WIRELESS.count(old) == 1
    file = write(tmp_path, WIRELESS.replace(old, new))
    problem = problem_of(file, ["rpi-pico"])
    assert problem.where == str(file)
    assert what in problem.what and mend in problem.mend
    line = WIRELESS_LINES["[broker]"] if not place else 21 if place == "[[machine]]" else WIRELESS_LINES[place]
    assert problem.line == line + MOVED_LINES.get(mistake, 0)


HEADER = CSV.splitlines()[0] + "\n"
CSV_MISTAKES = {
    "wrong header": (CSV.replace("class", "klass", 1), 1, "Make it exactly member,name,class"),
    "semicolons": (CSV.replace(",", ";"), 1, "columns parted by commas"),
    "no number": (HEADER + "x,A,guest,,,active", 2, 'member is "x"'),
    "number zero": (HEADER + "0,A,guest,,,active", 2, 'member is "0"'),
    "number twice": (CSV + "7,E,guest,,,active", 6, "member 7 stands in line 2 already"),
    "no name": (HEADER + "1,,guest,,,active", 2, "name is blank"),
    "unknown class": (HEADER + "1,A,gest,,,active", 2, 'Did you mean "guest"?'),
    "unknown status": (HEADER + "1,A,guest,,,activ", 2, 'Did you mean "active"?'),
    "cells missing": (HEADER + "1,A,guest,,active", 2, "5 cells instead of 6"),
    "comma without quotes": (HEADER + "1,A, B,guest,,,active", 2, "7 cells instead of 6"),
    "open quotes": (CSV + '11,"E,guest,,,active\n12,F,guest,,,active', 6, "quotes in this row don't match"),
    "stray quotes": (HEADER + '1,"A"B,guest,,,active', 2, "quotes in this row don't match"),
    "bad hex": (HEADER + "1,A,guest,0102030G,,active", 2, 'badge "0102030G"'),
    "eaten by a spreadsheet": (HEADER + "1,A,guest,1.02E+13,,active", 2, "format the column as text"),
    "five bytes": (HEADER + "1,A,guest,0102030405,,active", 2, "4, 7 or 10 bytes"),
    "odd digits": (HEADER + "1,A,guest,010203040,,active", 2, "4, 7 or 10 bytes"),
    "badge twice": (CSV + "11,E,guest,04958CAA5C5E80,,active", 6, "badge 04958caa5c5e80 stands in line 2 already"),
    "badge twice in a row": (HEADER + "1,A,guest,01020304;01:02:03:04,,active", 2, "stands in line 2 already"),
    "training name": (HEADER + "1,A,guest,,Laser!,active", 2, 'training "Laser!"'),
    "training twice": (HEADER + "1,A,guest,,laser;laser:2027-01-01,active", 2, "stands twice"),
    "no such day": (HEADER + "1,A,guest,,laser:2027-02-30,active", 2, '"2027-02-30" is no day'),
    "day of another form": (HEADER + "1,A,guest,,laser:20270201,active", 2, '"20270201" is no day'),
    "empty": ("", 1, "the file is empty"),
    "blank": (" \n\n", 1, "the file is empty"),
}


@pytest.mark.parametrize("mistake", CSV_MISTAKES)
def test_a_mistake_in_the_members(tmp_path: Path, mistake: str) -> None:
    text, line, words = CSV_MISTAKES[mistake]
    problem = problem_of(write(tmp_path, members=text))
    assert problem.where == str(tmp_path / "members.csv")
    assert words in str(problem)
    assert problem.line == line


def test_lines_count_across_quoted_newlines_and_blank_lines(tmp_path: Path) -> None:
    text = HEADER + '\n1,"A\nB",guest,,,active\n'
    assert problem_of(write(tmp_path, members=text)).line == 3


@pytest.mark.parametrize("name", ["fabtap.toml", "members.csv"])
def test_not_utf8(tmp_path: Path, name: str) -> None:
    file = write(tmp_path)
    data = (tmp_path / name).read_bytes().replace(b"\n", b"\n#\xe9", 2).replace(b"\n#\xe9", b"\n", 1)
    (tmp_path / name).write_bytes(data)
    problem = problem_of(file)
    assert (problem.where, problem.line, problem.what) == (str(tmp_path / name), 3, "not UTF-8")


@pytest.mark.parametrize("name", ["fabtap.toml", "members.csv"])
def test_a_file_that_is_missing_or_a_folder(tmp_path: Path, name: str) -> None:
    file = write(tmp_path)
    (tmp_path / name).unlink()
    assert problem_of(file).where == str(tmp_path / name)
    (tmp_path / name).mkdir()
    assert "can't be read" in problem_of(file).what


def test_an_empty_toml(tmp_path: Path) -> None:
    assert problem_of(write(tmp_path, "")).what == "the file is empty"


def test_what_spreadsheets_write_is_fine(tmp_path: Path) -> None:
    lab = load_lab(write(tmp_path, TOML.replace("\n", "\r\n"), b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()))
    assert [member.number for member in lab.members] == [7, 8, 9, 10]


def test_boards_are_unchecked_without_a_list_and_a_lab_may_have_no_members(tmp_path: Path) -> None:
    lab = load_lab(write(tmp_path, TOML.replace("rpi-pico", "anything"), HEADER))
    assert (lab.machines[0].board, lab.members) == ("anything", ())


def test_access_entries(tmp_path: Path) -> None:
    lab = load_lab(write(tmp_path))
    laser, bench = lab.machines

    def reasons(machine: Machine, today: date) -> dict[int, str]:
        return {entry.member: REASONS[entry.reason] for entry in access_entries(lab, machine, today)}

    last_day = date(2026, 6, 30)
    assert reasons(laser, last_day) == {7: "none", 8: "none", 9: "member_held", 10: "no_training"}
    assert reasons(laser, date(2026, 7, 1))[8] == "training_expired"
    assert reasons(bench, date(2026, 7, 1)) == {7: "none", 8: "none", 9: "member_held", 10: "none"}
    entries = access_entries(lab, laser, last_day)
    assert [entry.uid for entry in entries] == sorted(entry.uid for entry in entries)
    assert len(entries) == 5
    assert {entry.member: entry.last_valid_day for entry in entries}[8] == last_day


def test_members_can_be_loaded_alone(tmp_path: Path) -> None:
    write(tmp_path)
    assert len(load_members(tmp_path / "members.csv")) == 4


def test_find_line() -> None:
    text = 'top = 1\n[lab]\nid = "x" # [[machine]]\n# [[machine]]\nnote = """\n[[machine]]\nid = 1\n"""\n' \
           ' [[ machine ]] # first\n"id" = 1\nlist = [\n  "id",\n]\n[[machine]]\nport = 1\n[lab.more]\nx = 1\n'
    assert find_line(text, "", key="top") == 1
    assert find_line(text, "lab") == 2
    assert find_line(text, "lab", key="id") == 3
    assert find_line(text, "machine", 1) == 9
    assert find_line(text, "machine", 1, "id") == 10
    assert find_line(text, "machine", 1, "list") == 11
    assert find_line(text, "machine", 2, "port") == 15
    assert find_line(text, "machine", 2, "id") == 14
    assert find_line(text, "machine", 3) is None
    assert find_line(text, "nothing", key="id") is None


def test_a_problem_without_a_line() -> None:
    assert str(Problem("keys.toml", None, "it is missing", "Make it.")) == "keys.toml: it is missing. Make it."
