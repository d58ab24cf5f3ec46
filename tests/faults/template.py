"""A script: a program of the package that has its modules loaded, and is forked for each run.

A run under faults is over in milliseconds, once its modules are loaded; loading them takes
ten times as long. Each request is a JSON object and four descriptors: the run's standard
input, output and error, and one to which its process ID and then its exit code are written.
A traced run begins when its tracer is there, so that no call of the run escapes it.

Not imported by the tests, and nothing of them is imported here; see `programs.Template`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import sys
import time
from typing import Any

#: Seconds for a tracer to come.
TRACER_S = 60.0


def serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork a process for each request, and return the request there; None at the end."""
    while True:
        data, descriptors, *_ = socket.recv_fds(requests, 1 << 16, 4)
        if not data:
            return None
        if os.fork() == 0:
            requests.close()
            return json.loads(data), list(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def tell(report: int) -> None:
    """Fork once more: the child returns, the parent tells its process ID and its exit code."""
    child = os.fork()
    if child == 0:
        os.close(report)
        return
    os.write(report, b"%d\n" % child)
    _, status = os.waitpid(child, 0)
    os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def wait_for_the_tracer() -> None:
    """Wait until this call fails, as only a tracer can make it."""
    until = time.monotonic() + TRACER_S
    while time.monotonic() < until:
        try:
            os.sched_get_priority_max(os.SCHED_OTHER)
        except OSError:
            return
        time.sleep(0.001)
    os.write(2, b"no tracer came\n")
    os._exit(99)


def main() -> None:
    """Load the modules that standard input names, then serve on the descriptor given."""
    sys.path.pop(0)  # this script's folder
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.stdin.read().split():
        with contextlib.suppress(ImportError):  # what only the interpreter's start imports
            importlib.import_module(name)
    run = serve(requests)
    if run is None:
        return
    request, descriptors = run
    report = descriptors.pop()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    tell(report)
    sys.argv = request["argv"]
    entry = getattr(importlib.import_module(request["module"]), request["function"])
    if request["traced"]:
        wait_for_the_tracer()
    sys.exit(entry())


if __name__ == "__main__":
    main()
