"""Is another collector at work on this database? One at a time: a second one would fight over the ports."""
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fabtap.problem import Problem


@contextmanager
def only_collector(database: Path) -> Iterator[None]:
    """Hold the lock beside the database; it ends with the process, however that ends. Raises Problem when it is taken."""
    path = database.with_name(database.name + ".lock")
    try:
        file = open(path, "ab")  # noqa: SIM115 held until the end
    except OSError as error:
        raise Problem(path, None, f"can't be opened ({error.strerror})", "Give this user the right to write there.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(database, None, "has a collector already", "Stop that one first: it may run as a service.") from None
        yield
