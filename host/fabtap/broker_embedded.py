"""How does a lab try MQTT out without installing a broker? amqtt on this computer only, with mosquitto's own files.

`python -m fabtap.broker_embedded FOLDER PORT` reads `passwd` and `acl` from the folder, as fabtap.broker writes them. Only what
stands in them is allowed. It is for a trial: amqtt bounds neither packets nor queues, and asks nobody about a last will.
"""
import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from amqtt.broker import Broker  # type: ignore[import-untyped]
from amqtt.contexts import Action, BaseContext  # type: ignore[import-untyped]
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin  # type: ignore[import-untyped]
from amqtt.session import Session  # type: ignore[import-untyped]

LOOPBACK = "127.0.0.1"


class Rule(NamedTuple):
    """A line of the ACL; `user` None makes it a pattern for every user."""

    user: str | None
    access: str
    topic: str


def read_passwords(text: str) -> dict[str, str]:
    """Hashes by user of a mosquitto password file."""
    return dict(line.split(":", 1) for line in text.split() if ":" in line)


def read_rules(text: str) -> list[Rule]:
    """The rules of an ACL file as fabtap.broker writes it."""
    rules = []
    user = None
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["user"]:
            user = words[1]
        elif words[:1] in (["topic"], ["pattern"]):
            rules.append(Rule(user if words[0] == "topic" else None, words[1], words[2]))
    return rules


def is_password(password: str, known: str) -> bool:
    """Is it the password of a `$7$rounds$salt$hash`?"""
    try:
        _, kind, rounds, salt, digest = known.split("$")
        wanted = base64.b64decode(digest, validate=True)
        found = hashlib.pbkdf2_hmac("sha512", password.encode(), base64.b64decode(salt, validate=True), int(rounds), len(wanted))
    except (ValueError, binascii.Error):
        return False
    return kind == "7" and hmac.compare_digest(found, wanted)


def may(rules: Sequence[Rule], user: str, access: str, topic: str) -> bool:
    """May the user "read" or "write" the topic? A topic to read may be a filter, no wider than the rule."""
    return any(rule.access == access and rule.user in (None, user) and _covers(rule.topic, user, topic) for rule in rules)


def _covers(allowed: str, user: str, topic: str) -> bool:
    levels, wanted = allowed.split("/"), topic.split("/")
    return len(levels) == len(wanted) and "#" not in wanted and all(
        level == "+" or found == (user if level == "%u" else level) for level, found in zip(levels, wanted, strict=True))


class Users(BaseAuthPlugin):
    """amqtt asks this whether a client is who it says."""

    @dataclass
    class Config:
        passwords: str = ""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._known = read_passwords(Path(self._get_config_option("passwords")).read_text("utf-8"))

    async def authenticate(self, *, session: Session) -> bool | None:
        known = self._known.get(session.username or "")
        return known is not None and is_password(session.password or "", known)


class Topics(BaseTopicPlugin):
    """amqtt asks this whether a client may publish, subscribe or receive."""

    @dataclass
    class Config:
        acl: str = ""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._rules = read_rules(Path(self._get_config_option("acl")).read_text("utf-8"))

    async def topic_filtering(self, *, session: Session | None = None, topic: str | None = None,
                              action: Action | None = None) -> bool | None:
        if session is None or not session.username or topic is None:
            return False
        return may(self._rules, session.username, "write" if action == Action.PUBLISH else "read", topic)


def config(folder: Path, port: int) -> Mapping[str, object]:
    """amqtt's configuration."""
    return {
        "listeners": {"default": {"type": "tcp", "bind": f"{LOOPBACK}:{port}"}},
        "plugins": {
            "fabtap.broker_embedded.Users": {"passwords": str(folder / "passwd")},
            "fabtap.broker_embedded.Topics": {"acl": str(folder / "acl")},
        },
    }


async def run(folder: Path, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    broker = Broker(dict(config(folder, port)))
    await broker.start()
    await told.wait()
    with contextlib.suppress(Exception):
        await broker.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
