"""What does the node send next, what may a frame from the collector make it do, and when is a message sent again?

No ports and no clock: frames and counter readings come in, frames go out. Rules:
- Events are sent in order from the one behind the last acknowledgement; a batch is sent again, with back-off, until the
  acknowledgement covers it. Where damage left a hole, hello says where the events go on, until that is acknowledged.
- An acknowledgement is bound to journal_id and only ever grows, so it needs no counter. Only the one that answers hello may be
  lower: a collector restored from a backup asks again. A replayed one costs no more than events that are sent twice.
- `greet` asks for a greeting and grants nothing, so it needs none either.
- Every other frame from the collector carries this boot's nonce and a counter that must grow: a replay is refused and counted.
- Nothing heard for `SILENCE_MS` means that the collector may be new: the node greets it again.
"""
from nodecore import frame, ticks, wire

RETRY_MIN_MS = 500
RETRY_MAX_MS = 30000
SILENCE_MS = 12000
STATUS_MS = 5000
STALE = 1
"""The number of words.RESULTS for a counter that is not above the last one."""
BATCH_BYTES = 400
"""Event bytes in one batch; the line that carries it stays below frame.UP_LINE_MAX."""


class Link:
    """The node's end of the protocol. `secret` is the node's; `random_ms(n)` gives 0..n-1 for the jitter."""

    def __init__(self, node_id, secret, journal, boot_nonce, boot, random_ms):
        self._node_id = node_id
        self._mac_up = frame.Mac(frame.derive_key(secret, b"up"))
        self._mac_down = frame.Mac(frame.derive_key(secret, b"down"))
        self._journal = journal
        self._boot_nonce = boot_nonce
        self._boot = boot
        self._random_ms = random_ms
        self._counter_up = 0
        self._counter_down = 0
        self._reply = None
        self._sent_at = 0
        self._wait_ms = 0
        self._sent_upto = 0
        self._durable_seq = 0
        self._heard_at = 0
        self._status_at = 0
        self._status_asked = False
        self.greeted = False
        self.frames_bad = 0
        self.frames_stale = 0

    def receive(self, data, now):
        """Take one frame; return (name, fields) of a command to carry out, or None. Never raises for the peer's faults."""
        try:
            number, node_id, body = frame.open_frame(self._mac_down, data)
            if node_id != self._node_id:
                raise frame.FrameError("for node %d" % node_id)
            name, fields = wire.decode_message(number, body, "down")
        except ValueError:
            self.frames_bad += 1
            return None
        if name == "ack":
            self._acknowledged(fields, now)
            return None
        if name == "greet":
            self.start_over()
            return None
        if fields["boot_nonce"] != self._boot_nonce:
            self.frames_stale += 1
            return None
        if fields["counter"] <= self._counter_down:
            # A replay, or a collector whose database is older than this boot: it is told how far to count on.
            self.frames_stale += 1
            if self._reply is None:
                self.reply(fields["counter"], STALE, 0, self._counter_down)
            return None
        self._counter_down = fields["counter"]
        self._heard_at = now
        return name, fields

    def _acknowledged(self, fields, now):
        if fields["journal_id"] != self._journal.journal_id or not self._journal.acknowledge(fields["seq"]):
            self.frames_stale += 1
            return
        self._heard_at = now
        self._durable_seq = max(fields["seq"], self._durable_seq if self.greeted else 0)
        if not self.greeted or self._durable_seq >= self._sent_upto:
            self.greeted = True
            self._wait_ms = 0
            self._sent_upto = 0

    def reply(self, counter, result, mono_ms, value=0):
        """Answer a command; the answer goes out before anything else."""
        self._reply = self._seal("reply", {
            "boot_nonce": self._boot_nonce, "counter": counter, "result": result, "boot": self._boot,
            "mono_ms": mono_ms, "value": value})

    def tell_status(self):
        """The node's state has changed: the next status does not wait for its turn."""
        self._status_asked = True

    def next_frame(self, now, hello, status, status_ms=STATUS_MS):
        """Frame bytes to send now, or None. `hello()` and `status()` give the fields that only the node knows; a status is due
        every `status_ms`."""
        if self._reply is not None:
            data, self._reply = self._reply, None
            return data
        if self.greeted and ticks.reached(now, self._heard_at, SILENCE_MS):
            self.start_over()
        if not self.greeted:
            return self._send(now, "hello", hello) if self._due(now) else None
        if self._journal.next_seq - 1 > self._durable_seq and self._due(now):
            return self._send_events(now, hello)
        if self._status_asked or ticks.reached(now, self._status_at, status_ms):
            self._status_at = now
            self._status_asked = False
            return self._seal("status", self._numbered(status()))
        return None

    def start_over(self):
        """Greet the collector: it may be another one, or the way to it is new."""
        self.greeted = False
        self._wait_ms = 0
        self._sent_upto = 0

    def _due(self, now):
        return self._wait_ms == 0 or ticks.reached(now, self._sent_at, self._wait_ms)

    def _send_events(self, now, hello):
        events = self._journal.read(self._durable_seq + 1, BATCH_BYTES)
        first = wire.event_seq(events[0]) if events else self._journal.next_seq
        if first > self._durable_seq + 1:
            self._sent_upto = first - 1
            return self._send(now, "hello", lambda: self._behind_hole(hello(), first))
        self._sent_upto = wire.event_seq(events[-1])
        fields = {"journal_id": self._journal.journal_id, "data": wire.pack_events(events)}
        return self._send(now, "events", lambda: fields)

    def _behind_hole(self, fields, first):
        fields["first_seq"] = first
        return fields

    def _send(self, now, name, fields):
        self._sent_at = now
        backed_off = min(RETRY_MAX_MS, max(RETRY_MIN_MS, self._wait_ms * 2))
        self._wait_ms = backed_off + self._random_ms(backed_off // 4)
        return self._seal(name, fields())

    def _numbered(self, fields):
        self._counter_up += 1
        fields["boot_nonce"] = self._boot_nonce
        fields["counter"] = self._counter_up
        fields["boot"] = self._boot
        return fields

    def _seal(self, name, fields):
        number, body = wire.encode_message(name, fields)
        return frame.seal(self._mac_up, number, self._node_id, body)
