"""How is the roster looked up in flash, and how does a new one take the old one's place?

A new roster comes in pieces, is collected in a file beside the old one, checked against its digest and its order, and renamed
over it: at every moment there is one whole roster. The pieces are gathered in RAM to `GATHER_BYTES`, for each write costs flash.
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
        with open(NEW_PATH, "wb") as file:
            file.write(self._head)
        return OK, 0

    def chunk(self, offset, data):
        """The entry bytes at `offset`. Returns (result, how many bytes are here): a repeated piece is no harm."""
        if not self._head or offset > self._received:
            return BAD_ORDER, self._received
        fresh = data[self._received - offset:]
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
        if not self._whole(digest):
            return BAD_DIGEST, self.version
        os.rename(NEW_PATH, PATH)
        self.version, self.count = version, count
        return OK, self.version

    def _write_gathered(self):
        if self._gathered:
            with open(NEW_PATH, "ab") as file:
                file.write(self._gathered)
            self._gathered = bytearray()

    def _whole(self, digest):
        """True when the entries have the digest and rise strictly by hash."""
        found = hashlib.sha256()
        last = b""
        with open(NEW_PATH, "rb") as file:
            file.seek(roster.HEAD_BYTES)
            while True:
                count = file.readinto(self._buffer)
                if count != roster.ENTRY_BYTES:
                    return count == 0 and found.digest() == digest
                found.update(self._buffer)
                hashed = bytes(self._buffer[:roster.HASH_BYTES])
                if hashed <= last:
                    return False
                last = hashed
