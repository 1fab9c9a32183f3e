"""Does the MFRC522 driver find the right card, and only that, on the chip's register model?"""
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drivers import reader_mfrc522
from drivers.reader_mfrc522 import Reader
from fabtap.sim import chip_mfrc522
from fabtap.sim.card import HLTA, REQA, START_S, WUPA, Card, crc_a
from fabtap.sim.chip_mfrc522 import DEAF_WAYS, Mfrc522

ROOT = Path(__file__).resolve().parents[2]
UIDS = [bytes.fromhex(text) for text in ("DEADBEEF", "04DE5F1EACC040", "04958CAA5C5E80112233")]
# Counted, not measured: MicroPython on an RP2040 needs about 60 us for a pin, a short transfer and a pin.
CALL_S = 80e-6
POLL_MAX_MS = 15


class Clock:
    """Simulated time, and the part of MicroPython's `time` that the driver uses."""

    def __init__(self):
        self.s = 1.0

    def now_s(self):
        return self.s

    def ticks_ms(self):
        return int(self.s * 1000) & 0x3FFFFFFF

    def ticks_diff(self, end, start):
        return ((end - start + 0x20000000) & 0x3FFFFFFF) - 0x20000000

    def sleep_ms(self, ms):
        self.s += ms / 1000


class Spi:
    """machine.SPI over the model; each call takes the time that it would on a chip."""

    def __init__(self, chip, clock, hz):
        self.chip = chip
        self.clock = clock
        self.hz = hz

    def _transfer(self, data):
        self.clock.s += CALL_S + len(data) * 8 / self.hz
        return self.chip.transfer(data)

    def write(self, data):
        self._transfer(bytes(data))

    def readinto(self, into, value=0):
        into[:] = self._transfer(bytes([value]) * len(into))

    def write_readinto(self, out, into):
        into[:] = self._transfer(bytes(out))


class Rig:
    """A driver wired to a model."""

    def __init__(self, monkeypatch, hz=1_000_000, with_reset=True, **options):
        self.clock = Clock()
        monkeypatch.setattr(reader_mfrc522, "time", self.clock)
        self.chip = Mfrc522(self.clock.now_s, **options)
        self.spi = Spi(self.chip, self.clock, hz)
        self.reader = Reader(self.spi, self.chip.select, self.chip.reset if with_reset else None)

    def poll(self, at_most_ms=POLL_MAX_MS):
        """One poll, 100 ms after the last, that must stay within its bound."""
        self.clock.s += 0.1
        began = self.clock.s
        uid = self.reader.poll()
        self.took_ms = (self.clock.s - began) * 1000
        assert self.took_ms <= at_most_ms
        return uid

    def write(self, register, *values):
        self.chip.select(0)
        self.chip.transfer(bytes((register << 1, *values)))
        self.chip.select(1)

    def read(self, register):
        self.chip.select(0)
        value = self.chip.transfer(bytes((0x80 | register << 1, 0)))[1]
        self.chip.select(1)
        return value


@pytest.fixture
def rig(monkeypatch):
    rig = Rig(monkeypatch)
    rig.reader.start()
    return rig


# --- one card


@pytest.mark.parametrize("uid", UIDS, ids=["4 bytes", "7 bytes", "10 bytes"])
def test_a_card_is_read_and_seen_again_at_each_poll(rig, uid):
    card = Card(uid)
    rig.chip.cards = [card]
    assert [rig.poll() for _ in range(3)] == [uid] * 3
    assert card.state == "halt"
    assert rig.reader.errors == 0 and rig.reader.heard


def test_the_first_poll_after_the_start_reads(rig):
    """A card takes 5 ms from the field until it hears; `start` waits for it."""
    rig.chip.cards = [Card(UIDS[0])]
    assert rig.reader.poll() == UIDS[0]


def test_bytes_that_were_left_in_the_fifo_do_no_harm(rig):
    rig.chip.cards = [Card(UIDS[0])]
    rig.write(chip_mfrc522.COMMAND, chip_mfrc522.IDLE)
    rig.write(chip_mfrc522.FIFO_DATA, 1, 2, 3)
    assert rig.poll() == UIDS[0]


def test_no_card_is_none_and_no_error(rig):
    assert rig.poll() is None
    assert rig.reader.errors == 0 and not rig.reader.heard
    # The chip's own timer of 2 ms ended the wait, not the driver's deadline.
    assert rig.took_ms < 2 + 1.5


def test_a_card_that_was_taken_away_is_none_and_is_seen_when_it_returns(rig):
    card = Card(UIDS[0])
    rig.chip.cards = [card]
    assert rig.poll() == UIDS[0]
    rig.chip.cards = []
    assert rig.poll() is None
    assert card.state == "off"
    rig.chip.cards = [card]
    assert rig.poll() == UIDS[0]


def test_a_reader_that_asks_with_reqa_would_miss_a_card_that_stays(rig, monkeypatch):
    """The negative control of WUPA: a halted card is deaf to REQA."""
    monkeypatch.setattr(reader_mfrc522, "WUPA", REQA)
    rig.chip.cards = [Card(UIDS[0])]
    assert [rig.poll(), rig.poll()] == [UIDS[0], None]


# --- several cards


def first_one_wins(one, other):
    """The UID that has a 1 in the first bit, as they travel, in which two differ."""
    for mine, theirs in zip(one, other, strict=True):
        if mine != theirs:
            differs = mine ^ theirs
            return one if mine & differs & -differs else other
    return one


@pytest.mark.parametrize("bit", range(32))
def test_two_cards_that_differ_in_one_bit_give_the_one_with_a_1_there(rig, bit):
    base = int.from_bytes(bytes.fromhex("11223344"), "little")
    low, high = ((base & ~(1 << bit)).to_bytes(4, "little"), (base | 1 << bit).to_bytes(4, "little"))
    for pair in ([low, high], [high, low]):
        rig.chip.cards = [Card(uid) for uid in pair]
        assert [rig.poll(), rig.poll()] == [high, high]
    assert rig.reader.errors == 0


def test_any_two_cards_give_the_same_one_in_either_order(rig):
    draw = random.Random(522)
    for _ in range(150):
        size = draw.choice((4, 7, 10))
        pair = [bytes([draw.randrange(1, 0x88) for _ in range(size)]) for _ in range(2)]
        rig.chip.cards = [Card(uid) for uid in pair]
        taken = rig.poll()
        assert taken == first_one_wins(*pair)
        rig.chip.cards.reverse()
        assert rig.poll() == taken
    assert rig.reader.errors == 0


def test_two_cards_of_different_sizes_are_told_apart(rig):
    rig.chip.cards = [Card(UIDS[0]), Card(UIDS[1])]
    assert rig.poll() == rig.poll() in UIDS[:2]


def test_two_cards_that_share_the_first_cascade_level_are_told_apart(rig):
    pair = [bytes.fromhex("04112233445566"), bytes.fromhex("04112233445567")]
    rig.chip.cards = [Card(uid) for uid in pair]
    assert rig.poll() == first_one_wins(*pair)


def test_three_cards_give_one_of_them_or_nobody(rig):
    draw = random.Random(14443)
    taken = []
    for _ in range(100):
        uids = [bytes([draw.randrange(1, 0x88) for _ in range(4)]) for _ in range(3)]
        rig.chip.cards = [Card(uid) for uid in uids]
        uid = rig.poll()
        assert uid is None or uid in uids
        assert uid == rig.poll()
        taken.append(uid)
    assert any(taken) and not all(taken)
    assert rig.reader.errors == 2 * taken.count(None)


def test_a_second_card_that_is_taken_away_leaves_the_first_readable(rig):
    rig.chip.cards = [Card(UIDS[0]), Card(bytes.fromhex("DEADBEEE"))]
    assert rig.poll() == UIDS[0]
    rig.chip.cards.pop(0)
    assert rig.poll() == bytes.fromhex("DEADBEEE")


# --- wrong answers


def test_a_wrong_check_byte_is_refused(rig):
    rig.chip.cards = [Card(UIDS[0], bcc_flip=0x01)]
    assert rig.poll() is None
    assert rig.reader.errors == 1 and rig.reader.heard


def test_without_the_check_of_the_check_byte_it_would_be_taken(rig, monkeypatch):
    monkeypatch.setattr(reader_mfrc522, "bcc_holds", lambda part: True)
    rig.chip.cards = [Card(UIDS[0], bcc_flip=0x01)]
    assert rig.poll() == UIDS[0]


def test_a_wrong_crc_is_refused(rig):
    rig.chip.cards = [Card(UIDS[0], crc_flip=0x8000)]
    assert rig.poll() is None
    assert rig.reader.errors == 1


def test_without_the_check_of_the_crc_it_would_be_taken(rig, monkeypatch):
    monkeypatch.setattr(reader_mfrc522, "crc_holds", lambda data, length: True)
    rig.chip.cards = [Card(UIDS[0], crc_flip=0x8000)]
    assert rig.poll() == UIDS[0]


@pytest.mark.parametrize(("uid", "sak"), [(UIDS[0], 0x04), (bytes.fromhex("88ADBEEF"), 0x08)])
def test_a_uid_whose_cascade_tag_and_sak_contradict_each_other_is_refused(rig, uid, sak):
    rig.chip.cards = [Card(uid, sak=sak)]
    assert rig.poll() is None
    assert rig.reader.errors == 1


@pytest.mark.parametrize("noise", [0x01, 0x02, 0x10])
def test_noise_is_an_error_that_was_heard_and_the_next_poll_reads(rig, noise):
    rig.chip.cards = [Card(UIDS[1])]
    rig.chip.rx_errors = noise
    assert rig.poll() is None
    assert rig.reader.heard and rig.reader.errors == 1
    rig.chip.rx_errors = 0
    assert rig.poll() == UIDS[1]


def test_after_noise_in_the_middle_of_a_selection_the_very_next_poll_reads(rig, monkeypatch):
    rig.chip.cards = [Card(UIDS[0])]
    with monkeypatch.context() as patch:
        patch.setattr(reader_mfrc522, "bcc_holds", lambda part: False)
        assert rig.poll() is None
    assert rig.poll() == UIDS[0]


# --- published vectors

VECTORS = [("0000", 0x1EA0), ("1234", 0xCF26), ("5000", 0xCD57)]


@pytest.mark.parametrize(("text", "crc"), VECTORS)
def test_published_vectors_of_crc_a(rig, text, crc):
    data = bytes.fromhex(text)
    assert reader_mfrc522.crc_a(data, 2) == crc
    assert crc_a(data) == crc
    # The chip's own CRC unit, with the preset of ISO/IEC 14443-3 (ModeReg 3D).
    rig.write(chip_mfrc522.MODE, 0x3D)
    rig.write(chip_mfrc522.COMMAND, chip_mfrc522.IDLE)
    rig.write(chip_mfrc522.FIFO_DATA, *data)
    rig.write(chip_mfrc522.COMMAND, chip_mfrc522.CALC_CRC)
    assert rig.read(chip_mfrc522.DIV_IRQ) & chip_mfrc522.IRQ_CRC
    assert rig.read(chip_mfrc522.CRC_LOW) | rig.read(chip_mfrc522.CRC_HIGH) << 8 == crc


# --- the card model itself


def test_a_halted_card_hears_wupa_and_not_reqa():
    card = Card(UIDS[0])
    card.enter_field(0.0)
    assert card.hear((REQA, 7), START_S / 2) is None, "it takes a while to wake"
    assert card.hear((REQA, 7), 1.0) == (0x0004, 16)
    answer, bits = card.hear((0x2093, 16), 1.0)
    assert bits == 40 and answer.to_bytes(5, "little")[:4] == UIDS[0]
    select = bytes((0x93, 0x70)) + answer.to_bytes(5, "little")
    select += crc_a(select).to_bytes(2, "little")
    assert card.hear((int.from_bytes(select, "little"), 72), 1.0) == (0x08 | crc_a(b"\x08") << 8, 24)
    assert card.state == "active"
    assert card.hear((int.from_bytes(bytes((HLTA, 0x00, 0x57, 0xCD)), "little"), 32), 1.0) is None
    assert card.state == "halt"
    assert card.hear((REQA, 7), 1.0) is None
    assert card.hear((WUPA, 7), 1.0) == (0x0004, 16)
    card.leave_field()
    card.enter_field(2.0)
    assert card.hear((REQA, 7), 3.0) == (0x0004, 16)


@pytest.mark.parametrize(("uid", "atqa"), list(zip(UIDS, (0x0004, 0x0044, 0x0084), strict=True)))
def test_the_atqa_tells_the_size_of_the_uid(uid, atqa):
    assert Card(uid).atqa == atqa


# --- the chip model itself


def test_registers_after_a_reset_are_those_of_the_data_sheet(monkeypatch):
    rig = Rig(monkeypatch)
    assert rig.read(chip_mfrc522.COMMAND) & 0x10, "the oscillator starts"
    rig.clock.s += 0.01
    values = {
        0x01: 0x20, 0x02: 0x80, 0x04: 0x14, 0x07: 0x21, 0x0B: 0x08, 0x0C: 0x10, 0x11: 0x3F, 0x14: 0x80, 0x17: 0x84,
        0x18: 0x84, 0x19: 0x4D, 0x21: 0xFF, 0x22: 0xFF, 0x24: 0x26, 0x26: 0x48, 0x27: 0x88, 0x2A: 0x00, 0x37: 0x92,
    }
    assert {register: rig.read(register) for register in values} == values


def test_the_fifo_holds_64_bytes_and_reads_in_one_frame(rig):
    rig.write(chip_mfrc522.COMMAND, chip_mfrc522.IDLE)
    rig.write(chip_mfrc522.FIFO_LEVEL, 0x80)
    rig.write(chip_mfrc522.FIFO_DATA, *range(65))
    assert rig.read(chip_mfrc522.FIFO_LEVEL) == 64
    assert rig.read(chip_mfrc522.ERROR) & chip_mfrc522.OVERFLOW_ERROR
    rig.chip.select(0)
    assert rig.chip.transfer(bytes([0x92] * 4 + [0])) == bytes((0, 0, 1, 2, 3))
    # A frame may come in pieces while NSS stays low.
    rig.chip.select(1)
    rig.chip.select(0)
    rig.chip.transfer(b"\x92")
    assert rig.chip.transfer(b"\x92\x00") == bytes((4, 5))
    rig.chip.select(1)
    rig.write(chip_mfrc522.FIFO_LEVEL, 0x80)
    assert rig.read(chip_mfrc522.FIFO_LEVEL) == 0
    assert not rig.read(chip_mfrc522.ERROR) & chip_mfrc522.OVERFLOW_ERROR


def test_the_timer_counts_from_the_end_of_sending(rig):
    """(79 + 1) counts of 25 us after a WUPA of 7 bits."""
    rig.write(chip_mfrc522.COMMAND, chip_mfrc522.IDLE)
    rig.write(chip_mfrc522.COM_IRQ, 0x7F)
    rig.write(chip_mfrc522.FIFO_DATA, WUPA)
    rig.write(chip_mfrc522.COMMAND, chip_mfrc522.TRANSCEIVE)
    rig.write(chip_mfrc522.BIT_FRAMING, 0x87)
    sent_s = rig.clock.s + chip_mfrc522.air_s(7)
    rig.clock.s = sent_s + 1.99e-3
    assert not rig.read(chip_mfrc522.COM_IRQ) & chip_mfrc522.IRQ_TIMER
    assert rig.read(chip_mfrc522.STATUS_1) & 0x08
    rig.clock.s = sent_s + 2.01e-3
    assert rig.read(chip_mfrc522.COM_IRQ) & chip_mfrc522.IRQ_TIMER


def test_an_answer_takes_its_time_on_the_air(rig):
    rig.chip.cards = [Card(UIDS[0])]
    rig.clock.s += 1
    rig.write(chip_mfrc522.COM_IRQ, 0x7F)
    rig.write(chip_mfrc522.FIFO_DATA, WUPA)
    rig.write(chip_mfrc522.COMMAND, chip_mfrc522.TRANSCEIVE)
    rig.write(chip_mfrc522.BIT_FRAMING, 0x87)
    ends_s = rig.clock.s + 9 * 9.44e-6 + 86.4e-6 + 20 * 9.44e-6
    rig.clock.s = ends_s - 5e-6
    assert not rig.read(chip_mfrc522.COM_IRQ) & chip_mfrc522.IRQ_RX
    rig.clock.s = ends_s + 5e-6
    assert rig.read(chip_mfrc522.COM_IRQ) & chip_mfrc522.IRQ_RX
    assert not rig.read(chip_mfrc522.STATUS_1) & 0x08, "the timer stopped at the fifth bit"


# --- deaf readers


# "silent" without a reset pin is cured by the supply alone: the test after this one.
@pytest.mark.parametrize(("way", "with_reset"), [
    ("antenna", True), ("antenna", False), ("registers", True), ("registers", False), ("stuck", True), ("stuck", False),
    ("silent", True),
])
def test_a_deaf_reader_recovers_and_is_counted(monkeypatch, way, with_reset):
    rig = Rig(monkeypatch, with_reset=with_reset)
    rig.reader.start()
    rig.chip.cards = [Card(UIDS[0])]
    assert rig.poll() == UIDS[0] and rig.reader.check()
    rig.chip.go_deaf(way)
    # The negative control: without `check` it stays deaf.
    assert [rig.poll() for _ in range(5)] == [None] * 5
    assert rig.reader.restarts == 0
    assert rig.reader.check()
    assert rig.reader.restarts == 1
    assert rig.poll() == UIDS[0]
    assert rig.reader.check() and rig.reader.restarts == 1 and rig.reader.refreshes == 0


@pytest.mark.parametrize(("register", "value", "mask"), reader_mfrc522.SETTINGS)
def test_one_lost_setting_is_noticed(rig, register, value, mask):
    rig.write(register >> 1, value ^ (mask & -mask))
    assert rig.reader.check() and rig.reader.restarts == 1
    assert rig.read(register >> 1) & mask == value & mask


def test_a_dead_reader_says_so_until_it_is_back(monkeypatch):
    rig = Rig(monkeypatch, with_reset=False)
    rig.reader.start()
    rig.chip.cards = [Card(UIDS[0])]
    rig.chip.power_off()
    began = rig.clock.s
    assert not rig.reader.check() and not rig.reader.check()
    assert rig.clock.s - began < 0.2
    assert rig.poll() is None and rig.reader.restarts == 0
    rig.chip.power_on()
    assert rig.reader.check() and rig.reader.restarts == 1
    assert rig.poll() == UIDS[0]


def test_a_receiver_that_hears_nothing_is_started_anew_after_ten_silent_minutes(rig):
    rig.chip.cards = [Card(UIDS[0])]
    assert rig.poll() == UIDS[0]
    rig.chip.go_deaf("receiver")
    rig.clock.s += 599
    assert rig.poll() is None and rig.reader.check() and rig.reader.refreshes == 0
    rig.clock.s += 2
    assert rig.reader.check()
    assert (rig.reader.refreshes, rig.reader.restarts) == (1, 0)
    assert rig.poll() == UIDS[0]


def test_the_check_of_a_healthy_reader_is_one_frame(rig):
    before = rig.chip.transfers
    assert rig.reader.check()
    assert rig.chip.transfers == before + 1


# --- no chip, other chips, bounds


@pytest.mark.parametrize("floating", [0x00, 0xFF])
@pytest.mark.parametrize("with_reset", [True, False])
def test_without_a_chip_start_says_what_to_look_at(monkeypatch, floating, with_reset):
    rig = Rig(monkeypatch, with_reset=with_reset, floating=floating)
    rig.chip.power_off()
    with pytest.raises(OSError, match=f"reads 0x{floating:02X}: check power and SPI wiring"):
        rig.reader.start()
    assert rig.poll() is None
    assert not rig.reader.check()


@pytest.mark.parametrize("floating", [0x00, 0xFF])
def test_a_chip_that_vanishes_makes_each_poll_an_error_in_bounded_time(rig, floating):
    rig.chip.power_off()
    rig.chip.floating = floating
    assert rig.poll() is None and not rig.reader.heard
    assert rig.reader.errors == 1
    # Nobody on the bus shows at once where it floats high.
    assert floating == 0x00 or rig.took_ms < 2


@pytest.mark.parametrize(("version", "good"), [(0x91, True), (0x92, True), (0x88, True), (0x12, True), (0x3F, False)])
def test_which_versions_are_taken(monkeypatch, version, good):
    rig = Rig(monkeypatch, version=version)
    rig.chip.cards = [Card(UIDS[0])]
    if not good:
        with pytest.raises(OSError, match="0x3F"):
            rig.reader.start()
        return
    rig.reader.start()
    assert rig.poll() == UIDS[0] and rig.reader.check()


def test_the_longest_poll_is_bounded(monkeypatch):
    """Ten bytes and a collision in each of the levels that two cards can share; SPI at 1 MHz."""
    rig = Rig(monkeypatch)
    rig.reader.start()
    for pair in (["01020304050607080910", "01020304050607080911"], ["01020304050607080910", "02020304050607080910"]):
        rig.chip.cards = [Card(bytes.fromhex(text)) for text in pair]
        before = rig.chip.transfers
        assert rig.poll() is not None
        assert rig.chip.transfers - before < 150
    # Worst of all: the chip stops in the middle, so that the driver's own deadline ends the wait.
    rig.chip.cards = [Card(UIDS[2])]
    for stop_after in range(1, 120, 3):
        monkeypatch.setattr(rig.spi, "chip", StopsAfter(rig.chip, stop_after))
        rig.poll(POLL_MAX_MS + reader_mfrc522.WAIT_MS + 1)
        rig.reader.start()


class StopsAfter:
    """The chip, stuck after so many transfers."""

    def __init__(self, chip, transfers):
        self.chip = chip
        self.left = transfers

    def transfer(self, data):
        self.left -= 1
        if self.left == 0:
            self.chip.go_deaf("stuck")
        return self.chip.transfer(data)


def test_every_way_to_go_deaf_is_tested_and_others_are_refused(rig):
    assert set(DEAF_WAYS) == {"antenna", "registers", "stuck", "silent", "receiver"}
    with pytest.raises(ValueError, match="not by asleep"):
        rig.chip.go_deaf("asleep")


# --- the real interpreter

ON_MICROPYTHON = """
import micropython
from drivers import reader_mfrc522 as driver
assert driver.crc_a(b"\\x00\\x00", 2) == 0x1EA0
class Empty:
    def write(self, data):
        pass
    def write_readinto(self, out, into):
        address = out[0]
        for index in range(len(into)):
            into[index] = 0
        if len(into) == 6:
            into[1] = driver.IRQ_TIMER
        elif address == driver.VERSION | driver.READ:
            into[1] = 0x92
class Absent:
    def write(self, data):
        pass
    def write_readinto(self, out, into):
        for index in range(len(into)):
            into[index] = 0xFF
def select(level):
    pass
reader = driver.Reader(Empty(), select)
reader.start()
reader.poll()
def poll_locked():
    micropython.heap_lock()
    for _ in range(10):
        reader.poll()
    micropython.heap_unlock()
poll_locked()
assert reader.errors == 0
micropython.heap_lock()
try:
    bytes(select for _ in range(2))
    print("no heap lock")
except MemoryError:
    pass
micropython.heap_unlock()
try:
    driver.Reader(Absent(), select).start()
except OSError as error:
    assert "0xFF" in str(error)
    print("fine")
"""


def test_on_micropython_an_empty_poll_allocates_nothing():
    binary = shutil.which("micropython", path=str(Path(sys.executable).parent)) or shutil.which("micropython")
    if not binary:
        pytest.skip("no micropython here: install the extra `sim`")
    done = subprocess.run([binary, "-c", ON_MICROPYTHON], capture_output=True, text=True, timeout=60,
                          env={"MICROPYPATH": f"{ROOT / 'firmware'}:.frozen"})
    assert (done.stdout, done.stderr) == ("fine\n", "")
