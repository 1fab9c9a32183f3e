"""What does an MFRC522 put on the SPI bus, and on the air, at each moment?

A model at register level, after NXP's data sheet rev. 3.9 (the sections are named where they matter). What the model
knows of time it asks of `now_s`; nothing happens between calls: each access first makes up for what is due by then.

Modelled: SPI framing, the FIFO, Idle, Mem, CalcCRC, Transmit, Transceive and SoftReset, interrupt request bits, the
timer unit with TAuto, bit-oriented frames with collisions, the field. Not modelled: MFAuthent and the self-test (both
never end), the CRC unit on the air (TxCRCEn, RxCRCEn), rates above 106 kBd, gain, the IRQ pin.
"""
from collections.abc import Callable

from fabtap.sim.card import Card, Frame, crc_14443

COMMAND, COM_IRQ, DIV_IRQ, ERROR, STATUS_1, STATUS_2 = 0x01, 0x04, 0x05, 0x06, 0x07, 0x08
FIFO_DATA, FIFO_LEVEL, WATER_LEVEL, CONTROL, BIT_FRAMING, COLL = 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
MODE, TX_CONTROL, TX_ASK, DEMOD, CRC_HIGH, CRC_LOW = 0x11, 0x14, 0x15, 0x19, 0x21, 0x22
T_MODE, T_PRESCALER, T_RELOAD_HIGH, T_RELOAD_LOW, T_COUNTER_HIGH, T_COUNTER_LOW = 0x2A, 0x2B, 0x2C, 0x2D, 0x2E, 0x2F
VERSION = 0x37

IDLE, MEM, CALC_CRC, TRANSMIT, NO_CHANGE, RECEIVE = 0x00, 0x01, 0x03, 0x04, 0x07, 0x08
TRANSCEIVE, AUTHENT, SOFT_RESET = 0x0C, 0x0E, 0x0F

IRQ_TIMER, IRQ_ERROR, IRQ_IDLE, IRQ_RX, IRQ_TX = 0x01, 0x02, 0x10, 0x20, 0x40
IRQ_CRC = 0x04
PROTOCOL_ERROR, COLLISION_ERROR, OVERFLOW_ERROR = 0x01, 0x08, 0x10
POWER_DOWN = 0x10
ANTENNA = 0x03
T_AUTO, T_AUTO_RESTART, PRESCALER_EVEN = 0x80, 0x10, 0x10

# Section 9.2, table 20: the values after a reset that are not zero.
RESET_VALUES = {
    COMMAND: 0x20, 0x02: 0x80, COM_IRQ: 0x14, STATUS_1: 0x21, WATER_LEVEL: 0x08, CONTROL: 0x10, COLL: 0xA0, MODE: 0x3F,
    TX_CONTROL: 0x80, 0x16: 0x10, 0x17: 0x84, 0x18: 0x84, DEMOD: 0x4D, 0x1C: 0x62, 0x1F: 0xEB, CRC_HIGH: 0xFF,
    CRC_LOW: 0xFF, 0x24: 0x26, 0x26: 0x48, 0x27: 0x88, 0x28: 0x20, 0x29: 0x20, 0x33: 0x80, 0x36: 0x40,
}
READ_ONLY = frozenset((ERROR, STATUS_1, CRC_HIGH, CRC_LOW, T_COUNTER_HIGH, T_COUNTER_LOW, VERSION))
CRC_PRESETS = (0x0000, 0x6363, 0xA671, 0xFFFF)

FIFO_BYTES = 64
CLOCK_HZ = 13.56e6
BIT_S = 128 / CLOCK_HZ
# ISO/IEC 14443-3, 6.2.1: a card starts its answer 1172 carrier periods after the last pause of the request.
ANSWER_DELAY_S = 1172 / CLOCK_HZ
# Section 8.8.2: the crystal's start, of which the data sheet says only that it depends on the crystal, plus 37.74 us.
START_S = 0.001
SOFT_RESET_S = 37.74e-6
NEVER_S = float("inf")

DEAF_WAYS = ("antenna", "registers", "receiver", "stuck", "silent")


def air_s(bits: int) -> float:
    """How long a frame of `bits` lasts: a start bit, a parity bit a whole byte, and the end."""
    return (1 + bits + bits // 8 + 1) * BIT_S


class Mfrc522:
    """One reader chip. `cards` lie on its antenna; put them there and take them away as you like.

    `version` is what VersionReg says, `floating` the byte that the bus reads when nobody drives it. `rx_errors` is ORed
    into ErrorReg at each reception: radio noise, for tests.
    """

    def __init__(self, now_s: Callable[[], float], version: int = 0x92, floating: int = 0xFF) -> None:
        self.cards: list[Card] = []
        self.floating = floating
        self.rx_errors = 0
        self.transfers = 0
        self._now_s = now_s
        self._version = version
        self._selected = False
        self._address: int | None = None
        self._reading = False
        self._sent: Frame = (0, 0)
        self._answers: list[Frame] = []
        self._powered = True
        self._held_in_reset = False
        self._deaf = ""
        self._lit: list[Card] = []
        self._field_since_s = NEVER_S
        self._last_frame_s = 0.0
        self._writers: dict[int, Callable[[int], None]] = {
            COMMAND: self._write_command, COM_IRQ: self._write_com_irq, DIV_IRQ: self._write_div_irq,
            FIFO_DATA: self._write_fifo, FIFO_LEVEL: self._write_fifo_level, CONTROL: self._write_control,
            BIT_FRAMING: self._write_bit_framing, COLL: self._write_coll, TX_CONTROL: self._write_tx_control,
        }
        self._readers: dict[int, Callable[[], int]] = {
            FIFO_DATA: self._read_fifo, FIFO_LEVEL: self._read_fifo_level, STATUS_1: self._read_status_1,
            T_COUNTER_HIGH: lambda: self._timer_count() >> 8, T_COUNTER_LOW: lambda: self._timer_count() & 0xFF,
        }
        self._reset_registers(START_S)

    # --- pins and power

    def select(self, level: int) -> None:
        """NSS: low selects, and each fall starts a new frame."""
        self._selected = not level
        self._address = None
        self._reading = False

    def reset(self, level: int) -> None:
        """NRSTPD: low is the hard power-down, the rise starts the chip (section 8.8.1)."""
        was_held = self._held_in_reset
        self._held_in_reset = not level
        if self._held_in_reset and not was_held:
            self._deaf = ""
            self._reset_registers(START_S)
        elif was_held and not self._held_in_reset:
            self._ready_s = self._now_s() + START_S

    def power_off(self) -> None:
        """Take the supply away: the bus floats and the field is gone."""
        self._reset_registers(START_S)
        self._powered = False

    def power_on(self) -> None:
        """Give the supply back; the chip starts as after a hard reset."""
        self._powered = True
        self._deaf = ""
        self._reset_registers(START_S)

    def go_deaf(self, way: str) -> None:
        """Fail as readers in the field do.

        `antenna`: the driver's bits are cleared. `registers`: all are as after a reset (a dip of the supply).
        `receiver`: no answer is heard, all registers are right. `stuck`: no exchange ends. `silent`: nothing on the
        bus. The first two are cured by writing the registers, `receiver` and `stuck` by any reset, `silent` by the
        reset pin or the supply alone.
        """
        if way not in DEAF_WAYS:
            raise ValueError(f"a reader goes deaf by {', '.join(DEAF_WAYS)}, not by {way}")
        if way == "antenna":
            self._write_tx_control(self._registers[TX_CONTROL] & ~ANTENNA)
        elif way == "registers":
            self._reset_registers(SOFT_RESET_S)
        else:
            self._deaf = way

    # --- SPI, section 8.1.2

    def transfer(self, data: bytes) -> bytes:
        """Full duplex: as many bytes come back as went out. The address is bits 6 .. 1, bit 7 means read."""
        self.transfers += 1
        if not self._selected or not self._powered or self._held_in_reset or self._deaf == "silent":
            return bytes((self.floating,)) * len(data)
        now_s = self._now_s()
        if now_s >= self._due_s:
            self._run(now_s)
        answer = bytearray(len(data))
        for index, byte in enumerate(data):
            if self._address is None:
                self._reading = byte >= 0x80
                self._address = byte >> 1 & 0x3F
            elif self._reading:
                answer[index] = self._read(self._address, now_s)
                self._address = byte >> 1 & 0x3F
            elif now_s >= self._ready_s:
                self._write(self._address, byte)
        return bytes(answer)

    def _read(self, address: int, now_s: float) -> int:
        if now_s < self._ready_s:
            return POWER_DOWN if address == COMMAND else 0
        reader = self._readers.get(address)
        return reader() if reader else self._registers[address]

    def _write(self, address: int, value: int) -> None:
        writer = self._writers.get(address)
        if writer:
            writer(value)
        elif address not in READ_ONLY:
            self._registers[address] = value

    # --- registers

    def _reset_registers(self, start_s: float) -> None:
        self._registers = bytearray(64)
        for address, value in RESET_VALUES.items():
            self._registers[address] = value
        self._registers[VERSION] = self._version
        self._fifo = bytearray()
        self._internal = bytes(25)
        self._events: list[tuple[float, Callable[[float], None]]] = []
        self._due_s = NEVER_S
        self._timer_ends_s = NEVER_S
        self._ready_s = self._now_s() + start_s
        self._address = None
        self._reading = False
        self._switch_field(False)

    def _write_command(self, value: int) -> None:
        command = value & 0x0F
        if command == NO_CHANGE:
            self._registers[COMMAND] = value & 0x30 | self._registers[COMMAND] & 0x0F
            return
        # Writing any command ends the one before, also one that is on the air.
        self._cancel(self._end_of_transmission, self._fifth_bit, self._end_of_reception)
        self._registers[COMMAND] = value & 0x3F
        if command == SOFT_RESET:
            # The chip comes to itself by a soft reset too, except where it doesn't hear the bus any more.
            self._deaf = ""
            self._reset_registers(SOFT_RESET_S)
        elif command == CALC_CRC:
            self._registers[CRC_HIGH:CRC_LOW + 1] = (CRC_PRESETS[self._registers[MODE] & 3]).to_bytes(2, "big")
            self._feed_crc()
        elif command == MEM:
            self._move_memory()
            self._end_command()
        elif command == TRANSMIT:
            self._start_sending()
        elif command not in (IDLE, TRANSCEIVE, RECEIVE, AUTHENT):
            self._end_command()

    def _end_command(self) -> None:
        self._registers[COMMAND] &= 0xF0
        self._registers[COM_IRQ] |= IRQ_IDLE

    def _move_memory(self) -> None:
        if self._fifo:
            self._internal = bytes(self._fifo[:25]).ljust(25, b"\0")
            del self._fifo[:25]
        else:
            self._fifo += self._internal

    def _feed_crc(self) -> None:
        """Section 10.3.1.4: while CalcCRC is the command, what lies in the FIFO goes through the CRC unit."""
        start = self._registers[CRC_HIGH] << 8 | self._registers[CRC_LOW]
        self._registers[CRC_HIGH:CRC_LOW + 1] = crc_14443(bytes(self._fifo), start).to_bytes(2, "big")
        self._fifo.clear()
        self._registers[DIV_IRQ] |= IRQ_CRC

    def _write_com_irq(self, value: int) -> None:
        self._mark_irq(COM_IRQ, value)

    def _write_div_irq(self, value: int) -> None:
        self._mark_irq(DIV_IRQ, value)

    def _mark_irq(self, address: int, value: int) -> None:
        """Bit 7 says whether the marked bits are set or cleared (tables 29 and 31)."""
        if value & 0x80:
            self._registers[address] |= value & 0x7F
        else:
            self._registers[address] &= ~value & 0x7F

    def _write_fifo(self, value: int) -> None:
        if len(self._fifo) >= FIFO_BYTES:
            self._registers[ERROR] |= OVERFLOW_ERROR
            return
        self._fifo.append(value)
        if self._registers[COMMAND] & 0x0F == CALC_CRC:
            self._feed_crc()

    def _read_fifo(self) -> int:
        return self._fifo.pop(0) if self._fifo else 0

    def _write_fifo_level(self, value: int) -> None:
        if value & 0x80:
            self._fifo.clear()
            self._registers[ERROR] &= ~OVERFLOW_ERROR

    def _read_fifo_level(self) -> int:
        return len(self._fifo)

    def _read_status_1(self) -> int:
        """CRCReady, TRunning, HiAlert and LoAlert (table 35)."""
        level, water = len(self._fifo), self._registers[WATER_LEVEL]
        running = 0x08 if self._timer_ends_s < NEVER_S else 0
        return 0x20 | running | (0x02 if FIFO_BYTES - level <= water else 0) | (0x01 if level <= water else 0)

    def _write_control(self, value: int) -> None:
        if value & 0x80:
            self._stop_timer()
        elif value & 0x40:
            self._start_timer(self._now_s())

    def _write_bit_framing(self, value: int) -> None:
        self._registers[BIT_FRAMING] = value
        if value & 0x80 and self._registers[COMMAND] & 0x0F == TRANSCEIVE:
            self._start_sending()

    def _write_coll(self, value: int) -> None:
        self._registers[COLL] = self._registers[COLL] & 0x7F | value & 0x80

    def _write_tx_control(self, value: int) -> None:
        self._registers[TX_CONTROL] = value
        self._switch_field(bool(value & ANTENNA))

    # --- the field and the air

    def _switch_field(self, on: bool) -> None:
        if not on:
            for card in self._lit:
                card.leave_field()
            self._lit = []
            self._field_since_s = NEVER_S
        elif self._field_since_s == NEVER_S:
            self._field_since_s = self._now_s()

    def _light_cards(self, now_s: float) -> None:
        """A card that came since the last frame has had the field since then, at most."""
        for card in self._lit:
            if card not in self.cards:
                card.leave_field()
        since_s = max(self._field_since_s, self._last_frame_s)
        self._last_frame_s = now_s
        self._lit = list(self.cards) if self._field_since_s < NEVER_S else []
        for card in self._lit:
            card.enter_field(since_s)

    def _start_sending(self) -> None:
        if self._deaf == "stuck":
            return
        data = bytes(self._fifo)
        self._fifo.clear()
        self._registers[ERROR] = 0
        self._registers[COLL] = self._registers[COLL] & 0x80 | 0x20
        last_bits = self._registers[BIT_FRAMING] & 7
        bits = len(data) * 8 - (8 - last_bits if last_bits and data else 0)
        self._sent = (int.from_bytes(data, "little") & (1 << bits) - 1, bits)
        self._at(self._now_s() + air_s(bits), self._end_of_transmission)

    def _end_of_transmission(self, now_s: float) -> None:
        self._registers[COM_IRQ] |= IRQ_TX
        receives = self._registers[COMMAND] & 0x0F == TRANSCEIVE
        if not receives:
            self._end_command()
        if self._registers[T_MODE] & T_AUTO:
            self._start_timer(now_s)
        self._light_cards(now_s)
        answers = [answer for card in self._lit if (answer := card.hear(self._sent, now_s))]
        if not answers or not receives or self._deaf == "receiver":
            return
        self._answers = answers
        bits = max(bits for _, bits in answers)
        starts_s = now_s + ANSWER_DELAY_S
        self._at(starts_s + 5 * BIT_S, self._fifth_bit)
        self._at(starts_s + air_s(bits), self._end_of_reception)

    def _fifth_bit(self, _now_s: float) -> None:
        """Table 106: with TAuto the timer stops at the fifth bit, the start bit included."""
        if self._registers[T_MODE] & T_AUTO:
            self._stop_timer()

    def _end_of_reception(self, _now_s: float) -> None:
        value, bits, collision = superpose(self._answers)
        align = self._registers[BIT_FRAMING] >> 4 & 7
        error = self.rx_errors
        if collision is not None:
            error |= COLLISION_ERROR
            # MFRC522 rev. 3.9 doesn't say whether CollPos counts RxAlign; the MFRC631's data sheet (9.6.4) says that it
            # does.
            position = collision + 1 + align
            self._registers[COLL] = self._registers[COLL] & 0x80 | (position & 0x1F if position <= 32 else 0x20)
            if not self._registers[COLL] & 0x80:
                value &= (1 << collision) - 1
        self._registers[ERROR] = error
        self._registers[CONTROL] = self._registers[CONTROL] & 0xF8 | (bits + align) & 7
        for byte in (value << align).to_bytes((bits + align + 7) // 8, "little"):
            self._write_fifo(byte)
        self._registers[COM_IRQ] |= IRQ_RX | (IRQ_ERROR if error else 0)

    # --- time: what is due, and the timer unit of section 8.5

    def _at(self, time_s: float, event: Callable[[float], None]) -> None:
        self._events.append((time_s, event))
        self._due_s = min(self._due_s, time_s)

    def _cancel(self, *events: Callable[[float], None]) -> None:
        if self._events:
            self._events = [entry for entry in self._events if entry[1] not in events]
            self._due_s = min((time_s for time_s, _ in self._events), default=NEVER_S)

    def _run(self, now_s: float) -> None:
        while self._due_s <= now_s:
            index = min(range(len(self._events)), key=lambda number: self._events[number][0])
            time_s, event = self._events.pop(index)
            self._due_s = min((entry[0] for entry in self._events), default=NEVER_S)
            event(time_s)

    def _tick_s(self) -> float:
        prescaler = (self._registers[T_MODE] & 0x0F) << 8 | self._registers[T_PRESCALER]
        return (2 * prescaler + (2 if self._registers[DEMOD] & PRESCALER_EVEN else 1)) / CLOCK_HZ

    def _start_timer(self, now_s: float) -> None:
        self._stop_timer()
        reload = self._registers[T_RELOAD_HIGH] << 8 | self._registers[T_RELOAD_LOW]
        self._timer_ends_s = now_s + (reload + 1) * self._tick_s()
        self._at(self._timer_ends_s, self._end_of_timer)

    def _stop_timer(self) -> None:
        self._timer_ends_s = NEVER_S
        self._cancel(self._end_of_timer)

    def _end_of_timer(self, now_s: float) -> None:
        self._timer_ends_s = NEVER_S
        self._registers[COM_IRQ] |= IRQ_TIMER
        if self._registers[T_MODE] & T_AUTO_RESTART:
            self._start_timer(now_s)

    def _timer_count(self) -> int:
        if self._timer_ends_s == NEVER_S:
            return 0
        return min(0xFFFF, int((self._timer_ends_s - self._now_s()) / self._tick_s()))


def superpose(answers: list[Frame]) -> tuple[int, int, int | None]:
    """What the reader hears when several cards answer: bits, their number, and the first bit where two differ."""
    bits = max(length for _, length in answers)
    ones, zeros = 0, 0
    for value, length in answers:
        ones |= value
        zeros |= ~value & (1 << length) - 1
    both = ones & zeros
    return ones, bits, (both & -both).bit_length() - 1 if both else None
