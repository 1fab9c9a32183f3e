"""Is a button pressed, or an emergency-stop contact open?

Both pull the input up and close to ground. A button counts when it closes (`active` 0); an emergency-stop's auxiliary contact
is closed in normal use and counts when it opens (`active` 1), so that a broken wire counts as pressed.
"""
DEBOUNCE_MS = 30
MASK = 0x3FFFFFFF


class Contact:
    """`pin` is a machine.Pin input with pull-up."""

    def __init__(self, pin, active):
        self._pin = pin
        self._active = active
        self._raw = False
        self._since = 0
        self.is_active = False

    def poll(self, now):
        """True once per activation, after `DEBOUNCE_MS` of a steady level. `now` is the counter of milliseconds."""
        raw = self._pin() == self._active
        if raw != self._raw:
            self._raw = raw
            self._since = now
        if raw == self.is_active or (now - self._since) & MASK < DEBOUNCE_MS:
            return False
        self.is_active = raw
        return raw
