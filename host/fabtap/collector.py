"""How do events get from the nodes' ports into the database, and acknowledgements, time and rosters back?

The collector's wiring: one task a port, one writer for all. An acknowledgement leaves only after the events it covers are
committed. A port that vanishes is looked for until it is back; a node that says something new is answered, never waited for.
"""
import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from fabtap import boards, roster_image
from fabtap.complaints import Complaints
from fabtap.keys import load_secrets
from fabtap.lab import Lab, Machine, access_entries, load_lab
from fabtap.peer import CHUNK_BYTES, Message, Peers, Refused, text_of
from fabtap.port import AsyncPort, PortGone, open_port
from fabtap.problem import Problem
from fabtap.store import StoreError, Writer
from nodecore import frame, wire

LOG = logging.getLogger("fabtap.collector")
REPLY_S = 3.0
TRIES = 4
CLOCK_S = 60.0
ROUND_TRIP_MAX_MS = 2000
REOPEN_S = 0.3
GREET_S = 2.0
LOOK_S = 2.0
COUNTS_S = 5.0
LINE_MAX = frame.UP_LINE_MAX
STALE = 1


class NodeGone(Exception):
    """The node did not answer a command in time."""


def utc_ms() -> int:
    """The computer's UTC in milliseconds."""
    return time.time_ns() // 1_000_000


class NodeLink:
    """One node on its port: what is known of it since its last hello, and the commands that it is sent."""

    def __init__(self, machine: Machine, collector: "Collector", send: Callable[[bytes], None], port_name: str) -> None:
        self.machine = machine
        self._collector = collector
        self._send_line = send
        self._boot_nonce: int | None = None
        self._journal_id = b""
        self._watermark = 0
        self.roster_version = 0
        self._status_counter = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._clock_due_s = 0.0
        self._wake = asyncio.Event()
        self._complaints = collector.complaints(port_name)

    def greet(self) -> None:
        """Ask the node to say hello."""
        self._send("greet", {})

    @property
    def greeted(self) -> bool:
        return self._boot_nonce is not None

    async def handle(self, message: Message) -> None:
        """Act on one believed message."""
        await {"hello": self._hello, "events": self._events, "status": self._status,
               "reply": self._reply}[message.name](message.fields)

    async def _hello(self, fields: dict[str, Any]) -> None:
        if fields["protocol"] != wire.PROTOCOL:
            self._complaints.note("other_protocol", f"node {self.machine.node} speaks version {fields['protocol']}; deploy it")
            return
        writer = self._collector.writer
        self._journal_id = fields["journal_id"]
        self._watermark = await asyncio.wrap_future(writer.watermark(self.machine.node, self._journal_id))
        if fields["first_seq"] > self._watermark + 1:
            LOG.error("%s: events %d to %d are gone from the node and not in the database", self.machine.id,
                      self._watermark + 1, fields["first_seq"] - 1)
            self._watermark = await asyncio.wrap_future(
                writer.declare_gap(self.machine.node, self._journal_id, fields["first_seq"]))
        if fields["boot_nonce"] != self._boot_nonce:
            LOG.info("%s: node %d, boot %d, %s, firmware %s", self.machine.id, self.machine.node, fields["boot"],
                     text_of(fields["board"]), text_of(fields["firmware"]))
            self._boot_nonce = fields["boot_nonce"]
            self._status_counter = 0
        self.roster_version = fields["roster_version"]
        self._clock_due_s = 0.0
        self._ack()
        self._wake.set()

    async def _events(self, fields: dict[str, Any]) -> None:
        events = wire.unpack_events(fields["data"])
        result = await asyncio.wrap_future(self._collector.writer.add_events(
            self.machine.node, fields["journal_id"], events, utc_ms()))
        if result.quarantined:
            LOG.error("%s: %d event(s) differ from those stored under the same number: a clone or a fault",
                      self.machine.id, result.quarantined)
        self._journal_id = fields["journal_id"]
        self._watermark = result.watermark
        self._ack()
        for event in events:
            self._collector.heard(self.machine, event)

    async def _status(self, fields: dict[str, Any]) -> None:
        if fields["boot_nonce"] != self._boot_nonce:
            self.greet()
            return
        if fields["counter"] <= self._status_counter:
            self._complaints.note("replayed_status")
            return
        self._status_counter = fields["counter"]
        self._collector.statuses[self.machine.id] = fields
        self._ack()

    async def _reply(self, fields: dict[str, Any]) -> None:
        waiting = self._waiting.pop(fields["counter"], None)
        if waiting is None or waiting.done() or fields["boot_nonce"] != self._boot_nonce:
            self._complaints.note("late_reply")
            return
        waiting.set_result(fields)

    def _ack(self) -> None:
        self._send("ack", {"journal_id": self._journal_id, "seq": self._watermark})

    def _send(self, name: str, fields: dict[str, Any]) -> None:
        self._send_line(self._collector.peers.line(self.machine.node, name, fields))

    async def look_after(self) -> None:
        """Keep the node's clock and roster right, one command at a time, for as long as the port is there."""
        while True:
            # Not wait_for: before Python 3.12 it can swallow a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            self._wake.clear()
            if self._boot_nonce is None:
                continue
            try:
                if time.monotonic() >= self._clock_due_s:
                    await self._set_clock()
                    self._clock_due_s = time.monotonic() + CLOCK_S
                await self._bring_roster()
            except NodeGone as gone:
                self._complaints.note("no_answer", str(gone))
            except StoreError as error:
                self._complaints.note("store_error", str(error))

    async def _command(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Send a command until the node carries it out; every try has its own counter.

        A node that has seen a higher counter says so: the database was restored from a backup, and catches up here.
        """
        above = 0
        for _ in range(TRIES):
            nonce = self._boot_nonce
            assert nonce is not None
            counter = await asyncio.wrap_future(self._collector.writer.next_counter(self.machine.node, nonce, above))
            waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
            self._waiting[counter] = waiting
            now = {"utc_ms": utc_ms()} if name == "clock_set" else {}
            self._send(name, {**fields, **now, "boot_nonce": nonce, "counter": counter})
            try:
                async with asyncio.timeout(REPLY_S):
                    reply = {**await waiting, **now}
                if reply["result"] != STALE:
                    return reply
                above = reply["value"]
            except TimeoutError:
                self._waiting.pop(counter, None)
        raise NodeGone(f"{self.machine.id} does not answer {name}")

    async def _set_clock(self) -> None:
        """Give the node the time, and take the round trip as an anchor of its own clock."""
        offset = datetime.now(self._collector.lab.timezone).utcoffset()
        assert offset is not None
        reply = await self._command("clock_set", {"local_offset_s": int(offset.total_seconds())})
        if reply["result"]:
            self._complaints.note("clock_refused", wire.RESULTS.get(reply["result"], "?"))
            return
        round_trip_ms = utc_ms() - reply["utc_ms"]
        if not 0 <= round_trip_ms <= ROUND_TRIP_MAX_MS:
            self._complaints.note("slow_round_trip", f"{round_trip_ms} ms")
            return
        half_ms = (round_trip_ms + 1) // 2
        await asyncio.wrap_future(self._collector.writer.add_anchor(
            self.machine.node, self._journal_id, reply["boot"], reply["mono_ms"], reply["utc_ms"] + half_ms, half_ms + 1))

    async def _bring_roster(self) -> None:
        image = self._collector.roster(self.machine)
        if image.version == self.roster_version:
            return
        begun = await self._command("roster_begin", {
            "version": image.version, "count": image.badges, "made_s": utc_ms() // 1000, "digest": image.digest})
        offset = begun["value"]
        while begun["result"] == 0 and offset < len(image.entries):
            reply = await self._command("roster_chunk", {
                "offset": offset, "data": image.entries[offset:offset + CHUNK_BYTES]})
            # A node that does not get further would keep us here for good.
            if reply["result"] or reply["value"] <= offset:
                break
            offset = reply["value"]
        done = await self._command("roster_commit", {"version": image.version})
        if done["result"]:
            self._complaints.note("roster_refused", wire.RESULTS.get(done["result"], "?"))
            return
        self.roster_version = image.version
        LOG.info("%s: roster of %d badges is in force", self.machine.id, image.badges)


def secrets_of_machines(lab: Lab) -> dict[int, bytes]:
    """The secrets by node number. Raises Problem when a machine's node has none."""
    secrets = load_secrets(lab.keys)
    for machine in lab.machines:
        if machine.node not in secrets:
            raise Problem(lab.keys, None, f"has no secret for node {machine.node} ({machine.id})",
                          f"Provision the node first: fabtap board provision {machine.id}.")
    return secrets


class Collector:
    """The whole: a lab, its database, its ports."""

    def __init__(self, lab: Lab, writer: Writer, heard: Callable[[Machine, bytes], None] = lambda machine, event: None) -> None:
        self.lab = lab
        self.writer = writer
        self.heard = heard
        self.statuses: dict[str, dict[str, Any]] = {}
        self.links: dict[str, NodeLink] = {}
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
        """Serve until cancelled."""
        tasks = [asyncio.create_task(self._serve_port(machine)) for machine in self.lab.machines]
        tasks.append(asyncio.create_task(self._look_at_members()))
        tasks.append(asyncio.create_task(self._keep_counts()))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._store_counts()

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
                self.complaints(machine.id).note("port_busy", problem.what)
                await asyncio.sleep(GREET_S)
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
        link = self.links[machine.id] = NodeLink(machine, self, port.write, machine.id)
        helpers = [asyncio.create_task(link.look_after()), asyncio.create_task(self._greet(link))]
        reading = asyncio.create_task(self._read_port(machine, port, link))
        try:
            done, _ = await asyncio.wait([reading, *helpers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (reading, *helpers):
                task.cancel()
            await asyncio.gather(reading, *helpers, return_exceptions=True)

    async def _greet(self, link: NodeLink) -> None:
        while not link.greeted:
            link.greet()
            await asyncio.sleep(GREET_S)
        await asyncio.Event().wait()

    async def _read_port(self, machine: Machine, port: AsyncPort, link: NodeLink) -> None:
        complaints = self.complaints(machine.id)
        lines = frame.LineReader(LINE_MAX)
        seen = (0, 0, 0)
        while True:
            for data in lines.push(await port.read()):
                await self._take_frame(machine, link, complaints, data)
            now = (lines.console_lines, lines.overlong_lines, lines.bad_lines)
            for name, count, before in zip(("console_line", "overlong_line", "bad_line"), now, seen, strict=True):
                if count > before:
                    complaints.note(name, repr(lines.console[-1]) if name == "console_line" else "", count - before)
            seen = now
            lines.console.clear()

    async def _take_frame(self, machine: Machine, link: NodeLink, complaints: Complaints, data: bytes) -> None:
        try:
            message = self.peers.open(data)
            if message.node != machine.node:
                raise Refused("node_on_wrong_port")
            await link.handle(message)
        except Refused as refused:
            complaints.note(str(refused))
        except wire.WireError as error:
            complaints.note("bad_event", str(error))
        except StoreError as error:
            complaints.note("store_error", str(error))

    def _stamp(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in (self.lab.file, self.lab.members_file) if path.exists())

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
            if (lab.machines, lab.database, lab.keys) != (self.lab.machines, self.lab.database, self.lab.keys):
                LOG.warning("machines, database and keys are taken over at the next start only")
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
