"""Which message of a simulated board's `machine` module reaches which chip?

One packet a call: operation (1 byte), tag (1; 0: not answered), number (2; pin or bus), data. An answer is the tag and data.
Letters of the operations: I pin init, W pin write, R pin read, M PWM, A ADC, S/s SPI exchange/write, C I2C transfer, c I2C scan,
B UART init, U UART write, u UART any, v UART read, T/t RTC set/get, Q reset cause (0) or unique id (1), D watchdog start,
F watchdog feed, X reset, Y boot.py begins, N network, E flash is busy.
"""
import struct
import time
from collections.abc import Callable
from typing import Protocol

HEAD = struct.Struct("<BBH")


class SpiChip(Protocol):
    def transfer(self, data: bytes) -> bytes: ...


class UartChip(Protocol):
    def write(self, data: bytes) -> int: ...
    def any(self) -> int: ...
    def read(self, count: int) -> bytes: ...


class I2cChip(Protocol):
    def exchange(self, data: bytes, count: int) -> bytes: ...


class MachinePort:
    """The board's sockets: who is plugged in where. Outputs call back; inputs are levels kept here."""

    def __init__(self, watchdog: Callable[[str, int], None], reset: Callable[[], None]) -> None:
        self.outputs: dict[int, Callable[[int], None]] = {}
        self.tones: dict[int, Callable[[int, int], None]] = {}
        self.inputs: dict[int, int] = {}
        self.spi: dict[int, SpiChip] = {}
        self.uart: dict[int, UartChip] = {}
        self.i2c: dict[tuple[int, int], I2cChip] = {}
        self.adc: dict[int, Callable[[], int]] = {}
        self.levels: dict[int, int] = {}
        self.unique_id = bytes(8)
        self.cause = 1
        self.booted: Callable[[], None] = lambda: None
        self.network: Callable[[int, bytes], bytes] = lambda number, data: b""
        self.flash_busy: Callable[[float], None] = lambda for_s: None
        self._watchdog = watchdog
        self._reset = reset
        self._clock_offset_s = 0.0
        self.calls = 0
        self._operations: dict[int, Callable[[int, bytes], bytes]] = {
            ord(letter): getattr(self, name) for letter, name in (
                ("I", "_pin_init"), ("W", "_pin_write"), ("R", "_pin_read"), ("M", "_pwm"), ("A", "_adc"),
                ("S", "_spi"), ("s", "_spi"), ("C", "_i2c"), ("c", "_i2c_scan"), ("B", "_uart_init"),
                ("U", "_uart_write"), ("u", "_uart_any"), ("v", "_uart_read"), ("T", "_rtc_set"), ("t", "_rtc_get"),
                ("Q", "_identity"), ("D", "_watchdog_start"), ("F", "_watchdog_feed"), ("X", "_hard_reset"),
                ("Y", "_boot_done"), ("N", "_network"),
                ("E", "_flash"))}

    def handle(self, packet: bytes) -> bytes | None:
        """Carry out one packet; the answer's bytes, or None when none is wanted."""
        operation, tag, number = HEAD.unpack_from(packet)
        self.calls += 1
        answer = self._operations[operation](number, packet[HEAD.size:])
        return bytes((tag,)) + answer if tag else None

    def pins_to_default(self) -> None:
        """A chip in reset: every pin is an input; pull-downs make outputs low."""
        self.levels.clear()
        for told in self.outputs.values():
            told(0)
        for tone in self.tones.values():
            tone(0, 0)

    def _drive(self, number: int, level: int) -> None:
        self.levels[number] = level
        told = self.outputs.get(number)
        if told:
            told(level)

    def _pin_init(self, number: int, data: bytes) -> bytes:
        mode, _, level = data[0], data[1], data[2]
        if mode == 1 and level != 255:
            self._drive(number, level)
        return b""

    def _pin_write(self, number: int, data: bytes) -> bytes:
        self._drive(number, data[0])
        return b""

    def _pin_read(self, number: int, data: bytes) -> bytes:
        return bytes((self.inputs.get(number, self.levels.get(number, 0)),))

    def _pwm(self, number: int, data: bytes) -> bytes:
        tone = self.tones.get(number)
        if tone:
            tone(*struct.unpack("<IH", data))
        return b""

    def _adc(self, number: int, data: bytes) -> bytes:
        source = self.adc.get(number)
        return struct.pack("<H", source() if source else 0)

    def _spi(self, bus: int, data: bytes) -> bytes:
        chip = self.spi.get(bus)
        return chip.transfer(data) if chip else b"\xff" * len(data)

    def _i2c(self, bus: int, data: bytes) -> bytes:
        address, count = struct.unpack_from("<BH", data)
        chip = self.i2c.get((bus, address))
        return b"\1" + chip.exchange(data[3:], count) if chip else b"\0"

    def _i2c_scan(self, bus: int, data: bytes) -> bytes:
        return bytes(sorted(address for found, address in self.i2c if found == bus))

    def _uart_init(self, bus: int, data: bytes) -> bytes:
        return b""

    def _uart_write(self, bus: int, data: bytes) -> bytes:
        chip = self.uart.get(bus)
        if chip:
            chip.write(data)
        return b""

    def _uart_any(self, bus: int, data: bytes) -> bytes:
        chip = self.uart.get(bus)
        return struct.pack("<H", chip.any() if chip else 0)

    def _uart_read(self, bus: int, data: bytes) -> bytes:
        chip = self.uart.get(bus)
        return chip.read(struct.unpack("<H", data)[0]) if chip else b""

    def _rtc_set(self, number: int, data: bytes) -> bytes:
        year, month, day, _, hour, minute, second, _ = struct.unpack("<8H", data)
        told = time.mktime((year, month, day, hour, minute, second, 0, 0, 0))
        self._clock_offset_s = told - time.time()
        return b""

    def _rtc_get(self, number: int, data: bytes) -> bytes:
        now = time.localtime(time.time() + self._clock_offset_s)
        return struct.pack("<8H", now.tm_year, now.tm_mon, now.tm_mday, now.tm_wday, now.tm_hour, now.tm_min, now.tm_sec, 0)

    def _identity(self, number: int, data: bytes) -> bytes:
        return self.unique_id if number else bytes((self.cause,))

    def _watchdog_start(self, number: int, data: bytes) -> bytes:
        self._watchdog("start", struct.unpack("<I", data)[0])
        return b""

    def _watchdog_feed(self, number: int, data: bytes) -> bytes:
        self._watchdog("feed", 0)
        return b""

    def _boot_done(self, number: int, data: bytes) -> bytes:
        self.booted()
        return b""

    def _network(self, number: int, data: bytes) -> bytes:
        return self.network(number, data)

    def _flash(self, number: int, data: bytes) -> bytes:
        self.flash_busy(struct.unpack("<I", data)[0] / 1_000_000)
        return b""

    def _hard_reset(self, number: int, data: bytes) -> bytes:
        self._reset()
        return b""
