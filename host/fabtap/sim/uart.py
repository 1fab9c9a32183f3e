"""What gets lost between a computer and a board whose console is a UART?

Bytes come at the line's speed, some each millisecond. The chip takes them into a ring of `ring_bytes` (260 in MicroPython's ESP32
port); what finds the ring full is lost. While flash is busy nobody empties the hardware's FIFO: it takes `fifo_bytes`, the rest is
lost. A USB console is not like this: it makes the computer wait.
"""
import array
import asyncio
import fcntl
import os
import termios
import time
from collections.abc import Callable

STEP_S = 0.001
BITS_A_BYTE = 10
QUEUE_MAX = 65536
"""What the computer's own driver keeps; who writes more finds its buffer full."""


class UartWire:
    """Between the outer port and the interpreter. `deliver` takes bytes, `waiting` says how many it has not read yet."""

    def __init__(self, baud: int, ring_bytes: int, fifo_bytes: int, deliver: Callable[[bytes], None],
                 waiting: Callable[[], int], now_s: Callable[[], float] = time.monotonic) -> None:
        self._bytes_a_s = baud / BITS_A_BYTE
        self._ring_bytes = ring_bytes
        self._fifo_bytes = fifo_bytes
        self._deliver = deliver
        self._waiting = waiting
        self._now_s = now_s
        self._queue = bytearray()
        self._fifo = bytearray()
        self._busy_until_s = 0.0
        self._at_s = now_s()
        self._wake = asyncio.Event()
        self.lost_bytes = 0

    def flash_busy(self, for_s: float) -> None:
        """Flash is being erased or written from now on."""
        now = self._now_s()
        self._move(now)
        self._busy_until_s = max(now, self._busy_until_s) + for_s

    def push(self, data: bytes) -> None:
        """The computer sends."""
        taken = data[:QUEUE_MAX - len(self._queue)]
        self.lost_bytes += len(data) - len(taken)
        if not self._queue:
            self._at_s = self._now_s()
        self._queue.extend(taken)
        self._wake.set()

    def clear(self) -> None:
        """The board was reset: what was on its way is gone."""
        self._fifo.clear()
        self._busy_until_s = 0.0

    async def run(self) -> None:
        """Move bytes at the line's speed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue or self._fifo:
                self._move(self._now_s())
                await asyncio.sleep(STEP_S)

    def _move(self, now_s: float) -> None:
        """Let the bytes arrive that the line has carried until now."""
        busy = now_s < self._busy_until_s
        if not busy and self._fifo:
            self._into_ring(bytes(self._fifo))
            self._fifo.clear()
        count = min(len(self._queue), int((now_s - self._at_s) * self._bytes_a_s))
        if not count:
            return
        self._at_s += count / self._bytes_a_s
        arrived = bytes(self._queue[:count])
        del self._queue[:count]
        if busy:
            room = self._fifo_bytes - len(self._fifo)
            self._fifo.extend(arrived[:room])
            self.lost_bytes += max(0, len(arrived) - room)
        else:
            self._into_ring(arrived)

    def _into_ring(self, data: bytes) -> None:
        room = max(0, self._ring_bytes - self._waiting())
        self.lost_bytes += max(0, len(data) - room)
        if data[:room]:
            self._deliver(data[:room])


def unread_bytes(process_id: int) -> int:
    """How many bytes of its terminal's input a process has not read yet; 0 when it has gone."""
    try:
        descriptor = os.open(f"/proc/{process_id}/fd/0", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return 0
    try:
        found = array.array("i", [0])
        fcntl.ioctl(descriptor, termios.FIONREAD, found)
        return found[0]
    except OSError:
        return 0
    finally:
        os.close(descriptor)
