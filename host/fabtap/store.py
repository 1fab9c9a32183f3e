"""What do we know of the nodes' journals, and is it durable?

One SQLite file (WAL, synchronous=FULL). A Writer owns the only writing connection, in a thread of its own; readers open
read-only connections.

- A future of the Writer resolves only after the COMMIT of its job returned: what was promised survives a power cut.
- An event's key (node_id, journal_id, seq) is stored once; the same key with other bytes goes to quarantine.
- The watermark and its events are written in one transaction, and worked out from the tables, never from memory: two
  writers on one file stay correct, only slower.
- Jobs are committed in groups. Each runs in a savepoint of its own, so that a failing one takes nobody with it; a job
  may run twice (a group that failed is tried again one by one) and touches nothing but the database. New events of jobs that
  follow one another are stored together, or else one job at a time (store_together.py).
- PRAGMA user_version counts the migrations; a newer database is refused.
"""
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fabtap.problem import Problem
from fabtap.store_errors import BadEvent, WriterClosed, WriterFull, clear
from fabtap.store_errors import Damaged as Damaged
from fabtap.store_errors import DiskFull as DiskFull
from fabtap.store_errors import Locked as Locked
from fabtap.store_errors import ReadOnly as ReadOnly
from fabtap.store_errors import StoreError as StoreError
from fabtap.store_together import Batch, Journals, add_together
from nodecore.wire import EVENT_HEAD_BYTES, event_seq

SQL_FOLDER = Path(__file__).parent / "sql"
QUEUE_JOBS_MAX = 4096
GROUP_JOBS_MAX = 250  # 1,000 rows a commit with frames of 4 events
GROUP_WAIT_MS = 5
BUSY_MS = 5000

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


_MENDS = {
    sqlite3.SQLITE_CANTOPEN: "Create its folder, and give this user the right to write there.",
    sqlite3.SQLITE_READONLY: "Give this user the right to write to it.",
    sqlite3.SQLITE_BUSY: "Stop the other program that uses it.",
    sqlite3.SQLITE_FULL: "Free some space on its disk.",
}


class AddResult(NamedTuple):
    """`watermark` after the events; added + duplicates + quarantined is the number of events that were handed in."""
    watermark: int
    added: int
    duplicates: int
    quarantined: int


class StoredEvent(NamedTuple):
    """An event as it arrived: nodecore.wire decodes its `bytes`."""
    node_id: int
    journal_id: bytes
    seq: int
    bytes: bytes
    received_utc_ms: int


class StoredJournal(NamedTuple):
    """A journal and its highest contiguous durable seq, `watermark`."""
    node_id: int
    journal_id: bytes
    watermark: int
    first_seen_utc_ms: int


class StoredAnchor(NamedTuple):
    """UTC at `mono_ms` of a boot, give or take `uncertainty_ms`."""
    node_id: int
    journal_id: bytes
    boot: int
    mono_ms: int
    utc_ms: int
    uncertainty_ms: int


class StoredGap(NamedTuple):
    """Events `first_seq` to `last_seq`, both included, that the node no longer had."""
    node_id: int
    journal_id: bytes
    first_seq: int
    last_seq: int


def load_queries(text: str) -> dict[str, str]:
    """Name to SQL of `-- name: x` blocks; the rest is comment. Raises ValueError for a name twice."""
    found: dict[str, str] = {}
    for block in text.split("-- name:")[1:]:
        name, _, sql = block.partition("\n")
        if name.strip() in found:
            raise ValueError(f"two queries are named {name.strip()}")
        found[name.strip()] = sql.strip()
    return found


SQL = load_queries((SQL_FOLDER / "queries.sql").read_text("utf-8"))


@dataclass(slots=True)
class _Job:
    future: Future[Any]
    work: Work[Any]


@dataclass(slots=True)
class _EventsJob:
    """A job that can also be done together with others: it is a store_together.Batch."""

    future: Future[Any]
    node_id: int
    journal_id: bytes
    events: list[bytes]
    received_utc_ms: int

    def work(self, connection: sqlite3.Connection) -> AddResult:
        return _add_events(connection, self)


_AnyJob = _Job | _EventsJob


class Writer:
    """The one writer. Every job returns a Future at once; its exceptions are StoreErrors. Usable as a context manager.

    `clock` gives UTC in milliseconds, for when a node was first seen. Raises Problem if the database can't be opened.
    """

    def __init__(self, path: str | Path, clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
                 busy_ms: int = BUSY_MS) -> None:
        self._clock = clock
        self._connection = _open(Path(path), busy_ms, writing=True)
        self._queue: queue.SimpleQueue[_AnyJob | None] = queue.SimpleQueue()
        self._known: dict[int, AddResult] = {}
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is queued, then stop. Later jobs fail with WriterClosed."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def add_events(self, node_id: int, journal_id: bytes, events: Sequence[bytes],
                   received_utc_ms: int) -> Future[AddResult]:
        """Store event bytes in any order, again or anew, and advance the watermark. May fail with BadEvent."""
        return self._put(_EventsJob(Future(), node_id, journal_id, list(events), received_utc_ms))

    def declare_gap(self, node_id: int, journal_id: bytes, first_seq: int) -> Future[int]:
        """The node retains nothing below `first_seq`: record what is missing below it, give the new watermark."""
        return self._submit(lambda connection: _declare_gap(
            connection, {"node_id": node_id, "journal_id": journal_id}, first_seq, self._clock()))

    def add_anchor(self, node_id: int, journal_id: bytes, boot: int, mono_ms: int, utc_ms: int,
                   uncertainty_ms: int) -> Future[None]:
        """Record UTC at a moment of a boot; of two anchors for one moment the more certain stays."""
        journal = {"node_id": node_id, "journal_id": journal_id}
        anchor = {**journal, "boot": boot, "mono_ms": mono_ms, "utc_ms": utc_ms, "uncertainty_ms": uncertainty_ms}

        def work(connection: sqlite3.Connection) -> None:
            _add_journal(connection, journal, self._clock())
            connection.execute(SQL["insert_anchor"], anchor)

        return self._submit(work)

    def next_counter(self, node_id: int, boot_nonce: int, above: int = 0) -> Future[int]:
        """The next command counter of a nonce, beyond `above`: 1, 2, ... and never one twice."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(SQL["add_node"], {"node_id": node_id, "utc_ms": self._clock()})
            return _one(connection, "next_counter", {"node_id": node_id, "boot_nonce": boot_nonce, "above": above})

        return self._submit(work)

    def add_counts(self, port: str, counts: Mapping[str, int]) -> Future[None]:
        """Add to what a port has counted, by name."""
        rows = [{"port": port, "name": name, "count": count} for name, count in counts.items()]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(SQL["add_count"], rows)

        return self._submit(work)

    def watermark(self, node_id: int, journal_id: bytes) -> Future[int]:
        """The highest contiguous durable seq; 0 for a journal that was never seen."""
        return self._submit(lambda connection: _one(
            connection, "watermark", {"node_id": node_id, "journal_id": journal_id}) or 0)

    def _submit(self, work: Work[T]) -> Future[T]:
        return self._put(_Job(Future(), work))

    def _put(self, job: _AnyJob) -> Future[Any]:
        with self._closing:
            if self._closed:
                job.future.set_exception(WriterClosed("the writer is closed"))
            elif self._queue.qsize() >= QUEUE_JOBS_MAX:
                job.future.set_exception(WriterFull(f"{QUEUE_JOBS_MAX} jobs are waiting"))
            else:
                self._queue.put(job)
        return job.future

    def _run(self) -> None:
        more = True
        while more:
            jobs, more = self._collect()
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._do_group(jobs)
        self._connection.close()

    def _collect(self) -> tuple[list[_AnyJob], bool]:
        """Jobs for one group, and whether to go on after it."""
        jobs: list[_AnyJob] = []
        job = self._queue.get()
        until = time.monotonic() + GROUP_WAIT_MS / 1000
        while job is not None:
            jobs.append(job)
            if len(jobs) == GROUP_JOBS_MAX:
                return jobs, True
            try:
                job = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _do_group(self, jobs: list[_AnyJob]) -> None:
        """Run jobs in one transaction and resolve their futures after its COMMIT."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            for job in jobs:
                job.future.set_exception(clear(error))
            return
        try:
            outcomes = []
            for _, run in groupby(jobs, type):
                outcomes += self._do_run(list(run))
            self._commit()
        except Exception as error:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):  # if even this fails, the next BEGIN says so
                    self._connection.execute("ROLLBACK")
            if len(jobs) == 1:
                jobs[0].future.set_exception(clear(error))
            else:
                for job in jobs:
                    self._do_group([job])
            return
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

    def _do_run(self, jobs: list[_AnyJob]) -> list[Any]:
        """What became of jobs that follow one another and are all of one type."""
        events_jobs = [job for job in jobs if isinstance(job, _EventsJob)]
        watermarks = add_together(self._connection, _JOURNALS, events_jobs) if len(events_jobs) > 1 else None
        self._known = {} if watermarks is None else {
            id(job): AddResult(watermark, len(job.events), 0, 0)
            for job, watermark in zip(events_jobs, watermarks, strict=True)}
        return [self._do(job) for job in jobs]

    def _do(self, job: _AnyJob) -> Any:
        """The job's result or its exception; its writes are undone if it fails."""
        if id(job) in self._known:
            return self._known[id(job)]
        self._connection.execute("SAVEPOINT job")
        try:
            outcome = job.work(self._connection)
        except Exception as error:
            if not self._connection.in_transaction:
                raise  # SQLite rolled the whole group back
            self._connection.execute("ROLLBACK TO job")
            outcome = clear(error)
        self._connection.execute("RELEASE job")
        return outcome

    def _commit(self) -> None:
        self._connection.execute("COMMIT")


def _one(connection: sqlite3.Connection, name: str, values: Mapping[str, Any]) -> Any:
    row = connection.execute(SQL[name], values).fetchone()
    return None if row is None else row[0]


def _add_journal(connection: sqlite3.Connection, journal: Mapping[str, Any], utc_ms: int) -> None:
    connection.execute(SQL["add_node"], {"node_id": journal["node_id"], "utc_ms": utc_ms})
    connection.execute(SQL["add_journal"], {**journal, "utc_ms": utc_ms})


def _first_seen(connection: sqlite3.Connection, journal: Mapping[str, Any], utc_ms: int) -> int:
    """The journal's watermark; the journal is made if need be."""
    watermark = _one(connection, "watermark", journal)
    if watermark is None:
        _add_journal(connection, journal, utc_ms)
    return watermark or 0


def _add_events(connection: sqlite3.Connection, batch: Batch) -> AddResult:
    journal = {"node_id": batch.node_id, "journal_id": batch.journal_id}
    watermark = _first_seen(connection, journal, batch.received_utc_ms)
    added = duplicates = quarantined = 0
    for data in batch.events:
        if len(data) < EVENT_HEAD_BYTES or event_seq(data) == 0:
            raise BadEvent(f"node {journal['node_id']} sent an event of {len(data)} bytes or without a seq")
        row = {**journal, "seq": event_seq(data), "bytes": data, "received_utc_ms": batch.received_utc_ms}
        if connection.execute(SQL["insert_event"], row).rowcount:
            added += 1
            if row["seq"] <= watermark:
                _fill_gap(connection, journal, row["seq"])
        elif _one(connection, "event_bytes", row) == data:
            duplicates += 1
        else:
            quarantined += 1
            connection.execute(SQL["insert_quarantine"], row)
    return AddResult(_advance(connection, journal, watermark), added, duplicates, quarantined)


def _advance(connection: sqlite3.Connection, journal: Mapping[str, Any], watermark: int) -> int:
    """Write and give the highest seq that is reached without a hole from `watermark`."""
    reached: int | None = watermark
    while reached is not None:
        watermark = reached
        for (seq,) in connection.execute(SQL["seqs_after"], {**journal, "seq": watermark}):
            if seq != watermark + 1:
                break
            watermark = seq
        reached = _one(connection, "gap_end", {**journal, "seq": watermark})
    connection.execute(SQL["set_watermark"], {**journal, "seq": watermark})
    return watermark


_JOURNALS = Journals(_first_seen, lambda connection, journal, watermark: _advance(connection, journal, watermark))


def _declare_gap(connection: sqlite3.Connection, journal: Mapping[str, Any], first_seq: int, utc_ms: int) -> int:
    watermark = _first_seen(connection, journal, utc_ms)
    missing = watermark + 1
    above = connection.execute(SQL["seqs_after"], {**journal, "seq": watermark}).fetchall()
    for seq in [seq for (seq,) in above if seq < first_seq] + [first_seq]:
        _insert_gap(connection, journal, missing, seq - 1)
        missing = seq + 1
    return _advance(connection, journal, watermark)


def _insert_gap(connection: sqlite3.Connection, journal: Mapping[str, Any], first_seq: int, last_seq: int) -> None:
    if first_seq <= last_seq:
        connection.execute(SQL["insert_gap"], {**journal, "first_seq": first_seq, "last_seq": last_seq})


def _fill_gap(connection: sqlite3.Connection, journal: Mapping[str, Any], seq: int) -> None:
    """An event behind the watermark turned up after all: cut it out of its gap."""
    for first_seq, last_seq in connection.execute(SQL["take_gap"], {**journal, "seq": seq}).fetchall():
        _insert_gap(connection, journal, first_seq, seq - 1)
        _insert_gap(connection, journal, seq + 1, last_seq)


def nodes(path: str | Path) -> list[tuple[int, int]]:
    """(node_id, first_seen_utc_ms) of every node. Readers raise Problem if the database can't be opened."""
    return list(_read(path, "nodes"))


def journals(path: str | Path) -> list[StoredJournal]:
    """Every journal with its watermark."""
    return [StoredJournal(*row) for row in _read(path, "journals")]


def events(path: str | Path) -> Iterator[StoredEvent]:
    """Every stored event in the order of node, journal and seq, also those above a hole."""
    return (StoredEvent(*row) for row in _read(path, "events"))


def settled_events(path: str | Path) -> Iterator[StoredEvent]:
    """The events up to each journal's watermark, in the order of node, journal and seq: no hole but declared gaps."""
    return (StoredEvent(*row) for row in _read(path, "settled_events"))


def quarantined(path: str | Path) -> list[StoredEvent]:
    """Events whose key was taken by other bytes."""
    return [StoredEvent(*row) for row in _read(path, "quarantined")]


def gaps(path: str | Path) -> list[StoredGap]:
    """What nodes no longer had, without what turned up later."""
    return [StoredGap(*row) for row in _read(path, "gaps")]


def anchors(path: str | Path) -> list[StoredAnchor]:
    """Every anchor in the order of node, journal, boot and mono_ms."""
    return [StoredAnchor(*row) for row in _read(path, "anchors")]


def port_counts(path: str | Path) -> dict[str, dict[str, int]]:
    """Port to name to count."""
    found: dict[str, dict[str, int]] = {}
    for port, name, count in _read(path, "port_counts"):
        found.setdefault(port, {})[name] = count
    return found


def _read(path: str | Path, name: str) -> Iterator[Any]:
    """Rows of a query; the database is opened and checked at once, and closed at the end."""
    connection = _open(Path(path), BUSY_MS, writing=False)

    def rows() -> Iterator[Any]:
        with closing(connection):
            yield from connection.execute(SQL[name])

    return rows()


def _migrations() -> list[str]:  # the first one leads to user_version 1
    return [file.read_text("utf-8") for file in sorted((SQL_FOLDER / "migrations").glob("*.sql"))]


def _open(path: Path, busy_ms: int, writing: bool) -> sqlite3.Connection:
    if not writing and not path.exists():
        raise Problem(path, None, "there is no database", "Start the collector once; it creates the database.")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={'rwc' if writing else 'ro'}", uri=True,
                                     timeout=busy_ms / 1000, isolation_level=None, check_same_thread=False)
        try:
            version = _check_version(connection, path)
            if writing:
                _prepare(connection, path)
            elif version < len(_migrations()):
                raise Problem(path, None, "the database is older than this program", "Start the collector once.")
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        mend = _MENDS.get(error.sqlite_errorcode & 0xFF, "Look at the file; if in doubt restore the last backup.")
        raise Problem(path, None, f"the database can't be used ({error})", mend) from error
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> int:
    version, tables = connection.execute(SQL["version_and_tables"]).fetchone()
    if version > len(_migrations()):
        raise Problem(path, None, f"the database has version {version}, this program knows {len(_migrations())}",
                      "Update FabTap, or restore the backup from before the update.")
    if version == 0 and tables:
        raise Problem(path, None, "this is some other program's database", "Name another file in database =.")
    return int(version)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the connection durable and apply the migrations that are missing, all or nothing."""
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise Problem(path, None, "this disk can't keep a database safe (no WAL)", "Move it to a local disk.")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA temp_store = MEMORY")  # what a savepoint would bring back lies in no file
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("BEGIN IMMEDIATE")
    try:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        for number, script in enumerate(_migrations()[version:], version + 1):
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; sqlite3's executescript would commit in the middle."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
