"""What time is it, on the node?

`ticks` is the port's counter of milliseconds, cut to 2**30. `mono_ms` widens it over its wrap and counts from boot; it must be
asked at least once in 12 days. Wall time is what the collector set, carried on by the same counter; there is none before.
"""
import time

from nodecore import ticks as counter


def ticks_ms():
    """The port's counter. A simulator puts its offset here, and nowhere else."""
    return time.ticks_ms()


class Clock:
    """The node's one clock."""

    def __init__(self):
        self._last = self.ticks()
        self._mono_ms = 0
        self._local_at_zero_ms = None

    def ticks(self):
        """The counter, 0 .. 2**30 - 1."""
        return ticks_ms() & counter.MASK

    def mono_ms(self):
        """Milliseconds since boot."""
        now = self.ticks()
        self._mono_ms += counter.elapsed_ms(now, self._last)
        self._last = now
        return self._mono_ms

    def set_utc_ms(self, utc_ms, local_offset_s):
        """The collector says that it is `utc_ms` now, and how far the lab's own time is ahead of UTC."""
        self._local_at_zero_ms = utc_ms + local_offset_s * 1000 - self.mono_ms()

    def day(self):
        """Days since 2020-01-01 by the lab's own time, or None without wall time."""
        if self._local_at_zero_ms is None:
            return None
        return (self._local_at_zero_ms + self.mono_ms()) // 86400000 - 18262
