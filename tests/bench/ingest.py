"""How many events does the collector store durably in a second, and how near is that to what SQLite itself can do?

Ours: frames of 4 events from 5 nodes; each frame's MAC is checked and its events are unpacked (fabtap.peer, nodecore.wire), and
fabtap.store.Writer stores them, 1,000 rows a commit. An event counts when its future has resolved, so after its COMMIT.
Bare: the same rows into the same tables, in the same order, 1,000 a commit, one INSERT a row in a plain loop, on one connection
with the same pragmas; it knows no frames, no duplicates, no watermarks. Each takes turns on new files in one folder, which must
be on a disk: in memory a commit costs nothing. Both are timed until their last COMMIT has returned.
"""
import gc
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from fabtap.node_link import utc_ms
from fabtap.peer import Peers
from fabtap.store import Writer
from nodecore import frame, wire

NODES = 5
EVENTS_A_FRAME = 4
ROWS_A_COMMIT = 1000
COMMITS = 40
ROUNDS = 7
WINDOW_FRAMES = 3 * ROWS_A_COMMIT // EVENTS_A_FRAME
"""Frames under way at once: one commit's worth is written, one waits, one is read."""
RECEIVED_UTC_MS = 1_767_225_600_000
INSERT = "INSERT INTO event (node_id, journal_id, seq, bytes, received_utc_ms) VALUES (?, ?, ?, ?, ?)"

Row = tuple[int, bytes, int, bytes, int]


class Load(NamedTuple):
    """The same events twice: as frames, and as the rows that they become."""

    secrets: dict[int, bytes]
    journals: dict[int, bytes]
    frames: list[bytes]
    rows: list[Row]


class CountingWriter(Writer):
    """A writer that tells how often it has committed."""

    commits = 0

    def _commit(self) -> None:
        super()._commit()
        self.commits += 1


def make_load(seed: int, rows: int = COMMITS * ROWS_A_COMMIT) -> Load:
    """Frames of five nodes in turn: a session's start, two checkpoints, its end."""
    chosen = random.Random(seed)
    load = Load({node: chosen.randbytes(32) for node in range(1, NODES + 1)},
                {node: chosen.randbytes(8) for node in range(1, NODES + 1)}, [], [])
    macs = {node: frame.Mac(frame.derive_key(secret, b"up")) for node, secret in load.secrets.items()}
    for index in range(rows // EVENTS_A_FRAME):
        node = index % NODES + 1
        events = session_events(index // NODES * EVENTS_A_FRAME + 1, chosen)
        number, body = wire.encode_message("events", {"journal_id": load.journals[node], "data": wire.pack_events(events)})
        load.frames.append(bytes(frame.seal(macs[node], number, node, body)))
        load.rows.extend((node, load.journals[node], wire.event_seq(event), event, RECEIVED_UTC_MS) for event in events)
    return load


def session_events(seq: int, chosen: random.Random) -> list[bytes]:
    """Four events from `seq` on."""
    energy = {"energy_mwh_total": chosen.randrange(1 << 40)}
    used = {"session": seq, "on_ms": chosen.randrange(1 << 24), "working_ms": chosen.randrange(1 << 24), **energy}
    told = (("session_started", {"member": chosen.randrange(1, 1 << 20), **energy}), ("session_checkpoint", used),
            ("session_checkpoint", used), ("session_ended", {**used, "reason": 1}))
    return [wire.encode_event(name, seq + index, 1, 1000 * (seq + index), values)
            for index, (name, values) in enumerate(told)]


def ours(file: Path, load: Load) -> float:
    """Seconds from the first frame to the last future; raises AssertionError when not all of it is stored as promised."""
    peers = Peers(load.secrets)
    with CountingWriter(file) as writer:
        under_way: deque[Any] = deque()
        added = 0
        started_s = time.perf_counter()
        for data in load.frames:
            message = peers.open(data)
            under_way.append(writer.add_events(message.node, message.fields["journal_id"],
                                               wire.unpack_events(message.fields["data"]), utc_ms()))
            if len(under_way) >= WINDOW_FRAMES:
                added += under_way.popleft().result().added
        added += sum(future.result().added for future in under_way)
        seconds = time.perf_counter() - started_s
    assert added == len(load.rows)
    assert writer.commits >= len(load.rows) // ROWS_A_COMMIT, "commits of more rows than agreed"
    return seconds


def bare(file: Path, load: Load) -> float:
    """Seconds from the first BEGIN to the last COMMIT of a loop that does nothing else."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        for node, journal_id in load.journals.items():
            connection.execute("INSERT INTO node (node_id, first_seen_utc_ms) VALUES (?, 0)", (node,))
            connection.execute("INSERT INTO journal (node_id, journal_id, first_seen_utc_ms) VALUES (?, ?, 0)",
                               (node, journal_id))
        execute = connection.execute
        started_s = time.perf_counter()
        for start in range(0, len(load.rows), ROWS_A_COMMIT):
            execute("BEGIN IMMEDIATE")
            for row in load.rows[start:start + ROWS_A_COMMIT]:
                execute(INSERT, row)
            execute("COMMIT")
        return time.perf_counter() - started_s


def stored(file: Path) -> list[Any]:
    """What a file holds, read anew; when it came is apart."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT node_id, journal_id, seq, bytes FROM event").fetchall()


def filesystem(folder: Path) -> str:
    """The type of the file system that holds a folder, as /proc/mounts says."""
    found = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    holding = [(place, kind) for place, kind in found if folder.resolve().is_relative_to(place)]
    return max(holding, key=lambda mount: len(mount[0]), default=("", "?"))[1]


def measure(folder: Path, seed: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Median events a second of both, and the median of the rounds' ratios. `folder` must lie on a disk."""
    assert filesystem(folder) not in ("tmpfs", "ramfs"), f"{folder} is in memory: a commit would cost nothing"
    load = make_load(seed)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for index in range(rounds):
        with tempfile.TemporaryDirectory(prefix="ingest", dir=folder) as place:
            files = {name: Path(place).resolve() / f"{name}.db" for name in seconds}
            for file in files.values():
                Writer(file).close()  # the tables
            turns = (ours, bare) if index % 2 else (bare, ours)
            for turn in turns:
                os.sync()
                gc.collect()
                gc.freeze()  # the load is the measurement's, and no collector would look through it again and again
                seconds[turn.__name__].append(turn(files[turn.__name__], load))
            assert stored(files["ours"]) == stored(files["bare"]), "the two have stored different rows"
    ratios = [bare_s / ours_s for ours_s, bare_s in zip(seconds["ours"], seconds["bare"], strict=True)]
    return {"ours": len(load.rows) / statistics.median(seconds["ours"]),
            "bare": len(load.rows) / statistics.median(seconds["bare"]), "ratio": statistics.median(ratios), "ratios": ratios}
