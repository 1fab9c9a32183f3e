"""What runs while a lab collects: which ports and which broker are served, with whose secrets, rosters and database?

The collector's wiring: one task a serial port, one for the broker with all nodes behind it, one writer for all. A port that
vanishes is looked for until it is back. The members are taken over as their file changes.
"""
import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from fabtap import boards, roster_image
from fabtap.complaints import Complaints
from fabtap.floor import Floor
from fabtap.keys import broker_password, load_secrets
from fabtap.lab import Lab, Machine, access_entries, load_lab
from fabtap.mqtt import Broker
from fabtap.node_link import NodeLink
from fabtap.peer import Peers
from fabtap.port import AsyncPort, PortGone, open_port
from fabtap.problem import Problem
from fabtap.store import StoreError, Writer
from nodecore import frame

LOG = logging.getLogger("fabtap.collector")
REOPEN_S = 0.3
BUSY_S = 2.0
LOOK_S = 2.0
COUNTS_S = 5.0
LINE_MAX = frame.UP_LINE_MAX


def secrets_of_machines(lab: Lab) -> dict[int, bytes]:
    """The secrets by node number. Raises Problem when a machine's node has none."""
    secrets = load_secrets(lab.keys)
    for machine in lab.machines:
        if machine.node not in secrets:
            raise Problem(lab.keys, None, f"has no secret for node {machine.node} ({machine.id})",
                          f"Provision the node first: fabtap board provision {machine.id}.")
    return secrets


def _fixed(lab: Lab) -> tuple[object, ...]:
    """What a collector takes over only at its start."""
    return lab.id, lab.machines, lab.database, lab.keys, lab.broker, lab.floor_port


class Collector:
    """The whole: a lab, its database, its ports and its broker."""

    def __init__(self, lab: Lab, writer: Writer, heard: Callable[[Machine, bytes], None] = lambda machine, event: None) -> None:
        self.lab = lab
        self.writer = writer
        self.heard = heard
        self.statuses: dict[str, dict[str, Any]] = {}
        self.links: dict[str, NodeLink] = {}
        self.went_back: set[tuple[int, bytes]] = set()
        self.floor = Floor(lab.machines)
        self._secrets = secrets_of_machines(lab)
        self.peers = Peers(self._secrets)
        self._complaints: dict[str, Complaints] = {}
        self._lab_stamp = self._stamp()
        self._rosters: dict[str, tuple[object, roster_image.RosterImage]] = {}

    def complaints(self, port_name: str) -> Complaints:
        """The counter of one port."""
        return self._complaints.setdefault(port_name, Complaints(port_name, LOG))

    def roster(self, machine: Machine) -> roster_image.RosterImage:
        """The roster that the machine's node should have today."""
        today = datetime.now(self.lab.timezone).date()
        made_for = (today, self.lab.members)
        known = self._rosters.get(machine.id)
        if known is None or known[0] != made_for:
            image = roster_image.build_roster(self._secrets[machine.node], access_entries(self.lab, machine, today))
            known = self._rosters[machine.id] = (made_for, image)
        return known[1]

    async def run(self) -> None:
        """Serve until cancelled. Raises Problem when the floor page's port is taken."""
        tasks = [asyncio.create_task(work) for work in self._works()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._store_counts()

    def _works(self) -> list[Coroutine[Any, Any, None]]:
        works = [self._serve_port(machine) for machine in self.lab.machines if machine.link == "serial"]
        behind_broker = [machine for machine in self.lab.machines if machine.link == "mqtt"]
        if self.lab.broker and behind_broker:
            broker = Broker(self.lab.broker, self.lab.id, broker_password(self.lab.keys), self.complaints("mqtt"))
            works.append(broker.serve(lambda send: self._link_all(behind_broker, send)))
        if self.lab.floor_port:
            works.append(self._serve_floor(self.lab.floor_port))
        return [*works, self._look_at_members(), self._keep_counts()]

    def _link_all(self, machines: Sequence[Machine], send: Callable[[int, bytes], None]) -> dict[int, NodeLink]:
        """New links by node number, for nodes that share one connection."""
        found = {machine.node: NodeLink(machine, self, partial(send, machine.node)) for machine in machines}
        self.links.update({link.machine.id: link for link in found.values()})
        return found

    async def _serve_floor(self, port: int) -> None:
        # Imported here: a lab without the page needs no web server in memory.
        from fabtap.web import serve_floor
        try:
            await serve_floor(self.floor, self.lab.name, port)
        except Problem:
            raise
        except Exception:
            # The page is a convenience: whatever happens to it, events are collected.
            LOG.exception("the floor page is down until the collector is started again")
        await asyncio.Event().wait()

    async def _serve_port(self, machine: Machine) -> None:
        missing = False
        while True:
            try:
                port = AsyncPort(open_port(machine.plugged_port()))
            except PortGone:
                if not missing:
                    LOG.warning("%s: no device at its port; waiting for it", machine.id)
                missing = True
                await asyncio.sleep(REOPEN_S)
                continue
            except Problem as problem:
                self.complaints(machine.id).note("port_busy", str(problem))
                await asyncio.sleep(BUSY_S)
                continue
            missing = False
            LOG.info("%s: listening", machine.id)
            try:
                await self._serve_open_port(machine, port)
            except PortGone:
                LOG.warning("%s: the port is gone", machine.id)
            finally:
                port.close()
            await asyncio.sleep(REOPEN_S)

    async def _serve_open_port(self, machine: Machine, port: AsyncPort) -> None:
        link = self.links[machine.id] = NodeLink(machine, self, lambda data: port.write(frame.to_line(data)))
        await link.serve(self._read_port(port, link))

    async def _read_port(self, port: AsyncPort, link: NodeLink) -> None:
        lines = frame.LineReader(LINE_MAX)
        seen = (0, 0, 0)
        while True:
            for data in lines.push(await port.read()):
                await link.take(data)
            now = (lines.console_lines, lines.overlong_lines, lines.bad_lines)
            for name, count, before in zip(("console_line", "overlong_line", "bad_line"), now, seen, strict=True):
                if count > before:
                    link.complaints.note(name, repr(lines.console[-1]) if name == "console_line" else "", count - before)
            seen = now
            lines.console.clear()

    def _stamp(self) -> tuple[int, ...]:
        found = []
        for path in (self.lab.file, self.lab.members_file):
            # An editor may put a new file in its place at any moment, and a network's disk may be away.
            with contextlib.suppress(OSError):
                found.append(path.stat().st_mtime_ns)
        return tuple(found)

    async def _look_at_members(self) -> None:
        """Take over changed members; a file with a mistake changes nothing but the log."""
        while True:
            await asyncio.sleep(LOOK_S)
            stamp = self._stamp()
            if stamp == self._lab_stamp:
                continue
            self._lab_stamp = stamp
            try:
                lab = load_lab(self.lab.file, boards.board_names())
            except Problem as problem:
                LOG.error("the members stay as they were: %s", problem)
                continue
            if _fixed(lab) != _fixed(self.lab):
                LOG.warning("machines, database, keys, broker and floor are taken over at the next start only")
            self.lab = lab
            LOG.info("members are taken over from %s", lab.members_file)

    async def _keep_counts(self) -> None:
        while True:
            await asyncio.sleep(COUNTS_S)
            await self._store_counts()

    async def _store_counts(self) -> None:
        for name, complaints in self._complaints.items():
            counts = complaints.take()
            if counts:
                try:
                    # Shielded: a job that is queued is carried out, also when we are told to end meanwhile.
                    await asyncio.shield(asyncio.wrap_future(self.writer.add_counts(name, counts)))
                except StoreError as error:
                    complaints.give_back(counts)
                    LOG.error("counts of %s are not stored yet: %s", name, error)


async def run_until_told(collector: Collector) -> None:
    """Run a collector until SIGINT or SIGTERM."""
    running = asyncio.create_task(collector.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
