"""`fabtap broker ...`: write the broker's configuration, and run a broker for a trial."""
import signal
from pathlib import Path
from typing import Annotated

import typer

from fabtap.broker import KINDS, broker_config, broker_of, start_broker
from fabtap.cli_options import LAB_DEFAULT, AsJson, LabFile, open_lab
from fabtap.problem import Problem
from fabtap.screen import OUT, show_json

app = typer.Typer(no_args_is_help=True, help="The MQTT broker between the nodes and the collector.")


@app.command()
def config(
    folder: Annotated[Path, typer.Argument(help="Where mosquitto.conf, passwd and acl are to stand.")],
    lab_file: LabFile = LAB_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Write mosquitto's configuration: every node may speak for itself only."""
    lab = open_lab(lab_file)
    files = broker_config(lab, folder)
    if as_json:
        show_json({"config": str(files.config), "passwords": str(files.passwords), "acl": str(files.acl),
                   "port": broker_of(lab).port, "nodes": [machine.node for machine in lab.machines if machine.link == "mqtt"]})
        return
    for path in files:
        OUT.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
    OUT.print(f"Start it as the user who owns them: mosquitto -c {files.config}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="Where its files are to stand.")] = Path("build/broker"),
    kind: Annotated[str, typer.Option(help=f"One of: {', '.join(KINDS)}.")] = "amqtt",
    lab_file: LabFile = LAB_DEFAULT,
) -> None:
    """Run a broker for this computer only, to try things out, until Ctrl-C."""
    lab = open_lab(lab_file)
    if kind not in KINDS:
        raise Problem("--kind", None, f'"{kind}" is no broker that we know', f"Name one of: {', '.join(KINDS)}.")
    # The broker must end with us, however we are told. A shell's background job would ignore SIGINT, were it not set.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with start_broker(lab, folder, kind) as running:
        OUT.print(f"{running.kind} listens on 127.0.0.1:{broker_of(lab).port}; Ctrl-C ends it.", markup=False, highlight=False)
        try:
            running.wait()
        except KeyboardInterrupt:
            return
    raise Problem(f"the broker {kind}", None, "has ended by itself", f"Look into {folder / 'broker.log'}.")
