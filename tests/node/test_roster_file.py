"""Is there one whole roster in force at every moment, whatever arrives, in steps that are short however long it is?"""
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import roster_file
from nodecore import roster

CHUNK_BYTES = 96


@pytest.fixture(autouse=True)
def flash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(roster_file, "PATH", str(tmp_path / "roster.bin"))
    monkeypatch.setattr(roster_file, "NEW_PATH", str(tmp_path / "roster.new"))
    yield tmp_path


def entries(count: int, seed: int = 1) -> bytes:
    """So many entries, sorted."""
    rng = random.Random(seed)
    hashes = sorted({rng.randbytes(roster.HASH_BYTES) for _ in range(count)})
    return b"".join(roster.pack_entry(hashed, number, roster.NEVER, 0) for number, hashed in enumerate(hashes, 1))


def send(target: roster_file.RosterFile, data: bytes, version: int, digest: bytes | None = None, step: int = CHUNK_BYTES) -> int:
    """Bring a roster; the result of its commit."""
    count = len(data) // roster.ENTRY_BYTES
    assert target.begin(version, count, 0, digest or hashlib.sha256(data).digest()) == (roster_file.OK, 0)
    for offset in range(0, len(data), step):
        assert target.chunk(offset, data[offset:offset + step]) == (roster_file.OK, min(len(data), offset + step))
    return int(target.commit(version)[0])


def known(target: roster_file.RosterFile, data: bytes, index: int) -> bool:
    start = index * roster.ENTRY_BYTES
    return bool(target.look_up(data[start:start + roster.HASH_BYTES], 0) == (index + 1, 0))


@pytest.mark.parametrize("count", [0, 1, 6, 7, 500])
def test_a_roster_that_arrives_whole_is_in_force(count: int) -> None:
    target, data = roster_file.RosterFile(), entries(count)
    assert send(target, data, 9) == roster_file.OK
    assert (target.version, target.count) == (9, count)
    assert all(known(target, data, index) for index in range(count))
    again = roster_file.RosterFile()
    again.open()
    assert (again.version, again.count) == (9, count)


def test_pieces_that_come_twice_or_overlap_are_no_harm() -> None:
    target, data = roster_file.RosterFile(), entries(40)
    target.begin(3, 40, 0, hashlib.sha256(data).digest())
    for offset in range(0, len(data), 48):
        for _ in range(2):
            assert target.chunk(offset, data[offset:offset + 96])[0] == roster_file.OK
    assert target.commit(3) == (roster_file.OK, 3)


def test_a_hole_and_half_an_entry_are_refused() -> None:
    target, data = roster_file.RosterFile(), entries(20)
    assert target.chunk(0, data[:96]) == (roster_file.BAD_ORDER, 0), "nothing was begun"
    target.begin(3, 20, 0, hashlib.sha256(data).digest())
    assert target.chunk(96, data[96:192]) == (roster_file.BAD_ORDER, 0)
    assert target.chunk(0, data[:90]) == (roster_file.BAD_ORDER, 0)
    target.chunk(0, data[:96])
    assert target.commit(3) == (roster_file.BAD_ORDER, 0), "entries are missing"


@pytest.mark.parametrize("wrong", ["digest", "order", "twice"])
def test_a_wrong_roster_leaves_the_old_one_in_force(wrong: str) -> None:
    target, old, new = roster_file.RosterFile(), entries(10), entries(200, seed=2)
    assert send(target, old, 1) == roster_file.OK
    size = roster.ENTRY_BYTES
    digest = None
    if wrong == "digest":
        digest = bytes(32)
    elif wrong == "order":
        new = new[size:2 * size] + new[:size] + new[2 * size:]
    else:
        new = new[:size] + new[:size] + new[2 * size:]
    assert send(target, new, 2, digest) == roster_file.BAD_DIGEST
    assert (target.version, target.count) == (1, 10) and known(target, old, 3)


class FlippedFile:
    """A file whose flash gives back one bit wrong."""

    def __init__(self, path: str, mode: str) -> None:
        self._file = open(path, mode)  # noqa: SIM115 closed by __exit__

    def __enter__(self) -> "FlippedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def seek(self, position: int) -> None:
        self._file.seek(position)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def read(self, size: int) -> bytes:
        data = bytearray(self._file.read(size))
        if data:
            data[-1] ^= 1
        return bytes(data)


def test_flipped_bits_in_flash_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    target, old = roster_file.RosterFile(), entries(10)
    assert send(target, old, 1) == roster_file.OK
    monkeypatch.setattr(roster_file, "open", FlippedFile, raising=False)
    assert send(target, entries(200, seed=2), 2) == roster_file.BAD_DIGEST
    monkeypatch.undo()
    assert target.version == 1


def test_no_step_reads_more_than_was_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a chip, reading 5,000 entries in one step would take longer than the relay's permission lasts."""
    sizes = []

    class Watched(FlippedFile):
        def read(self, size: int) -> bytes:
            sizes.append(size)
            return bytes(self._file.read(size))

    monkeypatch.setattr(roster_file, "open", Watched, raising=False)
    assert send(roster_file.RosterFile(), entries(5000), 7) == roster_file.OK
    assert len(sizes) > 50 and max(sizes) < roster_file.GATHER_BYTES + CHUNK_BYTES
