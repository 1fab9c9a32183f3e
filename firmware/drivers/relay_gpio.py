"""Is the relay on, and who lets it drop when nobody asks any more?

The permission expires: `allow(for_ms)` must be renewed, and a timer opens the relay when it is not. Bound: `for_ms` plus
`CHECK_MS` on RP2040, where the timer is hard. MicroPython's ESP32 timers run in the scheduler, not while C code blocks: there
the watchdog, which resets the chip and so opens the relay, sets the bound. Wiring: active high, pull-down of at most 4.7 kOhm.
"""
import machine

CHECK_MS = 50
MASK = 0x3FFFFFFF


class Relay:
    """`pin` is a machine.Pin that is already an output and low; `ticks_ms` the node's counter."""

    def __init__(self, pin, ticks_ms, timer_id=-1, hard=False):
        self._pin = pin
        self._ticks_ms = ticks_ms
        self._on = False
        self._since = 0
        self._for_ms = 0
        self.cuts_by_timer = 0
        self.opened_at = 0
        self._timer = machine.Timer(timer_id)
        options = {"hard": True} if hard else {}
        self._timer.init(mode=machine.Timer.PERIODIC, period=CHECK_MS, callback=self._check, **options)

    def allow(self, for_ms):
        """Close the relay for the next `for_ms` milliseconds."""
        self._since = self._ticks_ms()
        self._for_ms = for_ms
        if not self._on:
            self._on = True
            self._pin(1)

    def renew(self, for_ms):
        """Keep a closed relay closed for the next `for_ms`; False when it is open. This never closes it: the timer's interrupt may
        have opened it a moment ago."""
        self._since = self._ticks_ms()
        self._for_ms = for_ms
        return self._on

    def off(self):
        """Open the relay at once."""
        self._pin(0)
        if self._on:
            self._on = False
            self.opened_at = self._ticks_ms()

    def is_on(self):
        """What the relay was told last; `opened_at` is the counter when it opened last."""
        return self._on

    def _check(self, _timer):
        if self._on and (self._ticks_ms() - self._since) & MASK >= self._for_ms:
            self._pin(0)
            self._on = False
            self.opened_at = self._ticks_ms()
            self.cuts_by_timer += 1
