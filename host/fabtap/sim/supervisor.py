"""Who runs a simulated board: power, resets, the watchdog, the interpreter's process and the control socket?

One process a board, started by `fabtap sim up`. It is driven over a Unix socket with JSON lines, one request and one answer a
line: {"do": "tap", "uid": "04a1b2c3"} gets {"ok": true}; a mistake gets {"ok": false, "error": ...}. All of it stands in
docs/simulator.md.
"""
import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fabtap.sim.machine_port import MachinePort
from fabtap.sim.terminal import Console, set_inner_mode
from fabtap.sim.uart import UartWire, unread_bytes
from fabtap.sim.wifi import Network, Wifi
from fabtap.sim.wiring import PRESS_S, Wiring
from fabtap.sim.world import World

CAUSE_POWER, CAUSE_HARD, CAUSE_WATCHDOG, CAUSE_SOFT = 1, 2, 3, 5
WATCHDOG_LOOK_S = 0.02
LOG_KEPT = 2000
EXEC_FAILED = 127
BOARD_FILES = Path(__file__).parent / "board"


@dataclass(frozen=True)
class BoardOptions:
    """All that makes one simulated board; `folder` holds NAME.tty, NAME.img, NAME.sock and NAME.log."""

    name: str
    folder: str
    interpreter: str
    pins: dict[str, int]
    buses: dict[str, int]
    blocks: int
    block_bytes: int
    program_bytes: int
    working_w: float = 60.0
    heap: str = "192k"
    erase_ms: float = 0.0
    program_ms: float = 0.0
    ticks_offset: int = 0
    always_on: bool = False
    wifi: dict[str, Any] | None = None
    uart: dict[str, int] | None = None

    def path(self, suffix: str) -> Path:
        """One of the board's files."""
        return Path(self.folder) / (self.name + suffix)


class SimulatedBoard:
    """The board and its world. All methods run in the event loop."""

    def __init__(self, options: BoardOptions) -> None:
        self.options = options
        self.log: deque[dict[str, object]] = deque(maxlen=LOG_KEPT)
        self._log_file = open(options.path(".log"), "a", encoding="utf-8")  # noqa: SIM115 closed with the process
        self.machine = MachinePort(self._watchdog, self._reset_asked)
        self.machine.unique_id = options.name.encode()[:8].ljust(8, b"\0")
        self.world = World(time.monotonic, options.working_w)
        self.world.always_on(options.always_on)
        self.wiring = Wiring(self.machine, self.world, options.pins, options.buses, self.note)
        self.console = Console(options.path(".tty"), self._console_bytes)
        self.machine.booted = self.console.listening.set
        if options.uart:
            self.console.uart = UartWire(options.uart["baud"], options.uart["ring_bytes"], options.uart["fifo_bytes"],
                                         deliver=self.console.inner.write,
                                         waiting=lambda: unread_bytes(self.console.process_id))
            self.machine.flash_busy = self.console.uart.flash_busy
        self.wifi: Wifi | None = None
        if options.wifi:
            names = {name: (host, int(port)) for name, (host, port) in options.wifi["names"].items()}
            self.wifi = Wifi(Network(**{**options.wifi, "names": names}), self.note)
            self.machine.network = self.wifi.call
        self.powered = False
        self.boots = 0
        self._line = bytearray()
        self._inner = -1
        self._cause = CAUSE_POWER
        self._watchdog_s = 0.0
        self._fed_s = 0.0
        self._socket_name = f"fabtap-sim-{os.getpid()}-{options.name}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("\0" + self._socket_name)
        self._listener.listen(1)
        self._connection: socket.socket | None = None
        self.stopped = asyncio.Event()

    async def run(self) -> None:
        """Power the board and serve until told to go down."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)
        image = self.options.path(".img")
        if not image.exists():
            image.write_bytes(b"\xff" * (self.options.blocks * self.options.block_bytes))
        if self.wifi:
            await self.wifi.start()
        self.power(True)
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self.console.run()), asyncio.create_task(self._watch())]
        if self.console.uart:
            tasks.append(asyncio.create_task(self.console.uart.run()))
        waiting = asyncio.create_task(self.stopped.wait())
        done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        self.power(False)
        for task in tasks:
            task.cancel()
        if self.wifi:
            self.wifi.stop()
        for task in done:
            task.result()

    def note(self, what: str, detail: object = "") -> None:
        """Write one thing that happened into the log."""
        entry: dict[str, object] = {"at_s": round(time.monotonic(), 4), "what": what, "detail": detail}
        self.log.append(entry)
        self._log_file.write(json.dumps(entry) + "\n")
        self._log_file.flush()

    def power(self, on: bool) -> None:
        """The node's mains. Off is at once: whatever the node was doing, it does not finish."""
        if on == self.powered:
            return
        self.powered = on
        self.note("node mains", "on" if on else "off")
        if on:
            self.wiring.node_power(True)
            self.console.port.plug()
            self._cause = CAUSE_POWER
            self._spawn()
        else:
            self._kill()
            self.machine.pins_to_default()
            self.wiring.node_power(False)
            self.console.port.unplug()

    def hard_reset(self, cause: int) -> None:
        """The chip's reset line: pins to their defaults, watchdog off, a new boot."""
        if not self.powered:
            return
        self._kill()
        self.machine.pins_to_default()
        self._cause = cause
        self._spawn()
        self.console.restarted(hard=True)

    def _reset_asked(self) -> None:
        self.note("machine.reset()")
        asyncio.get_running_loop().call_soon(self.hard_reset, CAUSE_HARD)

    def _spawn(self) -> None:
        if self._cause != CAUSE_SOFT:
            self._watchdog_s = 0.0
        self.machine.cause = self._cause
        options = self.options
        arguments = [options.interpreter, "-X", f"heapsize={options.heap}", "-i", str(BOARD_FILES / "simboot.py"),
                     self._socket_name, str(options.path(".img").resolve()), str(options.blocks),
                     str(options.block_bytes), str(options.program_bytes), str(round(options.erase_ms * 1000)),
                     str(round(options.program_ms * 1000)), str(options.ticks_offset),
                     "1" if options.wifi else "0", "0" if self._cause == CAUSE_SOFT and self.console.raw else "1"]
        process_id, self._inner = os.forkpty()
        if process_id == 0:
            try:
                set_inner_mode()
                os.execvp(arguments[0], arguments)
            finally:
                # Without the interpreter this would be a second supervisor.
                os._exit(EXEC_FAILED)
        os.set_blocking(self._inner, False)
        if self.console.uart:
            self.console.uart.clear()
        if self.wifi and self._cause != CAUSE_SOFT:
            self.wifi.node_reset()
        self.console.process_id = process_id
        self.console.listening.clear()
        self.console.inner.attach(self._inner)
        self.boots += 1
        asyncio.get_running_loop().add_reader(self._inner, self._from_interpreter)

    def _kill(self) -> None:
        if self.console.process_id:
            os.kill(self.console.process_id, signal.SIGKILL)
            self._reap()
        self._watchdog_s = 0.0

    def _reap(self) -> int:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._inner)
        self.console.inner.detach()
        os.close(self._inner)
        _, status = os.waitpid(self.console.process_id, 0)
        self.console.process_id = 0
        self._drop_connection()
        return status

    def _from_interpreter(self) -> None:
        try:
            data = os.read(self._inner, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.console.from_board(data)
            return
        status = self._reap()
        if os.waitstatus_to_exitcode(status) == EXEC_FAILED:
            self.note("the interpreter can't be started", self.options.interpreter)
            self.stopped.set()
        elif status == 0:
            # Pins keep their state over a soft reset, and the watchdog goes on.
            self.note("soft reset")
            self._cause = CAUSE_SOFT
            self._spawn()
            self.console.restarted(hard=False)
        else:
            self.note("interpreter ended", status)
            self.machine.pins_to_default()
            self._cause = CAUSE_HARD
            self._spawn()
            self.console.restarted(hard=True)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._drop_connection()
        connection.setblocking(False)
        self._connection = connection
        asyncio.get_running_loop().add_reader(connection, self._serve_machine, connection)

    def _drop_connection(self) -> None:
        if self._connection:
            asyncio.get_running_loop().remove_reader(self._connection)
            self._connection.close()
            self._connection = None

    def _serve_machine(self, connection: socket.socket) -> None:
        try:
            while self._connection is connection:
                packet = connection.recv(65536)
                if not packet:
                    self._drop_connection()
                    return
                answer = self.machine.handle(packet)
                if answer is not None:
                    connection.send(answer)
        except BlockingIOError:
            return
        except ConnectionError:
            self._drop_connection()

    def _watchdog(self, what: str, timeout_ms: int) -> None:
        self._fed_s = time.monotonic()
        if what == "start":
            self._watchdog_s = timeout_ms / 1000

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCHDOG_LOOK_S)
            if self._watchdog_s and time.monotonic() - self._fed_s > self._watchdog_s:
                self.note("watchdog", f"not fed for {self._watchdog_s} s")
                self.hard_reset(CAUSE_WATCHDOG)

    def _console_bytes(self, data: bytes) -> None:
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line = bytearray(rest[-2000:])
        for line in lines:
            text = line.strip().decode("utf-8", "replace")
            # Frames are the collector's, and raw REPL's control characters are of no use to a reader.
            if text and not text.startswith("~") and text.isprintable():
                self.note("console", text)


class Control:
    """The control socket: what a request does."""

    def __init__(self, board: SimulatedBoard) -> None:
        self._board = board
        self._actions: dict[str, Callable[[dict[str, Any]], dict[str, object] | None]] = {
            "status": self._status, "tap": self._tap, "remove": self._remove, "press": self._press,
            "estop": self._estop, "load": self._load, "power": self._power, "unplug": self._unplug,
            "plug": self._plug, "truth": self._truth, "logs": self._logs, "down": self._down, "reader": self._reader,
            "meter": self._meter, "wifi": self._wifi}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client until it leaves."""
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()
        except ValueError:  # so long a line that the reader has given up
            writer.write(b'{"ok": false, "error": "the line is too long"}\n')
        except ConnectionError:
            pass
        writer.close()

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
            action = self._actions[request["do"]]
        except (ValueError, KeyError, TypeError) as error:
            return {"ok": False, "error": f"no such request ({error}); known: {', '.join(self._actions)}"}
        try:
            return {"ok": True, **(action(request) or {})}
        except ValueError as error:
            return {"ok": False, "error": f"{request['do']}: {error}"}
        except (KeyError, TypeError, OverflowError) as error:
            return {"ok": False, "error": f"{request['do']}: {type(error).__name__} {error}"}

    def _status(self, request: dict[str, Any]) -> dict[str, object]:
        board = self._board
        return {
            "name": board.options.name, "process_id": os.getpid(), "port": str(board.options.path(".tty")),
            "powered": board.powered, "plugged": board.console.port.plugged, "boots": board.boots,
            "relay": board.world.relay_on, "led": board.wiring.led, "tone_hz": board.wiring.tone_hz,
            "load_w": board.world.load_w, "badge": [card.uid.hex() for card in board.wiring.reader.cards],
            "interpreter_id": board.console.process_id,
            "wifi": None if board.wifi is None else {"on_air": board.wifi.on_air, "address": board.wifi.node_address},
            "uart_lost_bytes": board.console.uart.lost_bytes if board.console.uart else 0,
            "options": asdict(board.options)}

    def _tap(self, request: dict[str, Any]) -> None:
        try:
            uid = bytes.fromhex(request["uid"])
        except ValueError:
            raise ValueError(f"a badge number is written in hex, e.g. 04a1b2c3, not {request['uid']!r}") from None
        if len(uid) not in (4, 7, 10):
            raise ValueError(f"a badge number has 4, 7 or 10 bytes, not {len(uid)}")
        self._board.note("tap", uid.hex())
        self._board.wiring.tap(uid)

    def _remove(self, request: dict[str, Any]) -> None:
        self._board.note("badge removed")
        self._board.wiring.remove()

    def _press(self, request: dict[str, Any]) -> None:
        self._board.note("stop pressed")
        self._board.wiring.press(True)
        asyncio.get_running_loop().call_later(PRESS_S, self._board.wiring.press, False)

    def _estop(self, request: dict[str, Any]) -> None:
        is_open = request.get("state", "open") == "open"
        self._board.note("estop", "open" if is_open else "closed")
        self._board.wiring.estop(is_open)

    def _load(self, request: dict[str, Any]) -> None:
        watts = float(request["watts"])
        if not 0 <= watts <= 23000:
            raise ValueError(f"a load draws 0 to 23000 W, not {watts}")
        self._board.note("load", watts)
        self._board.world.set_load(watts)

    def _power(self, request: dict[str, Any]) -> None:
        self._board.power(bool(request["on"]))

    def _unplug(self, request: dict[str, Any]) -> None:
        self._board.note("cable pulled")
        self._board.console.port.unplug()

    def _plug(self, request: dict[str, Any]) -> None:
        self._board.note("cable plugged")
        if self._board.powered:
            self._board.console.port.plug()

    def _reader(self, request: dict[str, Any]) -> None:
        self._board.note("reader goes deaf", request["deaf"])
        self._board.wiring.reader.go_deaf(request["deaf"])

    def _meter(self, request: dict[str, Any]) -> None:
        self._board.note("meter", "silent" if request["silent"] else "speaks")
        self._board.wiring.meter.silent = bool(request["silent"])

    def _wifi(self, request: dict[str, Any]) -> None:
        wifi = self._board.wifi
        if wifi is None:
            raise ValueError("this board has no WiFi")
        if request.get("move"):
            self._moving = asyncio.get_running_loop().create_task(wifi.move())
        if "on" in request:
            wifi.radio(bool(request["on"]))

    def _truth(self, request: dict[str, Any]) -> dict[str, object]:
        return {**self._board.world.truth(), "tap_to_relay_ms": self._board.wiring.tap_to_relay_ms}

    def _logs(self, request: dict[str, Any]) -> dict[str, object]:
        return {"entries": list(self._board.log)[-int(request.get("last", LOG_KEPT)):]}

    def _down(self, request: dict[str, Any]) -> None:
        asyncio.get_running_loop().call_later(0.05, self._board.stopped.set)


async def serve(options: BoardOptions) -> None:
    """Run one board until it is told to go down."""
    board = SimulatedBoard(options)
    path = options.path(".sock")
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(Control(board).serve, path)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, board.stopped.set)
    try:
        await board.run()
    finally:
        server.close()
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    # Not in the arguments, which everybody can read: the WiFi's password is among them.
    asyncio.run(serve(BoardOptions(**json.load(sys.stdin))))
