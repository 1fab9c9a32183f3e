"""Does a badge lie on the reader, and is it a new one?

A reader misses a badge now and then, so a badge counts as gone only when it was not seen for the debounce time. Another badge
is an absence of the first one: it is told as a tap only after the first one is gone.
"""
from nodecore import ticks


class Presence:
    """`current` is the badge number (bytes) that lies there, or None."""

    def __init__(self):
        self.current = None
        self._seen_at = 0

    def note(self, uid, now, gone_ms):
        """Take one look of the reader (badge number or None); return "tap", "there" or "absent"."""
        if self.current is None:
            if uid is None:
                return "absent"
            self.current = uid
            self._seen_at = now
            return "tap"
        if uid == self.current:
            self._seen_at = now
        elif ticks.reached(now, self._seen_at, gone_ms):
            self.current = None
            return "absent"
        return "there"
