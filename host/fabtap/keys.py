"""Which secrets does the lab keep: each node's, the collector's at the broker, the WiFi's?

One TOML file, readable by its owner only, made when the first node is provisioned. A node's secret is 32 random bytes; everything
else of the node (the keys of both directions, the badge key, its password at the broker) is derived from it. Who can read this
file can forge events: back it up sealed. What a person has written into it stays as it is; FabTap only adds lines. Who may add one
holds the folder's lock from reading to writing: two at once would each write back a file without the other's line.

    [nodes]                            # made by FabTap
    1 = "<64 hex digits>"
    [broker]                           # made by FabTap when there is a broker
    collector = "<32 hex digits>"
    [wifi]                             # written by hand; "" for an open network
    password = "..."
"""
import contextlib
import fcntl
import os
import secrets
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fabtap.problem import Problem, find_line
from nodecore import frame

SECRET_BYTES = 32
PASSWORD_BYTES = 16
WIFI_PASSWORD_MAX = 63
HEADING = "# FabTap's secrets. Whoever reads this file can forge events: keep it to yourself, back it up sealed.\n"
RESTORE = "Restore it from the backup."
LOCK_S = 10.0
"""Who holds the lock writes one small file."""
LOCK_LOOK_S = 0.01


def load_secrets(path: Path) -> dict[int, bytes]:
    """Secrets by node number; none when the file isn't there yet. Raises Problem for a damaged file."""
    return _secrets_in(path, _read(path))


def secret_of(path: Path, node: int) -> bytes:
    """The node's secret, made and stored if it has none yet."""
    with _only_writer(path):
        text = _read(path)
        known = _secrets_in(path, text)
        if node not in known:
            known[node] = secrets.token_bytes(SECRET_BYTES)
            _add(path, text, "nodes", str(node), known[node].hex())
    return known[node]


def node_password(secret: bytes) -> str:
    """The password of the node with that secret at the broker; its user name there is its node number."""
    return bytes(frame.derive_key(secret, b"mqtt")[:PASSWORD_BYTES]).hex()


def broker_password(path: Path) -> str:
    """The collector's password at the broker, made and stored if there is none yet. Raises Problem for a damaged file."""
    with _only_writer(path):
        text = _read(path)
        found = _text_in(path, text, "broker", "collector")
        if not found:
            found = secrets.token_hex(PASSWORD_BYTES)
            _add(path, text, "broker", "collector", found)
    return found


def wifi_password(path: Path) -> str:
    """The WiFi's password, "" for an open network. Raises Problem when nobody has written it down."""
    found = _text_in(path, _read(path), "wifi", "password")
    if found is None:
        raise Problem(path, None, "holds no WiFi password",
                      'Write [wifi] with password = "..." at its end; an open network has password = "".')
    if found and not 8 <= len(found.encode()) <= WIFI_PASSWORD_MAX:
        raise Problem(path, find_line(_read(path), "wifi", key="password"),
                      f"the WiFi password has {len(found.encode())} bytes, not 8 to {WIFI_PASSWORD_MAX}",
                      "Write the network's own password.")
    return found


@contextlib.contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of the file's folder, for the file itself is replaced; it ends with the process, however that ends."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Problem(path, None, f"its folder can't be opened ({error.strerror})",
                      "Make the folder, and give this user the right to read it and to write to it.") from None
    try:
        _lock(path, folder)
        yield
    finally:
        os.close(folder)


def _lock(path: Path, folder: int) -> None:
    deadline_s = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise Problem(path, None, f"another program has held its folder's lock for {LOCK_S:.0f} s",
                              f"End it, then try again; lsof {path.absolute().parent} names it.") from None
        except OSError as error:
            raise Problem(path, None, f"its folder can't be locked ({error.strerror})",
                          "Keep it on a disk of this computer.") from None
        time.sleep(LOCK_LOOK_S)


def _read(path: Path) -> str:
    """The file's text, "" when it isn't there yet."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from None
    except OSError as error:
        raise Problem(path, None, f"can't be read ({error.strerror})",
                      "Run this as the user who owns it: the one who provisioned the nodes runs the collector too.") from None
    if not text:
        raise _damaged(path, "it is empty")
    return text


def _damaged(path: Path, error: object) -> Problem:
    return Problem(path, None, f"holds no node secrets ({error})", RESTORE)


def _tables_in(path: Path, text: str) -> dict[str, Any]:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _damaged(path, error) from None
    # A file without nodes is as likely a torn one, unless a person has begun it with another table.
    if text and not {"nodes", "broker", "wifi"} & set(found):
        raise _damaged(path, "there is no [nodes]")
    return found


def _secrets_in(path: Path, text: str) -> dict[int, bytes]:
    try:
        nodes = _tables_in(path, text).get("nodes", {})
        found = {int(node): bytes.fromhex(secret) for node, secret in nodes.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from None
    for node, secret in found.items():
        if len(secret) != SECRET_BYTES:
            raise Problem(path, None, f"node {node}: the secret has {len(secret)} bytes, not {SECRET_BYTES}",
                          "Restore the file from the backup.")
    return found


def _text_in(path: Path, text: str, table: str, key: str) -> str | None:
    row = _tables_in(path, text).get(table, {})
    found = row.get(key) if isinstance(row, dict) else row
    if found is not None and not isinstance(found, str):
        raise Problem(path, find_line(text, table, key=key), f"{key} of [{table}] is no text", f'Write {key} = "...".')
    return found


def _add(path: Path, text: str, table: str, key: str, value: str) -> None:
    """Put a line at the end of a table, which is made if it isn't there."""
    lines = (text.strip() or HEADING.strip()).split("\n")
    header = find_line(text, table)
    if header is None:
        lines += ["", f"[{table}]"] if text.strip() else [f"[{table}]"]
        end = len(lines)
    else:
        lines = text.rstrip().split("\n")
        end = header
        while end < len(lines) and not lines[end].lstrip().startswith("["):
            end += 1
        while not lines[end - 1].strip():
            end -= 1
    lines.insert(end, f'{key} = "{value}"')
    new = "\n".join(lines) + "\n"
    _check_added(path, new, table, key, value)
    try:
        _write(path, new)
    except OSError as error:
        raise Problem(path, None, f"can't be written ({error.strerror})",
                      "Give this user the right to write to it and to its folder.") from None


def _check_added(path: Path, text: str, table: str, key: str, value: str) -> None:
    """A file in a shape that we did not expect stays as it is."""
    try:
        is_there = tomllib.loads(text)[table][key] == value
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        is_there = False
    if not is_there:
        raise Problem(path, find_line(text, table), f"{key} can't be added to [{table}]", f"Write [{table}] on a line of its own.")


def _write(path: Path, text: str) -> None:
    """Put the text in the file's place, durably, for its owner only."""
    temporary = path.with_name(path.name + ".new")
    # What a crash has left there may be readable by others, and would stay so.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    # The new name itself is durable only when its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
