"""How much time lies between two readings of a millisecond counter that wraps at 2**30?

The counter is that of MicroPython's ports. Elapsed times are exact up to 2**30 - 1 ms (12.4 days); nothing here grows beyond
31 bits, so nothing here allocates on a chip.
"""

MASK = 0x3FFFFFFF


def elapsed_ms(now, then):
    """Milliseconds from `then` to the later `now`, both readings of the counter."""
    return (now - then) & MASK


def reached(now, start, duration_ms):
    """True when `duration_ms` or more have passed since `start`."""
    return (now - start) & MASK >= duration_ms
