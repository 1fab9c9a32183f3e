"""Does a bouncing contact count once, and a broken wire of the emergency stop as pressed?"""
from drivers.contact_gpio import DEBOUNCE_MS, MASK, Contact


class Line:
    """An input pin whose level the test sets."""

    def __init__(self, level: int) -> None:
        self.level = level

    def __call__(self) -> int:
        return self.level


def test_a_press_counts_once_after_the_debounce() -> None:
    line = Line(1)
    button = Contact(line, 0)
    assert not button.poll(0)
    line.level = 0
    assert [button.poll(10 + ms) for ms in (0, DEBOUNCE_MS - 1, DEBOUNCE_MS, DEBOUNCE_MS + 1)] == [False, False, True, False]
    assert button.is_active
    line.level = 1
    assert [button.poll(100 + ms) for ms in (0, DEBOUNCE_MS, DEBOUNCE_MS + 1)] == [False, False, False]
    assert not button.is_active


def test_bouncing_does_not_count() -> None:
    line = Line(1)
    button = Contact(line, 0)
    for ms in range(0, 300, 10):
        line.level = ms // 10 % 2
        assert not button.poll(ms)


def test_a_broken_wire_counts_as_an_open_emergency_stop() -> None:
    line = Line(0)
    estop = Contact(line, 1)
    assert not estop.poll(0) and not estop.is_active
    line.level = 1
    estop.poll(10)
    assert estop.poll(10 + DEBOUNCE_MS) and estop.is_active


def test_it_works_across_the_counters_wrap() -> None:
    line = Line(1)
    button = Contact(line, 0)
    line.level = 0
    button.poll(MASK - 10)
    assert not button.poll(MASK)
    assert button.poll((MASK - 10 + DEBOUNCE_MS) & MASK)
