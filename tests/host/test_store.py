"""Is what the Writer promised in the database, whatever order, fault or kill came in between?"""
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabtap import store
from fabtap.problem import Problem
from fabtap.store import AddResult, Writer
from nodecore.wire import encode_event

JOURNAL = bytes(range(8))
OTHER = bytes(range(8, 16))


def event(seq: int, boot: int = 1) -> bytes:
    return encode_event("booted", seq, boot, seq * 10, {"cause": 1, "roster_version": 0, "energy_epoch": 0})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fabtap.db"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    with Writer(path, clock=lambda: 5000) as opened:
        yield opened


def add(writer: Writer, *seqs: int, journal: bytes = JOURNAL) -> AddResult:
    return writer.add_events(1, journal, [event(seq) for seq in seqs], 9000).result(10)


def hold(writer: Writer) -> threading.Event:
    """Keep the writer's thread busy until the event is set, so that the next jobs become one group."""
    go = threading.Event()
    writer._submit(lambda connection: go.wait(10))
    time.sleep(0.05)
    return go


def test_events_are_added_once(writer: Writer, path: Path) -> None:
    assert add(writer, 1, 2, 3) == AddResult(3, 3, 0, 0)
    assert add(writer, 2, 3, 4) == AddResult(4, 1, 2, 0)
    assert list(store.events(path)) == [(1, JOURNAL, seq, event(seq), 9000) for seq in (1, 2, 3, 4)]
    assert store.nodes(path) == [(1, 9000)]
    assert store.journals(path) == [(1, JOURNAL, 4, 9000)]
    assert writer.watermark(1, JOURNAL).result(10) == 4
    assert writer.watermark(2, JOURNAL).result(10) == 0


def test_a_hole_holds_the_watermark(writer: Writer, path: Path) -> None:
    assert add(writer, 2, 3).watermark == 0
    assert add(writer, 5).watermark == 0
    assert list(store.settled_events(path)) == []
    assert add(writer, 1).watermark == 3
    assert [stored.seq for stored in store.settled_events(path)] == [1, 2, 3]
    assert add(writer, 4).watermark == 5


def test_journals_of_one_node_are_apart(writer: Writer) -> None:
    assert add(writer, 1, 2).watermark == 2
    assert add(writer, 1, journal=OTHER).watermark == 1


def test_other_bytes_under_a_key_go_to_quarantine(writer: Writer, path: Path) -> None:
    add(writer, 1)
    for _ in range(2):
        assert writer.add_events(1, JOURNAL, [event(1, boot=2), event(2)], 9001).result(10).quarantined == 1
    assert store.quarantined(path) == [(1, JOURNAL, 1, event(1, boot=2), 9001)]
    assert [stored.bytes for stored in store.events(path)] == [event(1), event(2)]


def test_a_gap_is_declared_and_never_guessed(writer: Writer, path: Path) -> None:
    add(writer, 1, 2, 5, 9)
    assert writer.declare_gap(1, JOURNAL, 8).result(10) == 7
    assert store.gaps(path) == [(1, JOURNAL, 3, 4), (1, JOURNAL, 6, 7)]
    assert writer.declare_gap(1, JOURNAL, 8).result(10) == 7
    assert writer.declare_gap(1, JOURNAL, 1).result(10) == 7
    assert add(writer, 8).watermark == 9
    assert writer.declare_gap(2, OTHER, 3).result(10) == 2


def test_what_turns_up_after_all_leaves_the_gap(writer: Writer, path: Path) -> None:
    writer.declare_gap(1, JOURNAL, 6).result(10)
    assert add(writer, 3) == AddResult(5, 1, 0, 0)
    assert store.gaps(path) == [(1, JOURNAL, 1, 2), (1, JOURNAL, 4, 5)]
    assert add(writer, 1, 2, 4, 5, 6).watermark == 6
    assert store.gaps(path) == []


def test_a_bad_event_fails_its_job_alone(writer: Writer, path: Path) -> None:
    go = hold(writer)
    good = writer.add_events(1, JOURNAL, [event(1)], 0)
    bad = [writer.add_events(1, JOURNAL, [event(2), wrong], 0) for wrong in (b"short", event(0))]
    after = writer.add_events(1, JOURNAL, [event(3)], 0)
    go.set()
    for future in bad:
        with pytest.raises(store.BadEvent):
            future.result(10)
    assert (good.result(10).watermark, after.result(10).watermark) == (1, 1)
    assert [stored.seq for stored in store.events(path)] == [1, 3]


def test_a_program_fault_in_a_job_fails_it_alone(writer: Writer) -> None:
    go = hold(writer)
    bad = writer._submit(lambda connection: 1 // 0)
    wrong = writer._submit(lambda connection: connection.execute("INSERT INTO nothing VALUES (1)"))
    orphan = writer._submit(lambda connection: connection.execute(
        "INSERT INTO event VALUES (77, x'0001020304050607', 1, x'00', 0)"))
    good = writer.add_events(1, JOURNAL, [event(1)], 0)
    go.set()
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    for future in (wrong, orphan):
        with pytest.raises(store.StoreError):
            future.result(10)
    assert good.result(10).added == 1


def test_one_commit_serves_a_group(path: Path) -> None:
    commits = []

    class Counting(Writer):
        def _commit(self) -> None:
            commits.append(1)
            super()._commit()

    with Counting(path) as writer:
        go = hold(writer)
        futures = [writer.add_events(1, JOURNAL, [event(seq)], 0) for seq in range(1, 101)]
        go.set()
        assert futures[-1].result(10).watermark == 100
    assert len(commits) <= 3


def test_a_cancelled_job_is_left_out(writer: Writer, path: Path) -> None:
    go = hold(writer)
    future = writer.add_events(1, JOURNAL, [event(1)], 0)
    assert future.cancel()
    go.set()
    assert add(writer, 2).watermark == 0
    assert [stored.seq for stored in store.events(path)] == [2]


def test_a_full_queue_refuses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "QUEUE_JOBS_MAX", 3)
    with Writer(path) as writer:
        go = hold(writer)
        futures = [writer.add_events(1, JOURNAL, [event(seq)], 0) for seq in range(1, 6)]
        with pytest.raises(store.WriterFull):
            futures[-1].result(0)
        go.set()
        assert futures[0].result(10).added == 1


def test_close_finishes_what_is_queued(path: Path) -> None:
    writer = Writer(path)
    futures = [writer.add_events(1, JOURNAL, [event(seq)], 0) for seq in range(1, 51)]
    writer.close()
    writer.close()
    assert [future.result(0).watermark for future in futures][-1] == 50
    with pytest.raises(store.WriterClosed):
        writer.watermark(1, JOURNAL).result(0)


def test_counters_never_repeat(writer: Writer, path: Path) -> None:
    assert [writer.next_counter(1, 77).result(10) for _ in range(3)] == [1, 2, 3]
    assert writer.next_counter(1, 78).result(10) == 1
    with Writer(path) as second:
        assert second.next_counter(1, 77).result(10) == 4


def test_anchors_and_counts(writer: Writer, path: Path) -> None:
    writer.add_anchor(1, JOURNAL, 1, 100, 1000, 9).result(10)
    writer.add_anchor(1, JOURNAL, 1, 100, 1002, 3).result(10)
    writer.add_anchor(1, JOURNAL, 1, 100, 1004, 5).result(10)
    assert store.anchors(path) == [(1, JOURNAL, 1, 100, 1002, 3)]
    assert store.journals(path) == [(1, JOURNAL, 0, 5000)]
    writer.add_counts("laser", {"frames": 2, "bad": 1}).result(10)
    writer.add_counts("laser", {"frames": 3}).result(10)
    assert store.port_counts(path) == {"laser": {"frames": 5, "bad": 1}}


@pytest.mark.parametrize("limit", ["PRAGMA max_page_count = 1", "PRAGMA query_only = ON"])
def test_a_full_or_read_only_disk_is_told_and_survived(writer: Writer, path: Path, limit: str) -> None:
    add(writer, 1)
    writer._connection.execute(limit)
    go = hold(writer)
    big = [writer.add_events(1, JOURNAL, [event(seq) + bytes(70) for seq in range(first, first + 200)], 0)
           for first in (2, 202)]
    go.set()
    for future in big:
        with pytest.raises(store.DiskFull if "page" in limit else store.ReadOnly):
            future.result(10)
    writer._connection.execute("PRAGMA max_page_count = 100000")
    writer._connection.execute("PRAGMA query_only = OFF")
    assert add(writer, 2).watermark == 2


def test_a_locked_database_is_told_and_survived(path: Path) -> None:
    with Writer(path, busy_ms=50) as writer:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(store.Locked):
            add(writer, 1)
        other.execute("ROLLBACK")
        other.close()
        assert add(writer, 1).watermark == 1


def test_a_group_whose_commit_fails_is_tried_one_by_one(path: Path) -> None:
    class Failing(Writer):
        failures = 1

        def _commit(self) -> None:
            if self.failures and self._connection.execute("SELECT count(*) FROM event").fetchone()[0] > 1:
                self.failures -= 1
                raise sqlite3.OperationalError("disk I/O error")
            super()._commit()

    with Failing(path) as writer:
        go = hold(writer)
        futures = [writer.add_events(1, JOURNAL, [event(seq)], 0) for seq in (1, 2, 3)]
        go.set()
        assert [future.result(10) for future in futures] == [(1, 1, 0, 0), (2, 1, 0, 0), (3, 1, 0, 0)]


def test_durable_settings(writer: Writer, path: Path) -> None:
    pragmas = [writer._connection.execute(f"PRAGMA {name}").fetchone()[0]
               for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "user_version")]
    assert pragmas == ["wal", 2, 1, 5000, 1]


def test_a_newer_database_is_refused(path: Path) -> None:
    Writer(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    for opening in (Writer, store.events, store.nodes):
        with pytest.raises(Problem, match="the database has version 7, this program knows 1. Update FabTap"):
            opening(path)


def test_databases_that_cannot_be_used(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match="there is no database"):
        store.events(path)
    with pytest.raises(Problem, match="Create its folder"):
        Writer(tmp_path / "no" / "fabtap.db")
    path.write_bytes(b"this is text, not a database" * 100)
    with pytest.raises(Problem, match="the database can't be used"):
        Writer(path)
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(Problem, match="some other program's database"):
        Writer(foreign)
    old = tmp_path / "old.db"
    Writer(old).close()
    monkeypatch.setattr(store, "_migrations", lambda: ["", ""])
    with pytest.raises(Problem, match="older than this program"):
        store.events(old)


def test_a_migration_is_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(path) as writer:
        add(writer, 1)
    migrations = store._migrations()
    monkeypatch.setattr(store, "_migrations", lambda: [*migrations, "CREATE TABLE more (x);\nCREATE TABLE more (x);\n"])
    with pytest.raises(Problem):
        Writer(path)
    monkeypatch.setattr(store, "_migrations", lambda: [*migrations, "CREATE TABLE more (x);\n"])
    with Writer(path) as writer:
        assert add(writer, 2).watermark == 2
        assert writer._connection.execute("PRAGMA user_version").fetchone()[0] == 2


def test_queries_are_read_by_name() -> None:
    assert store.load_queries("-- words\n\n-- name: a\nSELECT 1;\n-- name: b\nSELECT\n2;\n") == {
        "a": "SELECT 1;", "b": "SELECT\n2;"}
    with pytest.raises(ValueError):
        store.load_queries("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;")


def test_readers_cannot_write(writer: Writer, path: Path) -> None:
    add(writer, 1)
    connection = store._open(path, 100, writing=False)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM event")
    connection.close()


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """A number of events, and batches that deliver each at least once, in any order, some again."""
    count = draw(st.integers(1, 12))
    seqs = list(range(1, count + 1))
    order = draw(st.permutations(seqs + draw(st.lists(st.sampled_from(seqs), max_size=8))))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=5)))
    edges = [0, *cuts, len(order)]
    return count, [order[first:last] for first, last in zip(edges, edges[1:], strict=False)]


def check_delivery(writer: Writer, path: Path, journal: bytes, count: int, batches: list[list[int]]) -> None:
    futures = [writer.add_events(1, journal, [event(seq) for seq in batch], 7) for batch in batches]
    results = [future.result(10) for future in futures]
    seen: set[int] = set()
    for batch, result in zip(batches, results, strict=True):
        before = len(seen)
        seen |= set(batch)
        assert result.added == len(seen) - before
        assert result.added + result.duplicates == len(batch)
        assert result.watermark == next(seq for seq in range(count + 1) if seq + 1 not in seen)
    stored = [found.bytes for found in store.events(path) if found.journal_id == journal]
    assert stored == [event(seq) for seq in range(1, count + 1)]
    assert writer.watermark(1, journal).result(10) == count


@pytest.mark.prove
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(delivery=deliveries())
def test_any_order_gives_the_same_table(writer: Writer, path: Path, delivery: tuple[int, list[list[int]]]) -> None:
    check_delivery(writer, path, os.urandom(8), *delivery)


def test_that_proof_can_fail(writer: Writer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a watermark that is the highest seq seen claims what a hole still hides."""
    monkeypatch.setattr(store, "_advance", lambda connection, journal, watermark: connection.execute(
        "SELECT max(seq) FROM event WHERE journal_id = :journal_id", journal).fetchone()[0])
    with pytest.raises(AssertionError):
        check_delivery(writer, path, JOURNAL, 3, [[2, 3], [1]])


# A program that stores events one job at a time, many in flight, and prints each seq once its future has resolved.
CHILD = """
import os, signal, sys
from concurrent.futures import Future
from fabtap.store import Writer
from nodecore.wire import encode_event

DIE_AT = int(sys.argv[3])

class Dying(Writer):
    commits = 0
    def _commit(self):
        self.commits += 1
        if sys.argv[2] == "before" and self.commits == DIE_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._commit()
        if sys.argv[2] == "after" and self.commits == DIE_AT:
            os.kill(os.getpid(), signal.SIGKILL)

class Early(Dying):
    "The mutant: it answers before COMMIT."
    def _do(self, job):
        outcome = super()._do(job)
        job.future.set_result(outcome)
        object.__setattr__(job, "future", Future())
        return outcome

def tell(seq):
    return lambda future: os.write(1, b"%d\\n" % seq) if not future.exception() else None

writer = (Early if sys.argv[4] == "early" else Dying)(sys.argv[1])
os.write(1, b"0\\n")
seq = 0
while seq < 20000:
    futures = []
    for _ in range(20):
        seq += 1
        data = encode_event("booted", seq, 1, seq, {"cause": 1, "roster_version": 0, "energy_epoch": 0})
        future = writer.add_events(1, bytes(8), [data], 1)
        future.add_done_callback(tell(seq))
        futures.append(future)
    futures[-1].result()
"""


def run_and_kill(path: Path, moment: str, die_at: int, kind: str,
                 after_s: float | None = None) -> tuple[set[int], set[int]]:
    """(seqs that the child said were durable, seqs in the database after it was killed)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), moment, str(die_at), kind],
                             stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    said = child.stdout.readline()
    if after_s is not None:
        time.sleep(after_s)
        child.kill()
    said += child.stdout.read()
    child.stdout.close()
    assert child.wait(30) == -signal.SIGKILL
    whole = said[:said.rfind(b"\n") + 1]
    return {int(line) for line in whole.split()} - {0}, {stored.seq for stored in store.events(path)}


@pytest.mark.prove
@pytest.mark.parametrize("run", range(4))
def test_what_was_promised_survives_a_kill(path: Path, run: int) -> None:
    said, kept = run_and_kill(path, "never", 0, "honest", random.Random().uniform(0.05, 0.6))
    assert said and said <= kept
    with Writer(path) as writer:
        assert writer.watermark(1, bytes(8)).result(10) == max(kept)


@pytest.mark.prove
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_the_commit(path: Path, moment: str) -> None:
    said, kept = run_and_kill(path, moment, 5, "honest")
    assert said and said <= kept
    assert (said < kept) == (moment == "after")


def test_that_the_kill_can_find_a_liar(path: Path) -> None:
    """Negative control: a writer that answers before COMMIT loses what it promised."""
    said, kept = run_and_kill(path, "before", 5, "early")
    assert said - kept


def test_futures_resolve_in_threads_that_wait(writer: Writer) -> None:
    results: list[Any] = []

    def wait(future: Future[AddResult]) -> None:
        results.append(future.result(10))

    futures = [writer.add_events(1, JOURNAL, [event(seq)], 0) for seq in range(1, 9)]
    threads = [threading.Thread(target=wait, args=(future,)) for future in futures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(results) == 8
