"""recipes/hand-off.md with Exim (SMTP)."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.helpers import wait_until
from tests.recipes.next_server import BOXES, RECIPE, boxes, campaign
from tests.recipes.trial import HOME, Trial, block, listening, make_user

CONFIG = f"""\
primary_hostname = mx.here.example
domainlist local_domains = here.example
daemon_smtp_ports = 2525
local_interfaces = 127.0.0.1
acl_smtp_rcpt = rcpt
never_users =
log_file_path = /var/log/exim4/%slog
%s
begin acl
rcpt:
  defer local_parts = later
        message = 4.2.0 come again
  deny  !verify = recipient
        message = 5.1.1 no such user
  accept domains = +local_domains
begin routers
users:
  driver = accept
  domains = +local_domains
  local_parts = ann : bob : cat
  transport = box
begin transports
box:
  driver = appendfile
  directory = {BOXES}/$local_part_data
  maildir_format
  create_directory
  user = vmail
  group = vmail
begin retry
"""


class Exim:
    """Exim with the recipe's line, and a configuration for three users."""

    def __init__(self) -> None:
        # Another place, named by -C, would cost it the right to deliver as vmail.
        line = block(RECIPE, "smtp_accept")
        Path("/etc/exim4/exim4.conf").write_text(
            CONFIG.replace("%s\nbegin acl", f"{line}begin acl")
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it greets."""
        self._process = subprocess.Popen(["exim4", "-bdf"])
        listening(2525, "127.0.0.1")

    def stop(self) -> None:
        """End the daemon, and its children, which serve connections.

        Not those that deliver: Exim itself would deliver again what they were at.
        """
        assert self._process is not None
        if self._process.poll() is not None:
            return
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._process.terminate()
        self._process.wait(60)
        wait_until(lambda: all([_ended(int(child)) for child in children]), "the end of Exim")


def _ended(pid: int) -> bool:
    """Tell a process of Exim to end, and return whether it has.

    It heeds the signal only where that interrupts its wait for input: told once while it is busy,
    it takes all that is left.
    """
    try:
        os.kill(pid, signal.SIGTERM)
        return not Path(f"/proc/{pid}/cmdline").read_bytes()  # nobody has reaped it yet
    except (ProcessLookupError, FileNotFoundError):
        return True


def main() -> None:
    """Tell the story; the rows go to standard output."""
    make_user()
    boxes()
    server = Exim()
    server.start()
    trial = Trial(RECIPE, "exim4-daemon-light")
    campaign(trial, HOME / "out", "smtp:127.0.0.1:2525", server.stop, server.start)
    server.stop()


if __name__ == "__main__":
    main()
