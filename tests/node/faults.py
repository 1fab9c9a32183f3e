"""Does every way in which the node's loop can end leave the relay open? Runs in MicroPython; prints one line a case, then JSON."""
import json
import sys

from tests_node_played import World

CALLS = (("reader", "poll"), ("meter", "poll"), ("meter", "silent_ms"), ("relay", "renew"), ("panel", "show"), ("panel", "tick"),
         ("stop", "poll"), ("estop", "poll"), ("port", "read"), ("port", "write"), ("watchdog", "feed"))
FAULTS = (OSError(5), ValueError("x"), MemoryError(), RuntimeError("y"), KeyError("z"), AttributeError("a"))
LEAVE_RELAY = len(sys.argv) > 1
"""The control: a supervisor that does not open the relay when its loop ends must be found out."""

wrong = []
cases = 0
for part, call in CALLS:
    for fault in FAULTS + (KeyboardInterrupt(), SystemExit()):
        world = World()
        node = world.in_session()
        if LEAVE_RELAY:
            world.parts["relay"].off = lambda: None
        world.broken = (part, call, fault)
        interrupted = isinstance(fault, (KeyboardInterrupt, SystemExit))
        try:
            node.run()
            left = "returned"
        except BaseException as error:
            left = type(error).__name__
        cases += 1
        if world.parts["relay"].on:
            wrong.append("%s.%s %r: the relay is on" % (part, call, fault))
        if interrupted and (left != type(fault).__name__ or world.resets):
            wrong.append("%s.%s %r: ended as %s, %d resets" % (part, call, fault, left, world.resets))
        if not interrupted and (world.resets != 1 or world.relay_at_reset):
            wrong.append("%s.%s %r: %d resets, %s" % (part, call, fault, world.resets, left))
        if not LEAVE_RELAY and world.names()[-1 if interrupted else -2] != "session_ended":
            wrong.append("%s.%s %r: the session has no end: %s" % (part, call, fault, world.names()[-3:]))
        if not interrupted and not LEAVE_RELAY and world.names()[-1] != "fault_seen":
            wrong.append("%s.%s %r: no fault on record" % (part, call, fault))

# Flash that fails in mid-session: no checkpoint can be written, so the session ends.
world = World()
node = world.in_session()
world.storage.failing = True
world.steps(node, 14)
if world.parts["relay"].on or "fault" not in world.parts["panel"].shown:
    wrong.append("flash: the relay is on or the panel shows nothing: %s" % world.parts["panel"].shown)
# A start that can't be written gives no power.
world = World()
node = world.boot()
world.steps(node, 8)
world.storage.failing = True
world.uid = b"\x04\xa1\xb2\xc3"
world.steps(node, 10)
if world.parts["relay"].on or world.journal.next_seq != 2:
    wrong.append("flash: power without a record")
# A stop button that is held, or stuck, when the badge comes: it could not stop the session.
world = World()
node = world.boot()
world.steps(node, 8)
world.parts["stop"].is_active = True
world.uid = b"\x04\xa1\xb2\xc3"
world.steps(node, 10)
if world.parts["relay"].on or world.names()[-1] != "badge_denied":
    wrong.append("stop held: the relay is on, %s" % world.names())
cases += 3
print(json.dumps({"cases": cases, "wrong": wrong}))
