"""What does a badge on the antenna answer?

The part of ISO/IEC 14443-3 type A that makes a card's UID known: REQA, WUPA, bitwise anticollision, SELECT over one to
three cascade levels, HLTA. Reading, writing and keys are not modelled: an active card that hears such a command goes
back to rest.

A frame is `(value, bits)`: the bits in the order in which they travel, the first one lowest. Parity and start bits are
not kept, they only take time. Without a field a card forgets everything; it answers from `START_S` after the field is
there.
"""
from collections.abc import Callable

START_S = 0.005
"""ISO/IEC 14443-3, 5: a card takes up to 5 ms from the field until it can hear a request."""

REQA = 0x26
WUPA = 0x52
HLTA = 0x50
SELECT_CODES = (0x93, 0x95, 0x97)
CASCADE_TAG = 0x88
SAK_CASCADE = 0x04

Frame = tuple[int, int]


def crc_a(data: bytes) -> int:
    """CRC_A of ISO/IEC 14443-3, 6.2.4 (start 0x6363), as a number whose low byte travels first."""
    return crc_14443(data, 0x6363)


def crc_14443(data: bytes, start: int) -> int:
    """The 16-bit CRC of ISO/IEC 14443 from the preset `start`, reflected, polynomial 0x8408."""
    crc = start
    for byte in data:
        byte ^= crc & 0xFF
        byte ^= (byte << 4) & 0xFF
        crc = (crc >> 8) ^ (byte << 8) ^ (byte << 3) ^ (byte >> 4)
    return crc


def parts_of(uid: bytes) -> list[bytes]:
    """The four bytes of each cascade level of a UID of 4, 7 or 10 bytes."""
    tag = bytes((CASCADE_TAG,))
    if len(uid) == 4:
        return [uid]
    if len(uid) == 7:
        return [tag + uid[:3], uid[3:]]
    if len(uid) == 10:
        return [tag + uid[:3], tag + uid[3:6], uid[6:]]
    raise ValueError(f"a UID has 4, 7 or 10 bytes, not {len(uid)}")


class Card:
    """One card. `state` is "off", "idle", "ready", "active" or "halt".

    `bcc_flip` is XORed into the check byte after the UID, as on a cloned card whose block 0 was written wrong: the card
    then takes that wrong byte for right. `crc_flip` is XORed into the CRC of every SAK.
    """

    def __init__(self, uid: bytes, sak: int | None = None, bcc_flip: int = 0, crc_flip: int = 0) -> None:
        self.uid = bytes(uid)
        self.state = "off"
        self.crc_flip = crc_flip
        parts = parts_of(self.uid)
        self._last_level = len(parts) - 1
        # ATQA: the UID's size in bits 7 and 6, one bit of 4 .. 0 for bitwise anticollision.
        self.atqa = 0x0004 | self._last_level << 6
        self.sak = sak if sak is not None else (0x08 if self._last_level == 0 else 0x00)
        self._answers = [self._with_bcc(part, bcc_flip) for part in parts]
        self._level = 0
        self._was_halted = False
        self._ready_s = 0.0
        self._hears: dict[str, Callable[[Frame], Frame | None]] = {
            "idle": self._hear_resting,
            "halt": self._hear_resting,
            "ready": self._hear_ready,
            "active": self._hear_active,
        }

    @staticmethod
    def _with_bcc(part: bytes, flip: int) -> int:
        bcc = part[0] ^ part[1] ^ part[2] ^ part[3] ^ flip
        return int.from_bytes(part + bytes((bcc,)), "little")

    def enter_field(self, since_s: float) -> None:
        """The field is there, and has been since `since_s`."""
        if self.state == "off":
            self.state = "idle"
            self._was_halted = False
            self._ready_s = since_s + START_S

    def leave_field(self) -> None:
        """Without a field the card loses its state."""
        self.state = "off"

    def hear(self, frame: Frame, now_s: float) -> Frame | None:
        """The answer to a whole frame that ended at `now_s`, or None."""
        if self.state == "off" or now_s < self._ready_s:
            return None
        return self._hears[self.state](frame)

    def _rest(self) -> None:
        self.state = "halt" if self._was_halted else "idle"

    def _hear_resting(self, frame: Frame) -> Frame | None:
        value, bits = frame
        if bits != 7 or not (value == WUPA or (value == REQA and self.state == "idle")):
            return None
        self._was_halted = self.state == "halt"
        self.state = "ready"
        self._level = 0
        return self.atqa, 16

    def _hear_ready(self, frame: Frame) -> Frame | None:
        value, bits = frame
        # NVB counts SEL and NVB itself: whole bytes in the high half, further bits in the low one.
        valid_bits = (value >> 12 & 0xF) * 8 + (value >> 8 & 0xF)
        if bits < 16 or value & 0xFF != SELECT_CODES[self._level]:
            self._rest()
            return None
        if value >> 8 & 0xFF == 0x70:
            return self._hear_select(value, bits)
        known_bits = bits - 16
        known = value >> 16
        answer = self._answers[self._level]
        if valid_bits != bits or known_bits >= 40 or known != answer & ((1 << known_bits) - 1):
            self._rest()
            return None
        return answer >> known_bits, 40 - known_bits

    def _hear_select(self, value: int, bits: int) -> Frame | None:
        if bits != 72 or not crc_holds(value, 9) or value >> 16 & 0xFFFFFFFFFF != self._answers[self._level]:
            self._rest()
            return None
        if self._level == self._last_level:
            self.state = "active"
            sak = self.sak
        else:
            self._level += 1
            sak = SAK_CASCADE
        crc = crc_a(bytes((sak,))) ^ self.crc_flip
        return sak | crc << 8, 24

    def _hear_active(self, frame: Frame) -> Frame | None:
        value, bits = frame
        if bits == 32 and value & 0xFFFF == HLTA and crc_holds(value, 4):
            self.state = "halt"
        else:
            self._rest()
        return None


def crc_holds(value: int, length: int) -> bool:
    """Whether a frame of `length` bytes ends in the CRC_A of those before."""
    data = value.to_bytes(length, "little")
    return crc_a(data[:-2]) == data[-2] | data[-1] << 8
