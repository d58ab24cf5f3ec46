"""What a daemon imports before its routes begin: all that their code may import later."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import maildirqmtp

PACKAGE = Path(maildirqmtp.__file__).parent
#: The rooms that the code of a route is in, and that of HUP.
ROOMS = ("mail", "maildir", "transport", "pipeline", "forwarder", "settings", "daemon")
#: What runs in no daemon.
BATCH_ONLY = {"forwarder/batch.py", "forwarder/housekeeping.py", "forwarder/progress.py"}
#: By the way to the server; the main thread imports it for each page that is asked for, or for the
#: first reading of a configuration.
OTHERWISE = {
    "maildirqmtp.maildir.removal_process",
    "maildirqmtp.settings.config_file",
    "tomllib",
    "maildirqmtp.transport.command",
    "maildirqmtp.transport.descriptors",
    "maildirqmtp.transport.tls",
    "prometheus_client",
    "prometheus_client.exposition",
}


def imported_later(path: Path) -> set[str]:
    """Return the modules that functions of a module import."""
    found: set[str] = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    module = node.module or ""
                    parts = {f"{module}.{alias.name}" for alias in node.names}
                    modules = {
                        p for p in parts if (PACKAGE.parent / f"{p.replace('.', '/')}.py").exists()
                    }
                    found |= modules or {module}
    return found


def test_all_that_functions_import_is_there() -> None:
    """Else a daemon without descriptors ends when it needs it for the first time."""
    later = {
        name: str(path.relative_to(PACKAGE))
        for room in ROOMS
        for path in (PACKAGE / room).glob("*.py")
        if str(path.relative_to(PACKAGE)) not in BATCH_ONLY
        for name in imported_later(path)
    }
    assert len(later) > 20
    program = """
import json, sys
from maildirqmtp.daemon import supervisor
from maildirqmtp.forwarder.route import Route
from maildirqmtp.transport.endpoint import TcpEndpoint
supervisor.preload(Route(b"M", TcpEndpoint("h")))
print(json.dumps(list(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    missing = later.keys() - set(json.loads(done.stdout)) - OTHERWISE
    assert not missing, {name: later[name] for name in missing}
