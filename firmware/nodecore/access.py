"""When may the relay be on?

Only in the state `session`. One table says which event leads from which state where, and what is to be done; an event that is
not listed is an error of ours, never ignored. Every way into `session` is `badge_accepted` in `idle`, and `idle` is reached
only while no badge lies on the reader: so nothing restarts by itself, neither after a stop nor after a power cut.

States: `spent` a badge lies there that has had its say (also the state at boot); `idle` waiting for a tap; `refused` a denied
badge lies there; `session` in use; `settling` the relay is open and the meter delivers what it has measured.
Events about badges are levels: `badge_absent` is told again and again while no badge (or another one) is there.
"""

TABLE = {
    "spent": {
        "badge_absent": ("idle", ""),
        "stop_pressed": ("spent", ""),
        "estop_opened": ("spent", ""),
        "meter_silent": ("spent", ""),
    },
    "idle": {
        "badge_accepted": ("session", "start"),
        "badge_denied": ("refused", "deny"),
        "badge_absent": ("idle", ""),
        "stop_pressed": ("idle", ""),
        "estop_opened": ("idle", ""),
        "meter_silent": ("idle", ""),
    },
    "refused": {
        "badge_absent": ("idle", ""),
        "stop_pressed": ("refused", ""),
        "estop_opened": ("refused", ""),
        "meter_silent": ("refused", ""),
    },
    "session": {
        "badge_absent": ("settling", "end"),
        "stop_pressed": ("settling", "end"),
        "estop_opened": ("settling", "end"),
        "meter_silent": ("settling", "end"),
        "relay_dropped": ("settling", "end"),
        "flash_failed": ("settling", "end"),
        "program_failed": ("settling", "end"),
        "idle_too_long": ("settling", "end"),
    },
    "settling": {
        "badge_absent": ("settling", ""),
        "stop_pressed": ("settling", ""),
        "estop_opened": ("settling", ""),
        "meter_silent": ("settling", ""),
        "settled": ("spent", "settle"),
    },
}

STATE_NUMBERS = {"spent": 0, "idle": 1, "refused": 2, "session": 3, "settling": 4}
RELAY_STATES = ("session",)

END_REASONS = {"badge_absent": 1, "stop_pressed": 2, "estop_opened": 3, "meter_silent": 4, "flash_failed": 6,
               "program_failed": 7, "relay_dropped": 7, "idle_too_long": 8}
"""The number in words.ENDS of each event that ends a session."""


class AccessError(Exception):
    """An event came that the table does not list for the state."""


class Access:
    """The state, and whether the relay is permitted in it. A node that only observes (`gates` False) never permits it."""

    def __init__(self, gates=True):
        self.state = "spent"
        self._gates = gates

    @property
    def relay_permitted(self):
        """The only source of the relay's permission."""
        return self._gates and self.state in RELAY_STATES

    def handle(self, event):
        """Go to the next state; return what is to be done: "start", "deny", "end", "settle" or ""."""
        row = TABLE[self.state]
        if event not in row:
            raise AccessError("%s in state %s" % (event, self.state))
        self.state, action = row[event]
        return action
