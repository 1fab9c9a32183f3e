"""Does a board's littlefs hold what its journal promises, with two of the largest rosters beside it? Runs in MicroPython.

fill.py BLOCKS PROGRAM_BYTES SEGMENT_BYTES JOURNAL_RECORDS FIRMWARE_BYTES; prints JSON.
"""
import json
import os
import sys

import vfs

from drivers import flash_littlefs
from nodecore import journal, roster

BLOCKS, PROGRAM_BYTES, SEGMENT_BYTES, RECORDS, FIRMWARE_BYTES = [int(text) for text in sys.argv[1:6]]
BLOCK_BYTES = 4096
ROSTER_BADGES = 5000


class Ram:
    def __init__(self):
        self._data = bytearray(b"\xff" * (BLOCKS * BLOCK_BYTES))

    def readblocks(self, block, buffer, offset=0):
        start = block * BLOCK_BYTES + offset
        buffer[:] = memoryview(self._data)[start:start + len(buffer)]

    def writeblocks(self, block, buffer, offset=None):
        if offset is None:
            self.ioctl(6, block)
            offset = 0
        start = block * BLOCK_BYTES + offset
        self._data[start:start + len(buffer)] = buffer

    def ioctl(self, operation, block):
        if operation == 4:
            return BLOCKS
        if operation == 5:
            return BLOCK_BYTES
        if operation == 6:
            self._data[block * BLOCK_BYTES:(block + 1) * BLOCK_BYTES] = b"\xff" * BLOCK_BYTES
            return 0


def write(path, size):
    with open(path, "wb") as file:
        while size > 0:
            file.write(bytes(min(size, 1024)))
            size -= 1024


def fill(events):
    """Sessions with two checkpoints each until the journal says that it is full; number of records, or the flash's error."""
    seq, boot = 0, 1
    try:
        while True:
            start = events.note_ahead("session_started", boot, seq, {"member": 7, "energy_mwh_total": seq})
            events.settle()
            for _ in range(2):
                seq = events.append("session_checkpoint", boot, seq, {
                    "session": start, "on_ms": seq, "working_ms": seq, "energy_mwh_total": seq}, 2)
            seq = end(events, start, boot, seq)
    except journal.JournalFull:
        return events.next_seq - 1, ""
    except OSError as error:
        return events.next_seq - 1, str(error)


def end(events, start, boot, mono_ms):
    return events.append("session_ended", boot, mono_ms, {
        "session": start, "reason": 1, "on_ms": 1, "working_ms": 1, "energy_mwh_total": 1}, 0)


device = Ram()
vfs.VfsLfs2.mkfs(device, progsize=PROGRAM_BYTES)
mounted = vfs.VfsLfs2(device, progsize=PROGRAM_BYTES)
vfs.umount("/")
vfs.mount(mounted, "/")
os.chdir("/")
for number in range(33):
    write("/code%d.mpy" % number, FIRMWARE_BYTES // 33)
for path in ("/roster.bin", "/roster.new"):
    write(path, roster.HEAD_BYTES + ROSTER_BADGES * roster.ENTRY_BYTES)
events = journal.Journal(flash_littlefs.Storage("/journal", "/ahead"), SEGMENT_BYTES, RECORDS)
events.open(bytes(8))
records, error = fill(events)
found = {"records": records, "error": error}
try:
    # What an open session still needs, and a boot.
    for _ in range(4):
        end(events, 1, 1, 1)
    again = journal.Journal(flash_littlefs.Storage("/journal", "/ahead"), SEGMENT_BYTES, RECORDS)
    again.open(bytes(8))
    again.append("booted", again.last_boot + 1, 0, {"cause": 1, "roster_version": 1, "energy_epoch": 2}, 0)
    # Acknowledged, it works on, though others have filled the flash meanwhile.
    again.acknowledge(again.next_seq - 1)
    filler = 0
    try:
        while True:
            write("/filler%d" % filler, BLOCK_BYTES)
            filler += 1
    except OSError:
        found["filler_blocks"] = filler
    for _ in range(200):
        end(again, 1, 2, 1)
except (OSError, journal.JournalFull) as failure:
    found["error"] = found["error"] or "afterwards: %s" % failure
print(json.dumps(found))
