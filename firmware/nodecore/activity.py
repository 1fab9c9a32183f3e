"""Is the machine off, idle or working, by the power it draws?

Working starts at `working_mw` and ends below nine tenths of it, so that a reading on the edge does not flicker.
"""

OFF_MW = 500
"""Below half a watt nothing is switched on: what is left is noise and snubbers."""


class Activity:
    """State of one machine: "off", "idle" or "working"."""

    def __init__(self, working_mw):
        self._enter_mw = working_mw
        self._exit_mw = working_mw * 9 // 10
        self.state = "off"

    def note(self, power_mw):
        """Take one reading and return the state."""
        if power_mw >= (self._exit_mw if self.state == "working" else self._enter_mw):
            self.state = "working"
        elif power_mw >= OFF_MW:
            self.state = "idle"
        else:
            self.state = "off"
        return self.state
