"""Which options do several commands share, and how is the lab found?"""
from pathlib import Path
from typing import Annotated

import typer

from fabtap.boards import board_names, load_board
from fabtap.lab import Lab, Machine, load_lab
from fabtap.problem import Problem

LabFile = Annotated[Path, typer.Option("--lab", help="The lab's file.", envvar="FABTAP_LAB")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LAB_DEFAULT = Path("fabtap.toml")


def open_lab(path: Path) -> Lab:
    """Load and check the lab, its boards too. Raises Problem."""
    lab = load_lab(path, board_names())
    for machine in lab.machines:
        if machine.link == "mqtt" and not load_board(machine.board).has_wifi:
            raise Problem(lab.file, machine.line, f'machine "{machine.id}" has link = "mqtt", and a {machine.board} has no WiFi',
                          'Name a board with WiFi, or write link = "serial".')
    return lab


def machine_of(lab: Lab, name: str) -> Machine:
    """The machine of that id. Raises Problem that lists what there is."""
    for machine in lab.machines:
        if machine.id == name:
            return machine
    raise Problem(lab.file, None, f"has no machine \"{name}\"",
                  f"Known machines: {', '.join(machine.id for machine in lab.machines)}.")
