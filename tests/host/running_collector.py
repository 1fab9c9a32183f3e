"""How does a test run a collector? In a thread with a loop and a Writer of its own; its patience is short, its disk may fail."""
import asyncio
import sqlite3
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from fabtap import collector as collecting
from fabtap import node_link, store
from fabtap.collector import Collector
from fabtap.lab import load_lab
from fabtap.store import Writer
from tests.host.scripted_node import ScriptedNode, event
from tests.rig import wait_until

WAIT_S = 10.0


def make_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the collector's patience."""
    for name, seconds in {"REPLY_S": 1.0, "GREET_S": 0.2, "LOOK_S": 0.1}.items():
        monkeypatch.setattr(node_link, name, seconds)
    for name, seconds in {"LOOK_S": 0.1, "COUNTS_S": 0.1, "REOPEN_S": 0.05, "BUSY_S": 0.1}.items():
        monkeypatch.setattr(collecting, name, seconds)


class SlowWriter(Writer):
    """A Writer whose COMMITs wait for `go`, and fail while `full` is set."""

    def __init__(self, path: Path) -> None:
        self.go = threading.Event()
        self.go.set()
        self.full = threading.Event()
        super().__init__(path)

    def _commit(self) -> None:
        assert self.go.wait(WAIT_S * 2)
        if self.full.is_set():
            raise sqlite3.OperationalError("database or disk is full")
        super()._commit()


class Running:
    """A collector in a thread; `stop` ends it and raises what ended it before."""

    def __init__(self, lab_file: Path) -> None:
        self.lab = load_lab(lab_file)
        self.writer = SlowWriter(self.lab.database)
        self.collector = Collector(self.lab, self.writer)
        self.error: BaseException | None = None
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()
        self._thread = threading.Thread(target=self._run, name="collector")
        self._thread.start()

    def _run(self) -> None:
        async def main() -> None:
            task = asyncio.create_task(self.collector.run())
            self._ready.set_result((asyncio.get_running_loop(), task))
            try:
                await task
            except asyncio.CancelledError:
                return
            except BaseException as error:
                self.error = error

        asyncio.run(main())

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the collector runs in."""
        return self._ready.result(WAIT_S)[0]

    @property
    def is_up(self) -> bool:
        return self._thread.is_alive()

    def counted(self, name: str, port: str = "laser") -> int:
        """What the database says that the port has counted under that name."""
        return store.port_counts(self.lab.database).get(port, {}).get(name, 0)

    def wait_counted(self, name: str, count: int = 1, port: str = "laser") -> None:
        wait_until(lambda: self.counted(name, port) >= count, WAIT_S, f"{count} {name} counted",
                   lambda: str(store.port_counts(self.lab.database)))
        assert self.counted(name, port) == count

    def stop(self) -> None:
        if self._thread.is_alive():
            loop, task = self._ready.result(WAIT_S)
            loop.call_soon_threadsafe(task.cancel)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self.writer.close()
        if self.error:
            raise self.error


def settle(node: ScriptedNode, **hello: Any) -> None:
    """Say hello and obey until clock and roster are right."""
    node.hello(**hello)
    node.obey(lambda: node.commands and node.commands[-1].name == "roster_commit", "clock and roster are right")


def in_step(node: ScriptedNode, seq: int) -> bool:
    """Is the next event taken and acknowledged?"""
    node.events(event(seq))
    while (acked := node.ack()) < seq:
        pass
    return acked == seq


def stored(running: Running) -> list[int]:
    return [found.seq for found in store.events(running.lab.database)]
