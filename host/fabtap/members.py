"""Who are the members, which badges and trainings do they have? Reads members.csv and checks it completely."""
import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from fabtap.problem import Problem
from fabtap.toml_table import NAME_CHARACTERS_MAX, guess, is_name, read_text, shown
from nodecore.roster import MEMBERS_MAX

CLASSES = ("parent-cooperative", "worker-owner", "community-stakeholder", "trainee", "guest")
STATUSES = ("active", "held")
COLUMNS = ("member", "name", "class", "badges", "trainings", "status")
UID_BYTES = (4, 7, 10)
NUMBER_MAX = 2**31 - 1


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


def load_members(path: str | Path) -> tuple[Member, ...]:
    """The checked members of a members.csv. Raises Problem."""
    file = Path(path)
    text = read_text(file, "Create it, or mend members = in fabtap.toml")
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
        raise wrong(f"member is {shown(number)}, not a whole number from 1 to {NUMBER_MAX}", "Write e.g. 17.")
    if not name or not name.isprintable() or len(name) > NAME_CHARACTERS_MAX:
        raise wrong("name is blank, too long or has invisible characters", "Write visible characters on one line.")
    if member_class not in CLASSES:
        raise wrong(f'there is no class "{member_class}"', guess(member_class, CLASSES))
    if status not in STATUSES:
        raise wrong(f'status is "{status}"', guess(status, STATUSES))
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
        if not is_name(name) or name in found:
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
