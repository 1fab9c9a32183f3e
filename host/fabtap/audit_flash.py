"""Which events lie in a board's flash image?

Written from docs/PROTOCOL.md and the layout that firmware/nodecore/journal.py describes, on purpose without the firmware's code:
what both read alike is not both wrong in the same way.

- Nothing is ever written: the image's bytes are taken into memory, and there too writing and erasing are refused.
- An event counts only if its record is whole: length, bytes, CRC-32. A record that is cut off at the end of what was written is an
  append that never finished, so nothing that the node has promised; any other that can't be read is a complaint.
- A record whose number the next segment uses again belongs to an append that had failed.
"""
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabtap.boards import Board
from fabtap.problem import Problem

JOURNALS = "/journal"
NOTE = "/ahead/event"
JOURNAL_ID_BYTES = 8
HEAD_BYTES = 17
EVENT_BYTES_MAX = 96
CRC_BYTES = 4
READS_MAX = 20


@dataclass
class Journal:
    """One journal: event bytes by seq, and what could not be read of it."""

    journal_id: bytes
    events: dict[int, bytes] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


def read_journals(image: Path, board: Board) -> list[Journal]:
    """The journals in an image, whether its board runs or not. Raises Problem when there is no readable image or no littlefs."""
    flash = _mounted(_snapshot(image), image, board)
    journals = []
    for name in _names(flash, JOURNALS):
        folder = f"{JOURNALS}/{name}"
        segments = {int(segment, 16): _read(flash, f"{folder}/{segment}") for segment in _names(flash, folder)}
        journal = Journal(bytes.fromhex(name))
        _take_segments(journal, segments)
        if "event" in _names(flash, "/ahead"):
            _take_note(journal, _read(flash, NOTE))
        journals.append(journal)
    return journals


def split_records(data: bytes) -> tuple[list[bytes], bytes, bool]:
    """The events of whole records from the start, the rest that is none, and whether that is a record cut off."""
    events: list[bytes] = []
    position = 0
    while position < len(data):
        size = data[position]
        end = position + 1 + size
        if not HEAD_BYTES <= size <= EVENT_BYTES_MAX:
            return events, data[position:], False
        if end + CRC_BYTES > len(data):
            return events, data[position:], True
        if zlib.crc32(data[position:end]) != int.from_bytes(data[end:end + CRC_BYTES], "little"):
            return events, data[position:], False
        events.append(data[position + 1:end])
        position = end + CRC_BYTES
    return events, b"", False


def seq_of(event: bytes) -> int:
    """An event's number."""
    return int(struct.unpack_from("<I", event)[0])


def _take_segments(journal: Journal, segments: dict[int, bytes]) -> None:
    """A segment is named after its first event; within it numbers grow by one."""
    firsts = sorted(segments)
    for first, following in zip(firsts, [*firsts[1:], None], strict=True):
        events, rest, cut_off = split_records(segments[first])
        expected = first
        for event in events:
            seq = seq_of(event)
            if following is not None and seq >= following:
                break
            if seq != expected:
                journal.complaints.append(f"segment {first}: event {seq} stands where {expected} belongs")
                break
            journal.events[seq] = event
            expected += 1
        if rest and not cut_off:
            journal.complaints.append(f"segment {first}: {len(rest)} bytes behind event {expected - 1} can't be read")
        if following is not None and expected < following:
            journal.complaints.append(f"events {expected} to {following - 1} are not in the flash")


def _take_note(journal: Journal, note: bytes) -> None:
    """The note holds the newest event until it is moved into its segment; an older note, or another journal's, is passed over."""
    if note[:JOURNAL_ID_BYTES] != journal.journal_id:
        return
    events, _, _ = split_records(note[JOURNAL_ID_BYTES:])
    if events and seq_of(events[0]) > max(journal.events, default=0):
        journal.events[seq_of(events[0])] = events[0]


def _snapshot(image: Path) -> bytes:
    """The image of one moment. A running board may write meanwhile; littlefs survives a cut at any moment, but no mixture."""
    try:
        before = image.read_bytes()
        for _ in range(READS_MAX):
            data = image.read_bytes()
            if data == before:
                return data
            before = data
    except OSError as error:
        raise Problem(image, None, f"the flash image can't be read ({error.strerror})",
                      "Name a simulated board's .img file.") from None
    raise Problem(image, None, "the flash image changes all the time", "Stop the board, then try again.")


def _mounted(data: bytes, image: Path, board: Board) -> Any:
    try:
        import littlefs
    except ImportError:
        raise Problem("littlefs-python", None, "is not installed, and flash images can't be read without it",
                      "Run: pip install 'fabtap[audit]'") from None

    class ReadOnly(littlefs.UserContext):
        """The bytes in memory. littlefs-python formats what it can't mount, so writing has to be impossible."""

        def prog(self, cfg: Any, block: int, off: int, data: bytes) -> int:
            return int(littlefs.LittleFSError.Error.LFS_ERR_IO)

        def erase(self, cfg: Any, block: int) -> int:
            return int(littlefs.LittleFSError.Error.LFS_ERR_IO)

    if len(data) != board.blocks * board.block_bytes:
        raise Problem(image, None, f"has {len(data)} bytes, a {board.name}'s flash has {board.blocks * board.block_bytes}",
                      "Name the image of the board that fabtap.toml says.")
    flash = littlefs.LittleFS(ReadOnly(buffer=bytearray(data)), mount=False, block_size=board.block_bytes, block_count=board.blocks,
                              prog_size=board.program_bytes)
    try:
        flash.mount()
    except littlefs.LittleFSError as error:
        raise Problem(image, None, f"holds no file system that can be read ({error})",
                      "Start the board once; if that is the image of a board that ran, it is damaged.") from None
    return flash


def _names(flash: Any, folder: str) -> list[str]:
    above, _, name = folder.rpartition("/")
    return sorted(flash.listdir(folder)) if name in flash.listdir(above or "/") else []


def _read(flash: Any, path: str) -> bytes:
    with flash.open(path, "rb") as file:
        return bytes(file.read())
