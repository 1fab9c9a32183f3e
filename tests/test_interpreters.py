"""Do the core's tests pass on the interpreters that nodes run, and would we see it if they did not?

The same tests/core/run.py runs under CPython, the unix MicroPython (64 bits) and the one in WebAssembly (32 bits, with the
small integers of a chip), and every one of them must have run the same tests.
"""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "tests" / "core"
WASM = CORE / "wasm"
MICROPYTHON = Path(sys.executable).parent / "micropython"
NODE = shutil.which("node")

COMMANDS = {
    "cpython": [sys.executable, str(CORE / "run.py")],
    "micropython": [str(MICROPYTHON), str(CORE / "run.py")],
    "wasm": [NODE or "node", str(WASM / "run.mjs")],
}

needs_micropython = pytest.mark.skipif(
    not MICROPYTHON.exists(), reason="no MicroPython in this venv: its package has no wheel for this machine"
)
needs_wasm = pytest.mark.skipif(
    not (NODE and (WASM / "node_modules").is_dir()),
    reason="no 32-bit MicroPython: it needs node and npm, and `make wasm` once with a network",
)
on_each_interpreter = pytest.mark.parametrize(
    "interpreter",
    ["cpython", pytest.param("micropython", marks=needs_micropython), pytest.param("wasm", marks=needs_wasm)],
)


def run_core(interpreter, *arguments, extra=None):
    """What run.py said and whether it was content; `extra` is one more folder of test modules."""
    folders = [str(ROOT / "firmware"), str(CORE)] + ([str(extra)] if extra else [])
    environment = dict(os.environ, MICROPYPATH=":".join(folders), PYTHONPATH=os.pathsep.join(folders))
    return subprocess.run(
        [*COMMANDS[interpreter], *arguments], env=environment, capture_output=True, text=True, timeout=110, check=False
    )


def passed_tests(output):
    """Names of the tests that passed, from what `-v` prints."""
    return set(re.findall(r"^passed (\S+)$", output, re.MULTILINE))


@pytest.fixture(scope="module")
def passed_on_cpython():
    """The tests that CPython ran: all the others are compared with it."""
    run = run_core("cpython", "-v")
    assert run.returncode == 0, run.stdout + run.stderr
    passed = passed_tests(run.stdout)
    assert len({name.split(".")[0] for name in passed}) == len(list(CORE.glob("test_*.py")))
    return passed


@pytest.mark.parametrize(
    ("interpreter", "bits"),
    [
        pytest.param("micropython", 64, marks=needs_micropython),
        pytest.param("wasm", 32, marks=needs_wasm),
    ],
)
def test_every_core_test_passes(interpreter, bits, passed_on_cpython):
    run = run_core(interpreter, "-v")
    assert run.returncode == 0, run.stdout + run.stderr
    assert passed_tests(run.stdout) == passed_on_cpython
    closing = run.stdout.splitlines()[-1]
    expected = rf"core: {len(passed_on_cpython)} passed, 0 failed on micropython [0-9.]+, {bits} bits"
    assert re.fullmatch(expected, closing), closing


@needs_wasm
def test_the_wasm_interpreter_has_words_of_32_bits(tmp_path):
    (tmp_path / "test_words.py").write_text(
        "import sys\n\n\ndef test_words():\n    assert sys.maxsize == 2**31 - 1, sys.maxsize\n"
    )
    run = run_core("wasm", "test_words", extra=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run_core("cpython", "test_words", extra=tmp_path).returncode == 1


@on_each_interpreter
def test_a_failing_core_test_is_reported(interpreter, tmp_path):
    (tmp_path / "test_broken.py").write_text(
        "def test_fails():\n    assert 1 == 2, 'one is not two'\n\n\ndef test_passes():\n    pass\n"
    )
    run = run_core(interpreter, "-v", "test_broken", extra=tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "failed test_broken.test_fails" in run.stdout
    assert "one is not two" in run.stdout
    assert "core: 1 passed, 1 failed on " in run.stdout.splitlines()[-1]


@on_each_interpreter
@pytest.mark.parametrize("source", ["import no_such_module\n", "def not_a_test():\n    pass\n", "def test_(:\n"])
def test_a_module_that_tests_nothing_is_a_failure(interpreter, source, tmp_path):
    (tmp_path / "test_nothing.py").write_text(source)
    run = run_core(interpreter, "test_nothing", extra=tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "core: 0 passed, 1 failed on " in run.stdout.splitlines()[-1]


@on_each_interpreter
def test_raises_fails_when_nothing_is_raised(interpreter, tmp_path):
    (tmp_path / "test_raises.py").write_text(
        "from helpers import raises\n\n\ndef test_it_does_not_raise():\n    raises(ValueError, int, '7')\n\n\n"
        "def test_it_raises():\n    assert isinstance(raises(ValueError, int, 'x'), ValueError)\n"
    )
    run = run_core(interpreter, "-v", "test_raises", extra=tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "passed test_raises.test_it_raises" in run.stdout
    assert "ValueError was not raised" in run.stdout
