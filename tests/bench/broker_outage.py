"""How large is a node on MQTT, and how soon is everything there after two minutes without a broker?

One machine of the demo's lab with flash costs on: real firmware, real broker; the collector runs in a thread, so that its statuses
can be read.
"""
import time
from collections.abc import Callable
from pathlib import Path

from fabtap import books
from fabtap.demo_lab import BADGES, DemoLab

MACHINE = "router"
WHO = "Maker Two"
SESSION_S = 2.0


def measure(folder: Path, outage_s: float, run_collector: Callable, wait: Callable) -> tuple[int, float, int]:
    """(heap bytes after boot, seconds from the broker's return until all is stored, sessions that happened meanwhile)."""
    demo = DemoLab(folder, only=(MACHINE,))
    running = None
    try:
        demo.make_files()
        demo.make_boards(lambda machine, text: None)
        demo.start_broker()
        running = run_collector(demo.lab)
        statuses = running.collector.statuses
        wait(lambda: statuses.get(MACHINE, {}).get("state") == 1, "the first status in idle")
        heap_bytes = statuses[MACHINE]["heap_bytes"]
        wait(lambda: any(link.roster_version for link in running.collector.links.values()), "the roster to arrive")
        time.sleep(1.0)
        demo.stop_broker()
        until_s = time.monotonic() + outage_s
        sessions = 0
        while time.monotonic() < until_s or not sessions:
            use(demo, wait)
            sessions += 1
        demo.start_broker()
        returned_s = time.monotonic()
        wait(lambda: ended(demo) == sessions, "every session in the books")
        return heap_bytes, time.monotonic() - returned_s, sessions
    finally:
        if running:
            running.stop()
        demo.close()


def use(demo: DemoLab, wait: Callable) -> None:
    """One session without a broker."""
    board = demo.boards[MACHINE]
    board.ask("tap", uid=BADGES[WHO])
    wait(lambda: board.ask("status")["relay"], "the relay to close")
    time.sleep(SESSION_S)
    board.ask("remove")
    wait(lambda: not board.ask("status")["relay"], "the relay to open")
    time.sleep(2.0)


def ended(demo: DemoLab) -> int:
    """Sessions in the books that have ended."""
    return sum(found.session.state != "open" for found in books.sessions(demo.lab, demo.lab.database))
