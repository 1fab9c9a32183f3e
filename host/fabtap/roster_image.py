"""What bytes does a node get as its roster? Pure: the same list gives the same bytes and the same version."""
import hashlib
from collections.abc import Iterable
from datetime import date
from typing import NamedTuple

from fabtap.lab import AccessEntry
from fabtap.problem import Problem
from nodecore import frame, roster

DAY_ZERO = date(2020, 1, 1)


class RosterImage(NamedTuple):
    """Entries sorted by hash, their SHA-256, and a version that names exactly these entries (never 0)."""

    version: int
    badges: int
    digest: bytes
    entries: bytes


def build_roster(secret: bytes, entries: Iterable[AccessEntry]) -> RosterImage:
    """The roster of one node; badge numbers go in only as hashes under the node's own badge key. Raises Problem."""
    mac = frame.Mac(frame.derive_key(secret, b"badge"))
    packed = sorted(roster.pack_entry(roster.badge_hash(mac, entry.uid), entry.member, _day(entry.last_valid_day),
                                      entry.reason) for entry in entries)
    if len(packed) > roster.MEMBERS_MAX:
        raise Problem("the members", None, f"have {len(packed)} badges, a node takes {roster.MEMBERS_MAX}",
                      "Take badges that are no longer used out of the members' file.")
    data = b"".join(packed)
    digest = hashlib.sha256(data).digest()
    return RosterImage(int.from_bytes(digest[:4], "little") | 1, len(packed), digest, data)


def _day(last: date | None) -> int:
    if last is None:
        return roster.NEVER
    return min(roster.NEVER - 1, max(0, (last - DAY_ZERO).days))
