"""Does every file import only what its layer may, and stay in the language and the size that were agreed?

A rule is a function from a file's syntax tree to complaints. Each stands in `RULES` beside the files it is for and a
source text that breaks it: a rule that finds nothing in that text is broken itself.
"""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FIRMWARE = ROOT / "firmware"
HOST = ROOT / "host"

CORE_MODULES = {"nodecore", "struct", "binascii", "hashlib"}
DRIVER_MODULES = {"machine", "time", "micropython", "rp2", "esp32", "sys", "select", "os", "vfs", "struct", "binascii", "errno",
                  "socket", "network", "chumicro_mqtt"}
NODE_MODULES = DRIVER_MODULES - {"socket", "network", "chumicro_mqtt"} | {"nodecore", "node", "json", "gc", "hashlib"}
MAIN_MODULES = NODE_MODULES | {"drivers"}
FIRMWARE_ONLY = {"main", "node", "drivers"}
# Given events, prices and marks in time, these compute; what they need to know is handed in.
PURE_HOST = ("fold", "rating", "timeline", "peer")
IO_MODULES = {
    "asyncio", "logging", "os", "pathlib", "rich", "serial", "socket", "sqlite3", "subprocess", "time", "typer",
}
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500


def imports(tree):
    """(line, dotted name) of every import, at the top or inside a function; `from a import b` counts as `a.b`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        # A relative import stays inside its own package, whose files are checked anyway.
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return sorted(found)


def top(name):
    """The package that an import names."""
    return name.split(".")[0]


def only(allowed):
    """The rule that a file imports nothing but these modules."""
    return lambda tree: [f"{line}: imports {name}" for line, name in imports(tree) if top(name) not in allowed]


def none_of(refused):
    """The rule that a file imports none of these modules."""
    return lambda tree: [f"{line}: imports {name}" for line, name in imports(tree) if top(name) in refused]


def relay_low_first(tree):
    """Nothing but `machine` is imported above the statement that makes the relay's pin an output, low."""
    found = []
    for statement in tree.body:
        if any(drives_pin_low(node) for node in ast.walk(statement)):
            return found
        block = ast.Module(body=[statement], type_ignores=[])
        found += [f"{line}: imports {name} before the relay is low" for line, name in imports(block) if name != "machine"]
    return [*found, "1: no statement calls machine.Pin(..., value=0)"]


def drives_pin_low(node):
    """Is it `machine.Pin(..., value=0)`?"""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "machine.Pin":
        return False
    return any(word.arg == "value" and ast.unparse(word.value) == "0" for word in node.keywords)


def no_io_reached(tree, seen=None):
    """No I/O module is imported, here or in the fabtap modules that are imported from here."""
    found = none_of(IO_MODULES)(tree)
    seen = set() if seen is None else seen
    for line, name in imports(tree):
        if top(name) != "fabtap":
            continue
        for path in module_files(name):
            if path not in seen:
                seen.add(path)
                behind = no_io_reached(parse(path), seen)
                found += [f"{line}: {path.relative_to(ROOT)}:{complaint}" for complaint in behind]
    return found


def module_files(name):
    """The files that an import of `name` loads: `fabtap.a.b` is b.py or b/__init__.py, or a name inside a.py."""
    parts = name.split(".")
    candidates = []
    for count in range(1, len(parts) + 1):
        path = HOST.joinpath(*parts[:count])
        candidates += [path.with_suffix(".py"), path / "__init__.py"]
    return [path for path in candidates if path.is_file()]


def core_language(tree):
    """No float, no true division, no I/O built-in and no `{**d}`: chips have single floats, MicroPython no dict display."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            found.append(f"{node.lineno}: float {node.value}")
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            found.append(f"{node.lineno}: true division")
        elif isinstance(node, ast.Name) and node.id in ("float", "print", "open", "input", "__import__"):
            found.append(f"{node.lineno}: {node.id}")
        elif isinstance(node, ast.Dict) and None in node.keys:
            found.append(f"{node.lineno}: a dict display with **")
    return found


def short_functions(tree):
    """A function is one thought."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                found.append(f"{node.lineno}: {node.name} has {lines} lines")
    return found


def short_file(tree):
    """A file is one question."""
    lines = max((node.end_lineno for node in tree.body), default=0)
    return [f"{lines}: more than {FILE_LINES_MAX} lines"] if lines > FILE_LINES_MAX else []


def python_files(*folders):
    """All Python files below the folders."""
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def parse(path):
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


CORE = python_files(FIRMWARE / "nodecore")
DRIVERS = python_files(FIRMWARE / "drivers")
NODE = python_files(FIRMWARE / "node")
MAIN = [FIRMWARE / "main.py"]
PURE = [HOST / "fabtap" / f"{name}.py" for name in PURE_HOST]
# The simulated board's own side runs in the MicroPython interpreter, under the firmware: it is no host program.
SIMULATED_BOARD = python_files(HOST / "fabtap" / "sim" / "board")
ALL_HOST = [path for path in python_files(HOST / "fabtap") if path not in SIMULATED_BOARD]
EVERYTHING = python_files(FIRMWARE, HOST / "fabtap")

LONG_FUNCTION = "def f():\n" + "    pass\n" * FUNCTION_LINES_MAX
LATE_PIN = "machine.Pin(2, machine.Pin.OUT, value=0)\n"

# what the rule says, the rule, its files, sources that break it
RULES = [
    ("nodecore imports only itself, struct, binascii and hashlib", only(CORE_MODULES), CORE, [
        "import os\n", "from time import ticks_ms\n", "import micropython\n", "from node import clock\n",
        "def f():\n    import machine\n", "try:\n    import drivers.relay_gpio\nexcept ImportError:\n    pass\n",
        *[f"import {name}\n" for name in ("typing", "enum", "dataclasses", "decimal", "abc", "contextlib")],
    ]),
    ("nodecore keeps to its language", core_language, CORE, [
        "x = 0.5\n", "x = 1 / 2\n", "x = 4\nx /= 2\n", "x = float(1)\n", "x = {**{}}\n", "print(1)\n", "open('a')\n",
        "__import__('os')\n",
    ]),
    ("drivers import only MicroPython's modules", only(DRIVER_MODULES), DRIVERS, [
        "import nodecore\n", "from nodecore import wire\n", "from node import clock\n", "import asyncio\n",
        "from drivers import relay_gpio\n",
    ]),
    ("node imports nodecore, itself and MicroPython's modules", only(NODE_MODULES), NODE, [
        "from drivers import relay_gpio\n", "import drivers.relay_gpio\n", "import main\n", "import fabtap\n",
    ]),
    ("main.py imports only the firmware", only(MAIN_MODULES), MAIN, ["import fabtap\n", "import socket\n"]),
    ("main.py drives the relay low before it imports anything but machine", relay_low_first, MAIN, [
        "import machine\nimport os\n" + LATE_PIN, "from node import settings\nimport machine\n" + LATE_PIN,
        "import machine\ntry:\n    import json\nexcept ImportError:\n    pass\n" + LATE_PIN,
        "import machine\nfrom machine import Pin\n" + LATE_PIN, "import machine\nmachine.Pin(2)\n",
        "import machine\nmachine.Pin(2, machine.Pin.OUT, value=1)\n", "",
    ]),
    ("the host imports nothing of the firmware but nodecore", none_of(FIRMWARE_ONLY), ALL_HOST, [
        "import main\n", "from drivers import meter_pzem004t\n", "def f():\n    from node.clock import Clock\n",
    ]),
    ("what is pure on the host reaches no I/O", no_io_reached, PURE, [
        *[f"import {name}\n" for name in sorted(IO_MODULES)], "from os import path\n", "import asyncio.streams\n",
    ]),
    (f"a function has at most {FUNCTION_LINES_MAX} lines", short_functions, EVERYTHING, [
        LONG_FUNCTION, "async " + LONG_FUNCTION, "class C:\n    " + LONG_FUNCTION.replace("\n", "\n    ").rstrip() + "\n",
    ]),
    (f"a file has at most {FILE_LINES_MAX} lines", short_file, EVERYTHING, [
        "x = 1\n" * (FILE_LINES_MAX + 1),
    ]),
]

BREACHES = [
    pytest.param(rule, source, id=f"{says}: {source[:40]!r}") for says, rule, _, sources in RULES for source in sources
]


@pytest.mark.parametrize(("rule", "paths"), [pytest.param(row[1], row[2], id=row[0]) for row in RULES])
def test_the_rule_holds(rule, paths):
    missing = [str(path.relative_to(ROOT)) for path in paths if not path.exists()]
    assert paths and not missing, f"the rule is for files that are not there: {missing}"
    found = [f"{path.relative_to(ROOT)}:{complaint}" for path in paths for complaint in rule(parse(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("rule", "source"), BREACHES)
def test_a_breach_of_the_rule_is_reported(rule, source):
    assert rule(ast.parse(source))


def test_the_longest_allowed_function_and_file_pass():
    assert not short_functions(ast.parse("def f():\n" + "    pass\n" * (FUNCTION_LINES_MAX - 1)))
    assert not short_file(ast.parse("x = 1\n" * FILE_LINES_MAX))


def test_io_behind_a_host_module_is_reported(tmp_path, monkeypatch):
    package = tmp_path / "fabtap"
    package.mkdir()
    (package / "money.py").write_text("from fabtap.store import rows\n")
    (package / "store.py").write_text("import sqlite3\n")
    monkeypatch.setitem(globals(), "HOST", tmp_path)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    found = no_io_reached(ast.parse("from fabtap import money\n"))
    assert found == ["1: fabtap/money.py:1: fabtap/store.py:1: imports sqlite3"]
