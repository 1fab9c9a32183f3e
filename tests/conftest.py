"""Which options, fixtures and closing words do all tests share?

- `rig` (tests/rig.py) is a lab with a simulated board; `make_rig(**settings)` makes one that differs.
- `board` (tests/hil/board_backends.py) is one board behind its serial port: simulated, mocked (`serial.Serial` replaced by a
  script) or, with --board-port, real. `@pytest.mark.board_backends(...)` names the kinds for which a test means something.
- Random tests take `rng`; its seed stands in the header, and FABTAP_SEED repeats it.
- The suite's last line says how many tests have run on which kind of board.
"""
import contextlib
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabtap.bench.deploy import deploy
from fabtap.bench.provision import provision
from fabtap.keys import load_secrets
from fabtap.lab import load_lab
from fabtap.sim.client import start_board
from tests.hil.board_backends import MockedBoard, PlainBoard, RealBoard, SimulatedBoard
from tests.rig import BOARD, NODE, FlashImages, Rig, end_processes, lab_folder, processes_naming, write_lab

KINDS = ("simulated", "mocked", "real")
COUNTED = pytest.StashKey[bool]()
RAN: Counter[str] = Counter()
SEED = int(os.environ.get("FABTAP_SEED") or random.SystemRandom().randrange(2**32))
os.environ["FABTAP_SEED"] = str(SEED)  # for the processes that share the work


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--board-port", metavar="PATH", type=Path,
                     help="a real board's serial port: it gets the firmware and a throwaway identity")
    parser.addoption("--board-kind", metavar="NAME", default=BOARD, help="the real board's folder in boards/")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "board_backends(*kinds): the kinds of board on which the test means something")
    if config.getoption("--board-port") and config.option.markexpr == "not hil and not prove":
        # pyproject.toml leaves real boards out; whoever names a port wants them in.
        config.option.markexpr = "not prove"


def pytest_report_header() -> str:
    return f"random seed: FABTAP_SEED={SEED}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "board" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("board_backends")
    wanted = mark.args if mark else KINDS
    unknown = set(wanted) - set(KINDS)
    if unknown:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: no such kind of board: {', '.join(sorted(unknown))}")
    has_real = metafunc.config.getoption("--board-port")
    kinds = [pytest.param(kind, marks=[pytest.mark.hil] if kind == "real" else [])
             for kind in KINDS if kind in wanted and (kind != "real" or has_real)]
    metafunc.parametrize("board", kinds, indirect=True)


def note_board(request: pytest.FixtureRequest, kind: str) -> None:
    """This test uses a board of that kind; it is counted if it runs."""
    if ("board", kind) not in request.node.user_properties:
        request.node.user_properties.append(("board", kind))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and not report.skipped:
        RAN.update(kind for name, kind in report.user_properties if name == "board")


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[COUNTED] = not session.config.option.collectonly


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    # pytest's own closing line has been printed by now.
    if config.stash.get(COUNTED, False):
        some = "test" if RAN["simulated"] == 1 else "tests"
        print(f"boards: {RAN['simulated']} {some} on simulated boards, {RAN['mocked']} on mocked serial, "
              f"{RAN['real']} on real boards")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test's own: the same ones for the same FABTAP_SEED, whatever other tests run."""
    # -q hides the header; what is printed here is shown with a failure.
    print(f"repeat with FABTAP_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.nodeid}")


@pytest.fixture(scope="session")
def flash_images() -> Iterator[FlashImages]:
    """Flash images with the firmware on them."""
    with lab_folder() as folder:
        yield FlashImages(folder)


@pytest.fixture
def make_rig(request: pytest.FixtureRequest, flash_images: FlashImages) -> Iterator[Callable[..., Rig]]:
    """Makes rigs; arguments as Rig takes them. `board_up=False` leaves the board off."""
    with contextlib.ExitStack() as stack:
        def make(board_up: bool = True, **settings: Any) -> Rig:
            note_board(request, "simulated")
            rig = Rig(stack.enter_context(lab_folder()), flash_images, **settings)
            stack.callback(rig.close)
            if board_up:
                rig.start_board()
            return rig

        yield make


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """A lab whose board runs and whose collector does not yet."""
    return make_rig()


@pytest.fixture(scope="session")
def real_board(request: pytest.FixtureRequest) -> Iterator[RealBoard]:
    """The board at --board-port, with the firmware and an identity of its own."""
    port: Path = request.config.getoption("--board-port")
    with lab_folder() as folder:
        lab = load_lab(write_lab(folder, board=request.config.getoption("--board-kind")))
        provision(lab, lab.machines[0], port)
        deploy(port)
        yield RealBoard(port, NODE, load_secrets(lab.keys)[NODE])


@pytest.fixture
def simulated_board(flash_images: FlashImages) -> Iterator[SimulatedBoard]:
    """A simulated board with the firmware, alone."""
    with lab_folder() as folder:
        shutil.copyfile(flash_images.image(), folder / "board.img")
        control = start_board(folder, "board", BOARD)
        process_id = control.ask("status")["process_id"]
        try:
            yield SimulatedBoard(control, NODE, load_secrets(flash_images.keys)[NODE])
            control.down()
        finally:
            end_processes([process_id] if process_id in processes_naming(str(folder)) else [])


@pytest.fixture
def board(request: pytest.FixtureRequest) -> Iterator[PlainBoard]:
    """One board of the kind that is asked for, its port not yet open."""
    note_board(request, request.param)
    found: PlainBoard
    if request.param == "simulated":
        found = request.getfixturevalue("simulated_board")
    elif request.param == "real":
        found = request.getfixturevalue("real_board")
    else:
        mocked = MockedBoard(request.getfixturevalue("mocker"), Path("/dev/mocked"))
        yield mocked
        mocked.close()
        mocked.finish()
        return
    try:
        yield found
    finally:
        found.close()
