"""What does the member see and hear at the machine?

One light and one buzzer: light on in a session, a short blink every two seconds while waiting, quick blinks and a low tone for a
refused badge, even blinks and a lower tone for a fault. The buzzer is off by itself after each tone.
"""
MASK = 0x3FFFFFFF
# what is shown: (period in ms, milliseconds of light at the period's start)
SHOWN = {
    "idle": (2000, 60),
    "session": (1000, 1000),
    "refused": (200, 100),
    "fault": (600, 300),
}
TONES = {"idle": (0, 0), "session": (1800, 80), "refused": (400, 300), "fault": (300, 600)}


class Panel:
    """`led` is a machine.Pin output, `buzzer` a machine.PWM or None."""

    def __init__(self, led, buzzer):
        self._led = led
        self._buzzer = buzzer
        self._shown = ""
        self._since = 0
        self._lit = False
        self._sounding = False

    def show(self, what, now):
        """Show a row of `SHOWN`; a change of what is shown sounds its tone."""
        if what == self._shown:
            return
        self._shown = what
        self._since = now
        frequency_hz, _ = TONES[what]
        if self._buzzer and frequency_hz:
            self._buzzer.freq(frequency_hz)
            self._buzzer.duty_u16(32768)
            self._sounding = True

    def tick(self, now):
        """Blink, and end the tone. Call it every few tens of milliseconds."""
        if not self._shown:
            return
        since = (now - self._since) & MASK
        period_ms, lit_ms = SHOWN[self._shown]
        lit = since % period_ms < lit_ms
        if lit != self._lit:
            self._lit = lit
            self._led(1 if lit else 0)
        if self._sounding and since >= TONES[self._shown][1]:
            self._sounding = False
            self._buzzer.duty_u16(0)
