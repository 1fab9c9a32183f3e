"""Does a badge lie on the reader, and is it a new one?

A reader misses a badge now and then, so a badge counts as gone only when it was not seen for the debounce time. Another badge
is an absence of the first one: it is told as a tap only after the first one is gone. Whatever lies there when the reader starts
(after a power cut, after it was deaf) was not laid there now: it is no tap until it has been away.
"""
from nodecore import ticks

UNKNOWN = b""


class Presence:
    """`current` is the badge number (bytes) that lies there, `UNKNOWN` when the reader has just started, or None."""

    def __init__(self, now):
        self.forget(now)

    def forget(self, now):
        """The reader has started: what it sees first has lain there before."""
        self.current = UNKNOWN
        self._seen_at = now

    def note(self, uid, now, gone_ms):
        """Take one look of the reader (badge number or None); return "tap", "there" or "absent"."""
        if self.current is None:
            if uid is None:
                return "absent"
            self.current = uid
            self._seen_at = now
            return "tap"
        if uid is not None and self.current == UNKNOWN:
            self.current = uid
        if uid == self.current:
            self._seen_at = now
        elif ticks.reached(now, self._seen_at, gone_ms):
            self.current = None
            return "absent"
        return "there"
