"""Do jobs that are stored together leave the same database as the same jobs one by one?"""
import random
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fabtap import store, store_together
from fabtap.store import AddResult, Writer
from nodecore.wire import encode_event

JOURNALS = (bytes(range(8)), bytes(range(8, 16)))
Frame = tuple[bytes, list[bytes]]


def event(seq: int, boot: int = 1) -> bytes:
    return encode_event("booted", seq, boot, seq * 10, {"cause": 1, "roster_version": 0, "energy_epoch": 0})


def store_in_one_group(path: Path, frames: Sequence[Frame]) -> list[AddResult]:
    """What became of the frames, all of them in one group."""
    with Writer(path, clock=lambda: 1) as writer:
        go = threading.Event()
        writer._submit(lambda connection: go.wait(10))
        time.sleep(0.02)
        futures = [writer.add_events(1, journal_id, events, 1) for journal_id, events in frames]
        go.set()
        return [future.result(10) for future in futures]


def tables(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return [connection.execute(f"SELECT * FROM {name}").fetchall()
                for name in ("node", "journal", "event", "gap", "quarantine")]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each group could be stored at once."""
    seen: list[bool] = []

    def add_together(*arguments: Any) -> list[int] | None:
        watermarks = store_together.add_together(*arguments)
        seen.append(watermarks is not None)
        return watermarks

    monkeypatch.setattr(store, "add_together", add_together)
    return seen


def test_new_events_are_stored_at_once(tmp_path: Path, together: list[bool]) -> None:
    frames = [(JOURNALS[number % 2], [event(number // 2 * 4 + index) for index in range(1, 5)]) for number in range(60)]
    results = store_in_one_group(tmp_path / "new.db", frames)
    assert results == [AddResult(number // 2 * 4 + 4, 4, 0, 0) for number in range(60)] and together == [True]
    # One behind a hole, and those that fill it.
    results = store_in_one_group(tmp_path / "new.db", [(JOURNALS[0], [event(123)]), (JOURNALS[1], [event(121)])])
    assert [result.watermark for result in results] == [120, 121] and together == [True, False]
    results = store_in_one_group(tmp_path / "new.db", [(JOURNALS[0], [event(121)]), (JOURNALS[0], [event(122)])])
    assert [result.watermark for result in results] == [121, 123] and together == [True, False, True]


@pytest.mark.parametrize("odd", [
    [event(1)], [event(1, boot=2)], [event(2), event(2)], [event(0)], [b"short"],
], ids=["again", "clone", "twice", "no-seq", "short"])
def test_whatever_else_comes_is_taken_one_by_one(tmp_path: Path, together: list[bool], odd: list[bytes]) -> None:
    store_in_one_group(tmp_path / "odd.db", [(JOURNALS[0], [event(1)])])
    with Writer(tmp_path / "odd.db", clock=lambda: 1) as writer:
        go = threading.Event()
        writer._submit(lambda connection: go.wait(10))
        time.sleep(0.02)
        futures = [writer.add_events(1, JOURNALS[0], events, 1) for events in ([event(2)], odd, [event(3)])]
        go.set()
        assert futures[0].result(10) == AddResult(2, 1, 0, 0)
        assert futures[2].result(10) == AddResult(3, 1, 0, 0)
        assert isinstance(futures[1].exception(10), store.BadEvent | None)
    assert together == [False]
    assert [stored.bytes for stored in store.events(tmp_path / "odd.db")] == [event(1), event(2), event(3)]


def test_a_commit_that_fails_leaves_no_result_behind(tmp_path: Path) -> None:
    class Failing(Writer):
        failures = 1

        def _commit(self) -> None:
            if self.failures and self._connection.execute("SELECT count(*) FROM event").fetchone()[0]:
                self.failures -= 1
                raise sqlite3.OperationalError("once")
            super()._commit()

    with Failing(tmp_path / "failing.db", clock=lambda: 1) as writer:
        go = threading.Event()
        writer._submit(lambda connection: go.wait(10))
        time.sleep(0.02)
        futures = [writer.add_events(1, JOURNALS[0], [event(seq)], 1) for seq in (1, 2, 3)]
        go.set()
        assert [future.result(10).added for future in futures] == [1, 1, 1]
    assert [stored.seq for stored in store.events(tmp_path / "failing.db")] == [1, 2, 3]


def test_any_delivery_gives_the_same_tables(tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in range(25):
        groups = [random_frames(rng) for _ in range(3)]
        gap = rng.randrange(1, 30)
        paths = tmp_path / f"{run}-together.db", tmp_path / f"{run}-alone.db"
        results: list[list[AddResult]] = [[], []]
        for path, found in zip(paths, results, strict=True):
            with monkeypatch.context() as patch:
                if path is paths[1]:
                    patch.setattr(store, "add_together", lambda *_: None)
                for frames in groups:
                    found += store_in_one_group(path, frames)
                    with Writer(path, clock=lambda: 1) as writer:
                        writer.declare_gap(1, JOURNALS[0], gap).result(10)
        assert results[0] == results[1] and tables(paths[0]) == tables(paths[1])


def random_frames(rng: random.Random) -> list[Frame]:
    """In order for the most part; sometimes again, out of order or a clone."""
    frames = []
    seq = rng.randrange(1, 10)
    for _ in range(rng.randrange(2, 12)):
        if rng.random() < 0.15:
            seq = rng.randrange(1, 40)
        count = rng.randrange(1, 5)
        boot = 2 if rng.random() < 0.05 else 1
        frames.append((rng.choice(JOURNALS), [event(seq + index, boot) for index in range(count)]))
        seq += count
    return frames


def test_that_the_comparison_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a file that lets a hole pass gives another watermark."""
    frames = [(JOURNALS[0], [event(1)]), (JOURNALS[0], [event(2)])]
    store_in_one_group(tmp_path / "right.db", frames)
    monkeypatch.setattr(store, "_JOURNALS", store._JOURNALS._replace(advance=lambda connection, journal, _: connection.execute(
        "UPDATE journal SET watermark = 3").rowcount * 3))
    store_in_one_group(tmp_path / "wrong.db", frames)
    assert tables(tmp_path / "right.db") != tables(tmp_path / "wrong.db")
