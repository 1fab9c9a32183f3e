"""Why did the store refuse a job? One exception a cause."""
import sqlite3


class StoreError(Exception):
    """The database refused a job; nothing of it was stored."""


class DiskFull(StoreError):
    """The disk is full, or the database has reached its largest size."""


class Locked(StoreError):
    """Another program keeps the database locked."""


class ReadOnly(StoreError):
    """The database can't be written: a read-only disk or file."""


class Damaged(StoreError):
    """The database's file is damaged."""


class BadEvent(StoreError):
    """An event too short for its head, or with seq 0: a node's fault."""


class WriterFull(StoreError):
    """The writer's queue is full: the node resends later."""


class WriterClosed(StoreError):
    """The writer was closed before this job."""


_CAUSES = {
    sqlite3.SQLITE_FULL: DiskFull,
    sqlite3.SQLITE_BUSY: Locked,
    sqlite3.SQLITE_LOCKED: Locked,
    sqlite3.SQLITE_READONLY: ReadOnly,
    sqlite3.SQLITE_CORRUPT: Damaged,
    sqlite3.SQLITE_NOTADB: Damaged,
}


def clear(error: BaseException) -> BaseException:
    """The exception of the cause; what isn't SQLite's stays as it is."""
    if not isinstance(error, (sqlite3.Error, OverflowError)):  # the latter: a node's 64 bits that SQLite can't hold
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte of an extended code
    return _CAUSES.get(code, StoreError)(str(error))
