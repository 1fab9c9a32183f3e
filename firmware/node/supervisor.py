"""How do the parts work together, tap by tap?

One loop: `step` looks at contacts, badge, meter, relay and port, each without waiting, and feeds the watchdog when all of them
have had their turn. The relay's permission is renewed here, in one place, and only while access says so. However the loop
ends, the relay is opened first.
"""
import gc
import sys

from nodecore import access, activity, frame, journal, link, power, presence, roster, ticks, usage, wire

FIRMWARE = b"fabtap 0.1.0"
RELAY_MS = 2000
LOOP_MS = 3
FAULT_SHOWN_MS = 10000
READER_MS = 25
READER_SESSION_MS = 100
READER_CHECK_MS = 5000
REFUSED_GONE_MS = 300
METER_SILENT_MS = 3000
METER_GAP_MS = 2000
METER_LATE_MS = 1000
SETTLE_MS = 1200
STATUS_BUSY_MS = 2000
METER_LAG_MS = 700
FAULT_NUMBERS = {"program": 1, "meter": 3, "reader": 4, "relay": 5}


class Node:
    """`parts` hands in the drivers and stores by name: see firmware/main.py, the only place that makes them."""

    def __init__(self, settings, parts, boot_nonce, cause, random_ms):
        self._settings = settings
        self._reader = parts["reader"]
        self._meter = parts["meter"]
        self._relay = parts["relay"]
        self._panel = parts["panel"]
        self._stop = parts["stop"]
        self._estop = parts["estop"]
        self._port = parts["port"]
        self._clock = parts["clock"]
        self._watchdog = parts["watchdog"]
        self._reset = parts["reset"]
        self._sleep_ms = parts["sleep_ms"]
        self._roster = parts["roster"]
        self._journal = parts["journal"]
        self._badge_mac = frame.Mac(frame.derive_key(settings["secret"], b"badge"))
        self._boot = self._journal.last_boot + 1
        self._boot_nonce = boot_nonce
        self._link = link.Link(settings["node"], settings["secret"], self._journal, boot_nonce, self._boot, random_ms)
        self._gates = bool(settings["gates"])
        self._access = access.Access(self._gates)
        self._presence = presence.Presence(self._clock.ticks())
        self._energy = power.Energy()
        self._activity = activity.Activity(settings["working_mw"])
        self._usage = None
        self._tap_waiting = False
        now = self._clock.ticks()
        self._reader_at = now
        self._reader_check_at = now
        self._reading_at = now
        self._power_before_mw = 0
        self._checkpoint_at = now
        self._settle_at = now
        self._worked_at = now
        self._state_told = ""
        self._state_at = now
        self._meter_expected = True
        self._booted_at = now
        self.flash_errors = 0
        self._fault_at = now
        self._faulty = False
        self._boot_recorded = False
        self._record_boot(cause)
        try:
            self._reader.start()
        except OSError as error:
            # Without a reader nobody gets in, but the node reports, and `check` goes on trying.
            self._fail("reader", str(error))

    def run(self):
        """Work until something breaks. A fault ends in a hard reset, Ctrl-C at the prompt; the relay is open in both."""
        try:
            while True:
                self.step()
                self._sleep_ms(LOOP_MS)
        except Exception as error:
            self._relay.off()
            try:
                sys.print_exception(error)
                self._end_hastily()
                self._fail("program", type(error).__name__ + " " + str(error))
            finally:
                # Whatever the last words cost, the reset comes.
                self._relay.off()
                self._reset()
        finally:
            self._relay.off()
            self._end_hastily()

    def _record_boot(self, cause):
        """The boot must be on record before anything else of it counts: its number is taken from the journal."""
        self._cause = cause
        self._boot_recorded = self._record(
            "booted", {"cause": cause, "roster_version": self._roster.version, "energy_epoch": self._boot}, reserve=0)

    def step(self):
        """One turn of everything."""
        now = self._clock.ticks()
        self._look_at_contacts(now)
        self._look_at_meter(now)
        self._look_at_badge(now)
        self._renew_relay()
        self._look_at_session(self._clock.ticks())
        self._exchange(self._clock.ticks())
        self._show(self._clock.ticks())
        self._watchdog.feed()

    def _show(self, now):
        state = self._access.state
        if self._faulty and ticks.reached(now, self._fault_at, FAULT_SHOWN_MS):
            self._faulty = False
        if state in ("session", "refused"):
            what = state
        elif self._faulty or not self._meter_expected or not self._boot_recorded:
            what = "fault"
        else:
            what = "idle"
        self._panel.show(what, now)
        self._panel.tick(now)

    def _look_at_contacts(self, now):
        if self._stop.poll(now):
            self._happened("stop_pressed")
        if self._estop.poll(now):
            self._happened("estop_opened")

    def _look_at_badge(self, now):
        in_session = self._access.state == "session"
        if not ticks.reached(now, self._reader_at, READER_SESSION_MS if in_session else READER_MS):
            return
        self._reader_at = now
        if ticks.reached(now, self._reader_check_at, READER_CHECK_MS):
            self._reader_check_at = now
            starts = self._reader.restarts + self._reader.refreshes
            self._reader.check()
            if self._access.state != "session" and starts != self._reader.restarts + self._reader.refreshes:
                self._presence.forget(now)
        gone_ms = self._settings["badge_out_ms"] if in_session else REFUSED_GONE_MS
        seen = self._presence.note(self._reader.poll(), now, gone_ms)
        if seen == "tap":
            self._tap_waiting = True
        elif seen == "absent":
            self._tap_waiting = False
            self._happened("badge_absent")
        if self._tap_waiting and self._access.state == "spent":
            # A tap comes only after an absence, which may have been seen while the last session settled.
            self._happened("badge_absent")
        if self._tap_waiting and self._access.state == "idle":
            self._tap_waiting = False
            self._evaluate()

    def _evaluate(self):
        hashed = roster.badge_hash(self._badge_mac, self._presence.current)
        member, reason = self._roster.look_up(hashed, self._clock.day())
        if reason == 0:
            reason = self._machine_reason()
        if reason == 0:
            reason = self._start(member)
        if reason:
            self._access.handle("badge_denied")
            self._record("badge_denied", {"member": member, "badge_hash": hashed, "reason": reason})

    def _machine_reason(self):
        if not self._boot_recorded:
            self._record_boot(self._cause)
            if not self._boot_recorded:
                return 10
        if self._estop.is_active or self._stop.is_active:
            # A stop button that is held, or stuck, could not stop what begins now.
            return 6
        if self._meter.silent_ms(self._clock.ticks()) >= METER_SILENT_MS:
            return 7
        return 0

    def _meter_silent(self, now):
        # A meter that was never heard is silent since ever, but gets as long after boot to speak up.
        return (self._meter.silent_ms(now) >= METER_SILENT_MS
                and ticks.reached(now, self._booted_at, METER_SILENT_MS))

    def _start(self, member):
        """Journal first (in its note, which is quick), then power. Returns 0, or why not."""
        values = {"member": member, "energy_mwh_total": self._energy.energy_mwh_total}
        try:
            seq = self._journal.note_ahead("session_started" if self._gates else "observation_started", self._boot,
                                           self._clock.mono_ms(), values)
        except journal.JournalFull:
            return 5
        except OSError:
            self._note_flash_error()
            return 10
        self._access.handle("badge_accepted")
        if self._access.relay_permitted:
            self._relay.allow(RELAY_MS)
        now = self._clock.ticks()
        self._worked_at = now
        self._usage = usage.Usage(seq, member, now)
        self._checkpoint_at = now
        try:
            self._journal.settle()
        except OSError:
            self._note_flash_error()
            self._happened("flash_failed")
        return 0

    def _renew_relay(self):
        if not self._access.relay_permitted:
            return
        if not self._relay.renew(RELAY_MS):
            self._happened("relay_dropped")
            self._fail("relay", "not renewed in time")

    def _happened(self, event):
        if self._access.handle(event) != "end":
            return
        self._relay.off()
        now = self._clock.ticks()
        self._usage.close(self._ended_at(now), access.END_REASONS[event])
        self._settle_at = now
        self._checkpoint(reserve=0)

    def _ended_at(self, now):
        # An observed machine has a switch of its own: there the session's end is now.
        return self._relay.opened_at if self._gates else now

    def _look_at_meter(self, now):
        if self._meter.poll(now):
            duration_ms = self._measured_ms(now)
            power_mw = self._meter.power_mw
            # After a missed reading nobody knows when the power changed: the lesser one counts.
            late = duration_ms > METER_LATE_MS
            self._energy.add(min(power_mw, self._power_before_mw) if late else power_mw, duration_ms)
            self._power_before_mw = power_mw
            # A reading is the mean of some tenths of a second: only between two that say so was there work for sure.
            worked = self._activity.state == "working"
            if self._activity.note(power_mw) == "working" and worked and self._usage:
                self._usage.note(duration_ms, now)
            if self._activity.state == "working":
                self._worked_at = now
            self._meter_expected = True
        elif self._meter_expected and self._meter_silent(now):
            self._meter_expected = False
            self._happened("meter_silent")
            self._fail("meter", "silent")

    def _measured_ms(self, now):
        """For how long the reading that has just come speaks."""
        duration_ms = ticks.elapsed_ms(now, self._reading_at)
        self._reading_at = now
        if duration_ms > METER_GAP_MS:
            # What flowed in the silence is not known; the member is not charged for it.
            return 0
        if self._usage:
            # Nor for what flowed before the tap.
            return min(duration_ms, ticks.elapsed_ms(now, self._usage.started_at))
        return duration_ms

    def _look_at_session(self, now):
        if self._access.state == "session":
            idle_ms = self._settings["idle_ms"]
            if idle_ms and ticks.reached(now, self._worked_at, idle_ms):
                self._happened("idle_too_long")
                return
            # The interval is what a power cut may cost, and the meter tells of what was up to METER_LAG_MS ago: write sooner.
            if ticks.reached(now, self._checkpoint_at, self._settings["checkpoint_ms"] - METER_LAG_MS):
                self._checkpoint_at = now
                if not self._checkpoint(reserve=2):
                    self._happened("flash_failed")
        elif self._access.state == "settling" and ticks.reached(
                now, self._settle_at, SETTLE_MS if self._gates else 0):
            self._access.handle("settled")
            self._end()
            if self._tap_waiting:
                # This badge came after the last one had gone: a tap of its own.
                self._access.handle("badge_absent")

    def _checkpoint(self, reserve):
        used = self._usage
        return self._record("session_checkpoint", {
            "session": used.seq, "on_ms": used.on_ms(self._clock.ticks()), "working_ms": used.working_ms,
            "energy_mwh_total": self._energy.energy_mwh_total}, reserve)

    def _end(self):
        used, self._usage = self._usage, None
        self._record("session_ended", {
            "session": used.seq, "reason": used.reason, "on_ms": used.on_ms(self._clock.ticks()),
            "working_ms": used.working_ms, "energy_mwh_total": self._energy.energy_mwh_total}, reserve=0)

    def _end_hastily(self):
        """The loop is over: what the session has cost is still to be written down."""
        if self._usage:
            if self._access.state == "session":
                self._access.handle("program_failed")
            self._usage.close(self._ended_at(self._clock.ticks()), access.END_REASONS["program_failed"])
            self._end()

    def _record(self, name, values, reserve=journal.RESERVE_RECORDS):
        """Journal one event; False, counted and shown, when flash refuses."""
        try:
            self._journal.append(name, self._boot, self._clock.mono_ms(), values, reserve)
        except (journal.JournalFull, OSError):
            self._note_flash_error()
            return False
        return True

    def _note_flash_error(self):
        self.flash_errors += 1
        self._faulty = True
        self._fault_at = self._clock.ticks()

    def _fail(self, fault, detail):
        self._faulty = True
        self._fault_at = self._clock.ticks()
        self._record("fault_seen", {"fault": FAULT_NUMBERS[fault], "detail": detail[:32].encode()})

    def _exchange(self, now):
        for data in self._port.receive(now):
            command = self._link.receive(data, now)
            if command:
                self._carry_out(command[0], command[1])
        if self._port.came_back():
            self._link.start_over()
        state = self._access.state
        if state != self._state_told:
            self._state_told = state
            self._state_at = now
            self._link.tell_status()
        if not self._port.is_ready:
            return
        data = self._link.next_frame(now, self._hello, self._status,
                                     STATUS_BUSY_MS if state == "session" else link.STATUS_MS)
        if data:
            self._port.send(data)

    def _carry_out(self, name, fields):
        mono_ms = self._clock.mono_ms()
        result, value = 0, 0
        try:
            if not self._boot_recorded:
                # Without its own record this boot's number may be another's, and so must not be dated.
                result = 4
            elif name == "clock_set":
                self._clock.set_utc_ms(fields["utc_ms"], fields["local_offset_s"])
            elif name == "roster_begin":
                result, value = self._roster.begin(fields["version"], fields["count"], fields["made_s"],
                                                   fields["digest"])
            elif name == "roster_chunk":
                result, value = self._roster.chunk(fields["offset"], fields["data"])
            elif name == "roster_commit":
                result, value = self._roster.commit(fields["version"])
        except OSError:
            self._note_flash_error()
            result = 4
        self._link.reply(fields["counter"], result, mono_ms, value)

    def _hello(self):
        return {
            "protocol": wire.PROTOCOL, "boot_nonce": self._boot_nonce, "boot": self._boot,
            "journal_id": self._journal.journal_id, "first_seq": self._journal.first_seq,
            "next_seq": self._journal.next_seq, "roster_version": self._roster.version,
            "board": self._settings["board"].encode(), "firmware": FIRMWARE}

    def _status(self):
        if self._access.state == "idle":
            # Some 20 ms on a chip: here nobody waits, and a tap's path then rarely has to.
            gc.collect()
        bad = self._link.frames_bad + self._link.frames_stale + self._port.bad_count
        return {
            "mono_ms": self._clock.mono_ms(), "state": access.STATE_NUMBERS[self._access.state],
            "relay": 1 if self._relay.is_on() else 0, "power_mw": self._meter.power_mw,
            "energy_mwh_total": self._energy.energy_mwh_total, "heap_bytes": gc.mem_alloc(),
            "frames_bad": bad, "reader_restarts": self._reader.restarts,
            "state_ms": ticks.elapsed_ms(self._clock.ticks(), self._state_at)}
