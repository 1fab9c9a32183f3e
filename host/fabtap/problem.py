"""What does FabTap say when a person has to mend something, and in which line?

A Problem is a message to a person: it says what happened, to what, and what to do next. The command line catches it,
prints it and exits with 2. Everything else that escapes is a fault of the program and keeps its traceback.
"""
import re
from collections.abc import Iterator
from pathlib import Path

_HEADER = re.compile(r"\s*\[\[?\s*([A-Za-z0-9_-]+)\s*\]\]?\s*(#.*)?$")


class Problem(Exception):
    """A mistake that a person can mend.

    `where` is the file or thing; `line` counts from 1, or is None where lines mean nothing; `what` says what is wrong,
    without a full stop; `mend` is a sentence that says what to do next.
    """

    def __init__(self, where: str | Path, line: int | None, what: str, mend: str) -> None:
        super().__init__(where, line, what, mend)
        self.where = str(where)
        self.line = line
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        place = self.where if self.line is None else f"{self.where}:{self.line}"
        return f"{place}: {self.what}. {self.mend}"


def find_line(text: str, table: str, nth: int = 1, key: str | None = None) -> int | None:
    """Line (from 1) of the `nth` header [table] or [[table]], or of `key` below it; tomllib tells no positions.

    A key that isn't there gives the header's line; a header that isn't there gives None. The table "" is what stands
    above the first header.
    """
    seen = 0
    here = 0 if table == "" else None
    for number, line in _lines_outside_long_strings(text):
        header = _HEADER.match(line)
        if header:
            if here is not None:
                break
            seen += header[1] == table
            here = number if header[1] == table and seen == nth else None
        elif here is not None and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return here or None


def _lines_outside_long_strings(text: str) -> Iterator[tuple[int, str]]:
    inside = ""
    for number, line in enumerate(text.split("\n"), 1):
        if not inside:
            yield number, line
            if line.lstrip().startswith("#"):
                continue
        for mark in re.findall(r'"""|\'\'\'', line):
            inside = mark if not inside else "" if inside == mark else inside
