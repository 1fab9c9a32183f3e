"""How do the events of many jobs reach the database at once?

One statement stores many rows, and meanwhile the interpreter is free for the next frames; a journal is looked up once a group
and not once a frame. That holds for what a link brings day by day: new events that follow the watermark. Whatever else turns up
(one that is there already, one behind a hole, one that is none) makes `add_together` undo all of it and say so; the caller then
takes the jobs one by one. So this file never decides what a duplicate or a clone is.
"""
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain
from typing import Any, NamedTuple, Protocol

from nodecore.wire import EVENT_HEAD_BYTES, event_seq

ROWS_A_STATEMENT = (100, 20, 4, 1)
"""Few lengths, so that each statement is compiled once: SQLite's module keeps 128 of them."""


class Batch(Protocol):
    """Event bytes of one journal that came in one frame."""

    @property
    def node_id(self) -> int: ...
    @property
    def journal_id(self) -> bytes: ...
    @property
    def events(self) -> list[bytes]: ...
    @property
    def received_utc_ms(self) -> int: ...


class Journals(NamedTuple):
    """What the store hands in: `first_seen` makes a journal and gives its watermark, `advance` writes and gives its new one."""

    first_seen: Callable[[sqlite3.Connection, Mapping[str, Any], int], int]
    advance: Callable[[sqlite3.Connection, Mapping[str, Any], int], int]


def add_together(connection: sqlite3.Connection, journals: Journals, batches: Sequence[Batch]) -> list[int] | None:
    """Store the batches' events within the open transaction; the watermark of each batch's journal after it.

    None, and nothing stored, unless every event is new and they follow one another from each journal's watermark. Raises
    sqlite3.Error only when SQLite has rolled the transaction back.
    """
    connection.execute("SAVEPOINT together")
    try:
        watermarks = _store(connection, journals, batches)
    except (sqlite3.Error, OverflowError):  # the latter: a node's 64 bits that SQLite can't hold
        if not connection.in_transaction:
            raise
        watermarks = None
    if watermarks is None:
        connection.execute("ROLLBACK TO together")
    connection.execute("RELEASE together")
    return watermarks


def _store(connection: sqlite3.Connection, journals: Journals, batches: Sequence[Batch]) -> list[int] | None:
    """Journal by journal: its rows lie side by side in the table."""
    together: dict[tuple[int, bytes], list[Batch]] = {}
    for batch in batches:
        together.setdefault((batch.node_id, batch.journal_id), []).append(batch)
    reached = {}
    for key, own in together.items():
        journal = {"node_id": key[0], "journal_id": key[1]}
        events = [data for batch in own for data in batch.events]
        if not own[-1].events or min(map(len, events)) < EVENT_HEAD_BYTES:
            return None
        before = journals.first_seen(connection, journal, own[0].received_utc_ms)
        seqs = list(map(event_seq, events))
        if seqs != list(range(before + 1, before + 1 + len(seqs))):
            return None
        received = [batch.received_utc_ms for batch in own for _ in batch.events]
        _insert(connection, key, list(chain.from_iterable(zip(seqs, events, received, strict=True))))
        ends = list(accumulate((len(batch.events) for batch in own), initial=before))[1:]
        # Only the last may reach further: to what lay above the hole that it has filled.
        reached[key] = iter([*ends[:-1], journals.advance(connection, journal, ends[-1])])
    return [next(reached[batch.node_id, batch.journal_id]) for batch in batches]


def _insert(connection: sqlite3.Connection, journal: tuple[int, bytes], values: list[Any]) -> None:
    """Store rows of one journal: `values` holds seq, bytes and received_utc_ms of one after the other."""
    done = 0
    for count in ROWS_A_STATEMENT:
        while len(values) - done >= 3 * count:
            connection.execute(_statement(count), (*journal, *values[done:done + 3 * count]))
            done += 3 * count


@cache
def _statement(count: int) -> str:
    # No ON CONFLICT: a key that is taken has to stop all of it.
    values = ", ".join(f"(?1, ?2, ?{number}, ?{number + 1}, ?{number + 2})" for number in range(3, 3 + 3 * count, 3))
    return f"INSERT INTO event (node_id, journal_id, seq, bytes, received_utc_ms) VALUES {values}"
