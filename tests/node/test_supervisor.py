"""Does the node's supervisor, in the real interpreter, end every fault with the relay open?"""
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fabtap.boards import board_names, load_board
from fabtap.sim.client import find_interpreter

HERE = Path(__file__).parent
FIRMWARE = HERE.parents[1] / "firmware"


def run_script(name: str, folder: Path, *arguments: str) -> dict[str, object]:
    """Run a script of this folder in MicroPython; the JSON that it prints last."""
    shutil.copy(HERE / "played.py", folder / "tests_node_played.py")
    done = subprocess.run([find_interpreter(), "-X", "heapsize=8m", str(HERE / name), *arguments], cwd=folder,
                          capture_output=True, text=True, timeout=100,
                          env={"MICROPYPATH": f"{folder}:{FIRMWARE}:.frozen", "PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_every_fault_of_every_part_ends_with_the_relay_open(tmp_path: Path) -> None:
    found = run_script("faults.py", tmp_path)
    assert found["wrong"] == []
    assert found["cases"] == 91


def test_a_supervisor_that_leaves_the_relay_on_is_found_out(tmp_path: Path) -> None:
    wrong = run_script("faults.py", tmp_path, "leave-relay")["wrong"]
    assert isinstance(wrong, list)
    assert sum("the relay is on" in line for line in wrong) == 88


@pytest.mark.parametrize("fault", ["cycles"])
def test_the_heap_does_not_grow_with_the_taps(tmp_path: Path, fault: str) -> None:
    """A sample of what `make bench` does with 10,000 taps; the control keeps 16 bytes a tap and must be seen."""
    from tests.bench.run import on_interpreter
    assert on_interpreter(f"{fault}.py", tmp_path, "400", "7")["growth_bytes"] == 0
    assert on_interpreter(f"{fault}.py", tmp_path, "400", "7", "leak")["growth_bytes"] > 6000


FIRMWARE_BYTES = 80_000
"""What the compiled firmware takes, with some to spare (64 kB in 33 files now)."""


def fill(folder: Path, board: str, journal_records: int | None = None) -> dict[str, object]:
    kind = load_board(board)
    return run_script("fill.py", folder, *map(str, (
        kind.blocks, kind.program_bytes, kind.segment_bytes, journal_records or kind.journal_records, FIRMWARE_BYTES)))


@pytest.mark.parametrize("kind", board_names())
def test_each_boards_flash_holds_the_journal_that_it_promises(tmp_path: Path, kind: str) -> None:
    """With two of the largest rosters beside it: else a full flash, not a full journal, would end a session without its record."""
    found = fill(tmp_path, kind)
    assert found["error"] == ""
    assert load_board(kind).journal_records - 24 < int(str(found["records"])) <= load_board(kind).journal_records


def test_a_journal_that_is_too_large_for_its_flash_is_found_out(tmp_path: Path) -> None:
    assert fill(tmp_path, "rpi-pico-w", 5000)["error"] == "28"  # ENOSPC
