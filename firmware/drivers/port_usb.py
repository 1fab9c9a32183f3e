"""How do bytes get to and from the computer on the board's own USB (or UART) console?

Reading never blocks. The console stays a console: what is printed and what Ctrl-C does go the same way.
"""
import select
import sys

READ_MAX = 200


class Port:
    """The console as a byte port."""

    def __init__(self):
        self._poll = select.poll()
        self._poll.register(sys.stdin, select.POLLIN)
        self._buffer = bytearray(READ_MAX)

    def read(self):
        """The bytes that are there now, at most `READ_MAX`; b"" when there are none."""
        count = 0
        # A chip's console read blocks until it has all that was asked for, so ask for one byte at a time.
        while count < READ_MAX and self._poll.poll(0):
            byte = sys.stdin.buffer.read(1)
            if not byte:
                break
            self._buffer[count] = byte[0]
            count += 1
        return bytes(self._buffer[:count]) if count else b""

    def write(self, data):
        """Hand bytes to the port; a computer that does not listen costs at most the port's own time-out."""
        sys.stdout.buffer.write(data)
