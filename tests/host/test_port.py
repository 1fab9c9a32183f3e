"""Does a serial port open without a reset of the board, and is it known what a failure means?"""
import asyncio
import contextlib
import errno
import os
import termios
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serial
from pytest_mock import MockerFixture

from fabtap import port as ports
from fabtap.port import AsyncPort, PortGone, open_port
from fabtap.problem import Problem

WAIT_S = 5.0
NOTHING_S = 0.1
PLAIN = serial.Serial


class Terminal:
    """A terminal whose far end is the test's; `path` is a symlink to it, as udev makes one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.far, self.near = os.openpty()
        path.symlink_to(os.ttyname(self.near))

    def hang_up(self) -> None:
        """Take the device away."""
        for descriptor in (self.near, self.far):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path / "board.tty")
    yield made
    made.hang_up()


def hangs_up_on_close(descriptor: int) -> bool:
    flags: int = termios.tcgetattr(descriptor)[2]
    return bool(flags & termios.HUPCL)


def set_hang_up_on_close(descriptor: int) -> None:
    mode = termios.tcgetattr(descriptor)
    mode[2] |= termios.HUPCL
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)


def test_closing_leaves_the_lines_as_they_are(terminal: Terminal) -> None:
    set_hang_up_on_close(terminal.near)
    plain = serial.Serial(str(terminal.path))
    assert hangs_up_on_close(plain.fileno())  # control: pyserial alone would drop both lines
    plain.close()
    port = open_port(terminal.path)
    assert not hangs_up_on_close(port.fileno())
    port.close()
    assert not hangs_up_on_close(terminal.near)


class Lines(PLAIN):  # type: ignore[misc]
    """pyserial's port, whose every change of a line is written down."""

    changed: list[tuple[str, bool]] = []

    @property
    def dtr(self) -> bool:
        return bool(PLAIN.dtr.fget(self))

    @dtr.setter
    def dtr(self, value: bool) -> None:
        self.changed.append(("dtr", value))
        PLAIN.dtr.fset(self, value)

    @property
    def rts(self) -> bool:
        return bool(PLAIN.rts.fget(self))

    @rts.setter
    def rts(self, value: bool) -> None:
        self.changed.append(("rts", value))
        PLAIN.rts.fset(self, value)


def test_neither_line_is_ever_changed_alone(terminal: Terminal, mocker: MockerFixture) -> None:
    mocker.patch.object(Lines, "changed", [])
    mocker.patch.object(ports.serial, "Serial", Lines)
    # A pseudo-terminal refuses the first of the two requests, and pyserial then leaves the second out.
    dtr = mocker.patch.object(Lines, "_update_dtr_state")
    rts = mocker.patch.object(Lines, "_update_rts_state")
    port = open_port(terminal.path)
    port.write(b"x")
    assert (port.dtr, port.rts) == (True, True)
    port.close()
    assert Lines.changed == []
    assert (dtr.call_count, rts.call_count) == (1, 1)  # pyserial asks for both, which the kernel has raised already
    control = Lines(str(terminal.path))
    control.dtr = False
    control.close()
    assert Lines.changed == [("dtr", False)]


def test_a_port_in_use_is_a_problem_that_says_so(terminal: Terminal) -> None:
    first = open_port(terminal.path)
    with pytest.raises(Problem, match="is in use by another program") as caught:
        open_port(terminal.path)
    assert caught.value.where == str(terminal.path)
    first.close()
    open_port(terminal.path).close()


@pytest.mark.parametrize("name", ["nothing.tty", "block-saw.tty"])
def test_a_missing_device_is_gone_whatever_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(PortGone):
        open_port(tmp_path / name)


def test_a_symlink_to_nothing_is_gone(tmp_path: Path) -> None:
    (tmp_path / "board.tty").symlink_to(tmp_path / "nothing")
    with pytest.raises(PortGone):
        open_port(tmp_path / "board.tty")


def test_a_file_that_is_no_terminal_is_gone(tmp_path: Path) -> None:
    (tmp_path / "board.tty").write_text("no terminal")
    with pytest.raises(PortGone):
        open_port(tmp_path / "board.tty")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_port_without_permission_is_a_problem_that_names_the_mend(
        terminal: Terminal, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def denied(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", denied)  # root, who may run the tests, is never refused by the kernel
        with pytest.raises(Problem, match="may not be opened by this user") as caught:
            open_port(terminal.path)
    assert caught.value.where == str(terminal.path) and "dialout" in caught.value.mend


@pytest.mark.parametrize("step", ["keep_lines_on_close", "read_nothing_as_hang_up"])
def test_a_device_that_vanishes_while_it_is_opened_is_gone(
        terminal: Terminal, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def vanished(descriptor: int) -> None:
        raise termios.error(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(ports, step, vanished)
        with pytest.raises(PortGone):
            open_port(terminal.path)
    open_port(terminal.path).close()  # it was given back


def in_loop(terminal: Terminal, work: Callable[[AsyncPort], Awaitable[Any]]) -> Any:
    """What `work` gives with the port open in an event loop."""
    async def run() -> Any:
        port = AsyncPort(open_port(terminal.path))
        try:
            async with asyncio.timeout(WAIT_S):
                return await work(port)
        finally:
            port.close()

    return asyncio.run(run())


def test_bytes_come_and_go(terminal: Terminal) -> None:
    async def work(port: AsyncPort) -> bytes:
        port.write(b"down\n")
        os.write(terminal.far, b"up\n")
        return await port.read()

    assert in_loop(terminal, work) == b"up\n"
    assert os.read(terminal.far, 100) == b"down\n"


def test_nothing_yet_is_not_a_hang_up(terminal: Terminal) -> None:
    async def work(port: AsyncPort) -> bytes:
        reading = asyncio.create_task(port.read())
        port._readable.set()  # a false alarm of the kernel's
        done, _ = await asyncio.wait([reading], timeout=NOTHING_S)
        assert not done
        os.write(terminal.far, b"late")
        return await reading

    assert in_loop(terminal, work) == b"late"


def test_bytes_that_nobody_reads_yet_do_not_keep_the_loop_busy(terminal: Terminal) -> None:
    async def work(port: AsyncPort) -> tuple[int, int, bytes]:
        os.write(terminal.far, b"first")
        assert await port.read() == b"first"
        os.write(terminal.far, b"second")
        rounds = await rounds_of_the_loop()
        asyncio.get_running_loop().add_reader(port._descriptor, port._readable.set)
        busy = await rounds_of_the_loop()  # control: as it would be with a reader that stays
        return rounds, busy, await port.read()

    rounds, busy, data = in_loop(terminal, work)
    assert rounds < 10 < busy
    assert data == b"second"


async def rounds_of_the_loop() -> int:
    """How often the running loop looks for something to do within NOTHING_S."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    select, rounds = selector.select, 0

    def counted(timeout: float | None = None) -> Any:
        nonlocal rounds
        rounds += 1
        return select(timeout)

    selector.select = counted
    try:
        await asyncio.sleep(NOTHING_S)
    finally:
        del selector.select
    return rounds


def test_a_hang_up_is_gone_for_a_reader_that_waits(terminal: Terminal) -> None:
    async def work(port: AsyncPort) -> None:
        reading = asyncio.create_task(port.read())
        await asyncio.sleep(0)
        terminal.hang_up()
        with pytest.raises(PortGone):
            await reading

    in_loop(terminal, work)


def test_a_hang_up_is_gone_for_a_writer(terminal: Terminal) -> None:
    async def work(port: AsyncPort) -> None:
        terminal.hang_up()
        with pytest.raises(PortGone):
            port.write(b"down\n")

    in_loop(terminal, work)


def test_a_device_that_takes_nothing_does_not_block_and_the_rest_is_counted(terminal: Terminal) -> None:
    async def work(port: AsyncPort) -> tuple[int, int]:
        offered = 0
        while port.unsent_bytes == 0:
            port.write(bytes(1000))
            offered += 1000
        return offered, port.unsent_bytes

    offered, unsent = in_loop(terminal, work)
    os.set_blocking(terminal.far, False)
    arrived = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            arrived += len(os.read(terminal.far, 65536))
    assert arrived == offered - unsent
