"""How does the board's serial port look from outside, and how do Ctrl-C and Ctrl-D do what they do on a board?

Outside: a pseudo-terminal behind a symlink (tools hang on /dev/pts names). Inside: the interpreter's own terminal. Ctrl-C goes
in as SIGINT only while the interpreter catches it, which respects `micropython.kbd_intr(-1)`. A computer that does not read
loses bytes, as with USB, and the board does not wait.
"""
import asyncio
import ctypes
import os
import signal
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path

from fabtap.sim.uart import UartWire

BACKLOG_MAX = 65536
RAW_BANNER = b"raw REPL; CTRL-B to exit\r\n>"
INTERRUPT_S = 0.5
STOP_S = 0.05
WAITING_S = 0.2
"""Longer than a flash erase takes."""
LOOK_S = 0.0005
WAITING_CALLS = {"7": "poll", "45": "recvfrom", "270": "pselect6", "271": "ppoll"}
"""Numbers of Linux on x86-64, the only machine with an interpreter. A sleep is not among them: it may be a flash erase."""


def set_inner_mode() -> None:
    """The interpreter's side, in the child before exec: bytes as they are. Ctrl-C becomes a signal in Console.run only: the
    kernel would send it also while the interpreter does not catch it, and end it."""
    mode = termios.tcgetattr(0)
    mode[0] = mode[1] = 0
    mode[3] = 0
    mode[6][termios.VMIN] = 1
    mode[6][termios.VTIME] = 0
    termios.tcsetattr(0, termios.TCSANOW, mode)


def catches_interrupt(process_id: int) -> bool:
    """True while the process has a handler for SIGINT, so while code runs under `kbd_intr(3)`."""
    with open(f"/proc/{process_id}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("SigCgt"):
                return bool(int(line.split()[1], 16) & 2)
    return False


def interrupt(process_id: int) -> bool:
    """Send SIGINT if the process catches it; False if it does not.

    The unix interpreter raises KeyboardInterrupt out of the signal's handler, wherever its C code is: amid an allocation it may
    hang or end, amid a flash write the file system breaks. A chip does neither. So the process is stopped for a look until it
    waits for something. The event loop stands still too, so whoever asks the board's `machine` does wait; only code that asks
    nothing for `WAITING_S` is interrupted anywhere. The main thread gets the signal, never a timer's.
    """
    deadline = time.monotonic() + WAITING_S
    while True:
        late = time.monotonic() >= deadline
        os.kill(process_id, signal.SIGSTOP)
        try:
            stop_deadline = time.monotonic() + STOP_S
            while not stands_still(process_id) and time.monotonic() < stop_deadline:
                pass
            if not catches_interrupt(process_id):
                return False
            if late or waits(process_id):
                ctypes.CDLL(None).tgkill(process_id, process_id, signal.SIGINT)
                return True
        finally:
            os.kill(process_id, signal.SIGCONT)
        time.sleep(LOOK_S)


def waits(process_id: int) -> bool:
    """True while the process's main thread is in a system call that waits for an answer or for input."""
    try:
        call = Path(f"/proc/{process_id}/syscall").read_text(encoding="ascii").split()[0]
    except OSError:
        return False
    return call in WAITING_CALLS


def stands_still(process_id: int) -> bool:
    """True for a process that is stopped or has ended."""
    with open(f"/proc/{process_id}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] in "TZX"


class Pipe:
    """Bytes towards one file descriptor, never blocking; what exceeds the backlog is dropped and counted."""

    def __init__(self) -> None:
        self.fd = -1
        self._backlog = bytearray()
        self.dropped_bytes = 0

    def attach(self, fd: int) -> None:
        self.detach()
        self.fd = fd

    def detach(self) -> None:
        if self.fd >= 0:
            asyncio.get_running_loop().remove_writer(self.fd)
        self.fd = -1
        self._backlog.clear()

    def write(self, data: bytes) -> None:
        if self.fd < 0:
            self.dropped_bytes += len(data)
            return
        if len(self._backlog) + len(data) > BACKLOG_MAX:
            self.dropped_bytes += len(data)
            return
        self._backlog.extend(data)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._backlog:
                del self._backlog[:os.write(self.fd, self._backlog)]
        except BlockingIOError:
            asyncio.get_running_loop().add_writer(self.fd, self._flush)
            return
        except OSError:
            self.detach()
            return
        asyncio.get_running_loop().remove_writer(self.fd)


class OuterPort:
    """The pseudo-terminal that a computer opens. `received` is called with what the computer sends."""

    def __init__(self, link: Path, received: Callable[[bytes], None]) -> None:
        self._link = link
        self._received = received
        self._master = self._slave = -1
        self.out = Pipe()

    @property
    def plugged(self) -> bool:
        return self._master >= 0

    def plug(self) -> None:
        """The device appears."""
        if self.plugged:
            return
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.out.attach(self._master)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        temporary = self._link.with_name(self._link.name + ".new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.ttyname(self._slave))
        temporary.replace(self._link)

    def unplug(self) -> None:
        """The device vanishes: whoever has it open gets a hang-up."""
        if not self.plugged:
            return
        self._link.unlink(missing_ok=True)
        self.out.detach()
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._slave)
        os.close(self._master)
        self._master = self._slave = -1

    def _read(self) -> None:
        try:
            data = os.read(self._master, 4096)
        except (BlockingIOError, OSError):
            return
        self._received(data)


class Console:
    """Between the outer port and the interpreter: what a board's USB stack and soft reset do."""

    def __init__(self, link: Path, noted: Callable[[bytes], None]) -> None:
        self.port = OuterPort(link, self._from_computer)
        self.inner = Pipe()
        self.process_id = 0
        self.listening = asyncio.Event()
        self.raw = False
        self._noted = noted
        self.uart: UartWire | None = None
        self._incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self._restoring: bytearray | None = None

    async def run(self) -> None:
        """Pass on what the computer sends, in order; while the board boots it waits in the USB stack."""
        while True:
            data = await self._incoming.get()
            await self.listening.wait()
            if b"\x02" in data:
                self.raw = False
            if b"\x03" in data and self.process_id and self._interrupt():
                data = data[data.rindex(b"\x03") + 1:]
                deadline = time.monotonic() + INTERRUPT_S
                while self.process_id and catches_interrupt(self.process_id) and time.monotonic() < deadline:
                    await asyncio.sleep(0.002)
            if data and self.uart:
                self.uart.push(data)
            elif data:
                self.inner.write(data)

    def _interrupt(self) -> bool:
        try:
            return interrupt(self.process_id)
        except (ProcessLookupError, FileNotFoundError):
            # Reset or switched off while we were looking.
            return False

    def _from_computer(self, data: bytes) -> None:
        self._incoming.put_nowait(data)

    def from_board(self, data: bytes) -> None:
        """Bytes that the interpreter has written."""
        if self._restoring is not None:
            self._restore(data)
            return
        if RAW_BANNER[:8] in data:
            self.raw = True
        elif b">>> " in data:
            self.raw = False
        self._noted(data)
        self.port.out.write(data)

    def restarted(self, hard: bool) -> None:
        """A new interpreter has been started; after a soft reset in raw REPL the board comes back in raw REPL."""
        self._noted(b"\r\n")
        self.port.out.write(b"\r\n" if hard else b"MPY: soft reboot\r\n")
        self._restoring = bytearray() if self.raw and not hard else None
        self.raw = self.raw and not hard

    def _restore(self, data: bytes) -> None:
        assert self._restoring is not None
        self._restoring.extend(data)
        if self._restoring.endswith(b">>> "):
            before = bytes(self._restoring).split(b"MicroPython ")[0]
            self.port.out.write(before)
            self.inner.write(b"\x01")
        elif self._restoring.endswith(RAW_BANNER):
            self._restoring = None
            self.port.out.write(RAW_BANNER)
