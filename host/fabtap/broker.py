"""What must the broker know so that every node may speak for itself only, and how is one started for a trial?

mosquitto's configuration in three files: `mosquitto.conf`, `passwd` (salted hashes, for its owner only) and `acl`. A node's user
name is its node number, and it may write its own `up` and `state` and read its own `down`; `collector` has the other ends.
The broker is no part of what makes events durable, so it keeps nothing on its disk and bounds every queue.

`start_broker` runs mosquitto, or without it amqtt in a child process (broker_embedded.py), with those very files.
"""
import base64
import contextlib
import hashlib
import importlib.util
import ipaddress
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from fabtap.keys import broker_password, node_password, secret_of
from fabtap.lab import Broker, Lab
from fabtap.mqtt import USER, topic
from fabtap.problem import Problem

KINDS = ("mosquitto", "amqtt")
LOOPBACK = "127.0.0.1"
SERVICE_USER = "mosquitto"
PACKET_BYTES_MAX = 1024
"""The longest packet by far is a node's frame with its topic."""
QUEUED_MESSAGES_MAX = 100
QUEUED_BYTES_MAX = 65_536
SALT_BYTES = 12
ROUNDS = 101
"""mosquitto's own number. Our passwords are 16 random bytes: no number of rounds makes them harder to guess."""
HASH_BYTES = 64
START_S = 10.0
STOP_S = 5.0
POLL_S = 0.02


class BrokerFiles(NamedTuple):
    """Where the configuration was written."""

    config: Path
    passwords: Path
    acl: Path


def broker_config(lab: Lab, folder: Path, user: str | None = None) -> BrokerFiles:
    """Write mosquitto's configuration for the lab's nodes and its collector. Secrets that are missing yet are made.

    `user` is the system's user that a mosquitto which root starts goes on as. Raises Problem when the lab has no broker.
    """
    broker = broker_of(lab)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    files = BrokerFiles(folder / "mosquitto.conf", folder / "passwd", folder / "acl")
    users = {USER: broker_password(lab.keys)}
    users |= {str(machine.node): node_password(secret_of(lab.keys, machine.node))
              for machine in lab.machines if machine.link == "mqtt"}
    _write(files.passwords, "".join(f"{name}:{hashed(password)}\n" for name, password in users.items()), 0o600)
    _write(files.acl, _acl(lab.id), 0o600)
    _write(files.config, _config(broker, files, user or _user_for_root(files)), 0o644)
    return files


def _user_for_root(files: BrokerFiles) -> str | None:
    """mosquitto that root starts goes on as the user `mosquitto`, who then must own the passwords; None for anybody else."""
    if os.geteuid() != 0:
        return None
    try:
        owner = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return "root"
    for path in (files.passwords, files.acl):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    return SERVICE_USER


def broker_of(lab: Lab) -> Broker:
    """The lab's broker. Raises Problem when it has none."""
    if lab.broker is None:
        raise Problem(lab.file, None, "there is no [broker]", 'Add [broker] with host = "...", as the nodes are to find it.')
    return lab.broker


def hashed(password: str, salt: bytes | None = None) -> str:
    """The password as mosquitto 2 keeps it: PBKDF2 with HMAC-SHA-512 (mosquitto_passwd(1))."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ROUNDS, HASH_BYTES)
    return f"$7${ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def is_loopback(host: str) -> bool:
    """Does the name stand for this computer only?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _acl(lab_id: str) -> str:
    return "\n".join([
        "# Written by fabtap broker config.",
        f"user {USER}",
        f"topic read {topic(lab_id, '+', 'up')}",
        f"topic read {topic(lab_id, '+', 'state')}",
        f"topic write {topic(lab_id, '+', 'down')}",
        "# A user's own topics: %u is a node's number.",
        f"pattern write {topic(lab_id, '%u', 'up')}",
        f"pattern write {topic(lab_id, '%u', 'state')}",
        f"pattern read {topic(lab_id, '%u', 'down')}",
        ""])


def _config(broker: Broker, files: BrokerFiles, user: str | None) -> str:
    lines = [
        "# Written by fabtap broker config: change fabtap.toml and run it again.",
        f"listener {broker.port} {LOOPBACK}" if is_loopback(broker.host) else f"listener {broker.port}",
        "allow_anonymous false",
        f"password_file {files.passwords}",
        f"acl_file {files.acl}",
        "# Nothing is kept: only what the collector has acknowledged is durable.",
        "persistence false",
        f"max_packet_size {PACKET_BYTES_MAX}",
        f"max_queued_messages {QUEUED_MESSAGES_MAX}",
        f"max_queued_bytes {QUEUED_BYTES_MAX}",
        "sys_interval 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    if user:
        lines.append(f"user {user}")
    return "\n".join([*lines, ""])


def _write(path: Path, text: str, mode: int) -> None:
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


class RunningBroker:
    """A broker in a child process. `stop` ends it; usable as a context manager."""

    def __init__(self, kind: str, process: "subprocess.Popen[bytes]") -> None:
        self.kind = kind
        self._process = process

    def __enter__(self) -> "RunningBroker":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        """Until it ends by itself."""
        self._process.wait()

    def stop(self) -> None:
        """End it, by force if it does not end when told."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def find_mosquitto() -> str | None:
    """Where mosquitto is; Debian puts it where only root looks."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"]))


def start_broker(lab: Lab, folder: Path, kind: str | None = None) -> RunningBroker:
    """A broker for this computer alone, which takes connections when this returns; its log is `broker.log` in the folder.

    `kind` is one of KINDS; None takes mosquitto where it is installed, else amqtt. Raises Problem when it can't be started.
    """
    broker = broker_of(lab)
    if not is_loopback(broker.host):
        raise Problem(lab.file, None, f'[broker] host is "{broker.host}", and a trial\'s broker serves this computer only',
                      f'Write host = "{LOOPBACK}", or run mosquitto with what fabtap broker config writes.')
    kind = kind or ("mosquitto" if find_mosquitto() else "amqtt")
    command = _command(kind, folder.absolute(), broker.port)
    _check_port_is_free(broker.port)
    # Started by root, mosquitto would become a user who may not read the passwords.
    broker_config(lab, folder, "root" if os.geteuid() == 0 else None)
    log = folder / "broker.log"
    with open(log, "wb") as file:
        # A Ctrl-C in the terminal is for us; we then end the broker when nobody needs it any more.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    running = RunningBroker(kind, process)
    try:
        _wait_until_it_listens(running, broker.port, log)
    except BaseException:
        running.stop()
        raise
    return running


def _check_port_is_free(port: int) -> None:
    """Asked before the start: afterwards, somebody else's server would look like ours."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still being forgotten counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise Problem(f"port {port}", None, f"can't be listened on at {LOOPBACK} ({error.strerror})",
                          "Stop what uses it, or name another port in [broker].") from None


def _command(kind: str, folder: Path, port: int) -> list[str]:
    if kind == "mosquitto":
        program = find_mosquitto()
        if program is None:
            raise Problem("mosquitto", None, "is not installed", "Install it (apt install mosquitto), or take amqtt.")
        return [program, "-c", str(folder / "mosquitto.conf")]
    if importlib.util.find_spec("amqtt") is None:
        raise Problem("amqtt", None, "is not installed", 'Run pip install "fabtap[broker]", or install mosquitto.')
    return [sys.executable, "-m", "fabtap.broker_embedded", str(folder), str(port)]


def _wait_until_it_listens(running: RunningBroker, port: int, log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while not running.has_ended and time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), POLL_S * 10):
            return
        time.sleep(POLL_S)
    said = log.read_text("utf-8", "replace").strip().rsplit("\n", 1)[-1]
    raise Problem(f"the broker {running.kind}", None, f"does not start ({said or 'it says nothing'})", f"Look into {log}.")
