"""Does every event reach a collector exactly once over a line that loses frames, and does the node obey nobody else?"""
import random

from nodecore import frame, link, ticks, wire, words
from nodecore.journal import Journal
from test_journal import NEW_ID, MemoryStorage, note, opened, seqs

NODE = 0x1234
SECRET = bytes(range(32))
NONCE = 0xAABBCCDD
UP = frame.Mac(frame.derive_key(SECRET, b"up"))
DOWN = frame.Mac(frame.derive_key(SECRET, b"down"))
WAIT_MAX_MS = link.RETRY_MAX_MS + link.RETRY_MAX_MS // 4


class Bench:
    """One link over a journal in memory, and a clock that is moved by hand."""

    def __init__(self, journal=None, random_ms=lambda below: 0, now=5000):
        self.journal = journal or opened(MemoryStorage())
        self.link = link.Link(NODE, SECRET, self.journal, NONCE, 3, random_ms)
        self.now = now
        self.lines_bytes = []

    def hello(self):
        """The fields that only the node knows."""
        return {"protocol": wire.PROTOCOL, "boot_nonce": NONCE, "boot": 3, "journal_id": self.journal.journal_id,
                "first_seq": self.journal.first_seq, "next_seq": self.journal.next_seq, "roster_version": 0,
                "board": b"rpi-pico", "firmware": b"fabtap"}

    def status(self):
        """The same for a status."""
        return {"mono_ms": self.now, "state": 1, "relay": 0, "power_mw": 0, "energy_mwh_total": 0, "heap_bytes": 0,
                "frames_bad": 0, "reader_restarts": 0, "state_ms": 0}

    def next(self, later_ms=0):
        """(name, fields) of what the node sends, or None; so many ms later."""
        self.now = (self.now + later_ms) & ticks.MASK
        data = self.link.next_frame(self.now, self.hello, self.status)
        if data is None:
            return None
        self.lines_bytes.append(len(frame.to_line(data)))
        number, node_id, body = frame.open_frame(UP, data)
        assert node_id == NODE
        return wire.decode_message(number, body, "up")

    def next_name(self, later_ms=0):
        """Only its name, or None."""
        found = self.next(later_ms)
        return found and found[0]

    def wait(self, name, until_ms=100000):
        """Milliseconds until a message of that name is sent, others passed over."""
        for waited_ms in range(0, until_ms, 10):
            if self.next_name(10) == name:
                return waited_ms + 10
        raise AssertionError("no %s" % name)

    def tell(self, name, fields, mac=DOWN, node_id=NODE):
        """What the node makes of a message from the collector."""
        number, body = wire.encode_message(name, fields)
        return self.link.receive(frame.seal(mac, number, node_id, body), self.now)

    def ack(self, seq, journal_id=NEW_ID):
        """The collector acknowledges."""
        assert self.tell("ack", {"journal_id": journal_id, "seq": seq}) is None

    def command(self, counter, nonce=NONCE, **more):
        """A command of the collector."""
        return self.tell("roster_commit", {"boot_nonce": nonce, "counter": counter, "version": 9}, **more)

    def greeted(self):
        """The same, after hello and its acknowledgement."""
        assert self.next_name() == "hello"
        self.ack(0)
        assert self.link.greeted
        return self


def with_events(count, random_ms=lambda below: 0):
    """A greeted bench with events in its journal."""
    bench = Bench(random_ms=random_ms)
    for _ in range(count):
        note(bench.journal, reserve=0)
    return bench.greeted()


# Hello.

def test_the_node_says_hello_until_it_is_acknowledged():
    bench = Bench()
    note(bench.journal)
    name, fields = bench.next()
    assert (name, fields["boot_nonce"], fields["first_seq"], fields["next_seq"]) == ("hello", NONCE, 1, 2)
    assert (fields["journal_id"], fields["protocol"]) == (NEW_ID, wire.PROTOCOL)
    for _ in range(6):
        assert bench.wait("hello") <= WAIT_MAX_MS
    assert not bench.link.greeted
    bench.ack(0)
    assert bench.link.greeted and bench.next_name() == "events"


def test_before_it_is_greeted_a_node_sends_neither_events_nor_status():
    bench = Bench()
    note(bench.journal)
    names = [bench.next_name(500) for _ in range(200)]
    assert set(names) == {"hello", None}


def test_hellos_come_ever_more_rarely_down_to_a_bound():
    bench = Bench()
    bench.next()
    waits = [bench.wait("hello") for _ in range(9)]
    assert waits == [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]


def test_the_wait_is_lengthened_by_chance_and_stays_bounded():
    asked = []

    def longest(below):
        asked.append(below)
        return below - 1

    bench = Bench(random_ms=longest)
    bench.next()
    waits = [bench.wait("hello") for _ in range(9)]
    assert asked[:3] == [125, 312, 779]
    assert [wait > plain for wait, plain in zip(waits, (500, 1000, 2000, 4000, 8000, 16000, 30000))] == [True] * 7
    assert max(waits) <= WAIT_MAX_MS and waits[-1] > 37400


def test_nodes_of_other_luck_do_not_send_together():
    random.seed(8)
    lucky = [Bench(random_ms=random.randrange) for _ in range(4)]
    times = []
    for bench in lucky:
        bench.next()
        times.append(sum([bench.wait("hello") for _ in range(6)]))
    assert len(set(times)) == 4


# Events.

def test_events_are_sent_in_order_and_once_when_they_are_acknowledged():
    bench = with_events(20)
    found = []
    for _ in range(20):
        message = bench.next(10)
        if message and message[0] == "events":
            assert message[1]["journal_id"] == NEW_ID
            found += seqs(wire.unpack_events(message[1]["data"]))
            bench.ack(found[-1])
    assert found == list(range(1, 21))
    assert [bench.next_name(10) for _ in range(20)].count("events") == 0


def test_the_bytes_on_the_wire_are_those_of_the_journal():
    bench = with_events(3)
    assert wire.unpack_events(bench.next()[1]["data"]) == bench.journal.read(1, 400)


def test_nothing_more_is_sent_before_the_batch_is_acknowledged():
    bench = with_events(9)
    first = bench.next()
    assert seqs(wire.unpack_events(first[1]["data"])) == [1, 2, 3]
    assert [bench.next_name(10) for _ in range(49)].count("events") == 0
    bench.ack(3)
    assert seqs(wire.unpack_events(bench.next()[1]["data"])) == [4, 5, 6]


def test_a_batch_is_sent_again_when_its_acknowledgement_is_lost():
    bench = with_events(2)
    first = bench.next()
    waits = []
    for _ in range(3):
        waits.append(bench.wait("events"))
        assert bench.link.greeted
    assert waits == [500, 1000, 2000]
    bench.ack(0)
    bench.now += 4000
    assert bench.next() == first


def test_an_old_acknowledgement_does_not_shorten_the_wait():
    bench = with_events(2)
    assert bench.next_name() == "events"
    for _ in range(49):
        bench.ack(0)
        assert bench.next_name(10) != "events"
    assert bench.next_name(10) == "events"


def test_of_a_batch_that_was_acknowledged_in_part_only_the_rest_is_sent_again():
    bench = with_events(3)
    bench.next()
    bench.ack(2)
    assert bench.wait("events") == 500
    bench.ack(2)
    bench.now += 30000
    bench.ack(2)
    assert seqs(wire.unpack_events(bench.next()[1]["data"])) == [3]


def test_a_new_event_is_sent_at_once_when_nothing_is_owed():
    bench = with_events(1)
    bench.next()
    bench.ack(1)
    assert bench.next_name() in ("status", None)
    note(bench.journal)
    assert seqs(wire.unpack_events(bench.next(10)[1]["data"])) == [2]


def test_an_acknowledgement_of_another_journal_is_ignored_and_counted():
    bench = Bench()
    note(bench.journal)
    bench.next()
    bench.ack(0, b"otherone")
    assert not bench.link.greeted and bench.link.frames_stale == 1
    bench.ack(0)
    assert bench.link.greeted
    bench.ack(1, b"otherone")
    assert bench.journal.acked_seq == 0 and bench.link.frames_stale == 2


def test_an_acknowledgement_of_the_future_is_ignored_and_counted():
    bench = with_events(2)
    bench.ack(3)
    bench.ack(2**32 - 1)
    assert bench.journal.acked_seq == 0 and bench.link.frames_stale == 2
    assert seqs(wire.unpack_events(bench.next()[1]["data"])) == [1, 2]


def test_a_future_acknowledgement_does_not_greet():
    bench = Bench()
    bench.next()
    bench.ack(1)
    assert not bench.link.greeted and bench.link.frames_stale == 1


def test_a_collector_from_a_backup_gets_the_events_again():
    bench = with_events(9)
    for _ in range(3):
        bench.next()
        bench.ack(min(9, bench.journal.acked_seq + 3))
    assert bench.journal.acked_seq == 9
    # An old acknowledgement alone asks for nothing.
    bench.ack(4)
    assert bench.next_name() != "events"
    assert bench.tell("greet", {}) is None
    assert bench.next_name() == "hello"
    bench.ack(4)
    assert seqs(wire.unpack_events(bench.next()[1]["data"])) == [5, 6]
    # What may be dropped is still what was once acknowledged.
    assert bench.journal.acked_seq == 9


def damaged(count, bit=100):
    """A greeted bench with a flipped bit in its second segment (so early that none of it can be read); the first one is acked."""
    storage = MemoryStorage()
    bench = Bench(opened(storage))
    for _ in range(count):
        note(bench.journal)
    storage.flip("00000004", bit)
    bench.greeted()
    bench.next()
    bench.ack(3)
    return bench


def test_where_events_are_damaged_hello_says_where_they_go_on():
    bench = damaged(9)
    name, fields = bench.next()
    assert (name, fields["first_seq"], bench.journal.first_seq) == ("hello", 7, 1)
    bench.ack(6)
    assert seqs(wire.unpack_events(bench.next()[1]["data"])) == [7, 8, 9]


def test_a_hole_of_one_event_is_told_as_well():
    bench = damaged(9, 2 * 34 * 8 + 50)
    assert seqs(wire.unpack_events(bench.next()[1]["data"])) == [4, 5]
    bench.ack(5)
    name, fields = bench.next()
    assert (name, fields["first_seq"]) == ("hello", 7)
    bench.ack(6)
    assert seqs(wire.unpack_events(bench.next()[1]["data"])) == [7, 8, 9]


def test_where_the_last_events_are_damaged_hello_says_which_one_is_next():
    bench = damaged(6)
    name, fields = bench.next()
    assert (name, fields["first_seq"]) == ("hello", 7)
    bench.ack(6)
    assert bench.next_name() != "hello"
    note(bench.journal)
    assert seqs(wire.unpack_events(bench.next(10)[1]["data"])) == [7]


def test_a_hole_is_told_with_back_off_too():
    bench = damaged(9)
    assert bench.next_name() == "hello"
    for _ in range(49):
        # A collector that does not understand keeps saying what it has.
        bench.ack(3)
        assert bench.next_name(10) != "hello"
    bench.ack(3)
    assert bench.next_name(10) == "hello"


# Commands.

def test_a_command_is_handed_over_once_and_a_replay_is_counted():
    bench = Bench().greeted()
    assert bench.command(1) == ("roster_commit", {"boot_nonce": NONCE, "counter": 1, "version": 9})
    assert bench.link.frames_stale == 0
    assert bench.command(1) is None and bench.link.frames_stale == 1
    assert bench.command(7) is not None
    for counter in (0, 6, 7):
        assert bench.command(counter) is None, counter
    assert bench.link.frames_stale == 4 and bench.command(8) is not None


def test_a_replay_is_told_the_counter_that_was_reached():
    bench = Bench().greeted()
    bench.command(7)
    bench.command(3)
    name, fields = bench.next()
    assert (name, fields["counter"], fields["result"], fields["value"]) == ("reply", 3, link.STALE, 7)
    assert words.RESULTS[link.STALE] == "stale"


def test_a_command_that_came_twice_keeps_its_own_reply():
    bench = Bench().greeted()
    bench.command(7)
    bench.link.reply(7, 0, 1234, 5)
    bench.command(7)
    fields = bench.next()[1]
    assert (fields["counter"], fields["result"], fields["value"]) == (7, 0, 5)


def test_a_command_for_another_boot_is_refused_and_not_answered():
    bench = Bench().greeted()
    assert bench.command(1, NONCE ^ 1) is None and bench.link.frames_stale == 1
    assert bench.next_name() != "reply"
    # And it has not moved the counter.
    assert bench.command(1) is not None


def test_what_the_collector_did_not_seal_is_bad_and_does_nothing():
    bench = Bench().greeted()
    other = frame.Mac(frame.derive_key(bytes(32), b"down"))
    for mac in (UP, other):
        assert bench.command(1, mac=mac) is None
    assert bench.command(1, node_id=NODE + 1) is None
    assert bench.link.receive(b"", bench.now) is None
    assert bench.link.receive(bytes(40), bench.now) is None
    assert bench.link.receive(frame.seal(DOWN, 68, NODE, b"short"), bench.now) is None
    assert bench.link.receive(frame.seal(DOWN, 200, NODE, b""), bench.now) is None
    # A message that travels up is none that a node takes, even under the right key.
    assert bench.link.receive(frame.seal(DOWN, 1, NODE, bytes(100)), bench.now) is None
    assert (bench.link.frames_bad, bench.link.frames_stale) == (8, 0)
    assert bench.command(1) is not None


def test_a_forged_acknowledgement_acknowledges_nothing():
    bench = with_events(2)
    bench.tell("ack", {"journal_id": NEW_ID, "seq": 2}, mac=UP)
    assert bench.journal.acked_seq == 0 and bench.link.frames_bad == 1


def test_no_random_frame_is_obeyed():
    random.seed(9)
    bench = Bench().greeted()
    number, body = wire.encode_message("roster_commit", {"boot_nonce": NONCE, "counter": 9, "version": 9})
    sealed = frame.seal(DOWN, number, NODE, body)
    for _ in range(200):
        data = bytearray(sealed)
        for _ in range(1 + random.randrange(3)):
            data[random.randrange(len(data))] ^= 1 + random.randrange(255)
        if bytes(data) != sealed:
            assert bench.link.receive(bytes(data), bench.now) is None
    assert bench.link.frames_bad >= 199
    assert bench.link.receive(sealed, bench.now) is not None


def test_commands_are_taken_before_the_node_is_greeted():
    bench = Bench()
    assert bench.command(1) is not None and not bench.link.greeted


# Replies, status, silence.

def test_a_reply_goes_out_before_anything_else():
    bench = with_events(2)
    bench.link.reply(5, 2, 2**40, 77)
    name, fields = bench.next()
    assert (name, fields) == ("reply", {"boot_nonce": NONCE, "counter": 5, "result": 2, "boot": 3, "mono_ms": 2**40, "value": 77})
    assert bench.next_name() == "events"


def test_a_reply_does_not_wait_for_hello():
    bench = Bench()
    bench.next()
    bench.link.reply(5, 0, 1)
    assert bench.next()[1]["value"] == 0 and bench.next_name() is None


def test_the_first_status_has_a_number_that_a_collector_takes():
    # A collector counts from 0 at each hello and takes only what is above.
    bench = Bench().greeted()
    assert bench.next(link.STATUS_MS)[1]["counter"] == 1


def test_a_status_is_sent_at_its_period_and_is_numbered():
    bench = Bench().greeted()
    counters, gaps = [], []
    bench.wait("status")
    for _ in range(5):
        bench.ack(0)
        gaps.append(bench.wait("status"))
        bench.now += link.STATUS_MS - 10
        bench.ack(0)
        name, fields = bench.next(10)
        counters.append(fields["counter"])
        assert (name, fields["boot_nonce"], fields["boot"]) == ("status", NONCE, 3)
    assert gaps == [link.STATUS_MS] * 5
    assert counters == list(range(counters[0], counters[0] + 10, 2))


def test_a_status_that_is_asked_for_does_not_wait_for_its_turn():
    bench = Bench().greeted()
    bench.wait("status")
    bench.ack(0)
    assert bench.next(10) is None
    bench.link.tell_status()
    assert bench.next_name(10) == "status" and bench.next_name(10) is None


def test_a_new_way_to_the_collector_is_greeted_without_the_rest_of_a_wait():
    bench = with_events(2)
    for _ in range(4):
        bench.wait("events")
    assert bench.next(10) is None
    bench.link.start_over()
    assert bench.next_name(10) == "hello"
    bench.ack(0)
    assert bench.next_name(10) == "events"


def test_a_status_is_sent_while_a_batch_waits_too():
    bench = with_events(2)
    names = []
    for _ in range(1000):
        names.append(bench.next_name(10))
        bench.ack(0)
    assert names.count("status") == 2 and names.count("events") > 3


def silent_for(bench, duration_ms):
    """Is the node still content when it has heard nothing for so long?"""
    bench.now += duration_ms
    # A reply may go first.
    return "hello" not in (bench.next_name(), bench.next_name())


def test_after_a_silence_the_node_says_hello_again():
    assert silent_for(Bench().greeted(), link.SILENCE_MS - 1)
    bench = Bench().greeted()
    assert not silent_for(bench, link.SILENCE_MS) and not bench.link.greeted
    bench.ack(0)
    assert bench.link.greeted


def test_an_acknowledgement_and_a_command_break_the_silence_and_nothing_else_does():
    def heard_after(tell):
        bench = Bench().greeted()
        bench.now += link.SILENCE_MS - 10
        tell(bench)
        return silent_for(bench, 20)

    assert heard_after(lambda bench: bench.ack(0))
    assert heard_after(lambda bench: bench.command(1))
    assert not heard_after(lambda bench: None)
    assert not heard_after(lambda bench: bench.ack(0, b"otherone"))
    assert not heard_after(lambda bench: bench.ack(9))
    assert not heard_after(lambda bench: bench.command(0))
    assert not heard_after(lambda bench: bench.command(1, NONCE ^ 1))
    assert not heard_after(lambda bench: bench.command(1, mac=UP))


def test_greet_starts_over_at_once():
    bench = with_events(2)
    assert bench.next_name() == "events"
    assert bench.next_name() != "events"
    bench.tell("greet", {})
    assert not bench.link.greeted and bench.next_name() == "hello"
    bench.ack(0)
    assert bench.next_name() == "events"


def test_greet_shortens_a_long_wait():
    bench = Bench()
    for _ in range(7):
        bench.wait("hello")
    assert bench.next_name(10) is None
    bench.tell("greet", {})
    assert bench.next_name() == "hello"


def test_a_forged_greet_does_nothing():
    bench = Bench().greeted()
    bench.tell("greet", {}, mac=UP)
    assert bench.link.greeted and bench.link.frames_bad == 1


def test_all_of_it_works_over_the_counters_wrap():
    bench = Bench(now=ticks.MASK - 600)
    bench.next()
    assert [bench.wait("hello") for _ in range(3)] == [500, 1000, 2000]
    bench.ack(0)
    bench.now = ticks.MASK - 5000
    bench.ack(0)
    assert silent_for(bench, 0)
    bench.now = (bench.now + link.SILENCE_MS - 1) & ticks.MASK
    assert bench.next_name() != "hello"
    assert bench.next_name(1) == "hello"


# Lines.

def test_no_line_up_is_longer_than_its_bound():
    journal = Journal(MemoryStorage(), 4000, 5000)
    journal.open(NEW_ID)
    bench = Bench(journal)
    for _ in range(60):
        journal.append("fault_seen", 1, 2**63, {"fault": 1, "detail": b"x" * 32})
    bench.greeted()
    bench.link.reply(5, 2, 2**40, 77)
    found = []
    while len(found) < 60:
        message = bench.next(link.STATUS_MS)
        if message and message[0] == "events":
            found += seqs(wire.unpack_events(message[1]["data"]))
            bench.ack(found[-1])
    assert len(bench.lines_bytes) > 9 and max(bench.lines_bytes) > 500
    assert max(bench.lines_bytes) <= frame.UP_LINE_MAX


def line_bytes(body_bytes):
    """Length of the line of a body."""
    return len(frame.to_line(frame.seal(UP, 2, NODE, bytes(body_bytes))))


def test_the_longest_batch_and_the_longest_body_fit_in_a_line_up():
    assert 8 + max(link.BATCH_BYTES, 1 + wire.EVENT_MAX) <= wire.BODY_MAX
    assert line_bytes(wire.BODY_MAX) <= frame.UP_LINE_MAX


def test_every_message_down_fits_in_a_line_down():
    largest = {"journal_id": bytes(8), "data": bytes(96), "digest": bytes(32), "local_offset_s": -(2**31)}
    count = 0
    for name, direction, _, fields in wire.MESSAGES.values():
        if direction == "down":
            values = {field: largest.get(field, 2**32 - 1) for field in fields}
            number, body = wire.encode_message(name, values)
            line = frame.to_line(frame.seal(DOWN, number, NODE, body))
            assert len(line) <= frame.DOWN_LINE_MAX, name
            assert frame.LineReader(frame.DOWN_LINE_MAX).push(line) != [], name
            count += 1
    assert count == len([row for row in wire.MESSAGES.values() if row[1] == "down"]) >= 6


# The whole, over a bad line.

class Collector:
    """What the collector does with hello, events and status, in short; see the database's rules in the host."""

    def __init__(self):
        self.stored = {}
        self.gaps = set()
        self.watermark = 0

    def take(self, name, fields):
        """The acknowledgement for one message, as (journal_id, seq), or None."""
        if name == "hello":
            for seq in range(self.watermark + 1, fields["first_seq"]):
                if seq not in self.stored:
                    self.gaps.add(seq)
        elif name == "events":
            for event in wire.unpack_events(fields["data"]):
                seq = wire.event_seq(event)
                assert self.stored.get(seq, event) == event
                self.stored[seq] = event
        while self.watermark + 1 in self.stored or self.watermark + 1 in self.gaps:
            self.watermark += 1
        return self.watermark if name != "reply" else None


def run(bench, collector, steps, loss_of_8, each=lambda step: None):
    """Let both talk, with so many of eight frames lost on each way."""
    for step in range(steps):
        each(step)
        message = bench.next(100)
        if message and random.randrange(8) >= loss_of_8:
            seq = collector.take(message[0], message[1])
            if seq is not None and random.randrange(8) >= loss_of_8:
                bench.ack(seq)


def test_every_event_arrives_over_a_line_that_loses_half_of_all():
    random.seed(31)
    for loss_of_8 in (0, 2, 4):
        bench, collector = Bench(random_ms=random.randrange), Collector()
        run(bench, collector, 1500, loss_of_8, lambda step, journal=bench.journal: step % 30 or note(journal))
        run(bench, collector, 3000, loss_of_8)
        assert sorted(collector.stored) == list(range(1, 51)) and collector.watermark == 50
        assert collector.gaps == set() and bench.journal.acked_seq == 50


def test_a_restored_collector_and_a_node_with_damage_end_with_all_that_can_be_read():
    random.seed(32)
    storage = MemoryStorage()
    bench, collector = Bench(opened(storage), random.randrange), Collector()
    for _ in range(20):
        note(bench.journal)
    storage.flip("0000000a", 34 * 8 + 99)
    run(bench, collector, 600, 1)
    assert collector.watermark == 20 and collector.gaps == {11, 12}
    restored = Collector()
    restored.stored = {seq: collector.stored[seq] for seq in range(1, 6)}
    restored.watermark = 5
    bench.tell("greet", {})
    run(bench, restored, 1200, 1)
    assert restored.stored == collector.stored and restored.watermark == 20 and restored.gaps == {11, 12}
