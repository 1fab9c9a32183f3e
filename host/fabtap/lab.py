"""Who and what is in the lab: its machines, tariffs, members, badges and trainings?

Reads `fabtap.toml` and `members.csv` and checks both completely: a Lab that exists is consistent, and every mistake is
a Problem with its file, its line and its mend.

- Machine ids, node numbers, ports, member numbers and badges are unique.
- A machine and a member class have at most one tariff; "*" stands for every class, so it overlaps with each of them.
- Every class that a member has is priced on every machine.
- Amounts of money are written as text and become Decimal: a float never comes near them.
"""
import re
import zoneinfo
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from fabtap.members import CLASSES, NUMBER_MAX, Member, load_members
from fabtap.problem import Problem
from fabtap.toml_table import Table, Toml, guess, read_text, shown
from nodecore.words import REASONS

KEYS = {
    "lab": ("id", "name", "currency", "timezone", "members", "database", "keys"),
    "machine": ("id", "name", "node", "board", "link", "port", "mode", "training", "working_w", "checkpoint_s", "badge_out_ms",
                "idle_s"),
    "tariff": ("machine", "class", "per_minute_on", "per_minute_working", "per_kwh"),
    "broker": ("host", "port"),
    "wifi": ("network",),
    "floor": ("port",),
}
LINKS = ("serial", "mqtt")
MODES = ("gate", "observe")
CHECKPOINT_S_DEFAULT = 60
BADGE_OUT_MS_DEFAULT = 3000
IDLE_S_MAX = 14_400
BROKER_PORT = 1883
LABEL_CHARACTERS_MAX = 63
"""RFC 1035, section 2.3.4; a longer or an empty one can't even be asked for."""

# ISO 4217: currencies whose smallest unit isn't a hundredth.
CURRENCIES_WITHOUT_DECIMALS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
CURRENCIES_OF_THREE_DECIMALS = "BHD IQD JOD KWD LYD OMR TND"

_REASON_NUMBERS = {name: number for number, name in REASONS.items()}


@dataclass(frozen=True)
class Machine:
    """One [[machine]]; `training` None means that nobody needs one, `idle_s` 0 that idleness ends no session.

    `port` is resolved against the toml's folder; with `link` "mqtt" it is where the technician plugs the board in, if anywhere.
    `mode` "observe": the node meters and logs and switches nothing; its charges are only shown.
    """

    id: str
    name: str
    node: int
    board: str
    link: str
    port: Path | None
    mode: str
    training: str | None
    working_w: int
    checkpoint_s: int
    badge_out_ms: int
    idle_s: int
    line: int | None

    def plugged_port(self, given: Path | None = None) -> Path:
        """The serial port where the technician reaches the board: the given one, else the machine's. Raises Problem."""
        found = given or self.port
        if found is None:
            raise Problem(self.id, None, "has no serial port in fabtap.toml", "Plug the board in and name it with --port.")
        return found


@dataclass(frozen=True)
class Tariff:
    """One [[tariff]]: amounts in the lab's currency, for the `classes` that it names ("*" is spelled out)."""

    machine: str
    classes: tuple[str, ...]
    per_minute_on: Decimal
    per_minute_working: Decimal
    per_kwh: Decimal


@dataclass(frozen=True)
class Broker:
    """[broker]: where the nodes and the collector find the MQTT broker; `host` is a name or an address in the lab's network."""

    host: str
    port: int

    @property
    def host_from_here(self) -> str:
        """What this computer connects to: localhost is itself, whatever its name service knows (RFC 6761, section 6.3)."""
        return "127.0.0.1" if self.host.lower() == "localhost" else self.host


@dataclass(frozen=True)
class Lab:
    """A checked lab; `file` is the toml, the other paths are resolved against its folder."""

    file: Path
    id: str
    name: str
    currency: str
    timezone: zoneinfo.ZoneInfo
    members_file: Path
    database: Path
    keys: Path
    machines: tuple[Machine, ...]
    tariffs: tuple[Tariff, ...]
    members: tuple[Member, ...]
    broker: Broker | None
    wifi_network: str | None
    floor_port: int | None

    @property
    def currency_exponent(self) -> int:
        """Decimal places of the currency's smallest unit."""
        if self.currency in CURRENCIES_WITHOUT_DECIMALS:
            return 0
        return 3 if self.currency in CURRENCIES_OF_THREE_DECIMALS else 2

    def tariff(self, machine_id: str, member_class: str) -> Tariff | None:
        """The one tariff of a machine and a class, or None."""
        return next((tariff for tariff in self.tariffs
                     if tariff.machine == machine_id and member_class in tariff.classes), None)


class AccessEntry(NamedTuple):
    """What a node's roster says of one badge: `reason` 0 lets it in, else a number of nodecore.words.REASONS."""

    uid: bytes
    member: int
    reason: int
    last_valid_day: date | None


def access_entries(lab: Lab, machine: Machine, today: date) -> list[AccessEntry]:
    """Every badge of the lab as `machine` should treat it on `today` (the lab's own date), in the order of UIDs.

    `last_valid_day` is the last day of the training that the machine asks for, None if it has none or asks for none.
    """
    entries = []
    for member in lab.members:
        training = next((held for held in member.trainings if held.name == machine.training), None)
        last_valid_day = training.last_valid_day if training else None
        if member.status == "held":
            reason = "member_held"
        elif machine.training is not None and training is None:
            reason = "no_training"
        elif last_valid_day is not None and last_valid_day < today:
            reason = "training_expired"
        else:
            reason = "none"
        for badge in member.badges:
            entries.append(AccessEntry(badge.uid, member.number, _REASON_NUMBERS[reason], last_valid_day))
    return sorted(entries, key=lambda entry: entry.uid)


def load_lab(path: str | Path, boards: Collection[str] | None = None) -> Lab:
    """The checked lab of a `fabtap.toml`; `boards` are the names of known boards, None leaves them unchecked.

    Raises Problem for every mistake in the toml or in the members' file.
    """
    file = Path(path)
    toml = Toml(file, read_text(file, "Create it, or name another file"), KEYS)
    table = toml.one("lab")
    machines = _machines(toml, boards)
    lab = Lab(
        file=file,
        id=table.name_of_thing("id"),
        name=table.text("name"),
        currency=_currency(table),
        timezone=_timezone(table),
        members_file=file.parent / table.text("members", '"members.csv"'),
        database=file.parent / table.text("database", '"fabtap.db"'),
        keys=file.parent / table.text("keys", '"keys.toml"'),
        machines=machines,
        tariffs=_tariffs(toml, {machine.id for machine in machines}),
        members=load_members(file.parent / table.text("members")),
        broker=_broker(toml),
        wifi_network=_wifi_network(toml),
        floor_port=_floor_port(toml),
    )
    _check_priced(lab)
    _check_links(toml, lab)
    return lab


def _machines(toml: Toml, boards: Collection[str] | None) -> tuple[Machine, ...]:
    tables = toml.many("machine")
    if not tables:
        raise Problem(toml.file, 1, "there is no machine", "Add a [[machine]] for each.")
    machines = [_machine(table, boards) for table in tables]
    for key in ("id", "node", "port"):
        seen: dict[Any, Table] = {}
        for table, machine in zip(tables, machines, strict=True):
            value = getattr(machine, key)
            if value is None:
                continue
            first = seen.setdefault(value, table)
            if first is not table:
                raise table.problem(key, f"{key} {shown(table.row[key])} is taken by {first.label} "
                                         f"(line {first.line(key)})", f"Give each machine {key} of its own.")
    return tuple(machines)


def _machine(table: Table, boards: Collection[str] | None) -> Machine:
    board = table.text("board", '"rpi-pico"')
    if boards is not None and board not in boards:
        raise table.problem("board", f"there is no board {shown(board)}", guess(board, boards))
    link = table.choice("link", LINKS)
    return Machine(
        id=table.name_of_thing("id"),
        name=table.text("name", '"Laser cutter"'),
        node=table.whole("node", 1, NUMBER_MAX),
        board=board,
        link=link,
        port=_port(table) if link == "serial" or "port" in table.row else None,
        mode=table.choice("mode", MODES),
        training=table.name_of_thing("training") if "training" in table.row else None,
        working_w=table.whole("working_w", 1, 23_000),
        checkpoint_s=table.whole("checkpoint_s", 1, 60, CHECKPOINT_S_DEFAULT),
        badge_out_ms=table.whole("badge_out_ms", 0, 10_000, BADGE_OUT_MS_DEFAULT),
        idle_s=table.whole("idle_s", 0, IDLE_S_MAX, 0),
        line=table.line(),
    )


def _port(table: Table) -> Path:
    return table.toml.file.parent / table.text("port", '"/dev/serial/by-id/..."')


def _broker(toml: Toml) -> Broker | None:
    table = toml.one_or_none("broker")
    if table is None:
        return None
    host = table.text("host", '"broker.lab"')
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", host):
        raise table.problem("host", f"host is {shown(host)}, no name or address of a computer",
                            'E.g. host = "broker.lab" or host = "192.168.1.10".')
    if not all(1 <= len(label) <= LABEL_CHARACTERS_MAX for label in host.split(".")):
        raise table.problem("host", f"host is {shown(host)}, with a part between dots that has not 1 to {LABEL_CHARACTERS_MAX} "
                            "characters", 'E.g. host = "broker.lab" or host = "192.168.1.10".')
    if host.endswith(".local"):
        raise table.problem("host", f"host is {shown(host)}, and nodes ask a name server, which knows no .local names",
                            "Write the broker's address, or a name that the WiFi's name server knows.")
    return Broker(host, table.whole("port", 1, 65535, BROKER_PORT))


def _wifi_network(toml: Toml) -> str | None:
    table = toml.one_or_none("wifi")
    if table is None:
        return None
    network = table.text("network", '"FabLab"')
    if len(network.encode()) > 32:
        raise table.problem("network", f"network is {shown(network)}, longer than 32 bytes", "Write the network's own name.")
    return network


def _floor_port(toml: Toml) -> int | None:
    table = toml.one_or_none("floor")
    return None if table is None else table.whole("port", 1, 65535)


def _check_links(toml: Toml, lab: Lab) -> None:
    for machine in lab.machines:
        if machine.link == "mqtt":
            for name, found in (("broker", lab.broker), ("wifi", lab.wifi_network)):
                if found is None:
                    raise Problem(toml.file, machine.line, f'machine "{machine.id}" has link = "mqtt", and there is no [{name}]',
                                  'Add [broker] with host = "..." and [wifi] with network = "...".')


def _tariffs(toml: Toml, machine_ids: Collection[str]) -> tuple[Tariff, ...]:
    tariffs = []
    seen: dict[tuple[str, str], Table] = {}
    for table in toml.many("tariff"):
        machine = table.name_of_thing("machine")
        if machine not in machine_ids:
            raise table.problem("machine", f"there is no machine {shown(machine)}", guess(machine, machine_ids))
        classes = _tariff_classes(table)
        for member_class in classes:
            first = seen.setdefault((machine, member_class), table)
            if first is not table:
                raise table.problem("class", f'machine "{machine}" and class "{member_class}" have a tariff already: '
                                             f"{first.label} (line {first.line('class')})",
                                    'Price each class once; "*" stands for every class.')
        tariffs.append(Tariff(machine, classes, table.amount("per_minute_on"), table.amount("per_minute_working"),
                              table.amount("per_kwh")))
    return tuple(tariffs)


def _tariff_classes(table: Table) -> tuple[str, ...]:
    value = table.value("class", '"worker-owner"')
    if value == "*":
        return CLASSES
    listed = value if isinstance(value, list) else [value]
    if not listed or len(set(map(str, listed))) != len(listed):
        raise table.problem("class", f"class is {shown(value)}, empty or with a class twice", "Name each class once.")
    for member_class in listed:
        if member_class not in CLASSES:
            raise table.problem("class", f"there is no class {shown(member_class)}", guess(member_class, CLASSES))
    return tuple(listed)


def _check_priced(lab: Lab) -> None:
    for machine in lab.machines:
        for member in lab.members:
            if lab.tariff(machine.id, member.member_class) is None:
                raise Problem(lab.file, machine.line, f'machine "{machine.id}" has no tariff for class '
                              f'"{member.member_class}", which member {member.number} has',
                              f'Add a [[tariff]] with machine = "{machine.id}" and class = "{member.member_class}".')


def _currency(lab: Table) -> str:
    value = lab.text("currency", '"USD"')
    if not re.fullmatch(r"[A-Z]{3}", value):
        raise lab.problem("currency", f"currency is {shown(value)}, not three capitals", 'E.g. currency = "USD".')
    return value


def _timezone(lab: Table) -> zoneinfo.ZoneInfo:
    value = lab.text("timezone", '"America/Chicago"')
    try:
        return zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        mend = guess(value, known, 'E.g. timezone = "America/Chicago".') if known else "Run pip install tzdata."
        raise lab.problem("timezone", f"there is no timezone {shown(value)}", mend) from None
