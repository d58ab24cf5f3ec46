"""The service directories for runit and daemontools, from a message to the server."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import wait_until
from tests.recipes.trial import (
    CONTRIB,
    DEADLINE_S,
    OUT,
    Trial,
    block,
    call,
    expect,
    far_end,
    make_user,
    message,
)

DIRS = ("new", "cur", "tmp")
LOG = Path("/var/log/maildirqmtp")


@contextlib.contextmanager
def scanned(scanner: str, kind: str, directory: Path) -> Iterator[Path]:
    """Copy and link a service as the comment in its `run` says, and let its scanner run it.

    Yields the link.
    """
    run = CONTRIB / kind / "maildirqmtp/run"
    assert f"cp -R maildirqmtp {directory.parent}/" in run.read_text()
    shutil.copytree(run.parent, directory)
    LOG.mkdir()
    shutil.chown(LOG, "maildirqmtp")
    services = Path("/srv/services") / kind
    services.mkdir(parents=True)
    (services / "maildirqmtp").symlink_to(directory)
    with subprocess.Popen([scanner, services]) as process:
        try:
            wait_until((LOG / "current").exists, "the log", DEADLINE_S)
            yield services / "maildirqmtp"
        finally:
            process.send_signal(signal.SIGHUP if kind == "runit" else signal.SIGTERM)
            if kind == "daemontools":
                call("svc", "-dx", services / "maildirqmtp", services / "maildirqmtp/log")
            process.wait(60)


def tell(kind: str, scanner: str, directory: Path, stop: list[str]) -> None:
    """Run the service, send a message, stop the service."""
    trial = Trial(f"{kind}/maildirqmtp", kind)
    with (
        trial.checks("a message is sent, as the user; a stop is orderly, and logged"),
        scanned(scanner, kind, directory) as service,
    ):
        call(
            *("runuser", "-u", "maildirqmtp", "--", "maildirqmtp", "--enqueue", OUT),
            *("--sender", "me@here.example", "--recipient", "joe@example.net"),
            text=message(kind).decode(),
        )
        expect(kind, "me@here.example", "joe@example.net")
        call(*stop, service)
        current = LOG / "current"
        wait_until(lambda: " 1 accepted" in current.read_text(), "the summary", DEADLINE_S)
    shutil.rmtree(LOG)


def main() -> None:
    """Tell the story; the rows go to standard output."""
    make_user()
    call(
        "runuser",
        "-u",
        "maildirqmtp",
        "--",
        "mkdir",
        OUT,
        *(OUT / d for d in ("new", "cur", "tmp")),
    )
    Path("/etc/maildirqmtp.toml").write_text(block("recipes/postfix.md", "[[route]]"))
    with far_end("mail.example.org"):
        tell("runit", "runsvdir", Path("/etc/sv/maildirqmtp"), ["sv", "-w", "45", "stop"])
        tell("daemontools", "svscan", Path("/etc/maildirqmtp"), ["svc", "-d"])


if __name__ == "__main__":
    main()
