"""`fabtap board ...`: what a technician does to a board."""
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fabtap.bench import deploy as deploying
from fabtap.bench import provision as provisioning
from fabtap.cli_options import LAB_DEFAULT, AsJson, LabFile, machine_of, open_lab
from fabtap.screen import OUT, show_json

app = typer.Typer(no_args_is_help=True, help="Put firmware and identity on boards.")
MachineName = Annotated[str, typer.Argument(help="The machine's id in the lab's file.")]
PortPath = Annotated[Path | None, typer.Option("--port", help="Another port than the machine's own.")]


@app.command()
def deploy(name: MachineName, port: PortPath = None, lab_file: LabFile = LAB_DEFAULT, as_json: AsJson = False) -> None:
    """Compile the firmware and bring the board to it: only what differs, each file whole, in service mode."""
    machine = machine_of(open_lab(lab_file), name)
    done = deploying.deploy(machine.plugged_port(port), mqtt=machine.link == "mqtt")
    if as_json:
        show_json(asdict(done))
    else:
        OUT.print(f"{name}: {len(done.written)} file(s) written, {len(done.same)} were right already, "
                  f"{len(done.removed)} removed; the board is restarting.", highlight=False)


@app.command()
def provision(
    name: MachineName, port: PortPath = None, lab_file: LabFile = LAB_DEFAULT,
    name_server_port: Annotated[int, typer.Option(help="Where the WiFi's name server listens; a simulated one not on 53.")] =
        provisioning.NAME_SERVER_PORT,
    as_json: AsJson = False,
) -> None:
    """Give the board its machine's identity, secret, pins, limits and, for MQTT, network and broker."""
    lab = open_lab(lab_file)
    machine = machine_of(lab, name)
    provisioning.provision(lab, machine, port, name_server_port)
    if as_json:
        show_json({"machine": name, "node": machine.node, "board": machine.board})
    else:
        OUT.print(f"{name}: node {machine.node} on a {machine.board}; the secret is in {lab.keys.name}.", highlight=False)
