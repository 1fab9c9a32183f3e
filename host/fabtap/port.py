"""How is a node's serial port opened so that the board does not reset, and how do bytes come and go?

The kernel raises DTR and RTS together when a port is opened; boards with an auto-reset circuit reset when only one of the two
changes. So neither line is touched here: pyserial's own defaults (both on) ask for what is already so, and HUPCL is cleared,
so that closing does not drop them either.
"""
import asyncio
import errno
import os
import termios
from pathlib import Path

import serial

from fabtap.problem import Problem

BAUD = 115200
READ_BYTES = 4096


class PortGone(Exception):
    """The device vanished or hung up."""


def open_port(path: str | Path) -> serial.Serial:
    """An exclusive, non-blocking port.

    Raises PortGone when there is no such device, Problem when somebody else has it or this user may not open it.
    """
    try:
        port = serial.Serial(str(path), BAUD, timeout=0, write_timeout=0, exclusive=True)
    except (OSError, termios.error) as error:
        if getattr(error, "errno", None) == errno.EWOULDBLOCK:
            raise Problem(path, None, "is in use by another program", "Close it there, then try again.") from None
        if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM):
            raise Problem(path, None, "may not be opened by this user",
                          "Add the user to the port's group (sudo usermod -aG dialout USER), then log in anew.") from None
        raise PortGone(str(error)) from None
    try:
        keep_lines_on_close(port.fileno())
        read_nothing_as_hang_up(port.fileno())
    except (OSError, termios.error) as error:
        port.close()
        raise PortGone(str(error)) from None
    return port


def read_nothing_as_hang_up(descriptor: int) -> None:
    """VMIN 1 and non-blocking: "nothing there yet" becomes an error of its own, so that no bytes at all means a hang-up."""
    mode = termios.tcgetattr(descriptor)
    mode[6][termios.VMIN] = 1
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)
    os.set_blocking(descriptor, False)


def keep_lines_on_close(descriptor: int) -> None:
    """Clear HUPCL: the next close and open leave DTR and RTS as they are."""
    mode = termios.tcgetattr(descriptor)
    mode[2] &= ~termios.HUPCL
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)


class AsyncPort:
    """An open port in an event loop: `read` waits for bytes, `write` never waits."""

    def __init__(self, port: serial.Serial) -> None:
        self._port = port
        self._descriptor: int = port.fileno()
        self._readable = asyncio.Event()
        self.unsent_bytes = 0

    async def read(self) -> bytes:
        """The next bytes. Raises PortGone on hang-up."""
        loop = asyncio.get_running_loop()
        while True:
            # Only while somebody waits: bytes that lie there while a commit is pending would wake the loop without end.
            loop.add_reader(self._descriptor, self._readable.set)
            try:
                await self._readable.wait()
            finally:
                loop.remove_reader(self._descriptor)
            self._readable.clear()
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PortGone(str(error)) from None
            if not data:
                raise PortGone("hung up")
            return data

    def write(self, data: bytes) -> None:
        """Send a line, or as much as the device takes; the protocol sends again what gets lost."""
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise PortGone(str(error)) from None
        self.unsent_bytes += len(data) - sent

    def close(self) -> None:
        """Give the device back."""
        self._port.close()
