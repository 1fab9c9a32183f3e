"""What a board's boot ROM and frozen code do, for a simulated one: mount the flash, hide the host's files, start boot.py, main.py.

micropython -X heapsize=N -i simboot.py SOCKET IMAGE BLOCKS BLOCK_BYTES PROGRAM_BYTES ERASE_US PROGRAM_US TICKS_OFFSET HAS_WIFI
RUN_MAIN
"""
import os
import struct
import sys
import time

import vfs

sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
import machine

ERASED = b"\xff" * 256
"""Erasing must not ask the board's heap for a whole block."""


class Flash:
    """The image file as a block device. Writes reach the file at once; an erase and each page cost what they cost on a chip."""

    def __init__(self, path, blocks, block_bytes, program_bytes, erase_us, program_us):
        self._blocks, self._size, self._page = blocks, block_bytes, program_bytes
        self._erase_us, self._program_us = erase_us, program_us
        self._file = open(path, "r+b", buffering=0)

    def readblocks(self, block, buffer, offset=0):
        self._file.seek(block * self._size + offset)
        self._file.readinto(buffer)

    def writeblocks(self, block, buffer, offset=None):
        if offset is None:
            self.ioctl(6, block)
            offset = 0
        self._file.seek(block * self._size + offset)
        self._file.write(buffer)
        if self._program_us:
            self._busy(self._program_us * ((len(buffer) + 255) // 256))

    def ioctl(self, operation, block):
        if operation == 4:
            return self._blocks
        if operation == 5:
            return self._size
        if operation == 6:
            self._file.seek(block * self._size)
            for _ in range(self._size // len(ERASED)):
                self._file.write(ERASED)
            if self._erase_us:
                self._busy(self._erase_us)
            return 0

    def _busy(self, for_us):
        # A UART loses what comes meanwhile.
        machine._tell(0x45, 0, struct.pack("<I", for_us))
        time.sleep_us(for_us)


def start(arguments):
    numbers = [int(text) for text in arguments[2:]]
    machine._attach(arguments[0])
    flash = Flash(arguments[1], *numbers[:5])
    try:
        mounted = vfs.VfsLfs2(flash, progsize=numbers[2])
    except OSError:
        vfs.VfsLfs2.mkfs(flash, progsize=numbers[2])
        mounted = vfs.VfsLfs2(flash, progsize=numbers[2])
    if numbers[6]:
        # Loaded while the host's files can be seen; a board without WiFi has no such module.
        import network  # noqa: F401
    vfs.umount("/")
    vfs.mount(mounted, "/")
    os.chdir("/")
    sys.path[:] = ["", ".frozen", "/lib"]
    if numbers[5]:
        shift_ticks(numbers[5])


def shift_ticks(offset):
    """The one place of the firmware that a simulated clock shifts."""
    try:
        from node import clock
    except ImportError:
        return
    clock.ticks_ms = lambda: time.ticks_ms() + offset


start(sys.argv[1:])
# Until here the supervisor holds back what the computer sends: Ctrl-C before the host's files are hidden would show them.
machine._booted()
# After a soft reset in raw REPL a board runs boot.py only.
_files = ("boot.py", "main.py") if sys.argv[-1] == "1" else ("boot.py",)
del start, shift_ticks, Flash
sys.argv[:] = [""]
for _name in _files:
    try:
        os.stat(_name)
    except OSError:
        continue
    with open(_name) as _file:
        # The text must not stay in the heap: a chip's own start does not keep it.
        _code = compile(_file.read(), _name, "exec")
    exec(_code)
