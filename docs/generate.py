"""What do the tables of nodecore look like to a reader? Writes the generated parts of docs/PROTOCOL.md from the code.

`generate.py` rewrites what stands between a part's markers; `generate.py --check` changes nothing and exits with 1 if that
would differ, or if a page names a path that is not there. Numbers and layouts come from nodecore; what a row means is said
here, and a row without a meaning is an error, so nothing new stays unexplained.
"""
import re
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "firmware"))

from nodecore import access, frame, wire, words  # noqa: E402 the path above finds it

PAGE = ROOT / "docs" / "PROTOCOL.md"
MARKER = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)
# A path in a page: in backquotes, below one of the repository's folders. `<name>` and `*` stand for many.
PATH = re.compile(r"`((?:firmware|host|boards|docs|tests)/[\w./-]+)`")

TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "i": "i32"}

MESSAGE_MEANINGS = {
    "hello": "The node introduces itself: at start, after 12 s of silence, when greeted. Answered by `ack`.",
    "events": "A batch of events, each behind its length (1 byte). Answered by `ack`.",
    "status": "How the node is, every 5 s while nothing else is due. Answered by `ack`.",
    "reply": "The answer to a command, under the command's counter.",
    "ack": "All events up to `seq` are durable in the collector's database.",
    "clock_set": "It is `utc_ms`; the lab's own time is `local_offset_s` ahead of it.",
    "roster_begin": "A roster of `count` badges is going to arrive.",
    "roster_chunk": "The roster's entry bytes at `offset`. The reply's `value` is the next offset.",
    "roster_commit": "Put the roster in force if it is whole. The reply's `value` is the version in force.",
    "greet": "Please say `hello`. Grants nothing.",
}
APPENDED_RULE = "\n\nA field that was appended later is left out by an older peer, and then reads as 0; so does a part of one."
EVENT_MEANINGS = {
    "booted": "The node has started. Energy counts from 0 again, under the epoch `energy_epoch`.",
    "badge_denied": "A badge was refused; `member` is 0 for an unknown one.",
    "session_started": "Written before the relay closes. Its `seq` is the session's name.",
    "session_checkpoint": "What the session has used so far: each `checkpoint_s`, and when the relay has opened.",
    "session_ended": "What the session has used, after the meter has settled.",
    "fault_seen": "Something broke; `detail` is text, padded with zero bytes.",
    "observation_started": "As `session_started`, on a machine that is only observed: no relay was switched, nobody owes anything.",
}
REASON_MEANINGS = {
    "none": "the badge is let in (stands in rosters, never in an event)",
    "unknown_badge": "the badge is in no row of members.csv, or the node's roster is older than that row",
    "no_training": "the member lacks the training that the machine asks for",
    "training_expired": "the training's last valid day is over",
    "member_held": "the member's status is `held`",
    "journal_full": "too many events wait for the collector; connect it",
    "machine_stopped": "the emergency stop's contact is open",
    "meter_silent": "no good meter reading for 3 s",
    "no_roster": "the node has never got a whole roster",
    "clock_unknown": "the training has a last day, and the node has had no time since it started",
    "flash_fault": "the session could not be written down",
}
END_MEANINGS = {
    "badge_removed": "the badge was away for `badge_out_ms`",
    "stop_pressed": "the stop button",
    "estop_opened": "the emergency stop's contact opened",
    "meter_silent": "no good meter reading for 3 s",
    "power_lost": "said by the fold, never by a node: a boot cut the session off",
    "flash_fault": "a checkpoint could not be written",
    "program_fault": "the program ended, or the relay's timer opened the relay",
    "idle": "no work for `idle_s`",
}
RESULT_MEANINGS = {
    "ok": "done",
    "stale": "the counter is not above the last one; `value` is the last one",
    "bad_order": "the piece does not follow the last one, or the roster is not complete",
    "bad_digest": "the roster's digest or order is wrong; the old roster stays in force",
    "flash_fault": "flash refused",
}
CAUSE_MEANINGS = {
    "unknown": "the port names another cause",
    "power_on": "power came",
    "hard_reset": "reset pin or `machine.reset()`, so also the end of a program fault and of service mode",
    "watchdog": "the loop did not feed the watchdog in time",
    "soft_reset": "Ctrl-D at the prompt",
}
FAULT_MEANINGS = {
    "program": "an exception reached the main loop; the node resets",
    "meter": "the meter fell silent",
    "reader": "the reader did not start",
    "relay_cut_by_timer": "the loop did not renew the relay in time, and its timer opened it",
}


def fields_of(layout, names):
    """`name type` of each field of a struct layout."""
    codes = re.findall(r"\d+s|[A-Za-z]", layout)
    shown = [f"`{name}` {TYPES.get(code) or code[:-1] + ' bytes'}" for name, code in zip(names, codes, strict=False)]
    if names and names[-1] == "data":
        shown.append("`data` the rest")
    return ", ".join(shown) or "none"


def table(head, rows):
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def messages():
    """The table of messages."""
    rows = []
    for number, (name, direction, layout, names) in sorted(wire.MESSAGES.items()):
        size = f"{struct.calcsize(layout)}{' + data' if names and names[-1] == 'data' else ''}"
        fields = fields_of(layout, names)
        if name in wire.APPENDED:
            layout_more, names_more = wire.APPENDED[name]
            size += f" + {struct.calcsize(layout_more)}"
            fields += f"; appended: {fields_of(layout_more, names_more)}"
        rows.append((number, f"`{name}`", direction, size, fields, MESSAGE_MEANINGS[name]))
    return table(("No.", "Message", "Way", "Body bytes", "Fields", "Meaning"), rows) + APPENDED_RULE


def events():
    """The head of every event, and the table of events."""
    head = f"Every event starts with {fields_of(wire.EVENT_HEAD, wire.EVENT_HEAD_FIELDS)}: {wire.EVENT_HEAD_BYTES} bytes. " \
           f"The longest event has {wire.EVENT_MAX} bytes.\n\n"
    rows = [(number, f"`{name}`", wire.EVENT_HEAD_BYTES + struct.calcsize(layout), fields_of(layout, names), EVENT_MEANINGS[name])
            for number, (name, layout, names) in sorted(wire.EVENTS.items())]
    return head + table(("Kind", "Event", "Bytes with head", "Fields after the head", "Meaning"), rows)


def numbers(title, names, meanings):
    """One table of numbered names."""
    rows = [(number, f"`{name}`", meanings[name]) for number, name in sorted(names.items())]
    return f"### {title}\n\n" + table(("No.", "Name", "Meaning"), rows)


def enumerations():
    """All tables of numbered names."""
    return "\n\n".join((
        numbers("Why a badge is refused: `badge_denied.reason`", words.REASONS, REASON_MEANINGS),
        numbers("Why a session ended: `session_ended.reason`", words.ENDS, END_MEANINGS),
        numbers("What came of a command: `reply.result`", words.RESULTS, RESULT_MEANINGS),
        numbers("Why the node started: `booted.cause`", words.CAUSES, CAUSE_MEANINGS),
        numbers("What broke: `fault_seen.fault`", words.FAULTS, FAULT_MEANINGS),
        numbers("Where the node stands: `status.state`", {number: name for name, number in access.STATE_NUMBERS.items()},
                {name: "the relay is permitted" if name in access.RELAY_STATES else "the relay is open"
                 for name in access.TABLE})))


def states():
    """The diagram of what leads elsewhere, and a table of what is heard and changes nothing."""
    arrows = {}
    for state, row in access.TABLE.items():
        for event, (target, _) in row.items():
            if target != state:
                arrows.setdefault((state, target), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> spent"]
    lines += [f"    {state} --> {target}: {', '.join(names)}" for (state, target), names in arrows.items()]
    lines += [f"    note right of {state}: the relay is permitted" for state in access.RELAY_STATES]
    lines += ["```", ""]
    stay = [(f"`{state}`", ", ".join(f"`{event}`" for event, (target, _) in row.items() if target == state) or "none")
            for state, row in access.TABLE.items()]
    return "\n".join(lines) + "\n" + table(("State", "Events that change nothing"), stay)


def limits():
    """The sizes that both ends agree on."""
    rows = [
        ("protocol version", wire.PROTOCOL),
        ("head of a frame, bytes", frame.HEAD_BYTES),
        ("tag of a frame, bytes", frame.TAG_BYTES),
        ("longest line to a node, bytes", frame.DOWN_LINE_MAX),
        ("longest line from a node, bytes", frame.UP_LINE_MAX),
        ("longest event, bytes", wire.EVENT_MAX),
    ]
    return table(("What", "Value"), rows)


PARTS = {"limits": limits, "messages": messages, "events": events, "enumerations": enumerations, "states": states}


def generated(text):
    """The page with every part made anew. Raises KeyError for a part that nobody makes."""
    return MARKER.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", text)


def missing_paths():
    """Paths that a page names and the checkout lacks."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "boards").rglob("*.md"))]
    return [f"{page.relative_to(ROOT)}: {name} is not there"
            for page in pages for name in PATH.findall(page.read_text(encoding="utf-8")) if not (ROOT / name).exists()]


def main(arguments):
    """0, or 1 when a check finds something."""
    before = PAGE.read_text(encoding="utf-8")
    after = generated(before)
    missing = [name for name in PARTS if f"<!-- generated: {name} -->" not in before]
    complaints = missing_paths() + [f"docs/PROTOCOL.md: the part {name} has no marker" for name in missing]
    if "--check" not in arguments:
        PAGE.write_text(after, encoding="utf-8")
    elif before != after:
        complaints.append("docs/PROTOCOL.md differs from the code: run `make docs`")
    for complaint in complaints:
        print(complaint)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
