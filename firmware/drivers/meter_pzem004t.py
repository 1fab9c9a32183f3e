"""What do volts, amps, watts and watt-hours read at the PZEM-004T v3?

Modbus RTU at 9600 8N1: a request of 8 bytes, a reply of 25. `poll` never blocks: it sends, collects what has come, and
gives up after `timeout_ms`. A reading is taken only when address, function, length and CRC16 are right, so an own
request that comes back over the wire is never one. The chip renews its registers more slowly than it may be asked, and
its energy goes on over a power loss. No floats, nothing allocated; times are the port's counter of milliseconds, cut or
wrapped at 2**30 or not.
"""
GENERAL_ADDRESS = 0xF8
"""Any single meter on the wire obeys it; an own address is 0x01 .. 0xF7."""
READ_INPUTS = 0x04
REGISTERS = 10
REPLY_BYTES = 25
ERROR_BYTES = 5

MASK = 0x3FFFFFFF
NEVER_MS = 0x1FFFFFFF
"""What `silent_ms` says before the first reading, and at most: six days."""
DRAIN_MAX = 8
"""So many buffers of late bytes are thrown away before a request; a line that never ends is not drained for ever."""

# CRC16 of Modbus (reflected, polynomial 0xA001) by half bytes: 16 entries instead of 8 turns of a loop a byte.
CRC_NIBBLES = (
    0x0000, 0xCC01, 0xD801, 0x1400, 0xF001, 0x3C00, 0x2800, 0xE401,
    0xA001, 0x6C00, 0x7800, 0xB401, 0x5000, 0x9C01, 0x8801, 0x4400,
)


def crc16(data, length):
    """CRC16 of Modbus over the first `length` bytes; its low byte travels first."""
    crc = 0xFFFF
    for index in range(length):
        byte = data[index]
        crc = (crc >> 4) ^ CRC_NIBBLES[(crc ^ byte) & 0x0F]
        crc = (crc >> 4) ^ CRC_NIBBLES[(crc ^ (byte >> 4)) & 0x0F]
    return crc


def crc_holds(data, length):
    """Whether the two bytes after `length` bytes are their CRC16."""
    return crc16(data, length) == data[length] | data[length + 1] << 8


def request(address):
    """The 8 bytes that ask for all ten input registers."""
    data = bytearray((address, READ_INPUTS, 0, 0, 0, REGISTERS, 0, 0))
    crc = crc16(data, 6)
    data[6] = crc & 0xFF
    data[7] = crc >> 8
    return data


class Meter:
    """`uart` is a machine.UART with `timeout=0`. The readings are 0 until `poll` first returned True."""

    def __init__(self, uart, address=GENERAL_ADDRESS, interval_ms=200, timeout_ms=150):
        self._uart = uart
        self._address = address
        self._request = request(address)
        self._interval_ms = interval_ms
        self._timeout_ms = timeout_ms
        self._chunk = bytearray(32)
        self._reply = bytearray(REPLY_BYTES)
        self._have = 0
        self._waiting = False
        self._asked = False
        self._asked_ms = 0
        self._read = False
        self._read_ms = 0
        self.voltage_dv = 0
        self.current_ma = 0
        self.power_mw = 0
        self.energy_wh = 0
        self.frequency_dhz = 0
        self.power_factor_pct = 0
        self.alarm = False
        self.readings = 0
        self.timeouts = 0
        self.crc_errors = 0
        self.echoes = 0
        self.refusals = 0

    def poll(self, now_ms):
        """Send, or collect; True when a fresh reading stands in the attributes. Call it every 10 to 20 ms."""
        # A silence longer than the counter's wrap must not look short again.
        if self._read and (now_ms - self._read_ms) & MASK > NEVER_MS:
            self._read = False
        fresh = False
        if self._waiting:
            fresh = self._collect()
            if fresh:
                self._read = True
                self._read_ms = now_ms
            elif self._waiting and (now_ms - self._asked_ms) & MASK >= self._timeout_ms:
                self._waiting = False
                self.timeouts += 1
        if not self._waiting and (not self._asked or (now_ms - self._asked_ms) & MASK >= self._interval_ms):
            self._ask(now_ms)
        return fresh

    def silent_ms(self, now_ms):
        """Milliseconds since the last good reading; `NEVER_MS` when there was none."""
        if not self._read:
            return NEVER_MS
        return min((now_ms - self._read_ms) & MASK, NEVER_MS)

    def _ask(self, now_ms):
        """Throw late bytes away and send the request."""
        for _ in range(DRAIN_MAX):
            if not self._uart.any():
                break
            self._uart.readinto(self._chunk)
        self._uart.write(self._request)
        self._have = 0
        self._waiting = True
        self._asked = True
        self._asked_ms = now_ms

    def _collect(self):
        """Take the bytes that are there; True when they complete a good reading."""
        count = min(self._uart.any(), len(self._chunk))
        if not count:
            return False
        count = self._uart.readinto(self._chunk, count) or 0
        for index in range(count):
            if not self._waiting:
                break
            self._reply[self._have] = self._chunk[index]
            self._have += 1
            self._judge()
        if self._waiting or self._have != REPLY_BYTES:
            return False
        if not crc_holds(self._reply, REPLY_BYTES - 2):
            self.crc_errors += 1
            return False
        self._take()
        return True

    def _judge(self):
        """Keep `_reply` a beginning of something that may come: the reply, a refusal, or the echo of the request."""
        while self._have:
            if self._is_reply_so_far():
                if self._have == REPLY_BYTES:
                    self._waiting = False
                return
            if self._is_refusal_so_far():
                if self._have == ERROR_BYTES and crc_holds(self._reply, ERROR_BYTES - 2):
                    self.refusals += 1
                    self._waiting = False
                if self._have < ERROR_BYTES or not self._waiting:
                    return
            elif self._is_echo_so_far():
                if self._have == len(self._request):
                    self.echoes += 1
                    self._have = 0
                return
            # Noise before the frame: try from the next byte on.
            self._have -= 1
            for index in range(self._have):
                self._reply[index] = self._reply[index + 1]

    def _is_reply_so_far(self):
        head = self._reply
        return (
            self._is_address(head[0])
            and (self._have < 2 or head[1] == READ_INPUTS)
            and (self._have < 3 or head[2] == 2 * REGISTERS)
        )

    def _is_refusal_so_far(self):
        return self._is_address(self._reply[0]) and self._have >= 2 and self._reply[1] == READ_INPUTS | 0x80

    def _is_echo_so_far(self):
        index = 0
        while index < self._have and self._reply[index] == self._request[index]:
            index += 1
        return index == self._have

    def _is_address(self, byte):
        """Who was asked by the general address may answer with it or with its own: the manual doesn't say."""
        return byte == self._address or (self._address == GENERAL_ADDRESS and 0x01 <= byte <= 0xF7)

    def _take(self):
        """The manual's section 2.3: registers high byte first, of two registers the low one first."""
        self.voltage_dv = self._word(0)
        self.current_ma = self._word(1) | self._word(2) << 16
        self.power_mw = (self._word(3) | self._word(4) << 16) * 100
        self.energy_wh = self._word(5) | self._word(6) << 16
        self.frequency_dhz = self._word(7)
        self.power_factor_pct = self._word(8)
        self.alarm = self._word(9) == 0xFFFF
        self.readings += 1

    def _word(self, register):
        at = 3 + 2 * register
        return self._reply[at] << 8 | self._reply[at + 1]
