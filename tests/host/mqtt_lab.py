"""How does a test get a lab with machines behind a broker? Laser on a serial port, mill and router behind a broker of its own."""
import socket
from pathlib import Path

import pytest

from fabtap.broker import KINDS, find_mosquitto
from fabtap.keys import secret_of
from tests.rig import write_lab

MACHINE = """
[[machine]]
id = "{name}"
name = "{name}"
node = {node}
board = "rpi-pico-w"
link = "{link}"
port = "sim/{name}.tty"
working_w = 60

[[tariff]]
machine = "{name}"
class = "*"
per_minute_on = "0.10"
per_minute_working = "0.40"
per_kwh = "0.18"
"""
BROKER = """
[broker]
host = "127.0.0.1"
port = {port}

[wifi]
network = "FabLab"
"""
MILL, ROUTER = 2, 3
BOTH = [pytest.param(kind, marks=pytest.mark.skipif(
    kind == "mosquitto" and find_mosquitto() is None, reason="mosquitto is not installed")) for kind in KINDS]


def free_port() -> int:
    """A port of this computer that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        found: int = probe.getsockname()[1]
    return found


def write_mqtt_lab(folder: Path, port: int, mill_link: str = "mqtt") -> Path:
    """Write the lab and the secrets of its nodes; its toml."""
    file = write_lab(folder)
    with open(file, "a", encoding="utf-8") as toml:
        toml.write(MACHINE.format(name="mill", node=MILL, link=mill_link))
        toml.write(MACHINE.format(name="router", node=ROUTER, link="mqtt"))
        toml.write(BROKER.format(port=port))
    for node in (1, MILL, ROUTER):
        secret_of(folder / "keys.toml", node)
    return file


def open_acl(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every user may do everything at the brokers that are started: the mistake that the ACL is there for."""
    rules = [f"user {user}\ntopic read fabtap/1/+/+/+\ntopic write fabtap/1/+/+/+\n" for user in ("collector", MILL, ROUTER)]
    monkeypatch.setattr("fabtap.broker._acl", lambda lab_id: "".join(rules))
