"""Are the bytes of a roster what a node's own look-up needs, and do they keep the badges' numbers to themselves?"""
import hashlib
import io
import random
from datetime import date, timedelta
from types import SimpleNamespace

import pytest

from fabtap.lab import AccessEntry
from fabtap.problem import Problem
from fabtap.roster_image import DAY_ZERO, RosterImage, build_roster
from nodecore import frame, roster
from nodecore.words import REASONS

SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(1, 33))


def entries_of(rng: random.Random, count: int) -> list[AccessEntry]:
    """Badges of all three lengths, every reason that a roster can hold, with and without a last day."""
    uids: set[bytes] = set()
    while len(uids) < count:
        uids.add(rng.randbytes(rng.choice((4, 7, 10))))
    return [AccessEntry(uid, rng.randrange(1, 2**31), rng.choice((0, 0, 0, 2, 3, 4)),
                        rng.choice((None, DAY_ZERO + timedelta(days=rng.randrange(4000))))) for uid in sorted(uids)]


def file_of(image: RosterImage) -> io.BytesIO:
    """The roster as it lies on a node."""
    return io.BytesIO(roster.pack_head(image.version, image.badges, 0, image.digest) + image.entries)


def look_up(image: RosterImage, uid: bytes, secret: bytes = SECRET) -> bytearray | None:
    """The entry that a node finds for a badge."""
    buffer = bytearray(roster.ENTRY_BYTES)
    hashed = roster.badge_hash(frame.Mac(frame.derive_key(secret, b"badge")), uid)
    return buffer if roster.find(file_of(image), image.badges, hashed, buffer) else None


def days(day: date) -> int:
    return (day - DAY_ZERO).days


def test_day_zero_is_that_of_the_node() -> None:
    assert (DAY_ZERO - date(1970, 1, 1)).days == roster.DAY_ZERO


def test_entries_rise_strictly_by_hash(rng: random.Random) -> None:
    image = build_roster(SECRET, entries_of(rng, 500))
    size = roster.ENTRY_BYTES
    hashes = [image.entries[at:at + roster.HASH_BYTES] for at in range(0, len(image.entries), size)]
    assert len(hashes) == image.badges == 500
    assert all(one < other for one, other in zip(hashes, hashes[1:], strict=False))


def test_the_digest_is_that_of_the_entries(rng: random.Random) -> None:
    image = build_roster(SECRET, entries_of(rng, 50))
    assert image.digest == hashlib.sha256(image.entries).digest()


def test_the_same_list_in_any_order_gives_the_same_bytes_and_version(rng: random.Random) -> None:
    entries = entries_of(rng, 100)
    image = build_roster(SECRET, entries)
    shuffled = entries[:]
    rng.shuffle(shuffled)
    assert shuffled != entries and build_roster(SECRET, shuffled) == image


def test_every_change_makes_another_version(rng: random.Random) -> None:
    entries = entries_of(rng, 100)
    first, rest = entries[0], entries[1:]
    changed = [rest, [first._replace(member=first.member ^ 1), *rest], [first._replace(reason=first.reason + 1), *rest],
               [first._replace(last_valid_day=date(2031, 1, 1)), *rest], [first._replace(uid=bytes(7)), *rest]]
    versions = {build_roster(SECRET, one).version for one in [entries, *changed]}
    assert len(versions) == 1 + len(changed)


def test_the_version_is_never_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_roster(SECRET, []).version != 0

    class Zeros:
        def digest(self) -> bytes:
            return bytes(32)

    with monkeypatch.context() as patched:
        patched.setattr("fabtap.roster_image.hashlib", SimpleNamespace(sha256=lambda data: Zeros()))
        image = build_roster(SECRET, [])
    assert image.digest == bytes(32) and image.version != 0


def test_no_badge_number_is_in_the_bytes(rng: random.Random) -> None:
    entries = [AccessEntry(uid, 1, 0, None) for uid in {rng.randbytes(7) for _ in range(200)}]
    data = build_roster(SECRET, entries).entries
    # Three bytes in a row of a badge among 3200 would be chance once in 25 runs; four, once in 6000.
    assert not [entry.uid for entry in entries if entry.uid[:5] in data or entry.uid[-5:] in data]
    told = b"".join(entry.uid for entry in entries)
    assert all(entry.uid[:5] in told for entry in entries)  # control: where numbers are, they are found


def test_another_node_knows_the_same_badges_under_other_hashes(rng: random.Random) -> None:
    entries = entries_of(rng, 200)
    size = roster.ENTRY_BYTES
    one, other = build_roster(SECRET, entries), build_roster(OTHER_SECRET, entries)
    hashes = [{image.entries[at:at + roster.HASH_BYTES] for at in range(0, len(image.entries), size)} for image in (one, other)]
    assert not hashes[0] & hashes[1]
    assert look_up(one, entries[0].uid, OTHER_SECRET) is None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_a_node_finds_every_badge_with_its_member_and_reason(rng: random.Random, count: int) -> None:
    entries = entries_of(rng, count)
    image = build_roster(SECRET, entries)
    for entry in entries:
        found = look_up(image, entry.uid)
        assert found is not None
        last = entry.last_valid_day
        assert roster.decide(found, days(last) if last else 5000) == (entry.member, entry.reason)
        if entry.reason == 0 and last:
            assert roster.decide(found, days(last) + 1) == (entry.member, roster.TRAINING_EXPIRED)
    known = {entry.uid for entry in entries}
    strangers = [uid for uid in (rng.randbytes(7) for _ in range(50)) if uid not in known]
    assert [uid for uid in strangers if look_up(image, uid)] == []


@pytest.mark.parametrize("last", [date(1999, 12, 31), DAY_ZERO - timedelta(days=1)])
def test_a_day_before_the_count_begins_is_its_first_day(last: date) -> None:
    found = look_up(build_roster(SECRET, [AccessEntry(b"1234", 1, 0, last)]), b"1234")
    assert found is not None and REASONS[roster.decide(found, 1)[1]] == "training_expired"


def test_a_day_beyond_the_count_is_not_taken_for_never() -> None:
    found = look_up(build_roster(SECRET, [AccessEntry(b"1234", 1, 0, date(9999, 12, 31))]), b"1234")
    assert found is not None
    assert REASONS[roster.decide(found, None)[1]] == "clock_unknown"
    assert roster.decide(found, 60_000) == (1, 0)


def many(count: int) -> list[AccessEntry]:
    return [AccessEntry(number.to_bytes(4, "big"), number + 1, 0, None) for number in range(count)]


def test_20_000_badges_are_taken_and_one_more_is_a_problem() -> None:
    assert build_roster(SECRET, many(20_000)).badges == 20_000
    with pytest.raises(Problem, match="20001 badges, a node takes 20000"):
        build_roster(SECRET, many(20_001))
