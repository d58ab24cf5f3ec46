"""The rooms of the package: imports go down only, and each outside thing has one importer.

Read from the source, so that what is imported inside a function or under
TYPE_CHECKING counts too. A room is a folder; no module is named here.
"""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "maildirqmtp"

#: From the ground up: a room may import from itself and from those before it.
ROOMS = (
    "", "qmtp", "mail", "maildir", "transport", "pipeline", "client", "forwarder", "settings",
    "daemon", "receiver", "submission", "serialmail", "cli",
)  # fmt: skip

#: Rooms that must not know of each other, whatever their order.
STRANGERS = (
    {"client", "forwarder"},
    {"client", "daemon"},
    {"client", "serialmail"},
    {"receiver", "client"},
    {"receiver", "pipeline"},
    {"receiver", "forwarder"},
    {"receiver", "daemon"},
    {"submission", "daemon"},
)

#: Rooms without input and output: their modules can be tested as tables.
PURE = {"qmtp", "mail"}
PURE_STDLIB = {
    "__future__", "base64", "binascii", "collections", "dataclasses", "datetime", "email", "enum",
    "functools", "hashlib", "ipaddress", "itertools", "json", "math", "re", "string", "struct",
    "textwrap", "typing", "unicodedata",
}  # fmt: skip

#: Outside things, each with one importer in the whole package.
ONE_IMPORTER = {"watchdog", "ssl", "smtplib", "subprocess", "rich", "prometheus_client", "asyncio"}

MAX_LINES = 400
MAX_TOP_LEVEL = 10
#: Lines of code in the `__init__` of a room, which runs with any import from the room.
MAX_INIT_LINES = 3


def imports_of(source: str) -> set[str]:
    """Return the dotted names of all that is imported anywhere in a module's source."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "write imports in full"
            module = node.module or ""
            if is_own(module):
                names |= {f"{module}.{alias.name}" for alias in node.names}
            else:
                names.add(module)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                names.add(str(node.args[0].value))
    return names


def is_own(name: str) -> bool:
    """Say whether it is a module of this package, or something in one."""
    return name.split(".")[0] == "maildirqmtp"


def room_of(name: str) -> str:
    """Return the room that a dotted name of ours leads to; empty for the top level."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def module_of(name: str) -> str:
    """Return the module of ours that a dotted name is in."""
    parts = name.split(".")[1:]
    while parts and not PACKAGE.joinpath(*parts).with_suffix(".py").exists():
        if (PACKAGE.joinpath(*parts) / "__init__.py").exists():
            break
        parts.pop()
    return ".".join(parts) or "__init__"


def others_of(names: set[str]) -> set[str]:
    """Return the top names of what is imported from elsewhere."""
    return {name.split(".")[0] for name in names if not is_own(name)}


def upward(room: str, names: set[str]) -> list[str]:
    """Return those of our names that this room may not import."""
    below = ROOMS[: ROOMS.index(room) + 1]
    strangers = {other for pair in STRANGERS if room in pair for other in pair - {room}}
    own = [name for name in names if is_own(name)]
    return sorted(n for n in own if room_of(n) not in below or room_of(n) in strangers)


def importers(imports: dict[str, set[str]], thing: str) -> list[str]:
    """Return the modules that import an outside thing."""
    return sorted(module for module, names in imports.items() if thing in others_of(names))


PATHS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
IMPORTS = {name: imports_of(path.read_text()) for name, path in PATHS.items()}
MODULES = sorted(PATHS)


def room_of_module(module: str) -> str:
    """Return the room that a module stands in."""
    return module.rpartition(".")[0].partition(".")[0]


def test_every_folder_is_a_room() -> None:
    """A folder of another name is one that a stranger cannot place."""
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(ROOMS) - {""}


def test_the_top_level_is_small() -> None:
    """What is not in a room belongs to nobody."""
    assert len([module for module in MODULES if "." not in module]) <= MAX_TOP_LEVEL


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    """What calls back up cannot be tested, or understood, alone."""
    # The package's public names, and its program, are doors to the rooms above.
    if module in ("__init__", "__main__"):
        return
    wrong = upward(room_of_module(module), IMPORTS[module])
    assert not wrong, f"{module} may not import {wrong}"


@pytest.mark.parametrize("module", [m for m in MODULES if room_of_module(m) in PURE])
def test_pure_rooms_touch_nothing_outside(module: str) -> None:
    """A parser that reads a clock or a file cannot be tested as a table."""
    impure = sorted(others_of(IMPORTS[module]) - PURE_STDLIB)
    assert not impure, f"{module} is pure and may not import {impure}"


@pytest.mark.parametrize("thing", sorted(ONE_IMPORTER))
def test_each_outside_thing_has_one_importer(thing: str) -> None:
    """One place to look at when it changes, and one that says what it needs of it."""
    found = importers(IMPORTS, thing)
    assert len(found) <= 1, f"{thing} is imported by {found}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_that_is_not_installed_with_us(module: str) -> None:
    """A forgotten dependency is found by the first user."""
    known = sys.stdlib_module_names | {"watchdog", "rich", "prometheus_client"}
    assert not sorted(others_of(IMPORTS[module]) - known)


def test_there_are_no_circles() -> None:
    """Two modules that import each other are one module in two files."""
    own = {m: {module_of(n) for n in IMPORTS[m] if is_own(n)} - {m, "__init__"} for m in MODULES}
    while free := {module for module, names in own.items() if not names & own.keys()}:
        own = {module: names for module, names in own.items() if module not in free}
    assert not own, f"these import each other, or hang on ones that do: {sorted(own)}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_small(module: str) -> None:
    """Most have less than 250 lines, none more than 400."""
    lines = len(PATHS[module].read_text().splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines: find the better cut"


@pytest.mark.parametrize("module", MODULES)
def test_no_run_compiles_annotations(module: str) -> None:
    """A named tuple compiles postponed ones; the first costs 9 million instructions of 120."""
    text = PATHS[module].read_text()
    if module.partition(".")[0] in {"mail", "maildir", "transport", "pipeline", "forwarder"}:
        assert not ("(NamedTuple" in text and "from __future__ import annotations" in text)


@pytest.mark.parametrize("room", [room for room in ROOMS if room])
def test_the_init_of_a_room_does_nothing(room: str) -> None:
    """It runs with any import from the room."""
    body = ast.parse((PACKAGE / room / "__init__.py").read_text()).body
    assert len([node for node in body if not isinstance(node, ast.Expr)]) <= MAX_INIT_LINES


# The test's own eyes


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import os.path, json", {"os.path", "json"}),
        ("from os import path as p", {"os"}),
        (
            "from maildirqmtp import netstring, errors as e",
            {"maildirqmtp.netstring", "maildirqmtp.errors"},
        ),
        ("from maildirqmtp.errors import QMTPError", {"maildirqmtp.errors.QMTPError"}),
        ("def f():\n    import socket", {"socket"}),
        ("if TYPE_CHECKING:\n    from maildirqmtp.cli import main", {"maildirqmtp.cli.main"}),
        ("try:\n    import rich.bar\nexcept ImportError:\n    pass", {"rich.bar"}),
        ("import importlib\nimportlib.import_module('socket')", {"importlib", "socket"}),
        ("__import__('os')", {"os"}),
        ("f()(1)\nprint('import os')", set()),
    ],
)
def test_every_kind_of_import_is_seen(source: str, names: set[str]) -> None:
    """A test of rooms that misses lazy imports keeps nothing out."""
    assert imports_of(source) == names


@pytest.mark.parametrize(
    ("room", "name", "allowed"),
    [
        ("qmtp", "maildirqmtp.errors.QMTPError", True),
        ("qmtp", "maildirqmtp.response", True),
        ("qmtp", "maildirqmtp.mail.envelope", False),
        ("maildir", "maildirqmtp.forwarder", False),
        ("forwarder", "maildirqmtp.pipeline.pipeline.Pipeline", True),
        ("forwarder", "maildirqmtp.client.client.QMTPClient", False),
        ("client", "maildirqmtp.forwarder.route", False),
        ("receiver", "maildirqmtp.forwarder.route", False),
        ("cli", "maildirqmtp.daemon.status", True),
        ("", "maildirqmtp.cli.main", False),
    ],
)
def test_an_import_that_points_up_is_seen(room: str, name: str, allowed: bool) -> None:
    """And so is one between rooms that must not know of each other."""
    assert (upward(room, {name, "os.path"}) == []) is allowed


def test_a_second_importer_is_seen() -> None:
    """In a function, too."""
    second = imports_of("def f():\n    import ssl.x")
    assert importers({"a.b": {"ssl", "os"}, "c.d": second, "e": {"os"}}, "ssl") == ["a.b", "c.d"]
