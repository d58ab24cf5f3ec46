"""The house of DESIGN 3: imports go downward only, and each outside thing has one importer.

Read from the source, so that what is imported inside a function or under
TYPE_CHECKING counts too.
"""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "maildirqmtp"

PURE = {
    "errors", "netstring", "protocol", "package_reader", "envelope", "sidecar", "route", "window",
    "dsn", "schedule", "snapshot", "text", "values", "response", "results",
    "transfer", "package", "address", "manners", "transport.spki", "serialmail.wire",
}  # fmt: skip
OUTSIDE = {
    "transport.__init__", "transport.sockets", "transport.tls", "transport.descriptors",
    "transport.command", "content", "guard", "files", "maildir", "filing", "cleaning", "mailer",
    "watch",
    "wake",
}  # fmt: skip
COMPOSITION = {
    "delivery", "outflow", "pipeline", "bouncing", "settle", "queues", "watch_queue", "claims",
    "aftermath", "link", "intake",
    "engine", "daemon", "report", "progress", "job", "courier", "waiting", "client", "async_client",
}  # fmt: skip
#: The other program. It shares the pure floor and the maildir with the forwarder, nothing else.
RECEIVER = {
    "receiver.__init__", "receiver.policy", "receiver.spool", "receiver.session",
    "receiver.streams", "receiver.listener", "receiver.tls", "receiver.connection",
    "receiver.serving",
}  # fmt: skip
EDGE = {
    "__init__", "__main__", "config", "configfile", "settings", "kinds", "mailkinds", "service",
    "batch", "status", "metrics", "notify", "cli", "options", "parser", "enqueue",
    "demo",
    "receiver.cli",
    "serialmail.__init__", "serialmail.letter", "serialmail.line", "serialmail.ready",
    "serialmail.conversation", "serialmail.serialqmtp", "serialmail.journal",
    "serialmail.client", "serialmail.feeder",
    "serialmail.rounds", "serialmail.maildirserial",
}  # fmt: skip
#: Rooms for the files, one on the other; a bounce may end in a maildir. And a door to the
#: ways to the server, of which two stand on others.
ON_EACH_OTHER = {
    "transport.__init__": {
        "transport.sockets",
        "transport.tls",
        "transport.descriptors",
        "transport.command",
    },
    "transport.tls": {"transport.sockets"},
    "transport.command": {"transport.descriptors"},
    "maildir": {"guard", "files"},
    "filing": {"files", "maildir"},
    "cleaning": {"files", "maildir"},
    "mailer": {"files", "maildir", "filing"},
}
FLOORS = [PURE, OUTSIDE, COMPOSITION, RECEIVER, EDGE]
EVERYBODY = set().union(*FLOORS)

#: What a pure module may take from the standard library: nothing that touches the world.
PURE_STDLIB = {
    "__future__", "abc", "base64", "binascii", "bisect", "collections", "contextlib", "dataclasses",
    "datetime", "email", "enum", "functools", "hashlib", "heapq", "ipaddress", "itertools", "json",
    "math", "operator", "re", "shlex", "string", "struct", "textwrap", "types", "typing",
    "unicodedata",
}  # fmt: skip

#: Who alone may import what.
ONLY = {
    "watchdog": {"watch"},
    "rich": {"progress"},
    "prometheus_client": {"metrics"},
    "socket": {"transport.sockets", "transport.tls", "filing"} | RECEIVER | EDGE,
    "ssl": {"transport.tls", "receiver.tls"},
    "subprocess": {"transport.command", "mailer"} | EDGE,
    "fcntl": {"guard"} | EDGE,
    "asyncio": {"async_client"},
    "typing_extensions": {"outflow"},
}

#: What only programs use; the forwarder works without it.
LIBRARY = {"content", "job", "courier", "client", "async_client"}

#: Modules that must never know of these, beyond what their floor says.
NEVER = {
    "delivery": {"outflow", "pipeline", "settle", "engine"} | LIBRARY,
    "outflow": {"pipeline", "settle", "engine"} | LIBRARY,
    "pipeline": {"settle", "engine"} | LIBRARY,
    "settle": {"pipeline", "engine"} | LIBRARY,
    "report": {"pipeline", "settle", "engine"} | LIBRARY,
    "engine": LIBRARY,
} | {module: {"delivery", "settle", "engine", "report", "maildir"} for module in LIBRARY}

#: For mypy alone, under TYPE_CHECKING; it brings it.
TYPES_ONLY = {"typing_extensions"}

MAX_LINES = 400


def imports_of(source: str) -> set[str]:
    """Return the dotted names of all that is imported anywhere in a module's source."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "maildirqmtp" if node.level else ""
            module = ".".join(filter(None, [package, node.module]))
            if module == "maildirqmtp":
                names |= {f"{module}.{alias.name}" for alias in node.names}
            else:
                names.add(module)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("import_module", "__import__"):
                names.add(str(ast.literal_eval(node.args[0])))
    return names


def split(names: set[str]) -> tuple[set[str], set[str]]:
    """Return our own modules and the top names of the others."""
    own = {own_module(name) for name in names if is_own(name)}
    return own, {name.split(".")[0] for name in names if not is_own(name)}


def own_module(name: str) -> str:
    """Return the module of ours that a dotted name is in, as the floors call it."""
    parts = name.split(".")[1:]
    while parts and not PACKAGE.joinpath(*parts).with_suffix(".py").exists():
        if PACKAGE.joinpath(*parts).is_dir():
            return ".".join([*parts, "__init__"])
        parts.pop()
    return ".".join(parts) or "__init__"


def is_own(name: str) -> bool:
    """Say whether it is a module of this package."""
    return name.split(".")[0] == "maildirqmtp"


def allowed(module: str) -> set[str]:
    """Return which of our modules a module may import."""
    if module in PURE:
        return PURE
    if module in OUTSIDE:
        return PURE | ON_EACH_OTHER.get(module, set())
    if module in COMPOSITION:
        return (PURE | OUTSIDE | COMPOSITION) - NEVER.get(module, set())
    if module in RECEIVER:
        return PURE | RECEIVER | {"files", "maildir", "filing", "cleaning"}
    return EVERYBODY


def source_of(module: str) -> str:
    """Return a module's source."""
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()


MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
)
IMPORTS = {name: split(imports_of(source_of(name))) for name in MODULES}


def test_every_module_is_on_a_floor() -> None:
    """A module that is nowhere may import anything, and soon everything imports it."""
    homeless = sorted(set(MODULES) - EVERYBODY)
    assert not homeless, f"assign {homeless} to one of FLOORS in {__file__}"


def test_no_module_is_on_two_floors() -> None:
    """Else the tests below would believe the more generous one."""
    assert sum(map(len, FLOORS)) == len(EVERYBODY)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward_only(module: str) -> None:
    """What calls back up cannot be tested, or understood, alone."""
    upward = sorted(IMPORTS[module][0] - allowed(module) - {module})
    assert not upward, f"{module} may not import {upward}: see DESIGN 3"


@pytest.mark.parametrize("module", sorted(PURE & set(MODULES)))
def test_the_pure_floor_touches_nothing_outside(module: str) -> None:
    """A parser that reads a clock or a file cannot be tested as a table."""
    impure = sorted(IMPORTS[module][1] - PURE_STDLIB)
    assert not impure, f"{module} is pure and may not import {impure}"


@pytest.mark.parametrize("module", MODULES)
def test_each_outside_thing_has_its_importers(module: str) -> None:
    """One place to look at when sockets, or watchdog, change."""
    wrong = sorted(n for n in IMPORTS[module][1] if n in ONLY and module not in ONLY[n])
    assert not wrong, f"{module} may not import {wrong}: only {[ONLY[name] for name in wrong]}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_that_is_not_installed_with_us(module: str) -> None:
    """A forgotten dependency is found by the first user."""
    known = sys.stdlib_module_names | {"watchdog", "rich", "prometheus_client"} | TYPES_ONLY
    assert not sorted(IMPORTS[module][1] - known)


def test_there_are_no_circles() -> None:
    """Two modules that import each other are one module in two files."""
    left = {module: own - {module} for module, (own, _) in IMPORTS.items()}
    while free := {module for module, own in left.items() if not own & left.keys()}:
        left = {module: own for module, own in left.items() if module not in free}
    assert not left, f"these import each other, or hang on ones that do: {sorted(left)}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_small(module: str) -> None:
    """DESIGN 3: most under 250 lines, none over 400."""
    lines = len(source_of(module).splitlines())
    assert lines < MAX_LINES, f"{module} has {lines} lines: find the better cut"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import os.path, json", {"os.path", "json"}),
        ("from os import path as p", {"os"}),
        (
            "from maildirqmtp import envelope, errors as e",
            {"maildirqmtp.envelope", "maildirqmtp.errors"},
        ),
        ("from maildirqmtp.errors import QMTPError", {"maildirqmtp.errors"}),
        ("from . import envelope", {"maildirqmtp.envelope"}),
        ("from .errors import QMTPError", {"maildirqmtp.errors"}),
        ("def f():\n    import socket", {"socket"}),
        ("if TYPE_CHECKING:\n    from maildirqmtp.engine import X", {"maildirqmtp.engine"}),
        ("try:\n    import rich.bar\nexcept ImportError:\n    pass", {"rich.bar"}),
        ("import importlib\nimportlib.import_module('socket')", {"importlib", "socket"}),
        ("__import__('os')", {"os"}),
        ("f()(1)\nprint('import os')", set()),
    ],
)
def test_every_kind_of_import_is_seen(source: str, names: set[str]) -> None:
    """A floor test that misses lazy imports keeps no floor."""
    assert imports_of(source) == names


def test_own_and_other_modules_are_told_apart() -> None:
    """And what is no module of ours, as `__version__`, is the package itself."""
    names = {"maildirqmtp.errors", "maildirqmtp.__version__", "maildirqmtp", "os.path", "json"}
    assert split(names) == ({"errors", "__init__"}, {"os", "json"})
    inner = {"maildirqmtp.receiver", "maildirqmtp.receiver.spool.Spool"}
    assert split(inner) == ({"receiver.__init__", "receiver.spool"}, set())
