"""Which boards are there, what does boards/<name>/board.toml say of one, and can its pins do what they are for?"""
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fabtap.problem import Problem

INSTALLED = Path(__file__).parent / "_boards"
CHECKOUT = Path(__file__).parents[2] / "boards"


CONSOLES = ("usb", "uart")

OUTPUTS = frozenset(("relay", "led", "buzzer", "reader_sck", "reader_mosi", "reader_select", "reader_reset", "meter_tx"))
PULLED_UP = frozenset(("stop", "estop"))  # the node asks for the chip's own pull-up
FUNCTIONS = OUTPUTS | PULLED_UP | {"reader_miso", "meter_rx"}

# By chip: pins, the functions that they can't have, and why. Datasheets: ESP32 section 2.2 (2.4 strapping), Pico W 2.1.
PIN_RULES = {
    "esp32": (
        ((0, 2, 5, 12, 15), FUNCTIONS, "is a strapping pin: what hangs on it decides how the chip starts, and it moves meanwhile"),
        ((1, 3), FUNCTIONS, "is the console's: the computer reads the node there"),
        (range(6, 12), FUNCTIONS, "is the flash's"),
        (range(34, 40), OUTPUTS, "can only be an input"),
        (range(34, 40), PULLED_UP, "has no pull-up"),
        ((14,), frozenset(("relay",)), "is high while the chip starts"),
        ((20, 24, 28, 29, 30, 31), FUNCTIONS, "isn't there"),
    ),
    "rp2040": (((23, 24, 29), FUNCTIONS, "is the board's own: power supply, or the WiFi chip"),),
}
PIN_LAST = {"esp32": 39, "rp2040": 29}
PIN_RULES_WIFI = {"rp2040": (((25,), FUNCTIONS, "is the WiFi chip's"),)}


@dataclass(frozen=True)
class Board:
    """One kind of board. Pins are GPIO numbers, sizes bytes.

    `console` is "usb" (flow control; the other three are 0) or "uart": then `fifo_bytes` is the chip's own buffer, `ring_bytes`
    MicroPython's behind it, and what doesn't fit while flash is busy is lost.
    """

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
    console: str
    ring_bytes: int
    fifo_bytes: int
    baud: int
    has_wifi: bool


def pin_complaints(chip: str, has_wifi: bool, pins: Mapping[str, int]) -> list[str]:
    """Why these pins can't have these functions; none if all is well."""
    rules = PIN_RULES.get(chip, ()) + (PIN_RULES_WIFI.get(chip, ()) if has_wifi else ())
    found = [f"{function} is missing" for function in sorted(FUNCTIONS - pins.keys())]
    owners: dict[int, str] = {}
    for function, pin in pins.items():
        owner = owners.setdefault(pin, function)
        if owner != function:
            found.append(f"{function} and {owner} are both on GPIO {pin}")
        if not 0 <= pin <= PIN_LAST.get(chip, pin):
            found.append(f"{function} is on GPIO {pin}, which isn't there")
        found += [f"{function} is on GPIO {pin}, which {reason}" for refused, functions, reason in rules
                  if pin in refused and function in functions]
    return found


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
        flash, console = table["flash"], table["console"]
        if console["kind"] not in CONSOLES:
            raise Problem(path, None, f"has a console of kind {console['kind']!r}", f"Use one of: {', '.join(CONSOLES)}.")
        complaints = pin_complaints(table["chip"], table["wifi"]["has"], table["pins"])
        if complaints:
            raise Problem(path, None, f"can't be used: {'; '.join(complaints)}", "Choose other pins; see the board's README.md.")
        return Board(
            name=name, chip=table["chip"], port=table["port"], usb=tuple(table["usb"]), blocks=flash["blocks"],
            block_bytes=flash["block_bytes"], program_bytes=flash["program_bytes"], segment_bytes=flash["segment_bytes"],
            journal_records=flash["journal_records"], timer=table["relay"]["timer"],
            timer_hard=table["relay"]["timer_hard"], watchdog_ms=table["watchdog"]["timeout_ms"],
            pins=dict(table["pins"]), buses=dict(table["buses"]), console=console["kind"], ring_bytes=console["ring_bytes"],
            fifo_bytes=console["fifo_bytes"], baud=console["baud"], has_wifi=table["wifi"]["has"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise Problem(path, None, f"can't be used: {error}", "Compare it with another board's file.") from None
