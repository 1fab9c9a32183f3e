"""How is a value of fabtap.toml read so that every mistake is named with its line and its mend?"""
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from fabtap.problem import Problem, find_line

NAME_CHARACTERS_MAX = 100
SHOWN_MAX = 60


class Toml:
    """The parsed file with its text, so that a Problem can name the line. `keys` are the known tables and their keys."""

    def __init__(self, file: Path, text: str, keys: Mapping[str, tuple[str, ...]]) -> None:
        self.file = file
        self.text = text
        self.keys = keys
        try:
            # Decimal keeps a bare number as it was written, for the message that asks for quotes.
            self.data: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
            line = int(found[1]) if found else text.count("\n") + 1
            what = re.sub(r" \(at .*\)$", "", str(error))
            mend = ("Write each table once; several machines or tariffs are [[machine]], [[tariff]]." if "declare" in what
                    else "Mend this line; text needs quotes on both sides.")
            raise Problem(file, line, f"not TOML: {what}", mend) from None
        for name in self.data:
            if name not in keys:
                raise Problem(file, self.line(name), f"unknown table or key {name!r}", guess(name, keys))

    def line(self, name: str) -> int | None:
        return find_line(self.text, name) or find_line(self.text, "", key=name)

    def one(self, name: str) -> "Table":
        """The table [name]."""
        if isinstance(self.data.get(name), list):
            raise Problem(self.file, self.line(name) or 1, f"{name} is a list, and there is only one", f"Write [{name}], once.")
        if not isinstance(self.data.get(name), dict):
            raise Problem(self.file, self.line(name) or 1, f"there is no table [{name}]", f"Write [{name}].")
        return Table(self, name, 1, name, self.data[name])

    def one_or_none(self, name: str) -> "Table | None":
        """The table [name], None when the file has none."""
        return self.one(name) if name in self.data else None

    def many(self, name: str) -> list["Table"]:
        """The tables [[name]], in the file's order."""
        rows = self.data.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise Problem(self.file, self.line(name), f"{name} isn't a list of tables", f"Write [[{name}]] above each.")
        return [Table(self, name, nth, f"{name} {nth}", row) for nth, row in enumerate(rows, 1)]


class Table:
    """One table of the toml: gives checked values, or a Problem at the key's line."""

    def __init__(self, toml: Toml, name: str, nth: int, label: str, row: dict[str, Any]) -> None:
        self.toml, self.name, self.nth, self.label, self.row = toml, name, nth, label, row
        for key in row:
            if key not in toml.keys[name]:
                raise self.problem(key, f"unknown key {key!r}", guess(key, toml.keys[name]))

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
            raise self.problem(key, f"{key} is {shown(value)}, not text", f"Use quotes, e.g. {key} = {example}.")
        if not value.strip() or not value.isprintable() or len(value) > NAME_CHARACTERS_MAX:
            raise self.problem(key, f"{key} is {shown(value)}, which is blank, too long or has invisible characters",
                               f"Write 1 to {NAME_CHARACTERS_MAX} visible characters, e.g. {key} = {example}.")
        return value

    def name_of_thing(self, key: str) -> str:
        value = self.text(key, '"laser"')
        if not is_name(value):
            raise self.problem(key, f"{key} is {shown(value)}, not a plain name",
                               f'Use a-z, 0-9 and hyphens, at most 32, e.g. {key} = "laser".')
        return value

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        if default is not None and key not in self.row:
            return default
        value = self.value(key, str(default or low))
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.problem(key, f"{key} is {shown(value)}, not a whole number from {low} to {high}",
                               f"Write a number without quotes, e.g. {key} = {default or low}.")
        return value

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """One of `known`; the first is the default."""
        value = self.text(key) if key in self.row else known[0]
        if value not in known:
            raise self.problem(key, f"{key} is {shown(value)}", guess(value, known))
        return value

    def amount(self, key: str) -> Decimal:
        value = self.value(key, '"0.15"')
        example = f'Write a number in quotes, e.g. {key} = "0.15".'
        if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
            raise self.problem(key, f"{key} is {value}, a number without quotes", example)
        if isinstance(value, str) and re.fullmatch(r"-[0-9.]+", value):
            raise self.problem(key, f"{key} is {shown(value)}, less than nothing", example)
        if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
            raise self.problem(key, f"{key} is {shown(value)}, not an amount of money", example)
        return Decimal(value)


def read_text(file: Path, mend: str) -> str:
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


def is_name(value: str) -> bool:
    return re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", value) is not None


def shown(value: object) -> str:
    """A value for a message: in quotes if it is text, cut, and without characters that would work on a terminal."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    text = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"
    return f'"{text}"' if isinstance(value, str) else text


def guess(value: object, known: Iterable[str], example: str = "") -> str:
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, 1)
    if near:
        return f'Did you mean "{near[0]}"?'
    return example or f"Use one of: {', '.join(names)}."
