"""What was this node told about itself when it was provisioned?

One JSON file, written by `fabtap board provision`. It is checked here once, at boot: a node with a half-written or foreign
settings file says so and stays off.
"""
import binascii
import json

PATH = "/settings.json"
# name: (default, lowest, highest); None as default: must be there
NUMBERS = {
    "node": (None, 1, 0x7FFFFFFF),
    "working_mw": (60000, 1000, 23000000),
    "checkpoint_ms": (60000, 1000, 60000),
    "badge_out_ms": (3000, 0, 10000),
    "watchdog_ms": (8000, 1000, 8300),
    "segment_bytes": (400, 96, 4096),
    "journal_records": (5000, 64, 20000),
    "timer": (-1, -1, 3),
    "timer_hard": (0, 0, 1),
    "gates": (1, 0, 1),
    "idle_ms": (0, 0, 14400000),
}
PINS = ("relay", "led", "buzzer", "stop", "estop", "reader_sck", "reader_mosi", "reader_miso", "reader_select",
        "reader_reset", "meter_tx", "meter_rx")
BUSES = ("reader_spi", "meter_uart")
MQTT = {"host": str, "port": int, "user": str, "password": str, "topic": str, "network": str, "network_password": str,
        "name_server_port": int}


class SettingsError(Exception):
    """The settings file is missing, damaged or not for this firmware."""


def load(path=PATH):
    """The settings as a dict: the numbers above, `secret` (bytes), `board` (str), `pins` and `buses` (dicts of numbers), and
    `mqtt`: what MQTT lists, None for a node on a cable."""
    try:
        with open(path) as file:
            found = json.load(file)
    except (OSError, ValueError) as error:
        raise SettingsError("%s can't be read (%s): run `fabtap board provision`" % (path, error)) from None
    if not isinstance(found, dict):
        raise SettingsError("%s holds no settings: run `fabtap board provision`" % path)
    settings = {}
    for name in NUMBERS:
        settings[name] = _number(found, name)
    try:
        settings["secret"] = binascii.unhexlify(found["secret"])
        settings["board"] = str(found["board"])
        settings["pins"] = {name: int(found["pins"][name]) for name in PINS}
        settings["buses"] = {name: int(found["buses"][name]) for name in BUSES}
        mqtt = found.get("mqtt")
        settings["mqtt"] = {name: MQTT[name](mqtt[name]) for name in MQTT} if mqtt else None
    except (KeyError, ValueError, TypeError) as error:
        raise SettingsError("%s lacks or spoils %s: run `fabtap board provision`" % (path, error)) from None
    if len(settings["secret"]) != 32:
        raise SettingsError("%s: secret must have 32 bytes" % path)
    return settings


def _number(found, name):
    default, lowest, highest = NUMBERS[name]
    value = found.get(name, default)
    if not isinstance(value, int) or not lowest <= value <= highest:
        raise SettingsError("%s: %s must be a number from %d to %d" % (PATH, name, lowest, highest))
    return value
