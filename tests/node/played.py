"""A node whose drivers are played: for scripts that run the real supervisor in MicroPython without a simulator."""
import os

from node import roster_file, serial_lines, supervisor
from nodecore import frame, journal, roster, wire

SECRET = bytes(range(32))
UID = b"\x04\xa1\xb2\xc3"


SLEEPS_MAX = 1000


class NeverCalled(BaseException):
    """What was to break the node was not called in all that time."""


class Memory:
    """The journal's storage in RAM."""

    def __init__(self):
        self.files = {}
        self.note = b""
        self.failing = False

    def _check(self):
        if self.failing:
            raise OSError(5)

    def folders(self):
        return list(self.files)

    def names(self, folder):
        return list(self.files[folder])

    def make_folder(self, name):
        self.files[name] = {}

    def read(self, folder, name):
        return self.files[folder][name]

    def append(self, folder, name, data):
        self._check()
        self.files[folder][name] = self.files[folder].get(name, b"") + data

    def remove(self, folder, name):
        del self.files[folder][name]

    def read_note(self):
        return self.note

    def write_note(self, data):
        self._check()
        self.note = data


class Part:
    """Any driver: every call is counted; the one named in `broken` raises."""

    def __init__(self, world):
        self._world = world
        self.is_active = False
        self.restarts = 0
        self.refreshes = 0
        self.opened_at = 0
        self.on = False
        self.power_mw = 480000
        self.shown = []

    def _call(self, name):
        self._world.note(self, name)

    def start(self):
        self._call("start")

    def check(self):
        self._call("check")
        return True

    def poll(self, now=None):
        self._call("poll")
        return self._world.answer(self, now)

    def silent_ms(self, now):
        self._call("silent_ms")
        return 0

    def allow(self, for_ms):
        self._call("allow")
        self.on = True

    def renew(self, for_ms):
        self._call("renew")
        return self.on

    def off(self):
        if self.on:
            self.opened_at = self._world.now
        self.on = False

    def is_on(self):
        return self.on

    def show(self, what, now):
        self._call("show")
        if not self.shown or self.shown[-1] != what:
            self.shown.append(what)

    def tick(self, now):
        self._call("tick")

    def read(self):
        self._call("read")
        return b""

    def write(self, line):
        self._call("write")

    def ticks(self):
        self._call("ticks")
        return self._world.now

    def mono_ms(self):
        self._call("mono_ms")
        return self._world.mono

    def day(self):
        self._call("day")
        return None

    def feed(self):
        self._call("feed")


class World:
    """Time, the badge, and what is broken: `broken` is (part name, method, exception)."""

    def __init__(self):
        self.now = 1000
        self.mono = 0
        self.sleeps = 0
        self.uid = None
        self.broken = None
        self.resets = 0
        self.settings = {}
        self.parts = {name: Part(self) for name in ("reader", "meter", "relay", "panel", "stop", "estop", "port", "clock",
                                                    "watchdog")}
        self.storage = Memory()

    def note(self, part, name):
        if self.broken and self.parts[self.broken[0]] is part and self.broken[1] == name:
            raise self.broken[2]

    def answer(self, part, now):
        if part is self.parts["reader"]:
            return self.uid
        return part is self.parts["meter"] and self.now // 100 % 2 == 0

    def sleep_ms(self, duration_ms):
        self.sleeps += 1
        if self.sleeps > SLEEPS_MAX:
            raise NeverCalled(str(self.broken))
        self.now = (self.now + 100) & 0x3FFFFFFF
        self.mono += 100

    def reset(self):
        self.resets += 1
        self.relay_at_reset = self.parts["relay"].on

    def boot(self):
        """A node that has found its journal and a roster with one badge."""
        hashed = roster.badge_hash(frame.Mac(frame.derive_key(SECRET, b"badge")), UID)
        roster_file.PATH = "roster.bin"
        with open(roster_file.PATH, "wb") as file:
            file.write(roster.pack_head(1, 1, 0, bytes(32)) + roster.pack_entry(hashed, 7, roster.NEVER, 0))
        events = journal.Journal(self.storage, 400, 200)
        events.open(os.urandom(8))
        members = roster_file.RosterFile()
        members.open()
        parts = dict(self.parts)
        parts.update({"reset": self.reset, "sleep_ms": self.sleep_ms, "roster": members, "journal": events,
                      "port": serial_lines.SerialLines(self.parts["port"])})
        settings = {"node": 1, "secret": SECRET, "board": "played", "working_mw": 60000, "checkpoint_ms": 1000,
                    "badge_out_ms": 300, "gates": 1, "idle_ms": 0}
        settings.update(self.settings)
        self.journal = events
        return supervisor.Node(settings, parts, 1, 1, lambda below: 0)

    def steps(self, node, count):
        for _ in range(count):
            self.sleep_ms(3)
            node.step()

    def in_session(self):
        """A node in the middle of a session."""
        node = self.boot()
        self.steps(node, 8)
        self.uid = UID
        self.steps(node, 8)
        if not self.parts["relay"].on:
            raise AssertionError("no session")
        return node

    def names(self):
        """The names of all events in the journal, in order."""
        found = []
        seq = 1
        while seq < self.journal.next_seq:
            for event in self.journal.read(seq, 1000):
                found.append(wire.decode_event(event)["name"])
                seq = wire.event_seq(event) + 1
        return found
