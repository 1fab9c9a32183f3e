"""Do the technician's tools, mpremote's and ampy's own among them, do their work on a board, and fail clearly where they must?

On simulated boards: the watchdog's bite, the relay and the number of boots are seen from outside.
"""
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabtap import cli
from fabtap.bench import deploy as deploying
from fabtap.bench import session as sessions
from fabtap.bench.deploy import MANIFEST, deploy, firmware_folder
from fabtap.bench.session import BoardProblem, BoardSession, board_session
from fabtap.sim.client import SimClient, start_board
from tests.hil.board_backends import PlainBoard
from tests.hil.test_board_serial import a_roster, push_roster
from tests.rig import ADA, BOARD, Rig, lab_folder, wait_until

TOOL_S = 30
FAR_S = 15
DRIVER = "/drivers/panel_led.mpy"


@pytest.fixture(scope="module")
def blank() -> Iterator[SimClient]:
    """A simulated board with nothing but MicroPython on it, for all tools' tests."""
    with lab_folder() as folder:
        client = start_board(folder, "blank", BOARD)
        try:
            yield client
        finally:
            client.down()


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest) -> None:
    """All tests of this file run on a simulated board."""
    if ("board", "simulated") not in request.node.user_properties:
        request.node.user_properties.append(("board", "simulated"))


def tool(module: str, *arguments: object) -> str:
    """What a tool prints; it has TOOL_S, for some of them wait for ever."""
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, timeout=TOOL_S,
                          stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, f"{module} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def mpremote(board: SimClient, *arguments: object) -> str:
    return tool("mpremote", "connect", board.port, *arguments)


def ampy(board: SimClient, *arguments: object) -> str:
    return tool("ampy.cli", "--port", board.port, *arguments)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["fabtap", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def notes(board: SimClient, what: str) -> list[dict[str, Any]]:
    """The entries of one kind in the board's log."""
    return [entry for entry in board.ask("logs")["entries"] if entry["what"] == what]


# The tools' own commands.

def test_mpremote_runs_code(blank: SimClient) -> None:
    assert mpremote(blank, "exec", "print(6 * 7)") == "42\r\n".replace("\r\n", "\n")


def test_mpremote_copies_lists_and_hashes(blank: SimClient, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20
    (tmp_path / "data.bin").write_bytes(data)
    mpremote(blank, "fs", "cp", tmp_path / "data.bin", ":/data.bin")
    assert "5120 data.bin" in mpremote(blank, "fs", "ls", ":/")
    assert hashlib.sha256(data).hexdigest() in mpremote(blank, "fs", "sha256sum", ":/data.bin")
    mpremote(blank, "fs", "cp", ":/data.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == data


def test_mpremote_resets_softly_and_hard(blank: SimClient) -> None:
    before = blank.ask("status")["boots"]
    mpremote(blank, "exec", "kept = 1")
    assert "True" in mpremote(blank, "resume", "exec", "print('kept' in globals())")
    mpremote(blank, "soft-reset")
    assert "False" in mpremote(blank, "resume", "exec", "print('kept' in globals())")
    assert "5" in mpremote(blank, "resume", "exec", "import machine; print(machine.reset_cause())")
    resets = len(notes(blank, "machine.reset()"))
    mpremote(blank, "reset")
    wait_until(lambda: len(notes(blank, "machine.reset()")) == resets + 1, FAR_S, "the reset")
    assert "2" in mpremote(blank, "resume", "exec", "import machine; print(machine.reset_cause())")
    assert blank.ask("status")["boots"] >= before + 2


def test_ampy_puts_gets_lists_runs_and_removes(blank: SimClient, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("print('hello from a file')\n")
    ampy(blank, "put", tmp_path / "hello.py", "/hello.py")
    assert "/hello.py" in ampy(blank, "ls", "/").split()
    assert ampy(blank, "get", "/hello.py").strip() == "print('hello from a file')"
    assert "hello from a file" in ampy(blank, "run", tmp_path / "hello.py")
    ampy(blank, "rm", "/hello.py")
    # Only the board's own files are there, not the computer's.
    assert not {"/hello.py", "/etc", "/tmp", "/usr"} & set(ampy(blank, "ls", "/").split())


@pytest.mark.board_backends("simulated")
def test_mpremote_interrupts_a_node_and_a_reset_brings_it_back(board: Any) -> None:
    assert "node" in mpremote(board.control, "resume", "exec", "import os; print(os.listdir('/'))")
    mpremote(board.control, "reset")
    board.open()
    assert board.greet()["boot"] == 2


# Provision and deploy.

def changed_firmware(folder: Path, pattern: str) -> Path:
    """Firmware whose modules of that pattern differ."""
    source = folder / "firmware"
    shutil.copytree(firmware_folder(), source, ignore=shutil.ignore_patterns("__pycache__"))
    for file in source.glob(pattern):
        with open(file, "a", encoding="utf-8") as opened:
            opened.write("\nCHANGED = True\n")
    return source


def test_provision_and_deploy_make_a_node_of_a_blank_board(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(board_up=False)
    (rig.folder / "sim" / "laser.img").unlink()
    rig.start_board()
    provisioned = rig.fabtap("board", "provision", "laser", "--json")
    assert (provisioned.returncode, json.loads(provisioned.stdout)) == (0, {"machine": "laser", "node": 1, "board": BOARD})
    first = rig.fabtap("board", "deploy", "laser", "--json")
    assert first.returncode == 0, first.stderr
    files = json.loads(first.stdout)
    wanted = [f"/{path.relative_to(firmware_folder()).with_suffix('.mpy')}" for path in firmware_folder().glob("*/*.py")]
    assert sorted(files["written"]) == sorted([*wanted, "/main.py"])
    rig.start_collector()
    assert rig.wait_for_events("booted")
    rig.stop_collector()
    second = rig.fabtap("board", "deploy", "laser", "--json")
    again = json.loads(second.stdout)
    assert (again["written"], again["removed"], sorted(again["same"])) == ([], [], sorted(files["written"]))
    assert "written, " in rig.fabtap("board", "deploy", "laser").stdout


def test_only_what_differs_is_written_what_is_stale_is_removed_and_the_manifest_comes_last(
        rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = changed_firmware(tmp_path, "drivers/panel_led.py")
    (source / "drivers" / "new_part.py").write_text("NEW = True\n")
    (source / "nodecore" / "presence.py").unlink()
    put: list[str] = []
    put_file = BoardSession.put_file

    def noted(self: BoardSession, path: str, data: bytes) -> None:
        put.append(path)
        put_file(self, path, data)

    monkeypatch.setattr(BoardSession, "put_file", noted)
    done = deploy(rig.port, source)
    assert sorted(done.written) == ["/drivers/new_part.mpy", DRIVER]
    assert done.removed == ["/nodecore/presence.mpy"]
    assert put == [*done.written, MANIFEST]
    assert deploy(rig.port, source).written == []
    assert put == [*done.written, MANIFEST]


def test_a_deploy_that_breaks_off_leaves_the_old_manifest_and_whole_files(
        rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = changed_firmware(tmp_path, "drivers/*.py")
    put_file = BoardSession.put_file
    put: list[str] = []

    def breaks_off(self: BoardSession, path: str, data: bytes) -> None:
        if len(put) == 2:
            self.do("writing", lambda board: board.fs_writefile(path + ".new", data[:100]))
            raise BoardProblem(self.port, "the cable was pulled", "", 5)
        put.append(path)
        put_file(self, path, data)

    with board_session(rig.port) as session:
        manifest = session.file_hash(MANIFEST)
    monkeypatch.setattr(BoardSession, "put_file", breaks_off)
    with pytest.raises(BoardProblem):
        deploy(rig.port, source)
    monkeypatch.setattr(BoardSession, "put_file", put_file)
    wanted, old = deploying.compile_firmware(source), deploying.compile_firmware(firmware_folder())
    changed = [path for path in wanted if wanted[path] != old[path]]
    with board_session(rig.port) as session:
        assert session.file_hash(MANIFEST) == manifest
        for path in changed:
            files = wanted if path in put else old
            assert session.file_hash(path) == hashlib.sha256(files[path]).hexdigest()
    done = deploy(rig.port, source)
    assert sorted(done.written + put) == sorted(changed)
    # The half file of the first try must not stay for ever.
    with board_session(rig.port) as session:
        assert ".new" not in session.execute("import os\nfor d in ('nodecore', 'drivers', 'node'): print(os.listdir('/' + d))")


@pytest.mark.prove
def test_service_mode_saves_a_deploy_from_the_watchdog_that_kills_it_without(
        make_rig: Callable[..., Rig], flash_images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = changed_firmware(tmp_path, "*/*.py")
    monkeypatch.setattr(sessions, "STEP_S", 3.0)
    rig = make_rig(board_up=False)
    shutil.copyfile(flash_images.image(watchdog_ms=1000), rig.folder / "sim" / "laser.img")
    rig.start_board()
    with pytest.raises(BoardProblem) as failed:
        deploy(rig.port, source, service=False)
    assert failed.value.exit_code in (3, 5)
    bites = len(notes(rig.board, "watchdog"))
    assert bites >= 1
    done = deploy(rig.port, source)
    assert len(done.written) + len(done.same) == len(list(source.glob("*/*.py"))) + 1
    # The last two resets are those into service mode and out of it: in between nothing bit.
    service_s, end_s = [entry["at_s"] for entry in notes(rig.board, "machine.reset()")[-2:]]
    assert [entry for entry in notes(rig.board, "watchdog")[bites:] if service_s < entry["at_s"] < end_s] == []
    assert end_s - service_s > 1


def test_a_port_that_the_collector_has_is_busy(rig: Rig) -> None:
    rig.start_collector()
    for command in ("deploy", "provision"):
        done = rig.fabtap("board", command, "laser")
        assert done.returncode == 8
        assert "laser.tty: is in use by another program. Stop the collector" in done.stderr
        assert "Traceback" not in done.stderr


def test_no_board_at_the_port(rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sessions, "OPEN_S", 0.3)
    nowhere = rig.folder / "nowhere.tty"
    assert main(monkeypatch, "board", "deploy", "laser", "--lab", rig.lab_file, "--port", nowhere) == 3
    assert "nowhere.tty: has no board that answers" in capsys.readouterr().err


def test_firmware_that_does_not_compile_touches_nothing(
        rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "firmware"
    shutil.copytree(firmware_folder(), source)
    (source / "node" / "clock.py").write_text("def broken(:\n    pass\n")
    monkeypatch.setattr(deploying, "firmware_folder", lambda: source)
    image = rig.folder / "sim" / "laser.img"
    before = rig.ask("status")["interpreter_id"], image.stat().st_size
    assert main(monkeypatch, "board", "deploy", "laser", "--lab", rig.lab_file) == 2
    said = capsys.readouterr().err
    assert "clock.py: does not compile:" in said
    assert "line 1" in said
    assert (rig.ask("status")["interpreter_id"], image.stat().st_size) == before
    assert not rig.board_log("machine.reset()")


# Service mode, relay and watchdog.

@pytest.mark.board_backends("simulated")
def test_the_relay_is_off_in_service_mode_whatever_happens(board: Any) -> None:
    control = board.control
    board.open()
    board.greet()
    push_roster(board, a_roster(board))
    wait_until(lambda: board.command("clock_set", utc_ms=0, local_offset_s=0)["mono_ms"] > 1000, FAR_S, "a second since boot")
    control.ask("tap", uid=ADA)
    wait_until(lambda: control.ask("status")["relay"], FAR_S, "the relay closes")
    board.close()
    with board_session(control.port) as session:
        assert not control.ask("status")["relay"]
        control.ask("remove")
        control.ask("tap", uid=ADA)
        session.put_file("/some.txt", bytes(3000))
        assert not control.ask("status")["relay"]
        closings = [entry for entry in notes(control, "relay") if entry["detail"] == "closed"]
        assert len(closings) == 1


@pytest.mark.board_backends("simulated")
def test_the_service_flag_lasts_for_one_boot(board: PlainBoard) -> None:
    board.open()
    board.greet()
    board.write(b"\x03")
    board.text_until(b">>> ")
    board.write(b"open('/service', 'wb').close(); import machine; machine.reset()\r")
    board.text_until(b"service mode, relay off, no watchdog")
    board.text_until(b">>> ")
    board.write(b"import os; print('flag', 'service' in os.listdir('/'))\r")
    board.text_until(b"flag False")
    board.write(b"import machine; machine.reset()\r")
    assert board.greet()["boot"] == 2


@pytest.mark.board_backends("simulated")
def test_the_watchdog_goes_on_over_a_soft_reset_and_bites_from_outside(blank: SimClient, board: Any) -> None:
    board.open()
    board.write(b"\x03")
    board.text_until(b">>> ")
    # Without firmware nobody feeds it again.
    board.write(b"import os; os.rename('/main.py', '/main.off')\r")
    board.text_until(b"main.off')\r\n>>> ")
    board.write(b"import machine; w = machine.WDT(timeout=1000); print('started')\r")
    board.text_until(b"\r\nstarted")
    board.write(b"\x04")
    board.text_until(b"MPY: soft reboot")
    bite = wait_until(lambda: notes(board.control, "watchdog"), 5, "the watchdog bites")[0]
    soft = notes(board.control, "soft reset")[0]
    assert 0 < bite["at_s"] - soft["at_s"] < 1.5
    board.text_until(b">>> ")
    board.write(b"import machine; print('cause', machine.reset_cause())\r")
    board.text_until(b"cause 3")


def test_reading_while_the_board_is_silent_ends(blank: SimClient) -> None:
    """Code that never ends is given up after a deadline, not waited for."""
    session = BoardSession(blank.port)
    session.open()
    try:
        with pytest.raises(BoardProblem) as failed:
            session.do("waiting", lambda board: board.exec_raw("while True: pass", timeout=1))
        assert failed.value.exit_code == 5
    finally:
        session.close()
    assert mpremote(blank, "exec", "print('alive')").strip() == "alive"
