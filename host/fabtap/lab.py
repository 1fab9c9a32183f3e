"""Who and what is in the lab: its machines, tariffs, members, badges and trainings?

Reads `fabtap.toml` and `members.csv` and checks both completely: a Lab that exists is consistent, and every mistake is
a Problem with its file, its line and its mend.

- Machine ids, node numbers, ports, member numbers and badges are unique.
- A machine and a member class have at most one tariff; "*" stands for every class, so it overlaps with each of them.
- Every class that a member has is priced on every machine.
- Amounts of money are written as text and become Decimal: a float never comes near them.
"""
import csv
import difflib
import io
import re
import tomllib
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from fabtap.problem import Problem, find_line
from nodecore.roster import MEMBERS_MAX
from nodecore.wire import REASONS

CLASSES = ("parent-cooperative", "worker-owner", "community-stakeholder", "trainee", "guest")
STATUSES = ("active", "held")
COLUMNS = ("member", "name", "class", "badges", "trainings", "status")
UID_BYTES = (4, 7, 10)
NUMBER_MAX = 2**31 - 1
NAME_CHARACTERS_MAX = 100
CHECKPOINT_S_DEFAULT = 60
BADGE_OUT_MS_DEFAULT = 3000

# ISO 4217: currencies whose smallest unit isn't a hundredth.
CURRENCIES_WITHOUT_DECIMALS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
CURRENCIES_OF_THREE_DECIMALS = "BHD IQD JOD KWD LYD OMR TND"

KEYS = {
    "lab": ("id", "name", "currency", "timezone", "members", "database", "keys"),
    "machine": ("id", "name", "node", "board", "port", "training", "working_w", "checkpoint_s", "badge_out_ms"),
    "tariff": ("machine", "class", "per_minute_on", "per_minute_working", "per_kwh"),
}

_REASON_NUMBERS = {name: number for number, name in REASONS.items()}


@dataclass(frozen=True)
class Training:
    """What a member was trained for; `last_valid_day` None means for good."""

    name: str
    last_valid_day: date | None


@dataclass(frozen=True)
class Badge:
    """A card's UID: 4, 7 or 10 bytes."""

    uid: bytes


@dataclass(frozen=True)
class Member:
    """One row of members.csv."""

    number: int
    name: str
    member_class: str
    badges: tuple[Badge, ...]
    trainings: tuple[Training, ...]
    status: str


@dataclass(frozen=True)
class Machine:
    """One [[machine]]; `port` is resolved against the toml's folder; `training` None means that nobody needs one."""

    id: str
    name: str
    node: int
    board: str
    port: Path
    training: str | None
    working_w: int
    checkpoint_s: int
    badge_out_ms: int
    line: int | None


@dataclass(frozen=True)
class Tariff:
    """One [[tariff]]: amounts in the lab's currency, for the `classes` that it names ("*" is spelled out)."""

    machine: str
    classes: tuple[str, ...]
    per_minute_on: Decimal
    per_minute_working: Decimal
    per_kwh: Decimal


@dataclass(frozen=True)
class Lab:
    """A checked lab; `file` is the toml, the other paths are resolved against its folder."""

    file: Path
    id: str
    name: str
    currency: str
    timezone: zoneinfo.ZoneInfo
    members_file: Path
    database: Path
    keys: Path
    machines: tuple[Machine, ...]
    tariffs: tuple[Tariff, ...]
    members: tuple[Member, ...]

    @property
    def currency_exponent(self) -> int:
        """Decimal places of the currency's smallest unit."""
        if self.currency in CURRENCIES_WITHOUT_DECIMALS:
            return 0
        return 3 if self.currency in CURRENCIES_OF_THREE_DECIMALS else 2

    def tariff(self, machine_id: str, member_class: str) -> Tariff | None:
        """The one tariff of a machine and a class, or None."""
        return next((tariff for tariff in self.tariffs
                     if tariff.machine == machine_id and member_class in tariff.classes), None)


class AccessEntry(NamedTuple):
    """What a node's roster says of one badge: `reason` 0 lets it in, else a number of nodecore.wire.REASONS."""

    uid: bytes
    member: int
    reason: int
    last_valid_day: date | None


def access_entries(lab: Lab, machine: Machine, today: date) -> list[AccessEntry]:
    """Every badge of the lab as `machine` should treat it on `today` (the lab's own date), in the order of UIDs.

    `last_valid_day` is the last day of the training that the machine asks for, None if it has none or asks for none.
    """
    entries = []
    for member in lab.members:
        training = next((held for held in member.trainings if held.name == machine.training), None)
        last_valid_day = training.last_valid_day if training else None
        if member.status == "held":
            reason = "member_held"
        elif machine.training is not None and training is None:
            reason = "no_training"
        elif last_valid_day is not None and last_valid_day < today:
            reason = "training_expired"
        else:
            reason = "none"
        for badge in member.badges:
            entries.append(AccessEntry(badge.uid, member.number, _REASON_NUMBERS[reason], last_valid_day))
    return sorted(entries, key=lambda entry: entry.uid)


def load_lab(path: str | Path, boards: Collection[str] | None = None) -> Lab:
    """The checked lab of a `fabtap.toml`; `boards` are the names of known boards, None leaves them unchecked.

    Raises Problem for every mistake in the toml or in the members' file.
    """
    file = Path(path)
    toml = _Toml(file, _read_text(file, "Create it, or name another file"))
    table = toml.one("lab")
    machines = _machines(toml, boards)
    lab = Lab(
        file=file,
        id=table.name_of_thing("id"),
        name=table.text("name"),
        currency=_currency(table),
        timezone=_timezone(table),
        members_file=file.parent / table.text("members", '"members.csv"'),
        database=file.parent / table.text("database", '"fabtap.db"'),
        keys=file.parent / table.text("keys", '"keys.toml"'),
        machines=machines,
        tariffs=_tariffs(toml, {machine.id for machine in machines}),
        members=load_members(file.parent / table.text("members")),
    )
    _check_priced(lab)
    return lab


def load_members(path: str | Path) -> tuple[Member, ...]:
    """The checked members of a members.csv. Raises Problem."""
    file = Path(path)
    text = _read_text(file, "Create it, or mend members = in fabtap.toml")
    rows = _csv_rows(file, text)
    line, header = next(rows, (1, []))
    if tuple(header) != COLUMNS:
        raise Problem(file, line, f"the first line is {','.join(header)!r}",
                      f"Make it exactly {','.join(COLUMNS)} (columns parted by commas).")
    members = []
    seen: dict[str, int] = {}
    badges = 0
    for line, cells in rows:
        member = _member(file, line, cells)
        for thing in (f"member {member.number}", *(f"badge {badge.uid.hex()}" for badge in member.badges)):
            if thing in seen:
                raise Problem(file, line, f"{thing} stands in line {seen[thing]} already",
                              "A number and a badge belong to one member, once; change or delete one of the two.")
            seen[thing] = line
        badges += len(member.badges)
        if badges > MEMBERS_MAX:
            raise Problem(file, line, f"more than {MEMBERS_MAX} badges, which is what a node takes",
                          "Take badges that are no longer used out.")
        members.append(member)
    return tuple(members)


class _Toml:
    """The parsed file with its text, so that a Problem can name the line."""

    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        self.text = text
        try:
            # Decimal keeps a bare number as it was written, for the message that asks for quotes.
            self.data: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
            line = int(found[1]) if found else text.count("\n") + 1
            what = re.sub(r" \(at .*\)$", "", str(error))
            raise Problem(file, line, f"not TOML: {what}", "Mend this line; text needs quotes on both sides.") from None
        for name in self.data:
            if name not in KEYS:
                raise Problem(file, self.line(name), f"unknown table or key {name!r}", _guess(name, KEYS))

    def line(self, name: str) -> int | None:
        return find_line(self.text, name) or find_line(self.text, "", key=name)

    def one(self, name: str) -> "_Table":
        """The table [name]."""
        if not isinstance(self.data.get(name), dict):
            raise Problem(self.file, self.line(name) or 1, f"there is no table [{name}]", f"Write [{name}].")
        return _Table(self, name, 1, name, self.data[name])

    def many(self, name: str) -> list["_Table"]:
        """The tables [[name]], in the file's order."""
        rows = self.data.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise Problem(self.file, self.line(name), f"{name} isn't a list of tables", f"Write [[{name}]] above each.")
        return [_Table(self, name, nth, f"{name} {nth}", row) for nth, row in enumerate(rows, 1)]


class _Table:
    """One table of the toml: gives checked values, or a Problem at the key's line."""

    def __init__(self, toml: _Toml, name: str, nth: int, label: str, row: dict[str, Any]) -> None:
        self.toml, self.name, self.nth, self.label, self.row = toml, name, nth, label, row
        for key in row:
            if key not in KEYS[name]:
                raise self.problem(key, f"unknown key {key!r}", _guess(key, KEYS[name]))

    def line(self, key: str | None = None) -> int | None:
        return find_line(self.toml.text, self.name, self.nth, key)

    def problem(self, key: str, what: str, mend: str) -> Problem:
        return Problem(self.toml.file, self.line(key), f"{self.label}: {what}", mend)

    def value(self, key: str, example: str) -> Any:
        if key not in self.row:
            raise self.problem(key, f"{key} is missing", f"Add it, e.g. {key} = {example}.")
        return self.row[key]

    def text(self, key: str, example: str = '"text"') -> str:
        value = self.value(key, example)
        if not isinstance(value, str):
            raise self.problem(key, f"{key} is {_shown(value)}, not text", f"Use quotes, e.g. {key} = {example}.")
        if not value.strip() or not value.isprintable() or len(value) > NAME_CHARACTERS_MAX:
            raise self.problem(key, f"{key} is {_shown(value)}, which is blank, too long or has invisible characters",
                               f"Write 1 to {NAME_CHARACTERS_MAX} visible characters, e.g. {key} = {example}.")
        return value

    def name_of_thing(self, key: str) -> str:
        value = self.text(key, '"laser"')
        if not _is_name(value):
            raise self.problem(key, f"{key} is {_shown(value)}, not a plain name",
                               f'Use a-z, 0-9 and hyphens, at most 32, e.g. {key} = "laser".')
        return value

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        if default is not None and key not in self.row:
            return default
        value = self.value(key, str(default or low))
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.problem(key, f"{key} is {_shown(value)}, not a whole number from {low} to {high}",
                               f"Write a number without quotes, e.g. {key} = {default or low}.")
        return value

    def amount(self, key: str) -> Decimal:
        value = self.value(key, '"0.15"')
        example = f'Write a number in quotes, e.g. {key} = "0.15".'
        if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
            raise self.problem(key, f"{key} is {value}, a number without quotes", example)
        if isinstance(value, str) and re.fullmatch(r"-[0-9.]+", value):
            raise self.problem(key, f"{key} is {_shown(value)}, less than nothing", example)
        if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
            raise self.problem(key, f"{key} is {_shown(value)}, not an amount of money", example)
        return Decimal(value)


def _machines(toml: _Toml, boards: Collection[str] | None) -> tuple[Machine, ...]:
    tables = toml.many("machine")
    if not tables:
        raise Problem(toml.file, 1, "there is no machine", "Add a [[machine]] for each.")
    machines = [_machine(table, boards) for table in tables]
    for key in ("id", "node", "port"):
        seen: dict[Any, _Table] = {}
        for table, machine in zip(tables, machines, strict=True):
            value = getattr(machine, key)
            first = seen.setdefault(value, table)
            if first is not table:
                raise table.problem(key, f"{key} {_shown(table.row[key])} is taken by {first.label} "
                                         f"(line {first.line(key)})", f"Give each machine {key} of its own.")
    return tuple(machines)


def _machine(table: _Table, boards: Collection[str] | None) -> Machine:
    board = table.text("board", '"rpi-pico"')
    if boards is not None and board not in boards:
        raise table.problem("board", f"there is no board {_shown(board)}", _guess(board, boards))
    return Machine(
        id=table.name_of_thing("id"),
        name=table.text("name", '"Laser cutter"'),
        node=table.whole("node", 1, NUMBER_MAX),
        board=board,
        port=table.toml.file.parent / table.text("port", '"/dev/serial/by-id/..."'),
        training=table.name_of_thing("training") if "training" in table.row else None,
        working_w=table.whole("working_w", 1, 23_000),
        checkpoint_s=table.whole("checkpoint_s", 1, 60, CHECKPOINT_S_DEFAULT),
        badge_out_ms=table.whole("badge_out_ms", 0, 10_000, BADGE_OUT_MS_DEFAULT),
        line=table.line(),
    )


def _tariffs(toml: _Toml, machine_ids: Collection[str]) -> tuple[Tariff, ...]:
    tariffs = []
    seen: dict[tuple[str, str], _Table] = {}
    for table in toml.many("tariff"):
        machine = table.name_of_thing("machine")
        if machine not in machine_ids:
            raise table.problem("machine", f"there is no machine {_shown(machine)}", _guess(machine, machine_ids))
        classes = _tariff_classes(table)
        for member_class in classes:
            first = seen.setdefault((machine, member_class), table)
            if first is not table:
                raise table.problem("class", f'machine "{machine}" and class "{member_class}" have a tariff already: '
                                             f"{first.label} (line {first.line('class')})",
                                    'Price each class once; "*" stands for every class.')
        tariffs.append(Tariff(machine, classes, table.amount("per_minute_on"), table.amount("per_minute_working"),
                              table.amount("per_kwh")))
    return tuple(tariffs)


def _tariff_classes(table: _Table) -> tuple[str, ...]:
    value = table.value("class", '"worker-owner"')
    if value == "*":
        return CLASSES
    listed = value if isinstance(value, list) else [value]
    if not listed or len(set(map(str, listed))) != len(listed):
        raise table.problem("class", f"class is {_shown(value)}, empty or with a class twice", "Name each class once.")
    for member_class in listed:
        if member_class not in CLASSES:
            raise table.problem("class", f"there is no class {_shown(member_class)}", _guess(member_class, CLASSES))
    return tuple(listed)


def _check_priced(lab: Lab) -> None:
    for machine in lab.machines:
        for member in lab.members:
            if lab.tariff(machine.id, member.member_class) is None:
                raise Problem(lab.file, machine.line, f'machine "{machine.id}" has no tariff for class '
                              f'"{member.member_class}", which member {member.number} has',
                              f'Add a [[tariff]] with machine = "{machine.id}" and class = "{member.member_class}".')


def _currency(lab: _Table) -> str:
    value = lab.text("currency", '"USD"')
    if not re.fullmatch(r"[A-Z]{3}", value):
        raise lab.problem("currency", f"currency is {_shown(value)}, not three capitals", 'E.g. currency = "USD".')
    return value


def _timezone(lab: _Table) -> zoneinfo.ZoneInfo:
    value = lab.text("timezone", '"America/Chicago"')
    try:
        return zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        mend = _guess(value, known, 'E.g. timezone = "America/Chicago".') if known else "Run pip install tzdata."
        raise lab.problem("timezone", f"there is no timezone {_shown(value)}", mend) from None


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(line where the row starts, stripped cells); blank lines are skipped. Raises Problem for stray quotes."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise Problem(file, line, f"the quotes in this row don't match ({error})",
                          'Put a quote before and after the cell, and write "" for a quote inside.') from None
        if cells is None:
            return
        if cells:
            yield line, [cell.strip() for cell in cells]


def _member(file: Path, line: int, cells: list[str]) -> Member:
    def wrong(what: str, mend: str) -> Problem:
        return Problem(file, line, what, mend)

    if len(cells) != len(COLUMNS):
        raise wrong(f"{len(cells)} cells instead of {len(COLUMNS)}", "Put a cell with a comma inside in quotes.")
    number, name, member_class, badges, trainings, status = cells
    if not re.fullmatch(r"[0-9]{1,10}", number) or not 1 <= int(number) <= NUMBER_MAX:
        raise wrong(f'member is "{number}", not a whole number from 1 to {NUMBER_MAX}', "Write e.g. 17.")
    if not name or not name.isprintable() or len(name) > NAME_CHARACTERS_MAX:
        raise wrong("name is blank, too long or has invisible characters", "Write visible characters on one line.")
    if member_class not in CLASSES:
        raise wrong(f'there is no class "{member_class}"', _guess(member_class, CLASSES))
    if status not in STATUSES:
        raise wrong(f'status is "{status}"', _guess(status, STATUSES))
    found = []
    for part in _parts(badges):
        digits = part.replace(":", "")
        if not re.fullmatch(r"([0-9A-Fa-f]{2})+", digits) or len(digits) // 2 not in UID_BYTES:
            raise wrong(f'badge "{part}" isn\'t a UID of 4, 7 or 10 bytes in hexadecimal',
                        "Write e.g. 04:95:8c:aa:5c:5e:80; in a spreadsheet, format the column as text first.")
        found.append(Badge(bytes.fromhex(digits)))
    return Member(int(number), name, member_class, tuple(found), _trainings(trainings, wrong), status)


def _trainings(cell: str, wrong: Callable[[str, str], Problem]) -> tuple[Training, ...]:
    found: dict[str, Training] = {}
    for part in _parts(cell):
        name, colon, day = part.partition(":")
        if not _is_name(name) or name in found:
            raise wrong(f'training "{part}" isn\'t a plain name, or stands twice', "E.g. laser;mill:2027-01-31.")
        try:
            if colon and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", day):
                raise ValueError(day)
            found[name] = Training(name, date.fromisoformat(day) if colon else None)
        except ValueError:
            raise wrong(f'training "{part}": "{day}" is no day', "E.g. mill:2027-01-31.") from None
    return tuple(found.values())


def _parts(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(";") if part.strip()]


def _read_text(file: Path, mend: str) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise Problem(file, None, f"can't be read ({error.strerror})", f"{mend}.") from None
    if not data.strip():
        raise Problem(file, 1, "the file is empty", "Fill it, or restore it from a backup.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise Problem(file, line, "not UTF-8", "Save the file as UTF-8 (spreadsheets call it CSV UTF-8).") from None


def _is_name(value: str) -> bool:
    return re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", value) is not None


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _guess(value: object, known: Iterable[str], example: str = "") -> str:
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, 1)
    if near:
        return f'Did you mean "{near[0]}"?'
    return example or f"Use one of: {', '.join(names)}."
