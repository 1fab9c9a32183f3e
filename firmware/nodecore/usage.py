"""How long was the relay on, how long did the machine work, in the session that is open?

Durations come from the node's own counter of milliseconds. Working time is added up per meter reading, for as long as the
meter speaks of the time in which the relay was closed.
"""
from nodecore import ticks


class Usage:
    """One session. `seq` is the sequence number of its `session_started` event and thereby its name."""

    def __init__(self, seq, member, now):
        self.seq = seq
        self.member = member
        self.working_ms = 0
        self.reason = 0
        self.started_at = now
        self._on_ms = -1

    def on_ms(self, now):
        """Milliseconds with the relay on until `now`, or until it was opened."""
        return self._on_ms if self._on_ms >= 0 else ticks.elapsed_ms(now, self.started_at)

    def close(self, now, reason):
        """The relay has just been opened, for `reason` (a number of words.ENDS)."""
        if self._on_ms < 0:
            self._on_ms = ticks.elapsed_ms(now, self.started_at)
            self.reason = reason

    def note(self, duration_ms, now):
        """Count a meter interval of work. Work never lasts longer than the relay was on."""
        self.working_ms = min(self.working_ms + duration_ms, self.on_ms(now))
