"""Is the simulated board a board? Its `machine` module, resets, terminal, flash, control socket and world.

The first half runs the real interpreter with the board's machine.py against a MachinePort in this process; the second half runs
whole boards.
"""
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fabtap.bench.session import BoardSession
from fabtap.port import open_port
from fabtap.problem import Problem
from fabtap.sim.client import SimClient, find_interpreter, start_board
from fabtap.sim.machine_port import MachinePort
from fabtap.sim.terminal import interrupt
from fabtap.sim.world import CONTACTOR_CLOSE_S, CONTACTOR_OPEN_S, World
from tests.rig import BOARD, lab_folder, processes_naming, run_fabtap, wait_until

BOARD_FILES = Path(__file__).parents[2] / "host" / "fabtap" / "sim" / "board"
RUN_S = 20


class MachineHost:
    """A MachinePort that serves one interpreter at a time from a thread, and notes what its callbacks are told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.port = MachinePort(lambda what, timeout_ms: self.told.append((what, timeout_ms)),
                                lambda: self.told.append("reset"))
        self.name = f"fabtap-test-{os.getpid()}-{id(self)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("\0" + self.name)
        self._listener.listen(1)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # An interpreter that is killed resets its connection.
            with connection, contextlib.suppress(ConnectionError):
                while packet := connection.recv(65536):
                    answer = self.port.handle(packet)
                    if answer is not None:
                        connection.send(answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def start(self, code: str) -> subprocess.Popen[str]:
        """Start the interpreter on code that finds `machine` attached."""
        program = f"import machine\nmachine._attach({self.name!r})\n{code}"
        return subprocess.Popen([find_interpreter(), "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                stdin=subprocess.DEVNULL, env={**os.environ, "MICROPYPATH": str(BOARD_FILES)})

    def run(self, code: str) -> list[str]:
        """The lines that the code prints."""
        process = self.start(code)
        try:
            out, errors = process.communicate(timeout=RUN_S)
        finally:
            process.kill()
        assert process.returncode == 0, out + errors
        return out.splitlines()


@pytest.fixture
def host() -> Iterator[MachineHost]:
    found = MachineHost()
    yield found
    found.close()


class Registers:
    """An I2C chip with 256 registers behind a pointer."""

    def __init__(self) -> None:
        self.cells = bytearray(256)
        self.pointer = 0

    def exchange(self, data: bytes, count: int) -> bytes:
        if data:
            self.pointer = data[0]
            self.cells[self.pointer:self.pointer + len(data) - 1] = data[1:]
        return bytes(self.cells[self.pointer:self.pointer + count])


class Echo:
    """An SPI chip that answers every byte with its complement, and a UART chip that says its bytes back."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.out = bytearray()

    def transfer(self, data: bytes) -> bytes:
        self.heard += data
        return bytes(byte ^ 0xFF for byte in data)

    def write(self, data: bytes) -> None:
        self.out += data

    def any(self) -> int:
        return len(self.out)

    def read(self, count: int) -> bytes:
        data = bytes(self.out[:count])
        del self.out[:count]
        return data


def test_pins_drive_outputs_and_read_inputs(host: MachineHost) -> None:
    levels: list[int] = []
    host.port.outputs[15] = levels.append
    host.port.inputs[13] = 1
    assert host.run("""
pin = machine.Pin(15, machine.Pin.OUT, value=0)
pin(1); pin.off(); pin.on(); pin.toggle()
print(pin.value())
stop = machine.Pin(13, machine.Pin.IN, machine.Pin.PULL_UP)
print(stop(), machine.Pin(14, machine.Pin.IN).value())
machine.Pin(15, machine.Pin.OUT)
""") == ["0", "1 0"]
    assert levels == [0, 1, 0, 1, 0]


def test_a_reset_takes_every_output_low(host: MachineHost) -> None:
    levels: list[int] = []
    tones: list[tuple[int, int]] = []
    host.port.outputs[15] = levels.append
    host.port.tones[14] = lambda frequency, duty: tones.append((frequency, duty))
    host.run("machine.Pin(15, machine.Pin.OUT, value=1); machine.PWM(machine.Pin(14), freq=880, duty_u16=32768)")
    host.port.pins_to_default()
    assert levels == [1, 0]
    assert tones == [(880, 32768), (0, 0)]


def test_adc_pwm_and_rtc(host: MachineHost) -> None:
    tones: list[tuple[int, int]] = []
    host.port.adc[26] = lambda: 54321
    host.port.tones[14] = lambda frequency, duty: tones.append((frequency, duty))
    lines = host.run("""
print(machine.ADC(26).read_u16(), machine.ADC(machine.Pin(27)).read_u16())
tone = machine.PWM(machine.Pin(14), freq=1000, duty_u16=0)
tone.duty_u16(100); tone.freq(2000); tone.deinit()
clock = machine.RTC()
clock.datetime((2026, 10, 30, 4, 23, 59, 58, 0))
print(clock.datetime())
""")
    assert lines[0] == "54321 0"
    year, month, day, weekday, hour, minute, second, _ = json.loads(lines[1].replace("(", "[").replace(")", "]"))
    assert (year, month, day, weekday, hour, minute) == (2026, 10, 30, 4, 23, 59)
    assert second in (58, 59)
    assert tones == [(1000, 0), (1000, 100), (2000, 100), (2000, 0)]


def test_spi_exchanges_whole_buffers(host: MachineHost) -> None:
    chip = host.port.spi[0] = Echo()
    assert host.run("""
spi = machine.SPI(0, baudrate=4000000)
spi.write(b'\\x01\\x02')
buffer = bytearray(4)
spi.readinto(buffer, 0x0f); print(buffer.hex())
spi.write_readinto(b'\\xaa\\x55\\x00\\xff', buffer); print(buffer.hex())
print(spi.read(2).hex(), machine.SPI(1).read(2, 0).hex())
""") == ["f0f0f0f0", "55aaff00", "ffff ffff"]
    assert chip.heard.hex() == "0102" + "0f" * 4 + "aa5500ff" + "0000"


def test_i2c_reaches_a_chip_and_says_so_when_none_is_there(host: MachineHost) -> None:
    chip = host.port.i2c[(0, 0x48)] = Registers()
    assert host.run("""
bus = machine.I2C(0)
print(bus.scan(), machine.I2C(1).scan())
bus.writeto_mem(0x48, 0x10, b'abc')
print(bus.readfrom_mem(0x48, 0x11, 2))
print(bus.writeto(0x48, b'\\x10'), bus.readfrom(0x48, 3))
for ask in (lambda: bus.readfrom(0x49, 1), lambda: bus.writeto(0x49, b'x'), lambda: machine.I2C(1).readfrom(0x48, 1)):
    try:
        ask()
    except OSError as error:
        print('errno', error.errno)
""") == ["[72] []", "b'bc'", "1 b'abc'", "errno 5", "errno 5", "errno 5"]
    assert chip.cells[0x10:0x13] == b"abc"


def test_uart_writes_and_reads_what_is_there(host: MachineHost) -> None:
    host.port.uart[1] = Echo()
    assert host.run("""
uart = machine.UART(1, baudrate=9600)
print(uart.read(5), uart.any(), machine.UART(0).read(), machine.UART(0).any())
print(uart.write(b'hello'), uart.any(), uart.read(2))
buffer = bytearray(5)
print(uart.readinto(buffer), buffer, uart.readinto(buffer))
""") == ["None 0 None 0", "5 5 b'he'", "3 bytearray(b'llo\\x00\\x00') None"]


def test_identity_watchdog_and_reset_are_told(host: MachineHost) -> None:
    host.port.unique_id = b"laser\0\0\0"
    host.port.cause = 3
    assert host.run("print(machine.unique_id(), machine.reset_cause())\nw = machine.WDT(timeout=1234)\nw.feed()\nw.feed()") == [
        "b'laser\\x00\\x00\\x00' 3"]
    assert host.told == [("start", 1234), ("feed", 0), ("feed", 0)]


def test_a_periodic_timer_fires_while_the_main_code_loops(host: MachineHost) -> None:
    host.port.adc[26] = lambda: 7
    # The callback asks too: its answers and those of the main code must not be mixed up.
    host.port.adc[27] = lambda: 9
    assert host.run("""
import time
seen = []
def beat(timer):
    seen.append(machine.ADC(27).read_u16())
timer = machine.Timer(-1, mode=machine.Timer.PERIODIC, period=10, callback=beat)
begun = time.ticks_ms()
wrong = 0
while len(seen) < 20 and time.ticks_diff(time.ticks_ms(), begun) < 5000:
    wrong += machine.ADC(26).read_u16() != 7
took = time.ticks_diff(time.ticks_ms(), begun)
timer.deinit()
count = len(seen)
time.sleep_ms(60)
print(count >= 20, took >= 200, wrong, set(seen), len(seen) == count)
""") == ["True True 0 {9} True"]


def test_a_timer_fires_once_or_by_frequency_and_can_be_set_anew(host: MachineHost) -> None:
    assert host.run("""
import time
once = []; often = []; never = []
def wait(condition):
    begun = time.ticks_ms()
    while not condition() and time.ticks_diff(time.ticks_ms(), begun) < 5000:
        time.sleep_ms(1)
one = machine.Timer(-1, mode=machine.Timer.ONE_SHOT, period=20, callback=once.append)
many = machine.Timer(-1, freq=100, callback=often.append)
moved = machine.Timer(-1, mode=machine.Timer.ONE_SHOT, period=30, callback=never.append)
moved.init(mode=machine.Timer.ONE_SHOT, period=10, callback=often.append)
wait(lambda: len(often) >= 10)
many.deinit()
print(len(once), once[0] is one, len(often) >= 10, len(never))
""") == ["1 True True 0"]


HAMMERED = """
import time
begun = time.ticks_ms()
done = wrong = 0
seen = machine.Pin(15, machine.Pin.OUT)
led = machine.Pin(25, machine.Pin.OUT)
# A Ctrl-C is not for a timer's thread to take.
timer = machine.Timer(-1, mode=machine.Timer.PERIODIC, period=3, callback=lambda timer: led(1))
def left():
    return time.ticks_diff(time.ticks_ms(), begun) < 2500
def work():
    global done, wrong
    if done == 0: print('ready')
    while left():
        for pin in range(200):
            wrong += machine.ADC(pin).read_u16() != pin * 7 + 1
            done += 1
stopped = 0
while left():
    try:
        # Told from in here: the next Ctrl-C comes only after it, and finds us ready for it.
        if stopped: seen(1)
        work()
    except KeyboardInterrupt:
        stopped = 1
timer.deinit()
print(done, wrong)
"""


def test_ctrl_c_in_the_middle_of_calls_mixes_up_no_answers(host: MachineHost, rng: random.Random) -> None:
    for pin in range(200):
        host.port.adc[pin] = lambda pin=pin: pin * 7 + 1
    stopped: list[int] = []
    host.port.outputs[15] = stopped.append
    process = host.start(HAMMERED)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        until = time.monotonic() + 1.5
        sent = 0
        while time.monotonic() < until:
            time.sleep(0.001 + rng.random() * 0.003)
            assert interrupt(process.pid)
            sent += 1
            wait_until(lambda: len(stopped) == sent, 5, "the interpreter has taken a Ctrl-C")  # noqa: B023
        out, errors = process.communicate(timeout=RUN_S)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    done, wrong = [int(word) for word in out.split()]
    assert done > 1000
    assert sent > 50
    assert wrong == 0


# Whole boards.

@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest) -> None:
    """A test with a whole board counts as one on a simulated board."""
    if {"blank", "fresh"} & set(request.fixturenames):
        request.node.user_properties.append(("board", "simulated"))


@pytest.fixture(scope="module")
def blank() -> Iterator[SimClient]:
    """A board without firmware, for all tests that leave it as it was."""
    with lab_folder() as folder:
        client = start_board(folder, "blank", BOARD)
        try:
            yield client
        finally:
            client.down()


@pytest.fixture
def fresh() -> Iterator[Callable[..., SimClient]]:
    """Starts a board of the test's own."""
    with lab_folder() as folder:
        started: list[SimClient] = []

        def start(**more: Any) -> SimClient:
            started.append(start_board(folder, "fresh", BOARD, **more))
            return started[-1]

        try:
            yield start
        finally:
            if started and started[-1].path.exists():
                started[-1].down()


def run(board: SimClient, code: str) -> str:
    """What code prints at the board's prompt."""
    session = BoardSession(board.port)
    session.open()
    try:
        return session.execute(code).strip()
    finally:
        session.close()


def boots(board: SimClient) -> int:
    return int(board.ask("status")["boots"])


def cause(board: SimClient) -> int:
    return int(run(board, "import machine; print(machine.reset_cause())"))


def test_the_reset_cause_tells_power_reset_pin_watchdog_and_soft_reset(blank: SimClient) -> None:
    blank.ask("power", on=False)
    assert not blank.port.exists()
    blank.ask("power", on=True)
    assert cause(blank) == 1
    for code, wanted in (("import machine; machine.reset()", 2), ("import machine; machine.WDT(timeout=100)", 3),
                         ("import machine; machine.soft_reset()", 5)):
        before = boots(blank)
        session = BoardSession(blank.port)
        session.open()
        session.do("resetting", lambda board, code=code: board.exec_raw_no_follow("import time; time.sleep_ms(50)\n" + code))
        wait_until(lambda before=before: boots(blank) == before + 1, 5, f"another boot after {code}")
        session.close()
        assert cause(blank) == wanted, code


def test_pins_keep_their_level_over_a_soft_reset_and_lose_it_in_a_hard_one(blank: SimClient) -> None:
    run(blank, "import machine; machine.Pin(15, machine.Pin.OUT, value=1)")
    assert blank.ask("status")["relay"]
    with open_port(blank.port) as port:
        before = boots(blank)
        port.write(b"\x02\x04")
        wait_until(lambda: boots(blank) == before + 1, 5, "the soft reset")
    assert blank.ask("status")["relay"]
    before = boots(blank)
    session = BoardSession(blank.port)
    session.open()
    session.hard_reset()
    wait_until(lambda: boots(blank) == before + 1, 5, "the hard reset")
    assert not blank.ask("status")["relay"]


def test_ctrl_c_at_any_moment_of_a_boot_does_not_end_the_interpreter(blank: SimClient, rng: random.Random) -> None:
    """A Ctrl-C before the interpreter catches it would kill it, and the board would boot twice."""
    for _ in range(12):
        before = boots(blank)
        blank.ask("power", on=False)
        blank.ask("power", on=True)
        time.sleep(rng.random() * 0.05)
        with open_port(blank.port) as port:
            port.write(b"\x03")
        assert run(blank, "print('here')") == "here"
        assert boots(blank) == before + 1
    assert not [entry for entry in blank.ask("logs")["entries"] if entry["what"] == "interpreter ended"]


def test_the_flash_survives_power_off_and_a_new_supervisor(fresh: Callable[..., SimClient]) -> None:
    board = fresh()
    run(board, "with open('/kept.txt', 'w') as file: file.write('kept')")
    board.ask("power", on=False)
    board.ask("power", on=True)
    assert run(board, "print(open('/kept.txt').read())") == "kept"
    board.down()
    assert run(fresh(), "print(open('/kept.txt').read())") == "kept"


def test_power_lost_in_the_middle_of_a_write_leaves_a_mountable_file_system(
        fresh: Callable[..., SimClient], rng: random.Random) -> None:
    board = fresh(program_ms=1.0, erase_ms=2.0)
    run(board, "with open('/kept.txt', 'w') as file: file.write('kept' * 500)")
    begin = """
import os
n = 0
while True:
    n += 1
    with open('/new%d.txt' % (n % 7), 'w') as file: file.write('%d,' % n * 300)
    with open('/log.txt', 'a') as file: file.write('%06d\\n' % n)
    if n % 5 == 0: os.rename('/new%d.txt' % (n % 7), '/old.txt')
"""
    for _ in range(8):
        session = BoardSession(board.port)
        session.open()
        session.do("writing", lambda link: link.exec_raw_no_follow(begin))
        image = board.path.with_suffix(".img")
        changed_ns = image.stat().st_mtime_ns
        wait_until(lambda image=image, changed_ns=changed_ns: image.stat().st_mtime_ns > changed_ns, 5, "it writes")
        time.sleep(rng.random() * 0.08)
        board.ask("power", on=False)
        session.close()
        board.ask("power", on=True)
        # Had the file system been damaged, the boot would have made a new one, without this file.
        assert run(board, "print(open('/kept.txt').read() == 'kept' * 500)") == "True"
        assert run(board, "import os\nfor n in os.listdir('/'): len(open(n).read())\nprint(len(os.listdir('/')) > 1)") == "True"
        lines = run(board, "print(open('/log.txt').read())").split()
        assert all(len(line) == 6 for line in lines)
        assert all(int(later) == int(earlier) + 1 or int(later) == 1 for earlier, later in pairwise(lines))


def test_ctrl_c_in_the_middle_of_flash_writes_tears_no_file(fresh: Callable[..., SimClient], rng: random.Random) -> None:
    board = fresh(program_ms=1.0, erase_ms=5.0)
    run(board, "with open('/kept.txt', 'w') as file: file.write('kept' * 500)")
    before = boots(board)
    # As a node does: it looks at its pins, and now and then it writes.
    begin = """
import machine
pin = machine.Pin(13, machine.Pin.IN)
n = 0
while True:
    n += 1
    pin()
    with open('/log.txt', 'ab') as file: file.write(b'%06d ' % n)
    if n % 5 == 0:
        with open('/new.txt', 'wb') as file: file.write(b'x' * 1000)
        import os
        os.rename('/new.txt', '/old.txt')
"""
    for _ in range(10):
        session = BoardSession(board.port)
        session.open()
        session.do("writing", lambda link: link.exec_raw_no_follow(begin))
        session.close()
        time.sleep(0.02 + rng.random() * 0.1)
        assert run(board, "print(open('/kept.txt').read() == 'kept' * 500)") == "True"
        numbers = [int(word) for word in run(board, "print(open('/log.txt').read())").split()]
        assert [pair for pair in pairwise(numbers) if pair[1] not in (pair[0] + 1, 1)] == []
    assert boots(board) == before


def test_a_pulled_cable_hangs_up_and_comes_back_as_a_new_device(blank: SimClient) -> None:
    before = boots(blank)
    run(blank, "kept = 42")
    port = open_port(blank.port)
    blank.ask("unplug")
    assert not blank.port.exists()
    assert not blank.ask("status")["plugged"]
    with pytest.raises((OSError, Problem)):
        wait_until(lambda: not os.read(port.fileno(), 100) and os.write(port.fileno(), b"x") < 0, 5, "a hang-up")
    port.close()
    blank.ask("plug")
    blank.ask("plug")
    assert blank.port.exists()
    # The board has not noticed: the same interpreter, the same variables.
    assert run(blank, "print(kept)") == "42"
    assert boots(blank) == before


MISTAKES = {
    "bad JSON": b'{"do": "status"',
    "no object": b"[1, 2]",
    "nothing": b"",
    "a number": b"7",
    "unknown request": b'{"do": "explode"}',
    "no request": b'{"uid": "04a1b2c3"}',
    "a list for a request": b'{"do": ["tap"]}',
    "bad uid": b'{"do": "tap", "uid": "xyz"}',
    "uid too short": b'{"do": "tap", "uid": "0102"}',
    "uid is a number": b'{"do": "tap", "uid": 7}',
    "no uid": b'{"do": "tap"}',
    "a load that is no number": b'{"do": "load", "watts": "many"}',
    "a load below nothing": b'{"do": "load", "watts": -1}',
    "a load beyond the fuse": b'{"do": "load", "watts": 1e9}',
    "a load beyond all numbers": b'{"do": "load", "watts": 1' + b"0" * 400 + b"}",
    "not a load": b'{"do": "load", "watts": NaN}',
    "logs of a word": b'{"do": "logs", "last": "x"}',
    "not UTF-8": b'{"do": "\xff"}',
    "an endless line": b"x" * 200_000,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_request_is_answered_with_an_error(blank: SimClient, mistake: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(5)
        link.connect(str(blank.path))
        link.sendall(MISTAKES[mistake] + b"\n")
        with link.makefile("rb") as answers:
            answer = json.loads(answers.readline())
            assert answer["ok"] is False
            assert answer["error"]
            if mistake != "an endless line":
                link.sendall(b'{"do": "status"}\n')
                assert json.loads(answers.readline())["ok"] is True
    assert blank.ask("status")["powered"]


def test_the_client_says_what_the_board_refuses(blank: SimClient) -> None:
    with pytest.raises(Problem, match="4, 7 or 10 bytes, not 9") as refused:
        blank.ask("tap", uid="01" * 9)
    assert refused.value.where == "blank"
    with pytest.raises(Problem, match="is not up"):
        SimClient(blank.path.parent, "nobody").ask("status")


def test_a_board_that_is_up_is_not_started_twice(blank: SimClient) -> None:
    with pytest.raises(Problem, match="is up already"):
        start_board(blank.path.parent, "blank", BOARD)
    assert blank.ask("status")["powered"]


def test_the_process_list_names_the_board_and_not_the_wifis_password(fresh: Callable[..., SimClient]) -> None:
    wifi = {"network": "FabLab", "password": "correct horse", "names": {}, "name_server_port": 0}
    board = fresh(wifi=wifi)
    assert board.ask("status")["options"]["wifi"] == wifi  # control: it has the password
    wanted = {board.ask("status")[name] for name in ("process_id", "interpreter_id")}
    # A process that is just becoming the interpreter has no arguments for a moment.
    found = wait_until(lambda: found if wanted <= set(found := processes_naming(str(board.path.parent))) else {}, 5,
                       "supervisor and interpreter in the process list")
    for process_id, line in found.items():
        assert "correct horse" not in line
        assert b"correct horse" not in Path(f"/proc/{process_id}/environ").read_bytes()


def test_the_command_line_takes_the_wifis_password_from_the_environment() -> None:
    with lab_folder() as folder:
        done = run_fabtap("sim", "up", "fresh", "--dir", folder, "--board", "rpi-pico-w", "--network", "FabLab",
                          "--name-server-port", "0", env={**os.environ, "FABTAP_WIFI_PASSWORD": "correct horse"})
        assert done.returncode == 0, done.stderr
        board = SimClient(folder, "fresh")
        assert board.ask("status")["options"]["wifi"]["password"] == "correct horse"
        assert not [line for line in processes_naming(str(folder)).values() if "correct horse" in line]
        board.down()
    told = " ".join(run_fabtap("sim", "up", "--help", env={**os.environ, "COLUMNS": "200"}).stdout.split())
    assert "FABTAP_WIFI_PASSWORD" in told and "process list" in told


def test_a_supervisor_that_ends_at_once_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabtap.sim.client.sys.executable", "/bin/false")
    monkeypatch.setattr("fabtap.sim.client.find_interpreter", lambda: "micropython")
    with lab_folder() as folder, pytest.raises(Problem, match="did not start"):
        start_board(folder, "board", BOARD)


def test_a_killed_supervisor_leaves_no_interpreter_and_can_be_started_again(fresh: Callable[..., SimClient]) -> None:
    board = fresh()
    run(board, "print(1)")
    os.kill(board.ask("status")["process_id"], signal.SIGKILL)
    folder = f"{board.path.parent}/"
    wait_until(lambda: not processes_naming(folder), 5, "the interpreter is gone with its supervisor")
    assert board.path.exists(), "the socket's name is left behind, as after a crash"
    assert run(fresh(), "print(2)") == "2"


def test_a_board_whose_interpreter_is_gone_ends_and_says_so(
        fresh: Callable[..., SimClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "micropython"
    gone.symlink_to(find_interpreter())
    monkeypatch.setattr("fabtap.sim.client.find_interpreter", lambda: str(gone))
    board = fresh()
    gone.unlink()
    board.ask("power", on=False)
    with contextlib.suppress(Problem):
        board.ask("power", on=True)
    wait_until(lambda: not processes_naming(str(board.path.parent)), 5, "the supervisor has ended")
    assert "the interpreter can't be started" in board.path.with_suffix(".log").read_text()


def test_a_folder_with_too_long_a_name_is_refused_with_a_mend(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    with pytest.raises(Problem, match="shorter path"):
        start_board(long, "board", BOARD)
    assert not os.listdir(long)


# The world.

class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def test_the_energy_is_the_integral_of_any_series_of_loads(rng: random.Random) -> None:
    clock = Clock()
    world = World(clock, working_w=60.0)
    changes: list[tuple[float, bool, float]] = []  # when, contactor closed, watts
    closed, watts = False, 0.0
    for _ in range(400):
        clock.s += 0.02 + rng.random() * rng.choice((0.1, 10.0, 500.0))
        if rng.random() < 0.3:
            closed = not closed
            world.relay(closed)
            changes.append((clock.s + (CONTACTOR_CLOSE_S if closed else CONTACTOR_OPEN_S), closed, watts))
        else:
            watts = rng.choice((0.0, rng.random() * 100, rng.random() * 3000))
            world.set_load(watts)
            changes.append((clock.s, closed, watts))
    clock.s += 1
    energy_j = working_s = 0.0
    for (since, closed, watts), (until, _, _) in pairwise([*changes, (clock.s, False, 0.0)]):
        energy_j += (until - since) * watts * closed
        working_s += (until - since) * (closed and watts >= 60.0)
    truth: dict[str, Any] = world.truth()
    assert energy_j > 0
    assert truth["energy_wh"] * 3600 == pytest.approx(energy_j, rel=1e-9)
    # The uses are the whole: nothing is counted twice and nothing between them.
    assert sum(use["energy_wh"] for use in truth["uses"]) * 3600 == pytest.approx(energy_j, rel=1e-9)
    assert sum(use["working_s"] for use in truth["uses"]) == pytest.approx(working_s, rel=1e-9)
    closings = sum(1 for (_, before, _), (_, after, _) in pairwise([(0.0, False, 0.0), *changes]) if after and not before)
    assert len(truth["uses"]) == closings


def test_no_energy_flows_before_the_contactor_has_closed_and_some_until_it_has_opened() -> None:
    clock = Clock()
    world = World(clock)
    world.set_load(1000)
    world.relay(True)
    clock.s += CONTACTOR_CLOSE_S
    assert world.energy_j(clock.s) == 0
    clock.s += 1
    world.relay(False)
    clock.s += 5
    assert world.energy_j(clock.s) == pytest.approx(1000 * (1 + CONTACTOR_OPEN_S))
