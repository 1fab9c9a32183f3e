"""How is the roster looked up in flash, and how does a new one take the old one's place?

A new roster comes in pieces, is collected in a file beside the old one, checked against its digest and its order, and renamed
over it: at every moment there is one whole roster. The pieces are gathered in RAM to `GATHER_BYTES`, for each write costs flash.
Each piece is checked when it comes and each write is read back, so that no step takes longer than some milliseconds however long
the roster is: meanwhile the relay's permission must be renewed, and a tap be answered.
"""
import hashlib
import os

from nodecore import roster

PATH = "/roster.bin"
NEW_PATH = "/roster.new"
GATHER_BYTES = 1024

OK, BAD_ORDER, BAD_DIGEST = 0, 2, 3
NO_ROSTER = 8


class RosterFile:
    """The roster in force, and the one that is arriving."""

    def __init__(self):
        self.version = 0
        self.count = 0
        self._buffer = bytearray(roster.ENTRY_BYTES)
        self._head = b""
        self._gathered = bytearray()
        self._received = 0
        self._found = None
        self._last = b""
        self._is_good = True
        self.damaged = ""

    def open(self):
        """Read the head of the roster in force. Without a whole one, every badge is refused."""
        try:
            with open(PATH, "rb") as file:
                self.version, self.count, _, _ = roster.unpack_head(file.read(roster.HEAD_BYTES))
        except (OSError, roster.RosterError) as error:
            self.version, self.count = 0, 0
            self.damaged = str(error)

    def look_up(self, hashed, today):
        """(member, reason) for a badge hash; `today` as roster.decide takes it."""
        if self.version == 0:
            return 0, NO_ROSTER
        try:
            with open(PATH, "rb") as file:
                if not roster.find(file, self.count, hashed, self._buffer):
                    return 0, roster.UNKNOWN_BADGE
        except (OSError, roster.RosterError) as error:
            # The collector brings it again when it hears of version 0.
            self.version, self.count = 0, 0
            self.damaged = str(error)
            return 0, NO_ROSTER
        return roster.decide(self._buffer, today)

    def begin(self, version, count, made_s, digest):
        """A new roster is going to arrive."""
        if count > roster.MEMBERS_MAX:
            return BAD_ORDER, self.version
        self._head = roster.pack_head(version, count, made_s, digest)
        self._gathered = bytearray()
        self._received = 0
        self._found = hashlib.sha256()
        self._last = b""
        self._is_good = True
        with open(NEW_PATH, "wb") as file:
            file.write(self._head)
        return OK, 0

    def chunk(self, offset, data):
        """The entry bytes at `offset`. Returns (result, how many bytes are here): a repeated piece is no harm."""
        if not self._head or offset > self._received or offset % roster.ENTRY_BYTES or len(data) % roster.ENTRY_BYTES:
            return BAD_ORDER, self._received
        fresh = data[self._received - offset:]
        self._check(fresh)
        self._gathered.extend(fresh)
        self._received += len(fresh)
        if len(self._gathered) >= GATHER_BYTES:
            self._write_gathered()
        return OK, self._received

    def commit(self, version):
        """Check the new roster and put it in force. Returns (result, version in force)."""
        if not self._head:
            return (OK if version == self.version else BAD_ORDER), self.version
        self._write_gathered()
        new_version, count, _, digest = roster.unpack_head(self._head)
        self._head = b""
        if new_version != version or self._received != count * roster.ENTRY_BYTES:
            return BAD_ORDER, self.version
        if not self._is_good or self._found.digest() != digest:
            return BAD_DIGEST, self.version
        os.rename(NEW_PATH, PATH)
        self.version, self.count = version, count
        return OK, self.version

    def _write_gathered(self):
        """Write what has been gathered, and read it back: littlefs does not notice flipped bits."""
        size = len(self._gathered)
        if not size:
            return
        with open(NEW_PATH, "ab") as file:
            file.write(self._gathered)
        with open(NEW_PATH, "rb") as file:
            file.seek(roster.HEAD_BYTES + self._received - size)
            self._is_good = self._is_good and file.read(size) == self._gathered
        self._gathered = bytearray()

    def _check(self, fresh):
        """Take entries into the digest; they must rise strictly by hash."""
        self._found.update(fresh)
        for start in range(0, len(fresh), roster.ENTRY_BYTES):
            hashed = fresh[start:start + roster.HASH_BYTES]
            if hashed <= self._last:
                self._is_good = False
            self._last = hashed
