"""How does a technician's program talk to one board, with a deadline on every wait?

mpremote's own SerialTransport does the talking. Service mode: a flag file and a hard reset, after which neither application nor
watchdog runs for one boot, so that files can be moved in peace.
"""
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import serial
from mpremote import transport_serial
from mpremote.transport import TransportError
from mpremote.transport_serial import SerialTransport

from fabtap.port import keep_lines_on_close
from fabtap.problem import Problem

STEP_S = 10.0
OPEN_S = 10.0
CHUNK_BYTES = 1024
T = TypeVar("T")
# mpremote prints what it got instead of a prompt; the exception says enough. Its own name is replaced, not sys.stdout: several
# boards are served at once, each in a thread, and a stream that two threads redirect does not come back.
vars(transport_serial)["print"] = lambda *args, **more: None


class BoardProblem(Problem):
    """A bench command failed; `exit_code` is 3 no board, 4 wrong board, 5 transfer, 6 verify, 8 busy."""

    def __init__(self, where: str | Path, what: str, mend: str, exit_code: int) -> None:
        super().__init__(where, None, what, mend)
        self.exit_code = exit_code


class BoardSession:
    """One board in raw REPL."""

    def __init__(self, port: Path) -> None:
        self.port = port
        self._transport: SerialTransport | None = None

    def open(self) -> None:
        """Open the port, stop what runs and enter raw REPL; tries for `OPEN_S`."""
        deadline = time.monotonic() + OPEN_S
        while True:
            try:
                self._open_once()
                return
            except (TransportError, serial.SerialException, OSError) as error:
                self.close()
                if "exclusively lock" in str(error):
                    raise BoardProblem(self.port, "is in use by another program",
                                       "Stop the collector (or whoever has it), then try again.", 8) from None
                if time.monotonic() >= deadline:
                    raise BoardProblem(self.port, f"has no board that answers ({error})",
                                       "Check cable and port; is MicroPython on the board?", 3) from None
                time.sleep(0.2)

    def _open_once(self) -> None:
        if not self.port.exists():
            raise OSError("no such device")
        # Without a lock here mpremote's constructor swallows the reason and says "failed to access".
        with serial.Serial(str(self.port), exclusive=True) as probe:
            keep_lines_on_close(probe.fileno())
        self._transport = SerialTransport(str(self.port), timeout=STEP_S)
        self._transport.serial.write_timeout = STEP_S
        keep_lines_on_close(self._transport.serial.fileno())
        self._transport.enter_raw_repl(soft_reset=False, timeout_overall=3)
        # A board that just comes back from a soft reset shows its prompt twice: only an answer says that it listens.
        self._transport.exec("")

    def close(self) -> None:
        """Leave the port; the board stays as it is."""
        if self._transport:
            with contextlib.suppress(OSError):
                self._transport.serial.close()
            self._transport = None

    def do(self, what: str, work: Callable[[SerialTransport], T]) -> T:
        """Run one step; a failure becomes a BoardProblem that names the step."""
        if self._transport is None:
            raise RuntimeError("the session is not open")
        try:
            return work(self._transport)
        except (TransportError, serial.SerialException, OSError) as error:
            text = str(error).strip().splitlines()
            raise BoardProblem(self.port, f"{what} failed: {text[-1] if text else type(error).__name__}",
                               "Nothing is half installed that a second run does not mend: run the command again.",
                               5) from None

    def execute(self, code: str) -> str:
        """Run code on the board and return what it prints."""
        return self.do("running code", lambda board: board.exec(code)).decode()

    def hard_reset(self) -> None:
        """Reset as the reset button does; the session is closed, for the port may vanish."""
        # The board waits until its answer is out, and no Ctrl-C of the next session can make it stay.
        code = "import machine, micropython, time\nmicropython.kbd_intr(-1)\ntime.sleep_ms(100)\nmachine.reset()\n"
        self.do("reset", lambda board: board.exec_raw_no_follow(code))
        time.sleep(0.3)
        self.close()

    def enter_service_mode(self) -> None:
        """Set the flag, reset, and come back to a board on which nothing else runs."""
        self.execute("with open('/service', 'wb') as file: file.write(b'1')")
        self.hard_reset()
        self.open()

    def file_hash(self, path: str) -> str:
        """SHA-256 of a file on the board in hexadecimal, "" when it isn't there."""
        def work(board: SerialTransport) -> str:
            try:
                return str(board.fs_hashfile(path, "sha256").hex())
            except OSError:
                return ""
        return self.do(f"reading {path}", work)

    def put_file(self, path: str, data: bytes) -> None:
        """Write beside, check the hash on the board, rename: the old file is there until the new one is whole."""
        import hashlib
        beside = path + ".new"
        folders = path.strip("/").split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            self._make_folder("/" + "/".join(folders[:depth]))
        self.do(f"writing {path}", lambda board: board.fs_writefile(beside, data, chunk_size=CHUNK_BYTES))
        if self.file_hash(beside) != hashlib.sha256(data).hexdigest():
            raise BoardProblem(self.port, f"{path} did not arrive whole", "Run the command again.", 6)
        self.execute(f"import os\nos.rename({beside!r}, {path!r})")

    def _make_folder(self, path: str) -> None:
        self.execute(f"import os\ntry:\n os.stat({path!r})\nexcept OSError:\n os.mkdir({path!r})")


@contextlib.contextmanager
def board_session(port: Path, service: bool = True) -> Iterator[BoardSession]:
    """A board in service mode (or, for the control of the proof, without it); reset when all went well."""
    session = BoardSession(port)
    session.open()
    try:
        if service:
            session.enter_service_mode()
        yield session
        # A board that never had main.py still has the flag.
        session.execute("import os\ntry:\n os.remove('/service')\nexcept OSError:\n pass")
        session.hard_reset()
    finally:
        session.close()
