"""`fabtap sim ...`: a simulated board and its world, from the shell. One client of the control socket of docs/simulator.md."""
from pathlib import Path
from typing import Annotated, Any

import typer

from fabtap.cli_options import AsJson
from fabtap.screen import OUT, show_json, table
from fabtap.sim.client import SimClient, start_board

app = typer.Typer(no_args_is_help=True, help="Simulated boards: the real interpreter in a modelled world.")
Name = Annotated[str, typer.Argument(help="The simulated board's name.")]
Folder = Annotated[Path, typer.Option("--dir", help="Where its files lie.", envvar="FABTAP_SIM")]
FOLDER_DEFAULT = Path("build/sim")
NAME_SERVER_PORT = 5353


def _tell(folder: Path, name: str, do: str, **values: Any) -> dict[str, Any]:
    return SimClient(folder, name).ask(do, **values)


def _server(text: str) -> tuple[str, tuple[str, int]]:
    """A name and the (host, port) behind it."""
    name, _, target = text.partition("=")
    host, _, port = target.rpartition(":")
    if not (name and host and port.isdigit()):
        raise typer.BadParameter(f"{text!r} is not NAME=HOST:PORT, e.g. broker.lab=127.0.0.1:1883")
    return name, (host, int(port))


def _show(values: dict[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        show_json(values)
    else:
        OUT.print(table(title, ("what", "is"), [(key, value) for key, value in values.items()]))


@app.command()
def up(
    name: Name, board: Annotated[str, typer.Option(help="A folder in boards/.")] = "rpi-pico",
    folder: Folder = FOLDER_DEFAULT, heap: Annotated[str, typer.Option(help="The interpreter's heap.")] = "192k",
    erase_ms: Annotated[float, typer.Option(help="What a flash erase costs; 45 on an RP2040.")] = 0.0,
    program_ms: Annotated[float, typer.Option(help="What a flash page costs; 0.4 on an RP2040.")] = 0.0,
    ticks_offset: Annotated[int, typer.Option(help="Added to the node's counter of milliseconds.")] = 0,
    working_w: Annotated[float, typer.Option(help="Where the truth counts the machine as working.")] = 60.0,
    always_on: Annotated[bool, typer.Option(help="The machine has a switch of its own, for a node that only observes.")] = False,
    network: Annotated[str, typer.Option(help="Name of the WiFi in reach; a board without WiFi sees none.")] = "",
    password: Annotated[str, typer.Option(envvar="FABTAP_WIFI_PASSWORD", help=(
        "The WiFi's password. Given as an option it stands in the process list for all to read."))] = "",
    server: Annotated[list[str] | None, typer.Option(
        "--server", help="NAME=HOST:PORT, what the WiFi's name server knows; once or more.")] = None,
    name_server_port: Annotated[int, typer.Option(help="The name server's port; 53 needs root.")] = NAME_SERVER_PORT,
    as_json: AsJson = False,
) -> None:
    """Start a board; it keeps running until `down`. Its flash image is kept between starts."""
    wifi = None
    if network:
        wifi = {"network": network, "password": password, "names": dict(map(_server, server or ())),
                "name_server_port": name_server_port}
    client = start_board(folder, name, board, heap=heap, erase_ms=erase_ms, program_ms=program_ms,
                         ticks_offset=ticks_offset, working_w=working_w, always_on=always_on, wifi=wifi)
    if as_json:
        show_json(client.ask("status"))
    else:
        OUT.print(f"{name}: a {board} is up at {client.port}", highlight=False)


@app.command()
def down(name: Name, folder: Folder = FOLDER_DEFAULT) -> None:
    """Stop a board."""
    SimClient(folder, name).down()


@app.command()
def status(name: Name, folder: Folder = FOLDER_DEFAULT, as_json: AsJson = False) -> None:
    """Show a board's state."""
    values = _tell(folder, name, "status")
    if not as_json:
        values.pop("options")
    _show(values, as_json, name)


@app.command()
def tap(name: Name, uid: Annotated[str, typer.Argument(help="The badge's number in hex.")],
        folder: Folder = FOLDER_DEFAULT) -> None:
    """Lay a badge on the reader."""
    _tell(folder, name, "tap", uid=uid)


@app.command()
def remove(name: Name, folder: Folder = FOLDER_DEFAULT) -> None:
    """Take the badge away."""
    _tell(folder, name, "remove")


@app.command()
def press(name: Name, folder: Folder = FOLDER_DEFAULT) -> None:
    """Press the stop button."""
    _tell(folder, name, "press")


@app.command()
def estop(name: Name, state: Annotated[str, typer.Argument(help="open or closed")] = "open",
          folder: Folder = FOLDER_DEFAULT) -> None:
    """Open or close the emergency stop's contact."""
    if state not in ("open", "closed"):
        raise typer.BadParameter("say open or closed")
    _tell(folder, name, "estop", state=state)


@app.command()
def load(name: Name, watts: Annotated[float, typer.Argument(help="What the machine draws when it has power.")],
         folder: Folder = FOLDER_DEFAULT) -> None:
    """Set the machine's load."""
    _tell(folder, name, "load", watts=watts)


@app.command()
def power(name: Name, state: Annotated[str, typer.Argument(help="on or off")], folder: Folder = FOLDER_DEFAULT) -> None:
    """Cut the node's mains or give them back."""
    if state not in ("on", "off"):
        raise typer.BadParameter("say on or off")
    _tell(folder, name, "power", on=state == "on")


@app.command()
def unplug(name: Name, folder: Folder = FOLDER_DEFAULT) -> None:
    """Pull the node's serial cable."""
    _tell(folder, name, "unplug")


@app.command()
def plug(name: Name, folder: Folder = FOLDER_DEFAULT) -> None:
    """Plug the node's serial cable in."""
    _tell(folder, name, "plug")


@app.command()
def wifi(name: Name, what: Annotated[str, typer.Argument(help="on, off or move (new addresses)")],
         folder: Folder = FOLDER_DEFAULT) -> None:
    """Let the access point fail or return, or give the node and its servers new addresses."""
    if what not in ("on", "off", "move"):
        raise typer.BadParameter("say on, off or move")
    _tell(folder, name, "wifi", **({"move": True} if what == "move" else {"on": what == "on"}))


@app.command()
def truth(name: Name, folder: Folder = FOLDER_DEFAULT, as_json: AsJson = False) -> None:
    """Show what a perfect clock and meter would have said."""
    found = _tell(folder, name, "truth")
    uses = found["uses"] if as_json else found.pop("uses")
    _show(found, as_json, name)
    if not as_json:
        OUT.print(table("Uses", ("relay s", "Wh", "working s", "peak W", "open"), [
            (f"{use['relay_s']:.3f}", f"{use['energy_wh']:.3f}", f"{use['working_s']:.3f}", f"{use['peak_w']:.0f}",
             "yes" if use["open"] else "") for use in uses], right=("relay s", "Wh", "working s", "peak W")))


@app.command()
def logs(name: Name, folder: Folder = FOLDER_DEFAULT, as_json: AsJson = False,
         last: Annotated[int, typer.Option(help="How many entries.")] = 50) -> None:
    """Show what happened on the board and in its world."""
    entries = _tell(folder, name, "logs", last=last)["entries"]
    if as_json:
        show_json(entries)
    else:
        OUT.print(table(name, ("at s", "what", "detail"), [(entry["at_s"], entry["what"], entry["detail"]) for entry in entries],
                        right=("at s",)))
