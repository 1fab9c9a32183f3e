"""Is time measured rightly over the counter's wrap, without allocating on a chip?"""
import gc
import sys

from nodecore import ticks

WRAP = 2**30


def allocated_bytes(call, *arguments):
    """Bytes that one call leaves on the heap; the collector is off meanwhile."""
    call(*arguments)
    gc.collect()
    gc.disable()
    try:
        before = gc.mem_alloc()
        call(*arguments)
        return gc.mem_alloc() - before
    finally:
        gc.enable()


def keeps_nothing(call, *arguments):
    """True if a call allocates as little as one that only gives its argument back."""
    return allocated_bytes(call, *arguments) <= allocated_bytes(give_first, *arguments)


def give_first(first, *_):
    """The smallest call there is."""
    return first


def test_the_mask_is_that_of_micropythons_ports():
    assert ticks.MASK == WRAP - 1


def test_time_that_passed_is_the_difference():
    for now, then, expected in ((5, 5, 0), (6, 5, 1), (WRAP - 1, 0, WRAP - 1), (1000, 400, 600)):
        assert ticks.elapsed_ms(now, then) == expected, (now, then)


def test_time_that_passed_is_right_over_the_wrap():
    for now, then, expected in ((0, WRAP - 1, 1), (400, WRAP - 100, 500), (0, 1, WRAP - 1), (WRAP // 2, WRAP // 2 + 1, WRAP - 1)):
        assert ticks.elapsed_ms(now, then) == expected, (now, then)


def test_a_plain_difference_would_be_wrong_over_the_wrap():
    assert ticks.elapsed_ms(400, WRAP - 100) != 400 - (WRAP - 100)


def test_a_duration_is_reached_at_its_last_millisecond():
    for start in (0, 1000, WRAP - 300, WRAP - 1):
        for passed, expected in ((0, False), (499, False), (500, True), (501, True), (WRAP - 1, True)):
            assert ticks.reached((start + passed) % WRAP, start, 500) is expected, (start, passed)


def test_no_duration_is_reached_at_once():
    assert ticks.reached(1000, 1000, 0)
    assert not ticks.reached(1000, 1000, 1)


def test_nothing_is_allocated_for_any_reading():
    if not hasattr(gc, "mem_alloc"):
        return
    for now, then in ((0, WRAP - 1), (WRAP - 1, 0), (0, 1), (5, 5)):
        assert keeps_nothing(ticks.elapsed_ms, now, then), (now, then)
        assert keeps_nothing(ticks.reached, now, then, WRAP - 1), (now, then)


def test_a_number_beyond_the_small_ones_would_be_seen_to_allocate():
    if hasattr(gc, "mem_alloc") and sys.maxsize == 2**31 - 1:
        assert not keeps_nothing(add, WRAP - 1, 1)
        assert keeps_nothing(add, WRAP - 2, 1)


def add(first, second):
    """A sum, not masked."""
    return first + second
