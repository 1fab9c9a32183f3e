"""Which boards are there, and what does boards/<name>/board.toml say of one?"""
import tomllib
from dataclasses import dataclass
from pathlib import Path

from fabtap.problem import Problem

INSTALLED = Path(__file__).parent / "_boards"
CHECKOUT = Path(__file__).parents[2] / "boards"


@dataclass(frozen=True)
class Board:
    """One kind of board. Pins are GPIO numbers, sizes bytes."""

    name: str
    chip: str
    port: str
    usb: tuple[str, ...]
    blocks: int
    block_bytes: int
    program_bytes: int
    segment_bytes: int
    journal_records: int
    timer: int
    timer_hard: int
    watchdog_ms: int
    pins: dict[str, int]
    buses: dict[str, int]


def boards_folder() -> Path:
    """The checkout's boards/ when we run from one, else the wheel's copy."""
    return CHECKOUT if CHECKOUT.is_dir() else INSTALLED


def board_names() -> list[str]:
    """All boards that can be named in fabtap.toml."""
    return sorted(path.parent.name for path in boards_folder().glob("*/board.toml"))


def load_board(name: str) -> Board:
    """Read one board. Raises Problem for a name that has no folder or a file with a mistake."""
    path = boards_folder() / name / "board.toml"
    if name not in board_names():
        raise Problem(name, None, "is no board that FabTap knows", f"Known boards: {', '.join(board_names())}.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        flash = table["flash"]
        return Board(
            name=name, chip=table["chip"], port=table["port"], usb=tuple(table["usb"]), blocks=flash["blocks"],
            block_bytes=flash["block_bytes"], program_bytes=flash["program_bytes"], segment_bytes=flash["segment_bytes"],
            journal_records=flash["journal_records"], timer=table["relay"]["timer"],
            timer_hard=table["relay"]["timer_hard"], watchdog_ms=table["watchdog"]["timeout_ms"],
            pins=dict(table["pins"]), buses=dict(table["buses"]))
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise Problem(path, None, f"can't be used: {error}", "Compare it with another board's file.") from None
