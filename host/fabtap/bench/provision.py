"""How does a board become the node of a machine? It is told its number, its secret, its pins and its machine's limits."""
import json
from pathlib import Path

from fabtap import keys
from fabtap.bench.session import board_session
from fabtap.boards import Board, load_board
from fabtap.lab import Lab, Machine

NAME_SERVER_PORT = 53


def settings_of(lab: Lab, machine: Machine, board: Board, secret: bytes,
                name_server_port: int = NAME_SERVER_PORT) -> dict[str, object]:
    """What firmware/node/settings.py reads."""
    settings: dict[str, object] = {
        "node": machine.node, "secret": secret.hex(), "board": board.name, "pins": board.pins, "buses": board.buses,
        "working_mw": machine.working_w * 1000, "checkpoint_ms": machine.checkpoint_s * 1000,
        "badge_out_ms": machine.badge_out_ms, "watchdog_ms": board.watchdog_ms, "segment_bytes": board.segment_bytes,
        "journal_records": board.journal_records, "timer": board.timer, "timer_hard": board.timer_hard,
        "gates": int(machine.mode == "gate"), "idle_ms": machine.idle_s * 1000}
    if machine.link == "mqtt":
        settings["mqtt"] = mqtt_settings(lab, machine, secret, name_server_port)
    return settings


def mqtt_settings(lab: Lab, machine: Machine, secret: bytes, name_server_port: int) -> dict[str, object]:
    """How the node finds its network and its broker, and who it says it is there."""
    assert lab.broker and lab.wifi_network
    return {"host": lab.broker.host, "port": lab.broker.port, "user": str(machine.node), "password": keys.node_password(secret),
            "topic": f"fabtap/1/{lab.id}/{machine.node}", "network": lab.wifi_network,
            "network_password": keys.wifi_password(lab.keys), "name_server_port": name_server_port}


def provision(lab: Lab, machine: Machine, port: Path | None = None, name_server_port: int = NAME_SERVER_PORT,
              **changed: object) -> None:
    """Write identity and settings to the board at `port` (the machine's own by default). Raises Problem.

    `changed` overrides single settings, for tests.
    """
    board = load_board(machine.board)
    settings_of(lab, machine, board, bytes(keys.SECRET_BYTES), name_server_port)  # mistakes are told before the board is touched
    with board_session(machine.plugged_port(port)) as session:
        # A secret is made only for a board that is there.
        settings = {**settings_of(lab, machine, board, keys.secret_of(lab.keys, machine.node), name_server_port), **changed}
        session.put_file("/settings.json", json.dumps(settings).encode())
        session.put_file("/relay.pin", str(board.pins["relay"]).encode())
