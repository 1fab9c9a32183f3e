"""What does the floor look like now: which machine is free, in use, stopped, silent, and how much does it draw?

Pure: believed messages go in with the moment they came, cards come out.
"""
from typing import Any

from fabtap.lab import Machine


class Floor:
    """The state of every machine, as its node told it last."""

    def __init__(self, machines: tuple[Machine, ...]) -> None:
        self._machines = machines

    def note(self, machine: Machine, name: str, fields: dict[str, Any]) -> None:
        """A believed message has come from the machine's node: its name in nodecore.wire.MESSAGES, and its fields."""
