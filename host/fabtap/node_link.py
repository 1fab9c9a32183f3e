"""What is said between the collector and one node, whatever carries the frames?

One NodeLink lives as long as one way to the node: a serial port that is open, a broker's connection. It knows what the node's
last hello said. A node that says something new is answered; it gets clock and roster by commands, one at a time, each bounded in
tries and time.

- An acknowledgement leaves only after the events it covers are committed.
- It leaves only for the journal that a hello on this link has told, and never for one that went back: its node would take events
  for durable that were never sent.
- A roster that the node refuses is sent again after ROSTER_RETRY_MIN_S, then after twice that, up to ROSTER_RETRY_MAX_S.
"""
import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Protocol

from fabtap.complaints import Complaints
from fabtap.floor import Floor
from fabtap.lab import Lab, Machine
from fabtap.peer import CHUNK_BYTES, Message, Peers, Refused, text_of
from fabtap.roster_image import RosterImage
from fabtap.store import StoreError, Writer
from nodecore import wire, words

LOG = logging.getLogger("fabtap.collector")
REPLY_S = 3.0
TRIES = 4
CLOCK_S = 60.0
ROUND_TRIP_MAX_MS = 2000
GREET_S = 2.0
LOOK_S = 2.0
ROSTER_RETRY_MIN_S = 60.0
ROSTER_RETRY_MAX_S = 900.0
STALE = 1


class NodeGone(Exception):
    """The node did not answer a command in time."""


def utc_ms() -> int:
    """The computer's UTC in milliseconds."""
    return time.time_ns() // 1_000_000


class Office(Protocol):
    """What a link asks of the collector that it belongs to."""

    lab: Lab
    writer: Writer
    peers: Peers
    floor: Floor
    statuses: dict[str, dict[str, Any]]
    went_back: set[tuple[int, bytes]]
    heard: Callable[[Machine, bytes], None]

    def complaints(self, port_name: str) -> Complaints:
        """The counter of one port."""

    def roster(self, machine: Machine) -> RosterImage:
        """The roster that the machine's node should have today."""


class NodeLink:
    """One node: what is known of it since its last hello, and the commands that it is sent.

    `send` takes the bytes of one frame and never waits; what it loses, the protocol sends again.
    """

    def __init__(self, machine: Machine, office: Office, send: Callable[[bytes], None]) -> None:
        self.machine = machine
        self.complaints = office.complaints(machine.id)
        self._office = office
        self._send_frame = send
        self._boot_nonce: int | None = None
        self._journal_id = b""
        self._watermark = 0
        self.roster_version = 0
        self._status_counter = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._clock_due_s = 0.0
        self._refused_version = 0
        self._roster_due_s = 0.0
        self._roster_wait_s = 0.0
        self._wake = asyncio.Event()

    def greet(self) -> None:
        """Ask the node to say hello."""
        self._send("greet", {})

    async def serve(self, reading: Coroutine[Any, Any, None]) -> None:
        """Greet the node and look after it while `reading` hands in its frames; ends, and raises, as the first of these does."""
        tasks = [asyncio.create_task(work) for work in (reading, self._look_after(), self._greet_until_heard())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def take(self, data: bytes) -> None:
        """Act on one frame, or count why not."""
        try:
            message = self._office.peers.open(data)
            if message.node != self.machine.node:
                raise Refused("node_on_wrong_port")
            await self._handle(message)
        except Refused as refused:
            self.complaints.note(str(refused))
        except wire.WireError as error:
            self.complaints.note("bad_event", str(error))
        except StoreError as error:
            self.complaints.note("store_error", str(error))

    async def _handle(self, message: Message) -> None:
        if message.name == "status" and not self._is_new(message.fields):
            return
        self._show(message)
        await {"hello": self._hello, "events": self._events, "status": self._status,
               "reply": self._reply}[message.name](message.fields)

    async def _hello(self, fields: dict[str, Any]) -> None:
        if fields["protocol"] != wire.PROTOCOL:
            self.complaints.note("other_protocol", f"node {self.machine.node} speaks version {fields['protocol']}; deploy it")
            return
        writer = self._office.writer
        watermark = await asyncio.wrap_future(writer.watermark(self.machine.node, fields["journal_id"]))
        if self._went_back(fields, watermark):
            return
        self._journal_id, self._watermark = fields["journal_id"], watermark
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
            # What kept a roster out may have been mended by the restart.
            self._refused_version = 0
        self.roster_version = fields["roster_version"]
        self._clock_due_s = 0.0
        self._ack()
        self._wake.set()

    def _went_back(self, fields: dict[str, Any], watermark: int) -> bool:
        """Does the node count on below what is stored of its journal? Then it has no link with us until it has another journal.

        Its flash is an older copy, or a clone's, or has lost its end. What it records now gets numbers that count as durable here:
        an acknowledgement would let the node throw it away, unsent. Once it has counted past the watermark its hello looks right
        again, so the journal is remembered for as long as the collector runs. A command that makes the node begin a new journal
        would be sent from here.
        """
        journal = self.machine.node, fields["journal_id"]
        if fields["next_seq"] > watermark and journal not in self._office.went_back:
            return False
        self._boot_nonce = None
        self._journal_id = b""
        if journal not in self._office.went_back:
            self._office.went_back.add(journal)
            LOG.error("%s: the journal of node %d went back: its next event is number %d, and %d are stored. Its flash is an older "
                      "copy, a clone, or has lost its end; nothing of it is acknowledged. Save what is in its folder /journal, "
                      "remove that folder and restart the node: it begins a new journal.",
                      self.machine.id, self.machine.node, fields["next_seq"], watermark)
        self.complaints.note("journal_went_back", "it needs a new journal: save its folder /journal, remove it, restart the node")
        return True

    async def _events(self, fields: dict[str, Any]) -> None:
        events = wire.unpack_events(fields["data"])
        result = await asyncio.wrap_future(self._office.writer.add_events(
            self.machine.node, fields["journal_id"], events, utc_ms()))
        if result.quarantined:
            LOG.error("%s: %d event(s) differ from those stored under the same number: a clone or a fault",
                      self.machine.id, result.quarantined)
        if fields["journal_id"] == self._journal_id:
            self._watermark = result.watermark
            self._ack()
        else:
            # They are stored, but only hello tells whether the journal went back.
            self.greet()
        for event in events:
            self._office.heard(self.machine, event)

    def _show(self, message: Message) -> None:
        """Tell the floor. It is a convenience: what it does not understand, an event of a newer node say, holds up no event."""
        try:
            self._office.floor.note(self.machine, message.name, message.fields)
        except Exception as error:
            self.complaints.note("floor_fault", repr(error))

    def _is_new(self, fields: dict[str, Any]) -> bool:
        """Is the status of the boot that we know, and no replay?"""
        if fields["boot_nonce"] != self._boot_nonce:
            self.greet()
            return False
        if fields["counter"] <= self._status_counter:
            self.complaints.note("replayed_status")
            return False
        return True

    async def _status(self, fields: dict[str, Any]) -> None:
        self._status_counter = fields["counter"]
        self._office.statuses[self.machine.id] = fields
        self._ack()

    async def _reply(self, fields: dict[str, Any]) -> None:
        waiting = self._waiting.get(fields["counter"])
        if waiting is None or waiting.done() or fields["boot_nonce"] != self._boot_nonce:
            self.complaints.note("late_reply")
            return
        waiting.set_result(fields)

    def _ack(self) -> None:
        self._send("ack", {"journal_id": self._journal_id, "seq": self._watermark})

    def _send(self, name: str, fields: dict[str, Any]) -> None:
        self._send_frame(self._office.peers.frame(self.machine.node, name, fields))

    async def _greet_until_heard(self) -> None:
        while self._boot_nonce is None:
            self.greet()
            await asyncio.sleep(GREET_S)
        await asyncio.Event().wait()

    async def _look_after(self) -> None:
        """Keep the node's clock and roster right, one command at a time."""
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
                self.complaints.note("no_answer", str(gone))
            except StoreError as error:
                self.complaints.note("store_error", str(error))

    async def _command(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Send a command until the node carries it out; every try has its own counter.

        A node that has seen a higher counter says so: the database was restored from a backup, and catches up here.
        """
        above = 0
        for _ in range(TRIES):
            nonce = self._boot_nonce
            if nonce is None:
                break
            counter = await asyncio.wrap_future(self._office.writer.next_counter(self.machine.node, nonce, above))
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
                continue
            finally:
                del self._waiting[counter]
        raise NodeGone(f"{self.machine.id} does not answer {name}")

    async def _set_clock(self) -> None:
        """Give the node the time, and take the round trip as an anchor of its own clock."""
        offset = datetime.now(self._office.lab.timezone).utcoffset()
        assert offset is not None
        journal_id = self._journal_id
        reply = await self._command("clock_set", {"local_offset_s": int(offset.total_seconds())})
        if reply["result"]:
            self.complaints.note("clock_refused", words.RESULTS.get(reply["result"], "?"))
            return
        round_trip_ms = utc_ms() - reply["utc_ms"]
        if not 0 <= round_trip_ms <= ROUND_TRIP_MAX_MS:
            self.complaints.note("slow_round_trip", f"{round_trip_ms} ms")
            return
        half_ms = (round_trip_ms + 1) // 2
        await asyncio.wrap_future(self._office.writer.add_anchor(
            self.machine.node, journal_id, reply["boot"], reply["mono_ms"], reply["utc_ms"] + half_ms, half_ms + 1))

    async def _bring_roster(self) -> None:
        image = self._office.roster(self.machine)
        if image.version == self.roster_version:
            return
        if image.version == self._refused_version and time.monotonic() < self._roster_due_s:
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
            self._put_roster_off(image.version, words.RESULTS.get(done["result"], "?"))
            return
        self.roster_version = image.version
        LOG.info("%s: roster of %d badges is in force", self.machine.id, image.badges)

    def _put_roster_off(self, version: int, why: str) -> None:
        """Each time the node refuses the same version we wait longer; another version is tried at once."""
        again = version == self._refused_version
        self._roster_wait_s = min(self._roster_wait_s * 2, ROSTER_RETRY_MAX_S) if again else ROSTER_RETRY_MIN_S
        self._refused_version = version
        self._roster_due_s = time.monotonic() + self._roster_wait_s
        self.complaints.note("roster_refused", f"{why}; version {version} is sent again in {self._roster_wait_s:.0f} s, "
                                               "another one at once")
