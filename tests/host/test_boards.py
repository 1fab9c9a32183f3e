"""Does every board load, can its pins do what they are for, and is a board with a mistake refused with the reason?"""
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fabtap import boards
from fabtap.boards import FUNCTIONS, OUTPUTS, board_names, boards_folder, load_board, pin_complaints
from fabtap.problem import Problem

GOOD = {"esp32": load_board("esp32-devkit").pins, "rp2040": load_board("rpi-pico-w").pins}


def toml_of(name: str) -> str:
    return (boards_folder() / name / "board.toml").read_text("utf-8")


def test_these_boards_are_there() -> None:
    assert board_names() == ["esp32-devkit", "rpi-pico", "rpi-pico-w"]


@pytest.mark.parametrize("name", board_names())
def test_a_board_loads_and_its_pins_can_do_what_they_are_for(name: str) -> None:
    board = load_board(name)
    assert pin_complaints(board.chip, board.has_wifi, board.pins) == []
    assert set(board.pins) == FUNCTIONS
    assert len(set(board.pins.values())) == len(board.pins)
    assert board.chip in boards.PIN_RULES
    assert set(board.buses) == {"reader_spi", "meter_uart"}


@pytest.mark.parametrize("name", board_names())
def test_the_wiring_page_names_every_pin_and_says_what_fabtap_is_not(name: str) -> None:
    page = (boards_folder() / name / "README.md").read_text("utf-8")
    assert "access control, not a safety function" in page
    assert "hard-wired" in page and "electrician" in page
    rows = {cells[1].strip(): cells[2].split() for cells in (line.split("|") for line in page.splitlines()) if len(cells) > 4}
    for function, pin in load_board(name).pins.items():
        assert rows[function][0] == str(pin), function


@pytest.mark.parametrize("name", board_names())
def test_the_flash_fits_the_chip_and_the_console_says_what_it_can_lose(name: str) -> None:
    board, table = load_board(name), tomllib.loads(toml_of(name))
    assert board.blocks * board.block_bytes <= {"rp2040": 2, "esp32": 4}[board.chip] * 1024 * 1024
    assert 1000 <= board.watchdog_ms <= 8300
    assert table["console"].keys() == {"kind", "ring_bytes", "fifo_bytes", "baud"}
    numbers = (board.ring_bytes, board.fifo_bytes, board.baud)
    assert all(numbers) if board.console == "uart" else numbers == (0, 0, 0)


def test_what_the_boards_differ_in() -> None:
    pico, pico_w, esp32 = load_board("rpi-pico"), load_board("rpi-pico-w"), load_board("esp32-devkit")
    assert (pico.has_wifi, pico_w.has_wifi, esp32.has_wifi) == (False, True, True)
    assert (pico.console, pico_w.console, esp32.console) == ("usb", "usb", "uart")
    assert (esp32.ring_bytes, esp32.fifo_bytes, esp32.baud) == (260, 128, 115200)
    assert [board.blocks for board in (pico, pico_w, esp32)] == [352, 212, 512]
    assert (esp32.program_bytes, esp32.segment_bytes, esp32.timer, esp32.timer_hard) == (32, 96, 0, 0)


# chip, has WiFi, function, pin, what is said
BAD_PINS = [
    ("esp32", True, "relay", 2, "is a strapping pin"),
    ("esp32", True, "stop", 0, "is a strapping pin"),
    ("esp32", True, "led", 5, "is a strapping pin"),
    ("esp32", True, "reader_miso", 12, "is a strapping pin"),
    ("esp32", True, "buzzer", 15, "is a strapping pin"),
    ("esp32", True, "meter_tx", 1, "is the console's"),
    ("esp32", True, "meter_rx", 3, "is the console's"),
    ("esp32", True, "reader_reset", 6, "is the flash's"),
    ("esp32", True, "reader_reset", 11, "is the flash's"),
    ("esp32", True, "relay", 14, "is high while the chip starts"),
    ("esp32", True, "estop", 36, "has no pull-up"),
    ("esp32", True, "led", 40, "isn't there"),
    ("esp32", True, "led", 24, "isn't there"),
    *[("esp32", True, function, 34, "can only be an input") for function in sorted(OUTPUTS)],
    *[("rp2040", True, "led", pin, "the WiFi chip") for pin in (23, 24, 25, 29)],
    ("rp2040", False, "led", 23, "is the board's own"),
    ("rp2040", False, "led", 30, "isn't there"),
    ("rp2040", False, "led", -1, "isn't there"),
]


@pytest.mark.parametrize(("chip", "has_wifi", "function", "pin", "said"), BAD_PINS)
def test_a_pin_that_cannot_do_it_is_refused_with_the_reason(chip: str, has_wifi: bool, function: str, pin: int, said: str) -> None:
    complaint, = pin_complaints(chip, has_wifi, {**GOOD[chip], function: pin})
    assert complaint.startswith(f"{function} is on GPIO {pin}, which ") and said in complaint


@pytest.mark.parametrize(("chip", "has_wifi", "function", "pin"), [
    ("rp2040", False, "led", 25), ("esp32", True, "reader_miso", 34), ("esp32", True, "meter_rx", 39), ("esp32", True, "led", 14)])
def test_control_a_pin_that_can_do_it_is_fine(chip: str, has_wifi: bool, function: str, pin: int) -> None:
    assert pin_complaints(chip, has_wifi, {**GOOD[chip], function: pin}) == []


def test_two_functions_on_one_pin_and_a_function_without_one() -> None:
    pins = {**GOOD["esp32"], "led": GOOD["esp32"]["relay"]}
    assert pin_complaints("esp32", True, pins) == ["led and relay are both on GPIO 27"]
    del pins["led"]
    assert pin_complaints("esp32", True, pins) == ["led is missing"]


@pytest.mark.parametrize(("old", "new", "said"), [
    ("relay = 27", "relay = 12", "relay is on GPIO 12, which is a strapping pin"),
    ("led = 25", "led = 26", "buzzer and led are both on GPIO 26"),
    ("[wifi]", "[wlan]", "'wifi'"),
    ("ring_bytes = 260", "ring = 260", "'ring_bytes'"),
    ('kind = "uart"', 'kind = "jtag"', "has a console of kind 'jtag'"),
    ("[flash]", "[flash", "can't be used"),
    ("[flash]", "", "can't be used"),
])
def test_a_board_with_a_mistake_is_a_problem_that_names_its_file(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, said: str) -> None:
    text = toml_of("esp32-devkit")
    assert old in text
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "board.toml").write_text(text.replace(old, new, 1))
    monkeypatch.setattr(boards, "CHECKOUT", tmp_path)
    with pytest.raises(Problem) as caught:
        load_board("own")
    assert caught.value.where == str(tmp_path / "own" / "board.toml")
    assert said in str(caught.value)


def test_an_unknown_board_is_named_with_the_known_ones() -> None:
    with pytest.raises(Problem, match="Known boards: esp32-devkit, rpi-pico, rpi-pico-w"):
        load_board("rpi-piko")


def test_the_toml_holds_nothing_that_nobody_reads() -> None:
    """The same keys for every board: a new one stands in all of them."""
    def keys(name: str) -> dict[str, Any]:
        return {key: sorted(value) if isinstance(value, dict) else None for key, value in tomllib.loads(toml_of(name)).items()}
    assert keys("rpi-pico") == keys("rpi-pico-w") == keys("esp32-devkit")
