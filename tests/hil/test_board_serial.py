"""What does a node make of what comes over its serial port, and what does opening that port do to it?

The same tests run on a simulated board, on a mocked serial port where exact bytes are the point, and on a real board with
--board-port.
"""
import hashlib
import random
from typing import Any

import pytest

from fabtap.lab import AccessEntry
from fabtap.peer import CHUNK_BYTES
from fabtap.port import PortGone
from fabtap.roster_image import RosterImage, build_roster
from nodecore import frame, wire
from tests.hil.board_backends import PlainBoard, drop_lines_on_close, drops_lines_on_close, node_frame, node_line
from tests.rig import ADA, wait_until

JOURNAL_ID = bytes(range(8))
HELLO = {"protocol": 1, "boot_nonce": 0xA1B2C3D4, "boot": 3, "journal_id": JOURNAL_ID, "first_seq": 1, "next_seq": 5,
         "roster_version": 0, "board": b"rpi-pico", "firmware": b"fabtap 0.1.0"}
UTC_MS, CENTRAL_S = 1_790_000_000_000, -5 * 3600
# Made apart from our code: with hmac, hashlib and base64, for node 1 with the secret bytes(range(32)).
GREET_LINE = b"\n~RQEAAAD0vIdj2DTKUakUfLVp/c2X\n"
on_all = pytest.mark.board_backends("simulated", "mocked", "real")
on_boards = pytest.mark.board_backends("simulated", "real")


def expect_greeting(board: PlainBoard, *first: bytes) -> None:
    """Tell the mock of a greet, its hello and the ack; `first` is what comes before the hello."""
    hello = node_line(board.secret, board.node, "hello", HELLO)
    board.expect(board.peers.line(board.node, "greet", {}), *first, hello)
    board.expect(board.peers.line(board.node, "ack", {"journal_id": JOURNAL_ID, "seq": HELLO["next_seq"] - 1}))


def a_roster(board: PlainBoard, count: int = 20) -> RosterImage:
    """A roster in which Ada may use the machine, with so many badges that it comes in several pieces."""
    entries = [AccessEntry(bytes.fromhex(ADA), 101, 0, None)]
    entries += [AccessEntry(bytes((9, 9, 9, number)), 200 + number, 0, None) for number in range(count - 1)]
    return build_roster(board.secret, entries)


def begin_roster(board: PlainBoard, image: RosterImage) -> None:
    begun = board.command("roster_begin", version=image.version, count=image.badges, made_s=1, digest=image.digest)
    assert (begun["result"], begun["value"]) == (0, 0)


@on_all
def test_a_greeting_is_answered_with_hello(board: PlainBoard) -> None:
    expect_greeting(board)
    board.open()
    hello = board.greet()
    assert hello["protocol"] == 1
    assert hello["board"].rstrip(b"\0") == b"rpi-pico"
    assert hello["firmware"].startswith(b"fabtap ")
    assert hello["next_seq"] > hello["first_seq"] >= 1


@pytest.mark.board_backends("mocked")
def test_the_bytes_of_a_greeting_are_these(board: PlainBoard) -> None:
    board.expect(GREET_LINE)
    board.open()
    board.send("greet")


@on_all
def test_a_command_is_carried_out_and_answered_under_its_counter(board: PlainBoard) -> None:
    expect_greeting(board)
    fields = {"boot_nonce": HELLO["boot_nonce"], "counter": 1, "utc_ms": UTC_MS, "local_offset_s": CENTRAL_S}
    reply = {"boot_nonce": HELLO["boot_nonce"], "counter": 1, "result": 0, "boot": 3, "mono_ms": 1234, "value": 0}
    board.expect(board.peers.line(board.node, "clock_set", fields), node_line(board.secret, board.node, "reply", reply))
    board.open()
    hello = board.greet()
    answer = board.command("clock_set", utc_ms=UTC_MS, local_offset_s=CENTRAL_S)
    assert answer["result"] == 0
    assert answer["boot"] == hello["boot"]
    assert answer["mono_ms"] > 0


@on_all
def test_closing_and_opening_the_port_does_not_reset_the_board(board: PlainBoard) -> None:
    for _ in range(3):
        expect_greeting(board)
    seen = []
    for _ in range(3):
        board.open()
        hello = board.greet()
        seen.append((hello["boot_nonce"], hello["boot"], hello["journal_id"]))
        board.close()
    assert seen == [seen[0]] * 3


@on_boards
def test_a_reset_is_seen_as_another_boot(board: PlainBoard) -> None:
    """The control of the test above: a board that did reset would be noticed."""
    board.open()
    before = board.greet()
    board.write(b"\x03")
    board.text_until(b">>> ")
    board.write(b"import machine\rmachine.reset()\r")
    board.close()
    # A real board's USB port vanishes for a moment.
    after = wait_until(lambda: hello_of(board), 20, "the board is back")
    assert after["boot"] == before["boot"] + 1
    assert after["boot_nonce"] != before["boot_nonce"]
    assert after["journal_id"] == before["journal_id"]


def hello_of(board: PlainBoard) -> dict[str, Any]:
    """The hello of a board that may be gone; {} while it is."""
    try:
        board.open()
        return board.greet()
    except (PortGone, OSError):
        board.close()
        return {}


@on_boards
def test_hupcl_is_cleared_so_that_closing_leaves_the_lines(board: PlainBoard) -> None:
    drop_lines_on_close(board.path)
    board.open()
    assert not drops_lines_on_close(board.port.fileno())


@pytest.mark.board_backends("mocked")
def test_the_port_is_opened_exclusively_and_no_line_is_touched(board: PlainBoard) -> None:
    board.open()
    assert not drops_lines_on_close(board.port.fileno())
    board.close()
    arguments, more = board.constructor.call_args
    assert arguments == (str(board.path), 115200)
    assert more == {"timeout": 0, "write_timeout": 0, "exclusive": True}
    assert board.ports[0].lines_set == []


@pytest.mark.board_backends("mocked")
def test_a_program_that_touches_the_lines_one_by_one_is_noticed(board: PlainBoard) -> None:
    """The control of the test above."""
    board.open()
    board.port.dtr = False
    board.port.setRTS(False)
    assert board.ports[0].lines_set == ["dtr", "rts"]


NOISE = {
    "console text": b"Traceback (most recent call last):\r\n  File \"main.py\", line 3\r\n",
    "half a frame": b"\n~RQEAAADIwI3x",
    "a frame cut off by another line": b"\n~RQEAAADIwI3x\n",
    "no base64": b"~!!!!****\n",
    "an empty frame": b"~\n~\n",
    "a short frame": b"~AAAA\n",
    "zero bytes": bytes(50) + b"\n",
    "all bytes but Ctrl-C": bytes(set(range(256)) - {3}) + b"\n",
    "an over-long line": b"x" * 3000 + b"\n",
    "an over-long frame": b"~" + b"A" * 3000 + b"\n",
    "an over-long line without an end": b"y" * 1000,
}


@on_boards
@pytest.mark.parametrize("noise", NOISE)
def test_a_node_survives_noise_and_answers_the_next_frame(board: PlainBoard, noise: str) -> None:
    board.open()
    board.greet()
    board.write(NOISE[noise])
    reply = board.command("clock_set", utc_ms=UTC_MS, local_offset_s=0)
    assert reply["result"] == 0
    board.write(NOISE[noise] + b"\n" + NOISE[noise])
    assert board.greet()["boot_nonce"] == board.nonce


@pytest.mark.board_backends("mocked")
@pytest.mark.parametrize("noise", NOISE)
def test_the_host_survives_noise_and_reads_the_next_frame(board: PlainBoard, noise: str) -> None:
    expect_greeting(board, NOISE[noise])
    board.open()
    assert board.greet()["boot_nonce"] == HELLO["boot_nonce"]


@on_boards
def test_random_noise_is_survived(board: PlainBoard, rng: random.Random) -> None:
    board.open()
    board.greet()
    for _ in range(20):
        kind = rng.choice(("bytes", "cut", "flip"))
        line = board.peers.line(board.node, "greet", {})
        if kind == "bytes":
            noise = bytes(rng.choice([number for number in range(256) if number != 3]) for _ in range(rng.randrange(400)))
        elif kind == "cut":
            noise = line[:rng.randrange(len(line))]
        else:
            at = rng.randrange(len(line))
            flipped = line[at] ^ 1 << rng.randrange(8)
            noise = line[:at] + bytes((flipped if flipped != 3 else 4,)) + line[at + 1:]
        board.write(noise)
    reply = board.command("clock_set", utc_ms=UTC_MS, local_offset_s=0)
    assert reply["result"] == 0


@on_boards
def test_frames_that_are_not_for_this_node_are_not_answered_but_counted(board: PlainBoard) -> None:
    board.open()
    board.greet()
    before = board.frames_bad()
    fields = {"boot_nonce": board.nonce, "counter": board.counter + 1, "utc_ms": UTC_MS, "local_offset_s": 0}

    def sealed(name: str, values: dict[str, Any], node: int = board.node, secret: bytes = board.secret,
               key: bytes = b"down") -> bytes:
        return frame.to_line(node_frame(secret, node, name, values, key))

    mac = frame.Mac(frame.derive_key(board.secret, b"down"))
    refused = {
        "wrong MAC": sealed("clock_set", fields, secret=bytes(32)),
        "other node": sealed("clock_set", fields, node=board.node + 1),
        "key of the other direction": sealed("clock_set", fields, key=b"up"),
        "message of the other direction": sealed("hello", {**HELLO, "boot_nonce": board.nonce}),
        "unknown message": frame.to_line(frame.seal(mac, 99, board.node, b"?")),
        "body cut short": frame.to_line(frame.seal(mac, 65, board.node, bytes(3))),
        "nonce of another boot": sealed("clock_set", {**fields, "boot_nonce": board.nonce ^ 1}),
    }
    # Each kind is sent 2**n times, so that the sum tells which of them was not counted.
    total = 0
    for number, line in enumerate(refused.values()):
        board.write(line * 2**number)
        total += 2**number
    # The next status may have been made before the node had read all of it.
    after = board.frames_bad()
    if after - before < total:
        after = board.frames_bad()
    missing = [kind for number, kind in enumerate(refused) if not (after - before) >> number & 1]
    assert after - before == total, f"not counted: {missing}"
    assert not [message for message in board.messages if message.name in ("reply", "hello")]
    # The control: the same command under the right key, node, nonce and direction is answered.
    board.write(sealed("clock_set", fields))
    board.counter += 1
    assert board.message("reply")["counter"] == board.counter


@on_boards
def test_a_replayed_command_is_answered_stale_and_not_carried_out(board: PlainBoard) -> None:
    board.open()
    board.greet()
    image = a_roster(board)
    board.counter += 7
    counter = board.counter
    begin = board.peers.line(board.node, "roster_begin", {
        "boot_nonce": board.nonce, "counter": counter, "version": image.version, "count": image.badges, "made_s": 1,
        "digest": image.digest})
    board.write(begin)
    assert board.message("reply")["result"] == 0
    first = board.command("roster_chunk", offset=0, data=image.entries[:CHUNK_BYTES])
    assert (first["result"], first["value"]) == (0, CHUNK_BYTES)
    board.write(begin)
    stale = board.message("reply")
    assert (stale["counter"], stale["result"], stale["value"]) == (counter, 1, counter + 1)
    # Had the roster been begun anew, a piece from the middle would be out of order.
    second = board.command("roster_chunk", offset=CHUNK_BYTES, data=image.entries[CHUNK_BYTES:2 * CHUNK_BYTES])
    assert (second["result"], second["value"]) == (0, 2 * CHUNK_BYTES)
    # The control: the same begin under a fresh counter does start over.
    begin_roster(board, image)
    late = board.command("roster_chunk", offset=CHUNK_BYTES, data=image.entries[CHUNK_BYTES:2 * CHUNK_BYTES])
    assert late["result"] == 2


def push_roster(board: PlainBoard, image: RosterImage) -> dict[str, Any]:
    """Send a roster piece by piece; the reply to the commit."""
    begin_roster(board, image)
    for offset in range(0, len(image.entries), CHUNK_BYTES):
        assert board.command("roster_chunk", offset=offset, data=image.entries[offset:offset + CHUNK_BYTES])["result"] == 0
    return board.command("roster_commit", version=image.version)


@on_boards
def test_a_roster_comes_into_force_only_whole(board: PlainBoard) -> None:
    board.open()
    board.greet()
    image = a_roster(board)
    spoiled = image._replace(version=image.version ^ 2, digest=hashlib.sha256(b"other").digest())
    assert push_roster(board, image)["result"] == 0
    assert push_roster(board, spoiled)["result"] == 3
    assert board.greet()["roster_version"] == image.version


@on_boards
def test_ctrl_c_gives_the_prompt_with_the_relay_pin_low(board: PlainBoard) -> None:
    board.open()
    board.greet()
    board.write(b"\x03")
    board.text_until(b">>> ")
    board.write(b"import machine; print('pin', machine.Pin(15).value())\r")
    # The echo of the line says print('pin', ...), only the answer says this.
    board.text_until(b"\npin 0")
    # Ctrl-D starts the node again: a soft reset, as on every board.
    board.write(b"\x04")
    board.text_until(b"MPY: soft reboot")
    board.greet()


@pytest.mark.board_backends("simulated")
def test_ctrl_c_in_a_session_opens_the_relay(board: PlainBoard) -> None:
    board.open()
    board.greet()
    push_roster(board, a_roster(board))
    # A badge that lies there at boot opens nothing: the node must have seen that none does.
    wait_until(lambda: board.command("clock_set", utc_ms=UTC_MS, local_offset_s=0)["mono_ms"] > 1000, 10, "a second since boot")
    board.control.ask("tap", uid=ADA)
    wait_until(lambda: board.control.ask("status")["relay"], 5, "the relay closes")
    board.write(b"\x03")
    board.text_until(b">>> ")
    assert not board.control.ask("status")["relay"]
    # What the session has cost is written down before the prompt comes.
    board.write(b"\x04")
    hello = board.greet()
    names = [name_of(data) for data in events_of(board, hello)]
    assert names.count("session_started") == names.count("session_ended") == 1


def events_of(board: PlainBoard, hello: dict[str, Any]) -> list[bytes]:
    """The event bytes of the node's journal, asked for with an acknowledgement of nothing."""
    board.messages.clear()
    board.send("greet")
    board.message("hello")
    board.send("ack", journal_id=hello["journal_id"], seq=0)
    found: list[bytes] = []
    while len(found) < hello["next_seq"] - 1:
        batch = wire.unpack_events(board.message("events")["data"])
        found += batch
        board.send("ack", journal_id=hello["journal_id"], seq=wire.event_seq(batch[-1]))
    return found


def name_of(data: bytes) -> str:
    return str(wire.decode_event(data)["name"])
