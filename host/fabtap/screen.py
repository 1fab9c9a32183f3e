"""How does a command show its result: a table for people, JSON for programs?"""
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH_OF_A_FILE = 240
"""In a file or a pipe a table must not be cut to the width of a terminal that isn't there."""

OUT = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=WIDTH_OF_A_FILE)
ERR = Console(stderr=True)


def show_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, default=str))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = (),
          whole: Sequence[str] = ()) -> Table:
    """A table; the columns named in `right` are numbers, those in `right` and `whole` are never broken."""
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False,
                 collapse_padding=True)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in right or column in whole)
    for row in rows:
        made.add_row(*[Text("" if cell is None else str(cell)) for cell in row])
    return made
