"""Does the node's heap grow with the taps? Runs in MicroPython with a heap of 192 kB on a littlefs image; prints JSON.

The real node, journal, roster file and link on real littlefs; reader, meter, relay and time are played, so that a session
takes no time. Every session is started, checkpointed, ended, sent and acknowledged.
"""
import gc
import json
import os
import sys

import vfs

CYCLES, SEED = int(sys.argv[1]), int(sys.argv[2])
# The control: something is kept at every tap, and the growth must show it.
LEAK = len(sys.argv) > 3
BLOCKS, BLOCK_BYTES = 352, 4096


ERASED = b"\xff" * 256


class Image:
    """A flash image in a file."""

    def __init__(self, path):
        with open(path, "wb") as file:
            for _ in range(BLOCKS * BLOCK_BYTES // 256):
                file.write(ERASED)
        self._file = open(path, "r+b", buffering=0)

    def readblocks(self, block, buffer, offset=0):
        self._file.seek(block * BLOCK_BYTES + offset)
        self._file.readinto(buffer)

    def writeblocks(self, block, buffer, offset=0):
        self._file.seek(block * BLOCK_BYTES + offset)
        self._file.write(buffer)

    def ioctl(self, operation, block):
        if operation == 4:
            return BLOCKS
        if operation == 5:
            return BLOCK_BYTES
        if operation == 6:
            self._file.seek(block * BLOCK_BYTES)
            for _ in range(BLOCK_BYTES // 256):
                self._file.write(ERASED)
        return 0


class Played:
    """Reader, meter, relay, panel, contacts, port, clock and watchdog in one: the world of the bench."""

    def __init__(self):
        self.now = SEED & 0xFFFFF
        self.mono = 0
        self.uid = None
        self.on = False
        self.opened_at = 0
        self.power_mw = 0
        self.closings = 0
        self.restarts = 0
        self.refreshes = 0
        self.is_active = False
        self.incoming = []
        self.sent = []

    def pass_ms(self, duration_ms):
        self.now = (self.now + duration_ms) & 0x3FFFFFFF
        self.mono += duration_ms

    def start(self):
        pass

    def check(self):
        return True

    def poll(self, now=None):
        if now is None:
            return self.uid
        self.power_mw = 480000 if self.on else 0
        return now % 2 == 0

    def silent_ms(self, now):
        return 0

    def allow(self, for_ms):
        self.closings += 0 if self.on else 1
        self.on = True

    def renew(self, for_ms):
        return self.on

    def off(self):
        if self.on:
            self.opened_at = self.now
        self.on = False

    def is_on(self):
        return self.on

    def show(self, what, now):
        pass

    def tick(self, now):
        pass

    def read(self):
        return self.incoming.pop(0) if self.incoming else b""

    def write(self, line):
        self.sent.append(line)

    def ticks(self):
        return self.now

    def mono_ms(self):
        return self.mono

    def day(self):
        return None

    def feed(self):
        pass


class Button:
    is_active = False

    def poll(self, now):
        return False


image = vfs.VfsLfs2
device = Image("cycles.img")
vfs.VfsLfs2.mkfs(device, progsize=256)
mounted = vfs.VfsLfs2(device, progsize=256)

from drivers import flash_littlefs  # noqa: E402 after the image is made
from node import roster_file, serial_lines, supervisor  # noqa: E402
from nodecore import frame, journal, roster, wire  # noqa: E402

vfs.umount("/")
vfs.mount(mounted, "/")
os.chdir("/")
SECRET = bytes(range(32))
settings = {"node": 1, "secret": SECRET, "board": "bench", "working_mw": 60000, "checkpoint_ms": 1000, "badge_out_ms": 100,
            "gates": 1, "idle_ms": 0}
uid = b"\x04\xa1\xb2\xc3"
hashed = roster.badge_hash(frame.Mac(frame.derive_key(SECRET, b"badge")), uid)
with open("/roster.bin", "wb") as file:
    file.write(roster.pack_head(1, 1, 0, bytes(32)) + roster.pack_entry(hashed, 7, roster.NEVER, 0))
events = journal.Journal(flash_littlefs.Storage("/journal", "/ahead"), 400, 500)
events.open(bytes(8))
members = roster_file.RosterFile()
members.open()
world = Played()
parts = {name: world for name in ("reader", "meter", "relay", "panel", "port", "clock", "watchdog")}
parts.update({"stop": Button(), "estop": Button(), "reset": None, "sleep_ms": None, "roster": members, "journal": events,
              "port": serial_lines.SerialLines(world)})
node = supervisor.Node(settings, parts, 12345, 1, lambda below: 0)
mac_down = frame.Mac(frame.derive_key(SECRET, b"down"))


def step(duration_ms, times):
    for _ in range(times):
        world.pass_ms(duration_ms)
        node.step()
        if world.sent:
            world.sent.clear()
            number, body = wire.encode_message("ack", {"journal_id": events.journal_id, "seq": events.next_seq - 1})
            world.incoming.append(frame.to_line(frame.seal(mac_down, number, 1, body)))


def session():
    world.uid = uid
    step(200, 8)
    world.uid = None
    step(200, 12)


def live_bytes():
    gc.collect()
    return gc.mem_alloc()


step(200, 10)
# The journal is at its full length, and every buffer has been used once, before the count starts.
warm = max(30, min(300, CYCLES // 4))
for _ in range(warm):
    session()
closings = world.closings
samples = [0] * 40
leaked = []
for cycle in range(CYCLES):
    session()
    if LEAK:
        leaked.append(bytes(16))
    if cycle % (CYCLES // 40) == 0:
        samples[cycle // (CYCLES // 40) % 40] = live_bytes()
sessions = world.closings - closings
if sessions != CYCLES or node.flash_errors or world.on:
    raise AssertionError("%d sessions of %d, %d flash errors" % (sessions, CYCLES, node.flash_errors))
# Buffers breathe by some blocks; growth is what even the smallest of the last samples has above the largest of the first.
growth = min(samples[-10:]) - max(samples[:10])
print(json.dumps({"growth_bytes": max(0, growth), "sessions": sessions, "live_bytes": samples[0],
                  "least_bytes": min(samples), "most_bytes": max(samples), "events": events.next_seq - 1}))
