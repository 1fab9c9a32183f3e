"""Does the simulated UART lose what a chip's would lose, and nothing else?"""
import asyncio

import pytest

from fabtap.sim.uart import QUEUE_MAX, UartWire


class Bench:
    """A wire with a played clock and an interpreter that reads when it is told to."""

    def __init__(self, ring_bytes: int = 260, fifo_bytes: int = 128, baud: int = 115200) -> None:
        self.now_s = 100.0
        self.ring = bytearray()
        self.wire = UartWire(baud, ring_bytes, fifo_bytes, self.ring.extend, lambda: len(self.ring), lambda: self.now_s)

    def later(self, milliseconds: float) -> None:
        """Time goes on in steps of a millisecond."""
        for _ in range(round(milliseconds)):
            self.now_s += 0.001
            self.wire._move(self.now_s)

    def read(self) -> bytes:
        taken = bytes(self.ring)
        self.ring.clear()
        return taken


def test_bytes_come_at_the_speed_of_the_line() -> None:
    bench = Bench()
    bench.wire.push(bytes(200))
    bench.later(5)
    assert 50 <= len(bench.ring) <= 60
    bench.later(15)
    assert len(bench.ring) == 200 and bench.wire.lost_bytes == 0


def test_what_finds_the_ring_full_is_lost() -> None:
    bench = Bench()
    data = bytes(range(256)) * 2
    bench.wire.push(data)
    bench.later(100)
    assert bench.read() == data[:260] and bench.wire.lost_bytes == 512 - 260


@pytest.mark.parametrize(("fifo_bytes", "kept"), [(128, 128), (32, 32), (0, 0)])
def test_while_flash_is_busy_only_the_fifo_keeps_bytes(fifo_bytes: int, kept: int) -> None:
    bench = Bench(fifo_bytes=fifo_bytes)
    bench.wire.flash_busy(0.045)
    bench.wire.push(bytes(range(200)))
    bench.later(40)
    assert not bench.ring
    bench.later(20)
    assert bench.read() == bytes(range(200))[:kept] and bench.wire.lost_bytes == 200 - kept


def test_bytes_before_and_after_a_busy_flash_come_through() -> None:
    bench = Bench(fifo_bytes=0)
    bench.wire.push(b"a" * 50)
    bench.later(10)
    bench.wire.flash_busy(0.045)
    bench.wire.push(b"b" * 50)
    bench.later(60)
    bench.wire.push(b"c" * 50)
    bench.later(10)
    assert bench.read() == b"a" * 50 + b"c" * 50 and bench.wire.lost_bytes == 50


def test_a_reset_forgets_the_fifo_and_a_computer_that_writes_too_much_is_counted() -> None:
    bench = Bench()
    bench.wire.flash_busy(10)
    bench.wire.push(b"x" * 20)
    bench.later(5)
    bench.wire.clear()
    bench.later(5)
    assert not bench.ring
    bench.wire.push(bytes(QUEUE_MAX + 7))
    assert bench.wire.lost_bytes == 7


def test_it_moves_bytes_by_itself() -> None:
    async def scene() -> bytes:
        ring = bytearray()
        wire = UartWire(115200, 260, 128, ring.extend, lambda: len(ring))
        running = asyncio.create_task(wire.run())
        wire.push(b"hello")
        async with asyncio.timeout(5):
            while len(ring) < 5:
                await asyncio.sleep(0.001)
        running.cancel()
        return bytes(ring)
    assert asyncio.run(scene()) == b"hello"
