"""What does a PZEM-004T v3 answer on its serial line, byte by byte in time?

Modbus RTU at 9600 8N1 after the maker's manual (sections named where they matter): functions 03, 04, 06 and 42, error
replies, an own address, the broadcast 00 and the general address F8. A frame ends after 3.5 characters of silence; one
with a wrong CRC or another's address is passed over in silence.

Assumptions of this model, which the manual doesn't settle: registers are renewed every 0.4 s since power-on, power is
the mean of the last whole window; a request to F8 is answered from F8; the first byte comes 6 ms after a request.
Factory calibration (41) is refused as unknown.
"""
from collections.abc import Callable
from typing import Protocol

BYTE_S = 10 / 9600
SILENCE_S = 3.5 * BYTE_S
REPLY_DELAY_S = 0.006
WINDOW_S = 0.4

BROADCAST = 0x00
GENERAL_ADDRESS = 0xF8
ADDRESS_MAX = 0xF7
READ_HOLDING, READ_INPUTS, WRITE_ONE, RESET_ENERGY = 0x03, 0x04, 0x06, 0x42
UNKNOWN_FUNCTION, UNKNOWN_REGISTER, BAD_VALUE = 0x01, 0x02, 0x03

# Section 1: below these the 100 A version shows nothing.
POWER_START_W = 0.4
CURRENT_START_A = 0.02
POWER_MAX_W = 23000
ENERGY_MAX_WH = 9999990
J_PER_WH = 3600.0


class Supply(Protocol):
    """The mains at the meter and what is drawn through it."""

    frequency: float
    power_factor: float

    def energy_j(self, t_s: float) -> float:
        """Joules drawn until `t_s`; asked for times of the past 3 s only."""

    def volts(self, t_s: float) -> float:
        """RMS volts at `t_s`."""


class Refused(Exception):
    """The request is answered by an error code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"Modbus error {code:02X}")
        self.code = code


def crc16(data: bytes) -> bytes:
    """CRC16 of Modbus (reflected, polynomial 0xA001, start 0xFFFF), low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc.to_bytes(2, "little")


class Pzem004t:
    """One meter. `silent` unplugs its line, `echo` sends each byte back as some adapters do."""

    def __init__(self, now_s: Callable[[], float], supply: Supply, address: int = 0x01, energy_wh: float = 0.0) -> None:
        self.silent = False
        self.echo = False
        self._now_s = now_s
        self._supply = supply
        self._holding = {0x0001: POWER_MAX_W, 0x0002: address}
        self._kept_j = energy_wh * J_PER_WH
        self._powered = False
        self._functions: dict[int, Callable[[bytes], bytes]] = {
            READ_HOLDING: lambda body: self._read(body, self._holding),
            READ_INPUTS: lambda body: self._read(body, self._inputs(self._heard_s)),
            WRITE_ONE: self._write_one,
            RESET_ENERGY: self._reset_energy,
        }
        self.power_on()

    # --- power

    def power_on(self) -> None:
        """The mains are there: the windows start anew, the energy goes on from what was kept."""
        if self._powered:
            return
        self._powered = True
        self._on_s = self._now_s()
        self._base_j = self._supply.energy_j(self._on_s)
        self._request = bytearray()
        self._request_ends_s = 0.0
        self._heard_s = self._on_s
        self._line: list[tuple[float, int]] = []
        self._line_free_s = 0.0

    def power_off(self) -> None:
        """Keep the energy of the whole windows; the rest of the last one is lost."""
        if not self._powered:
            return
        self._kept_j = self._energy_j(self._window_end_s(self._now_s()))
        self._powered = False
        self._line = []

    # --- the serial line

    def write(self, data: bytes) -> int:
        """Bytes towards the meter; they take their time on the wire. Returns how many."""
        now_s = self._now_s()
        self._run(now_s)
        if not self._powered or self.silent or not data:
            return len(data)
        starts_s = max(now_s, self._request_ends_s)
        if self.echo:
            self._send(data, starts_s)
        self._request += data
        self._request_ends_s = starts_s + len(data) * BYTE_S
        return len(data)

    def any(self) -> int:
        """How many bytes have come from the meter by now."""
        now_s = self._now_s()
        self._run(now_s)
        return sum(1 for time_s, _ in self._line if time_s <= now_s)

    def read(self, n: int) -> bytes:
        """At most `n` of the bytes that have come by now."""
        count = min(n, self.any())
        data = bytes(byte for _, byte in self._line[:count])
        del self._line[:count]
        return data

    def _send(self, data: bytes, starts_s: float) -> None:
        starts_s = max(starts_s, self._line_free_s)
        self._line += [(starts_s + (index + 1) * BYTE_S, byte) for index, byte in enumerate(data)]
        self._line_free_s = starts_s + len(data) * BYTE_S

    def _run(self, now_s: float) -> None:
        """Answer the request whose end has been heard by `now_s`."""
        if not self._request or now_s < self._request_ends_s + SILENCE_S:
            return
        frame = bytes(self._request)
        self._request.clear()
        # Not further back than the supply remembers, when nobody looked for long.
        self._heard_s = max(self._request_ends_s + SILENCE_S, now_s - 1.0)
        reply = self._reply(frame)
        if reply and not self.silent and self._powered:
            self._send(reply + crc16(reply), self._request_ends_s + REPLY_DELAY_S)

    # --- Modbus, section 2

    def _reply(self, frame: bytes) -> bytes | None:
        if len(frame) < 4 or crc16(frame[:-2]) != frame[-2:]:
            return None
        address, function, body = frame[0], frame[1], frame[2:-2]
        if address not in (self._holding[0x0002], BROADCAST, GENERAL_ADDRESS):
            return None
        try:
            if function not in self._functions:
                raise Refused(UNKNOWN_FUNCTION)
            answer = bytes((address, function)) + self._functions[function](body)
        except Refused as refused:
            answer = bytes((address, function | 0x80, refused.code))
        return None if address == BROADCAST else answer

    def _read(self, body: bytes, registers: dict[int, int]) -> bytes:
        start, count = self._two_words(body)
        if not count:
            raise Refused(BAD_VALUE)
        if any(register not in registers for register in range(start, start + count)):
            raise Refused(UNKNOWN_REGISTER)
        data = b"".join(registers[register].to_bytes(2, "big") for register in range(start, start + count))
        return bytes((len(data),)) + data

    def _write_one(self, body: bytes) -> bytes:
        register, value = self._two_words(body)
        if register not in self._holding:
            raise Refused(UNKNOWN_REGISTER)
        if not 1 <= value <= (ADDRESS_MAX if register == 0x0002 else POWER_MAX_W):
            raise Refused(BAD_VALUE)
        self._holding[register] = value
        return body

    def _reset_energy(self, body: bytes) -> bytes:
        if body:
            raise Refused(BAD_VALUE)
        self._kept_j = 0.0
        self._base_j = self._supply.energy_j(self._window_end_s(self._heard_s))
        return b""

    @staticmethod
    def _two_words(body: bytes) -> tuple[int, int]:
        if len(body) != 4:
            raise Refused(BAD_VALUE)
        return int.from_bytes(body[:2], "big"), int.from_bytes(body[2:], "big")

    # --- what is measured

    def _window_end_s(self, t_s: float) -> float:
        """The end of the last whole window at `t_s`."""
        # A hair more, so that a window counts from the very moment that a clock of steps arrives at.
        return self._on_s + int((t_s - self._on_s) / WINDOW_S + 1e-9) * WINDOW_S

    def _energy_j(self, t_s: float) -> float:
        return self._kept_j + self._supply.energy_j(t_s) - self._base_j

    def _inputs(self, t_s: float) -> dict[int, int]:
        """The ten input registers of section 2.3 as they stand at `t_s`."""
        end_s = self._window_end_s(t_s)
        start_s = max(end_s - WINDOW_S, self._on_s)
        power_w = 0.0
        if end_s > start_s:
            power_w = (self._supply.energy_j(end_s) - self._supply.energy_j(start_s)) / (end_s - start_s)
        if power_w < POWER_START_W:
            power_w = 0.0
        volts = self._supply.volts(end_s)
        factor = self._supply.power_factor if power_w else 0.0
        current_a = power_w / (volts * factor) if volts > 0 and factor > 0 else 0.0
        if current_a < CURRENT_START_A:
            current_a = 0.0
        current_ma = round(current_a * 1000)
        power_dw = round(power_w * 10)
        energy_wh = int(self._energy_j(end_s) / J_PER_WH + 1e-9) % (ENERGY_MAX_WH + 1)
        return {
            0: round(volts * 10),
            1: current_ma & 0xFFFF,
            2: current_ma >> 16,
            3: power_dw & 0xFFFF,
            4: power_dw >> 16,
            5: energy_wh & 0xFFFF,
            6: energy_wh >> 16,
            7: round(self._supply.frequency * 10),
            8: round(factor * 100),
            9: 0xFFFF if power_w >= self._holding[0x0001] else 0x0000,
        }
