"""`machine` on a simulated board: each call is one message to the supervisor, which owns the chips and the world.

Runs in the MicroPython unix interpreter. Messages go over a packet socket (an abstract name that simboot.py is given), so each
is whole. Calls that only tell are not answered; calls that ask carry a tag, so that an answer whose question was interrupted by
Ctrl-C is recognised and dropped. The operations are listed in ../machine_port.py.
"""
import _thread
import socket
import struct
import time

import micropython

PWRON_RESET, HARD_RESET, WDT_RESET, DEEPSLEEP_RESET, SOFT_RESET = 1, 2, 3, 4, 5

ANSWER_MAX = 1024
LOOK_S = 0.02

_port = None
_tag = 0
_late = {}


def _attach(name):
    global _port
    _port = socket.socket(socket.AF_UNIX, 5)  # SOCK_SEQPACKET
    _port.connect(struct.pack("<H", socket.AF_UNIX) + b"\0" + name.encode())
    _port.settimeout(LOOK_S)


def _booted():
    _tell(0x59, 0)


def _tell(op, number, data=b""):
    _port.send(struct.pack("<BBH", op, 0, number) + data)


def _ask(op, number, data=b""):
    global _tag
    _tag = tag = _tag % 255 + 1
    # An answer that lies there under this tag is 255 questions old, and Ctrl-C has taken the one who asked.
    _late.pop(tag, None)
    _port.send(struct.pack("<BBH", op, tag, number) + data)
    while True:
        if tag in _late:
            return _late.pop(tag)
        try:
            answer = _port.recv(ANSWER_MAX)
        except OSError as error:
            # A timer's callback may just have received our answer with its own.
            if error.errno != 11:  # EAGAIN
                raise
            continue
        if not answer:
            raise OSError(5)
        if answer[0] == tag:
            return answer[1:]
        _late[answer[0]] = answer[1:]


class Pin:
    IN, OUT, OPEN_DRAIN = 0, 1, 2
    PULL_UP, PULL_DOWN = 1, 2
    IRQ_FALLING, IRQ_RISING = 4, 8

    def __init__(self, number, mode=-1, pull=None, *, value=None):
        self._number = number
        if mode != -1:
            self.init(mode, pull, value=value)

    def init(self, mode=-1, pull=None, *, value=None):
        level = 255 if value is None else int(bool(value))
        _tell(0x49, self._number, bytes((mode & 255, pull or 0, level)))

    def value(self, level=None):
        if level is None:
            return _ask(0x52, self._number)[0]
        _tell(0x57, self._number, b"\1" if level else b"\0")

    __call__ = value

    def on(self):
        self.value(1)

    def off(self):
        self.value(0)

    def toggle(self):
        self.value(not self.value())


class PWM:
    def __init__(self, pin, *, freq=0, duty_u16=0):
        self._pin, self._freq, self._duty = pin._number, freq, duty_u16
        self._send()

    def _send(self):
        _tell(0x4D, self._pin, struct.pack("<IH", self._freq, self._duty))

    def freq(self, value=None):
        if value is None:
            return self._freq
        self._freq = value
        self._send()

    def duty_u16(self, value=None):
        if value is None:
            return self._duty
        self._duty = value
        self._send()

    def deinit(self):
        self.duty_u16(0)


class ADC:
    def __init__(self, pin):
        self._number = pin._number if isinstance(pin, Pin) else pin

    def read_u16(self):
        return struct.unpack("<H", _ask(0x41, self._number))[0]


class SPI:
    MSB, LSB = 0, 1

    def __init__(self, bus, baudrate=1000000, *, polarity=0, phase=0, bits=8, firstbit=0, sck=None, mosi=None, miso=None):
        self._bus = bus

    def write(self, data):
        _tell(0x73, self._bus, bytes(data))

    def readinto(self, buffer, write=0):
        self.write_readinto(bytes([write]) * len(buffer), buffer)

    def read(self, count, write=0):
        return _ask(0x53, self._bus, bytes([write]) * count)

    def write_readinto(self, data, buffer):
        buffer[:] = _ask(0x53, self._bus, bytes(data))

    def deinit(self):
        pass


class I2C:
    def __init__(self, bus, *, scl=None, sda=None, freq=400000, timeout=50000):
        self._bus = bus

    def _move(self, address, data, count):
        found = _ask(0x43, self._bus, struct.pack("<BH", address, count) + bytes(data))
        if not found[0]:
            raise OSError(5)
        return found[1:]

    def scan(self):
        return list(_ask(0x63, self._bus))

    def writeto(self, address, data, stop=True):
        self._move(address, data, 0)
        return len(data)

    def readfrom(self, address, count, stop=True):
        return self._move(address, b"", count)

    def writeto_mem(self, address, register, data, *, addrsize=8):
        self._move(address, register.to_bytes(addrsize // 8, "big") + bytes(data), 0)

    def readfrom_mem(self, address, register, count, *, addrsize=8):
        return self._move(address, register.to_bytes(addrsize // 8, "big"), count)


class UART:
    def __init__(self, bus, baudrate=115200, bits=8, parity=None, stop=1, *, tx=None, rx=None, rxbuf=256, timeout=0):
        self._bus = bus
        _tell(0x42, bus, struct.pack("<IH", baudrate, rxbuf))

    def write(self, data):
        _tell(0x55, self._bus, bytes(data))
        return len(data)

    def any(self):
        return struct.unpack("<H", _ask(0x75, self._bus))[0]

    def read(self, count=256):
        return _ask(0x76, self._bus, struct.pack("<H", count)) or None

    def readinto(self, buffer, count=None):
        found = self.read(len(buffer) if count is None else count)
        if found is None:
            return None
        buffer[:len(found)] = found
        return len(found)


class RTC:
    def datetime(self, value=None):
        if value is None:
            return struct.unpack("<8H", _ask(0x74, 0))
        _tell(0x54, 0, struct.pack("<8H", *value))


class Timer:
    """Soft timers: a thread sleeps and schedules; callbacks run in the main thread between byte codes, as on an ESP32."""

    ONE_SHOT, PERIODIC = 0, 1

    def __init__(self, number=-1, **options):
        self._turn = 0
        if options:
            self.init(**options)

    def init(self, *, mode=1, period=-1, freq=-1, callback=None, hard=False):
        self._turn += 1
        self._callback = callback
        self._waiting = False
        period_ms = period if period >= 0 else 1000 // freq
        _thread.start_new_thread(self._beat, (self._turn, period_ms, mode))

    def _beat(self, turn, period_ms, mode):
        fire = self._fire
        while True:
            time.sleep_ms(period_ms)
            if turn != self._turn:
                return
            if not self._waiting:
                self._waiting = True
                try:
                    micropython.schedule(fire, turn)
                except RuntimeError:
                    self._waiting = False
            if mode == 0:
                return

    def _fire(self, turn):
        self._waiting = False
        if turn == self._turn and self._callback:
            self._callback(self)

    def deinit(self):
        self._turn += 1


class WDT:
    """Bites from outside: the supervisor kills this process when it is not fed in time."""

    def __init__(self, id=0, timeout=5000):
        _tell(0x44, 0, struct.pack("<I", timeout))

    def feed(self):
        _tell(0x46, 0)


def reset():
    _tell(0x58, 0)
    while True:
        time.sleep_ms(1000)


def soft_reset():
    raise SystemExit


def bootloader():
    reset()


def reset_cause():
    return _ask(0x51, 0)[0]


def unique_id():
    return _ask(0x51, 1)


def freq(value=None):
    return 125000000


def idle():
    time.sleep_ms(1)


def time_pulse_us(pin, level, timeout_us=1000000):
    return -2
