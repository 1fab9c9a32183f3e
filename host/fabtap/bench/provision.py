"""How does a board become the node of a machine? It is told its number, its secret, its pins and its machine's limits."""
import json
from pathlib import Path

from fabtap.bench.session import board_session
from fabtap.boards import Board, load_board
from fabtap.keys import secret_of
from fabtap.lab import Lab, Machine


def settings_of(machine: Machine, board: Board, secret: bytes) -> dict[str, object]:
    """What firmware/node/settings.py reads."""
    return {
        "node": machine.node, "secret": secret.hex(), "board": board.name, "pins": board.pins, "buses": board.buses,
        "working_mw": machine.working_w * 1000, "checkpoint_ms": machine.checkpoint_s * 1000,
        "badge_out_ms": machine.badge_out_ms, "watchdog_ms": board.watchdog_ms, "segment_bytes": board.segment_bytes,
        "journal_records": board.journal_records, "timer": board.timer, "timer_hard": board.timer_hard}


def provision(lab: Lab, machine: Machine, port: Path | None = None, **changed: object) -> None:
    """Write identity and settings to the board at `port` (the machine's own by default). Raises Problem.

    `changed` overrides single settings, for tests.
    """
    board = load_board(machine.board)
    settings = {**settings_of(machine, board, secret_of(lab.keys, machine.node)), **changed}
    with board_session(machine.plugged_port(port)) as session:
        session.put_file("/settings.json", json.dumps(settings).encode())
        session.put_file("/relay.pin", str(board.pins["relay"]).encode())
