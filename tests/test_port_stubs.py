"""Does the firmware call only what the ports have?

mypy reads firmware/ once with the stubs of the RP2 port and once with those of the ESP32 port, in place of CPython's own
standard library. A driver whose name ends in `_rp2` or `_esp32` is read for its own port only. `sys.platform` counts as the
port's, so a branch on it is read on that port alone. `make stubs` lays the stubs into build/stubs.

What it can't see: the stubs of `os`, `sys`, `json`, `struct` and the built-in types still hold most of CPython's names.
"""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUBS = ROOT / "build" / "stubs"
PORTS = ("rp2", "esp32")

pytestmark = pytest.mark.skipif(
    not all((STUBS / port / "machine.pyi").exists() for port in PORTS), reason="no port stubs: run `make stubs`"
)

COUNTER = "import machine\n\n\ndef pulses():\n    return machine.Counter(0).value()\n"
CPYTHON_ONLY = "import time\n\n\ndef now():\n    return time.perf_counter()\n"
BRANCH = (
    "import sys\n\nif sys.platform == 'esp32':\n    import esp32\n    esp32.raw_temperature()\n"
    "elif sys.platform == 'rp2':\n    import rp2\n    rp2.bootsel_button()\n"
)


def firmware_files(port):
    """Every file of the firmware but the other port's drivers."""
    others = tuple(f"_{other}.py" for other in PORTS if other != port)
    return [path for path in sorted((ROOT / "firmware").rglob("*.py")) if not path.name.endswith(others)]


def complaints(port, files):
    """mypy's errors about `files`; the stubs' own errors are left out."""
    command = [
        sys.executable, "-m", "mypy", "--config-file=", "--python-version", "3.11", "--platform", port,
        "--custom-typeshed-dir", str(STUBS / port), "--no-incremental", "--cache-dir", os.devnull,
        # The firmware has no annotations. Its bodies are read all the same, for calls and modules that are not there; what a
        # variable may hold (an empty list, None at first) is not asked.
        "--check-untyped-defs", "--no-strict-optional", "--disable-error-code=var-annotated",
        "--disable-error-code=assignment",
        # The MQTT client has no types; that it runs is for the scenario tests to show.
        "--disable-error-code=import-untyped",
        *map(str, files),
    ]
    environment = dict(os.environ, MYPYPATH=f"{ROOT / 'firmware'}{os.pathsep}{STUBS / port}")
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    lines = [line for line in run.stdout.splitlines() if ": error: " in line]
    return [line for line in lines if not line.startswith(f"build/stubs/{port}/")]


@pytest.mark.parametrize("port", PORTS)
def test_the_firmware_calls_only_what_the_port_has(port):
    files = firmware_files(port)
    assert len(files) > 10
    found = complaints(port, files)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "port", "complaint"),
    [
        pytest.param(COUNTER, "rp2", 'no attribute "Counter"', id="rp2 has no machine.Counter"),
        pytest.param(COUNTER, "esp32", None, id="esp32 has machine.Counter"),
        pytest.param(CPYTHON_ONLY, "rp2", 'no attribute "perf_counter"', id="rp2 has no time.perf_counter"),
        pytest.param(CPYTHON_ONLY, "esp32", 'no attribute "perf_counter"', id="esp32 has no time.perf_counter"),
        pytest.param(BRANCH, "rp2", None, id="rp2 takes its own branch"),
        pytest.param(BRANCH, "esp32", None, id="esp32 takes its own branch"),
        pytest.param("import esp32\n", "rp2", 'named "esp32"', id="rp2 has no module esp32"),
        pytest.param("import rp2\n", "esp32", 'named "rp2"', id="esp32 has no module rp2"),
    ],
)
def test_a_call_that_a_port_lacks_is_seen(source, port, complaint, tmp_path):
    sample = tmp_path / "sample.py"
    sample.write_text(source)
    found = complaints(port, [sample])
    if complaint is None:
        assert not found, "\n".join(found)
    else:
        assert len(found) == 1 and complaint in found[0], found
