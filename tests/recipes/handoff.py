"""recipes/hand-off.md with Dovecot (LMTP, both ways) and Postfix (SMTP)."""

from __future__ import annotations

import contextlib
import pwd
import subprocess
from pathlib import Path

from tests.helpers import wait_until
from tests.recipes.next_server import BOXES, DEADLINE_S, RECIPE, USERS, boxes, campaign
from tests.recipes.postfix import settings
from tests.recipes.trial import HOME, Trial, block, call, listening, make_user

DOVECOT = """\
log_path = /dev/stderr
ssl = no
first_valid_uid = 100
mail_location = maildir:~
service lmtp {
  inet_listener lmtp {
    address = 127.0.0.1
    port = 24
  }
}
passdb {
  driver = passwd-file
  args = /etc/dovecot/users
}
userdb {
  driver = passwd-file
  args = /etc/dovecot/users
}
"""


class Dovecot:
    """Dovecot as the recipe has it, with three users, and one whose mailbox cannot be made."""

    def __init__(self) -> None:
        vmail = pwd.getpwnam("vmail")
        homes = {user: BOXES / user for user in USERS} | {"later": Path("/proc/later")}
        Path("/etc/dovecot/users").write_text(
            "".join(
                f"{user}@here.example:{{plain}}x:{vmail.pw_uid}:{vmail.pw_gid}::{home}\n"
                for user, home in homes.items()
            )
        )
        self._file = Path("/etc/dovecot/dovecot.conf")
        self._file.write_text(block(RECIPE, "protocols = lmtp") + DOVECOT)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait for its socket."""
        self._process = subprocess.Popen(["dovecot", "-F", "-c", self._file])
        socket = Path("/run/dovecot/lmtp-qmtp")
        wait_until(socket.is_socket, "Dovecot's socket", DEADLINE_S)

    def stop(self) -> None:
        """End it."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(60) == 0
        with contextlib.suppress(FileNotFoundError):
            Path("/run/dovecot/lmtp-qmtp").unlink()


def postfix() -> None:
    """Postfix with the recipe's listener, for here.example and the same users."""
    vmail = pwd.getpwnam("vmail")
    boxes_of = "".join(f"{user}@here.example {user}/\n" for user in (*USERS, "later"))
    Path("/etc/postfix/boxes").write_text(boxes_of)
    Path("/etc/postfix/access").write_text("later@here.example 450 4.2.0 come again\n")
    call("postmap", "/etc/postfix/boxes")
    call("postmap", "/etc/postfix/access")
    settings(
        f"""
        myhostname = mx.here.example
        mydestination = localhost
        inet_protocols = ipv4
        maillog_file = /var/log/postfix.log
        virtual_mailbox_domains = here.example
        virtual_mailbox_base = {BOXES}
        virtual_mailbox_maps = hash:/etc/postfix/boxes
        virtual_mailbox_limit = 0
        virtual_uid_maps = static:{vmail.pw_uid}
        virtual_gid_maps = static:{vmail.pw_gid}
        smtpd_recipient_restrictions = check_recipient_access hash:/etc/postfix/access
        """
    )
    with Path("/etc/postfix/master.cf").open("a") as file:
        file.write(block(RECIPE, "127.0.0.1:2525 inet"))


def start_postfix() -> None:
    """Start it, and wait until it greets."""
    call("postfix", "start")
    listening(2525, "127.0.0.1")


def main() -> None:
    """Tell the story; the rows go to standard output."""
    make_user()
    boxes()
    server = Dovecot()
    server.start()
    trial = Trial(RECIPE, "dovecot-lmtpd")
    for how in ("lmtp:unix:/run/dovecot/lmtp-qmtp", "lmtp:127.0.0.1:24"):
        campaign(trial, HOME / f"out-{len(how)}", how, server.stop, server.start)
    server.stop()
    postfix()
    start_postfix()
    stop = ("postfix", "stop")
    campaign(
        Trial(RECIPE, "postfix"),
        HOME / "out-postfix",
        "smtp:127.0.0.1:2525",
        lambda: print(end=call(*stop)),
        start_postfix,
    )
    call(*stop)


if __name__ == "__main__":
    main()
