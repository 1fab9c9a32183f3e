"""Which card lies on the MFRC522's antenna?

A UID says who a card claims to be; it proves nothing, for UIDs can be copied. `poll` wakes every card in the field
(WUPA, so halted ones too), reads one UID and sends that card to rest: a card that stays is seen at each poll. Two cards
at once: at the first bit in which they differ the one with a 1 is taken, so it is the same one each time; when two
don't explain what is heard (three cards or more may), nobody is taken. Readers of this kind go deaf in the field:
`check` notices, starts anew and counts.

Every wait ends: by the chip's timer after 2 ms, by `WAIT_MS` when that fails. A poll is at most 11 exchanges of little
more than 1 ms: 15 ms at the most, and `WAIT_MS` more when the chip stops in the middle; an empty poll takes 3 ms.

Sections are those of NXP's MFRC522 data sheet rev. 3.9 and of ISO/IEC 14443-3. SPI mode 0, at most 10 MHz. Nothing is
allocated but the UID that `poll` returns.
"""
import time

# Register addresses as they stand in the SPI address byte: bits 6 .. 1; bit 7 means read (section 8.1.2.3).
COMMAND = 0x01 << 1
COM_IRQ = 0x04 << 1
ERROR = 0x06 << 1
FIFO_DATA = 0x09 << 1
FIFO_LEVEL = 0x0A << 1
CONTROL = 0x0C << 1
BIT_FRAMING = 0x0D << 1
COLL = 0x0E << 1
TX_MODE = 0x12 << 1
RX_MODE = 0x13 << 1
TX_CONTROL = 0x14 << 1
TX_ASK = 0x15 << 1
T_MODE = 0x2A << 1
T_PRESCALER = 0x2B << 1
T_RELOAD_HIGH = 0x2C << 1
T_RELOAD_LOW = 0x2D << 1
VERSION = 0x37 << 1
READ = 0x80

IDLE = 0x00
TRANSCEIVE = 0x0C
SOFT_RESET = 0x0F
POWER_DOWN = 0x10
START_SEND = 0x80
FLUSH = 0x80
IRQ_ALL = 0x7F
IRQ_TIMER = 0x01
IRQ_DONE = 0x30
IRQ_SENT = 0x40
IRQ_FLOATING = 0x80
"""This bit can only be written: reading it as 1 means that nobody drives the bus."""
# BufferOvfl, ParityErr and ProtocolErr; a collision is judged apart (table 33).
BAD_RECEPTION = 0x13
COLLISION = 0x08
COLL_UNKNOWN = 0x20

WUPA = 0x52
HLTA = 0x50
SELECT_CODES = (0x93, 0x95, 0x97)
CASCADE_TAG = 0x88
SAK_CASCADE = 0x04

# 0x91 and 0x92 are NXP's versions 1.0 and 2.0; 0x88 (FM17522) and 0x12 are common copies.
VERSIONS = (0x91, 0x92, 0x88, 0x12)

# Register, what is written, and the bits that `check` wants to read again. TMode and TPrescaler make 25 us of a count
# (13.56 MHz / 339) and start the timer at the end of sending (section 8.5); 80 counts are 2 ms, while a card answers
# within 0.1 ms. TxASK forces 100 % modulation; Coll clears the bits after a collision. TxControl's two low bits are the
# field: they come last.
SETTINGS = (
    (TX_MODE, 0x00, 0xF0),
    (RX_MODE, 0x00, 0xF0),
    (T_MODE, 0x80, 0xFF),
    (T_PRESCALER, 0xA9, 0xFF),
    (T_RELOAD_HIGH, 0x00, 0xFF),
    (T_RELOAD_LOW, 0x4F, 0xFF),
    (TX_ASK, 0x40, 0x40),
    (COLL, 0x00, 0x80),
    (TX_CONTROL, 0x83, 0x03),
)

START_MS = 50
FIELD_MS = 6
"""ISO/IEC 14443-3, 5: a card may take 5 ms from the field until it hears."""
WAIT_MS = 4
STUCK_MAX = 3
"""So many waits in a row that only `WAIT_MS` ended mean that the chip is stuck."""
SILENCE_MS = 600000
"""Deafness of the receiver alone shows in no register: after so long without any card the chip is started anew."""

NOTHING = -1
STUCK = -2
# Where each register stands in `_status`: a chained read answers one byte late (section 8.1.2.1).
AT_IRQ = 1
AT_ERROR = 2
AT_LEVEL = 3
AT_CONTROL = 4
AT_COLL = 5
FRAME_MAX = 9
ANSWER_MAX = 5


def crc_a(data, length):
    """CRC_A of ISO/IEC 14443-3, 6.2.4, over the first `length` bytes; its low byte travels first."""
    crc = 0x6363
    for index in range(length):
        byte = data[index] ^ (crc & 0xFF)
        byte = (byte ^ (byte << 4)) & 0xFF
        crc = (crc >> 8) ^ (byte << 8) ^ (byte << 3) ^ (byte >> 4)
    return crc


def crc_holds(data, length):
    """Whether the two bytes after `length` bytes are their CRC_A."""
    return crc_a(data, length) == data[length] | data[length + 1] << 8


def bcc_holds(part):
    """Whether the fifth byte of a cascade level is the XOR of the four before (6.5.3.3)."""
    return part[0] ^ part[1] ^ part[2] ^ part[3] == part[4]


class Reader:
    """`spi` is a machine.SPI, `select` and `reset` are machine.Pin outputs, active low; without `reset` by command.

    `heard` says whether anything at all answered the last poll: a garbled answer is no sign that the card went away.
    """

    def __init__(self, spi, select, reset=None):
        self._spi = spi
        self._select = select
        self._reset = reset
        self._version = 0
        self._stuck = 0
        self._heard_ms = 0
        self.heard = False
        self.errors = 0
        self.restarts = 0
        self.refreshes = 0
        self._pair = bytearray(2)
        self._status_ask = bytes((COM_IRQ | READ, ERROR | READ, FIFO_LEVEL | READ, CONTROL | READ, COLL | READ, 0))
        self._status = bytearray(6)
        self._settings_ask = bytes([register | READ for register, _, _ in SETTINGS] + [VERSION | READ, 0])
        self._settings = bytearray(len(SETTINGS) + 2)
        # Slices of a memoryview are made once: making one allocates.
        self._frame_bytes = bytearray(1 + FRAME_MAX)
        self._frame_bytes[0] = FIFO_DATA
        self._frame = memoryview(self._frame_bytes)[1:]
        self._frames = [memoryview(self._frame_bytes)[: 1 + size] for size in range(FRAME_MAX + 1)]
        asks = bytes([FIFO_DATA | READ] * ANSWER_MAX + [0])
        self._answer_asks = [memoryview(asks)[ANSWER_MAX - size:] for size in range(ANSWER_MAX + 1)]
        answer = bytearray(1 + ANSWER_MAX)
        self._answer = memoryview(answer)[1:]
        self._answers = [memoryview(answer)[: 1 + size] for size in range(ANSWER_MAX + 1)]
        self._part = bytearray(5)
        self._uid_bytes = bytearray(10)
        self._uids = [memoryview(self._uid_bytes)[:size] for size in range(11)]

    def start(self):
        """Reset the chip and switch the field on, in about 10 ms; OSError after `START_MS` when no chip answers."""
        self._version = 0
        self._select(1)
        if self._reset:
            self._reset(0)
            time.sleep_ms(1)
            self._reset(1)
        else:
            self._write(COMMAND, SOFT_RESET)
        version = self._await_chip()
        if version not in VERSIONS:
            raise OSError("reader_mfrc522: no MFRC522 answers, its version register reads 0x%02X: "
                          "check power and SPI wiring" % version)
        for register, value, _ in SETTINGS:
            self._write(register, value)
        self._version = version
        self._stuck = 0
        time.sleep_ms(FIELD_MS)
        self._heard_ms = time.ticks_ms()

    def poll(self):
        """The UID of the card in the field (4, 7 or 10 bytes), or None, also when the reader isn't started or is gone.

        `errors` counts the polls that heard something which made no UID, and those that the chip didn't end.
        """
        self.heard = False
        if not self._version:
            return None
        self._frame[0] = WUPA
        received = self._exchange(1, 7)
        if received == NOTHING:
            return None
        length = 0
        if received != STUCK:
            self.heard = True
            self._heard_ms = time.ticks_ms()
            # Cards of different kinds collide in their ATQA, which is then worth nothing but that they are there.
            if received == 2 or self._status[AT_ERROR] & COLLISION:
                length = self._read_uid()
            # After an error too: a card that is half selected would miss the next WUPA. A stuck chip sends nothing.
            if not self._stuck:
                self._halt()
        if not length:
            self.errors += 1
            return None
        return bytes(self._uids[length])

    def check(self):
        """Whether the reader works, now or again. One SPI frame when all is well; call it every few seconds.

        `restarts` counts how often it was found deaf and brought back, `refreshes` the restarts that silence alone
        asked for.
        """
        self._spi_frame(self._settings_ask, self._settings)
        deaf = self._stuck >= STUCK_MAX or not self._settings_hold()
        if not deaf and time.ticks_diff(time.ticks_ms(), self._heard_ms) < SILENCE_MS:
            return True
        try:
            self.start()
        except OSError:
            return False
        if deaf:
            self.restarts += 1
        else:
            self.refreshes += 1
        return True

    def _settings_hold(self):
        index = 1
        for _, value, mask in SETTINGS:
            if (self._settings[index] ^ value) & mask:
                return False
            index += 1
        return self._version != 0 and self._settings[index] == self._version

    def _await_chip(self):
        """Wait until the oscillator runs (PowerDown reads 0, section 8.8.2); what VersionReg said last."""
        started = time.ticks_ms()
        while True:
            time.sleep_ms(1)
            version = self._read(VERSION)
            if version in VERSIONS and not self._read(COMMAND) & POWER_DOWN:
                return version
            if time.ticks_diff(time.ticks_ms(), started) > START_MS:
                return version

    def _read_uid(self):
        """Walk the cascade levels (6.5.4); the number of UID bytes, 0 when an answer was wrong."""
        length = 0
        for level in range(3):
            if not self._anticollide(SELECT_CODES[level]) or not bcc_holds(self._part):
                return 0
            sak = self._select_card(SELECT_CODES[level])
            if sak < 0:
                return 0
            more = sak & SAK_CASCADE
            if (more != 0) != (self._part[0] == CASCADE_TAG):
                return 0
            for index in range(1 if more else 0, 4):
                self._uid_bytes[length] = self._part[index]
                length += 1
            if not more:
                return length
        return 0

    def _anticollide(self, code):
        """Fill `_part` with the four UID bytes and the check byte of one level; whether that worked."""
        self._frame[0] = code
        self._frame[1] = 0x20
        received = self._exchange(2, 0)
        if received < 0:
            return False
        if self._status[AT_ERROR] & COLLISION:
            return self._resolve(received)
        if received != 5 or self._status[AT_CONTROL] & 7:
            return False
        for index in range(5):
            self._part[index] = self._answer[index]
        return True

    def _resolve(self, received):
        """Ask again, only those cards that have a 1 where two differed (6.5.3.1, with the bits known so far)."""
        coll = self._status[AT_COLL]
        known = (coll & 0x1F) or 32
        if coll & COLL_UNKNOWN or received * 8 < known - 1:
            return False
        whole = known >> 3
        rest = known & 7
        sent = (known + 7) >> 3
        for index in range(sent):
            self._part[index] = self._answer[index] if index < received else 0
        self._part[(known - 1) >> 3] |= 1 << ((known - 1) & 7)
        if rest:
            self._part[whole] &= (1 << rest) - 1
        self._frame[1] = (2 + whole) << 4 | rest
        for index in range(sent):
            self._frame[2 + index] = self._part[index]
        # RxAlign puts the first bit received behind those that were sent.
        received = self._exchange(2 + sent, rest << 4 | rest)
        # A second collision is a third card, and the data sheet leaves open whether CollPos counts RxAlign: give up.
        if received != 5 - whole or self._status[AT_ERROR] & COLLISION:
            return False
        if rest:
            self._part[whole] |= self._answer[0] & ~((1 << rest) - 1)
        else:
            self._part[whole] = self._answer[0]
        for index in range(1, received):
            self._part[whole + index] = self._answer[index]
        return True

    def _select_card(self, code):
        """Select the card of `_part`; its SAK, or -1 (6.5.3.4)."""
        self._frame[0] = code
        self._frame[1] = 0x70
        for index in range(5):
            self._frame[2 + index] = self._part[index]
        self._append_crc(7)
        received = self._exchange(9, 0)
        if received != 3 or self._status[AT_ERROR] & COLLISION or not crc_holds(self._answer, 1):
            return -1
        return self._answer[0]

    def _halt(self):
        """Send the card to rest. It answers with silence (6.4.3), so wait only until the frame is out."""
        self._frame[0] = HLTA
        self._frame[1] = 0
        self._append_crc(2)
        self._send(4, 0)
        self._wait(IRQ_SENT)

    def _append_crc(self, length):
        crc = crc_a(self._frame, length)
        self._frame[length] = crc & 0xFF
        self._frame[length + 1] = crc >> 8

    def _exchange(self, length, framing):
        """Send `length` bytes of `_frame`; how many bytes came into `_answer`, `NOTHING`, or `STUCK`.

        `framing` is BitFramingReg: RxAlign in bits 6 .. 4, valid bits of the last byte sent in bits 2 .. 0. An answer
        that is too long or was garbled on the air is 0 bytes.
        """
        self._send(length, framing)
        irq = self._wait(IRQ_DONE | IRQ_TIMER)
        if irq < 0:
            return STUCK
        if not irq & IRQ_DONE:
            return NOTHING
        received = self._status[AT_LEVEL]
        if self._status[AT_ERROR] & BAD_RECEPTION or received > ANSWER_MAX:
            self._status[AT_ERROR] = 0
            return 0
        self._spi_frame(self._answer_asks[received], self._answers[received])
        return received

    def _send(self, length, framing):
        self._write(COMMAND, IDLE)
        self._write(COM_IRQ, IRQ_ALL)
        self._write(FIFO_LEVEL, FLUSH)
        self._select(0)
        self._spi.write(self._frames[length])
        self._select(1)
        # StartSend must be low when Transceive starts, else the frame before it would go out again.
        self._write(BIT_FRAMING, framing)
        self._write(COMMAND, TRANSCEIVE)
        self._write(BIT_FRAMING, framing | START_SEND)

    def _wait(self, irqs):
        """Read `_status` until one of `irqs` is there; ComIrqReg, or -1 when none comes."""
        started = time.ticks_ms()
        while True:
            self._spi_frame(self._status_ask, self._status)
            irq = self._status[AT_IRQ]
            if irq & irqs and not irq & IRQ_FLOATING:
                self._stuck = 0
                return irq
            if irq & IRQ_FLOATING or time.ticks_diff(time.ticks_ms(), started) > WAIT_MS:
                self._stuck += 1
                return -1

    def _write(self, register, value):
        self._pair[0] = register
        self._pair[1] = value
        self._select(0)
        self._spi.write(self._pair)
        self._select(1)

    def _read(self, register):
        self._pair[0] = register | READ
        self._pair[1] = 0
        self._spi_frame(self._pair, self._pair)
        return self._pair[1]

    def _spi_frame(self, out, into):
        self._select(0)
        self._spi.write_readinto(out, into)
        self._select(1)
