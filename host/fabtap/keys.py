"""Which secret does each node share with the collector?

One TOML file, readable by its owner only, made when the first node is provisioned. A secret is 32 random bytes; everything else
(the keys of both directions, the badge key) is derived from it. Who can read this file can forge events: back it up sealed.
"""
import os
import secrets
import tomllib
from pathlib import Path

from fabtap.problem import Problem

SECRET_BYTES = 32
HEADING = "# FabTap's node secrets. Whoever reads this file can forge events: keep it to yourself, back it up sealed.\n[nodes]\n"


def load_secrets(path: Path) -> dict[int, bytes]:
    """Secrets by node number; none when the file isn't there yet. Raises Problem for a damaged file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        found = {int(node): bytes.fromhex(secret) for node, secret in tomllib.loads(data.decode())["nodes"].items()}
    except (tomllib.TOMLDecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise Problem(path, None, f"holds no node secrets ({error})", "Restore it from the backup.") from None
    for node, secret in found.items():
        if len(secret) != SECRET_BYTES:
            raise Problem(path, None, f"node {node}: the secret has {len(secret)} bytes, not {SECRET_BYTES}",
                          "Restore the file from the backup.")
    return found


def secret_of(path: Path, node: int) -> bytes:
    """The node's secret, made and stored if it has none yet."""
    known = load_secrets(path)
    if node not in known:
        known[node] = secrets.token_bytes(SECRET_BYTES)
        lines = [f'{number} = "{secret.hex()}"\n' for number, secret in sorted(known.items())]
        temporary = path.with_name(path.name + ".new")
        # What a crash has left there may be readable by others, and would stay so.
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(HEADING + "".join(lines))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return known[node]
