"""What does a roster look-up allocate? Runs in MicroPython; prints JSON."""
import gc
import io
import json
import random
import sys
import time

from nodecore import frame, roster

LOOKUPS = 200


def measure(count):
    """Bytes that one look-up allocates on average, and microseconds, in a roster of `count` badges."""
    hashes = sorted([bytes([random.getrandbits(8) for _ in range(8)]) for _ in range(count)])
    file = io.BytesIO(bytes(roster.HEAD_BYTES) + b"".join([roster.pack_entry(h, 1, roster.NEVER, 0) for h in hashes]))
    buffer = bytearray(roster.ENTRY_BYTES)
    gc.collect()
    gc.disable()
    started = time.ticks_us()
    before = gc.mem_alloc()
    for index in range(LOOKUPS):
        if not roster.find(file, count, hashes[index * count // LOOKUPS], buffer):
            raise AssertionError("not found")
    used = gc.mem_alloc() - before
    passed = time.ticks_diff(time.ticks_us(), started)
    gc.enable()
    return used / LOOKUPS, passed / LOOKUPS


random.seed(int(sys.argv[1]))
small, _ = measure(50)
large, lookup_us = measure(5000)
mac = frame.Mac(bytes(32))
gc.collect()
gc.disable()
start = gc.mem_alloc()
roster.badge_hash(mac, b"\x04\xa1\xb2\xc3")
hash_bytes = gc.mem_alloc() - start
print(json.dumps({"growth_bytes": large - small, "lookup_bytes": large + hash_bytes, "lookup_us": lookup_us}))
