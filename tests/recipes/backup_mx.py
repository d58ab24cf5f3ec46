"""recipes/backup-mx.md: Postfix as the backup, and the primary's mail server behind QMTP."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import add_message, add_sidecar, make_maildir, wait_until
from tests.recipes import postfix
from tests.recipes.ship import came
from tests.recipes.trial import (
    DEADLINE_S,
    OUT,
    Trial,
    block,
    call,
    forwarding,
    make_user,
    message,
    outside_code,
    submit,
)
from tests.scripted_smtp import scripted_server

RECIPE = "recipes/backup-mx.md"
USERS = ("joe@example.net", "ann@example.net")


def backup() -> None:
    """Postfix as the recipes have it, with a list of recipients."""
    postfix.start()
    postfix.settings(postfix.with_user(block(postfix.RECIPE, "virtual_mailbox_base")))
    postfix.settings(block(RECIPE, "virtual_mailbox_maps"))
    Path("/etc/postfix/recipients").write_text("".join(f"{user} out/\n" for user in USERS))
    call("postmap", "/etc/postfix/recipients")
    postfix.restart()


@contextlib.contextmanager
def receiving(*words: str) -> Iterator[None]:
    """Run a receiver."""
    with subprocess.Popen(["qmtpmaildir", *words], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert "listening" in server.stderr.readline()
        try:
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
            assert server.wait(60) == 0


def waiting() -> int:
    """Return how much mail the backup has."""
    return len(list((OUT / "new").iterdir())) if (OUT / "new").is_dir() else 0


def refused(port: int, *recipients: str) -> None:
    """Send to recipients whom a receiver of this machine has to refuse, each of them."""
    place = make_maildir(Path(f"/srv/evil-{port}"))
    add_sidecar(place, "1.evil", "me@evil.example", *recipients)
    add_message(place, "1.evil", b"Subject: evil\n\nHello\n", None, None)
    words = ("maildirqmtp", "--no-bounce", place, f"127.0.0.1:{port}")
    assert subprocess.run(words, timeout=90, check=False).returncode == 111
    failures = json.loads((place / ".Failed/envelope/1.evil.json").read_text())["failures"]
    assert [f["recipient"] for f in failures] == list(recipients)
    assert all("5.7.1" in f["response"] for f in failures), failures


def routing() -> None:
    """Postfix relays `v%elsewhere@here` for its own machine; the receiver in front does not."""
    trial = Trial("recipes/hand-off.md", "postfix")
    with trial.checks("no relay by %, ! or @ in the local part, which Postfix takes from us"):
        ways = ("v%foreign.example@localhost", "foreign.example!v@localhost")
        with smtplib.SMTP("127.0.0.1", 25, "localhost", 30) as client:
            client.ehlo()
            client.mail("me@evil.example")
            assert [client.rcpt(recipient)[0] for recipient in ways] == [250, 250]
        words = ("--domain", "localhost", "--deliver", "smtp:127.0.0.1")
        with receiving("--listen", "127.0.0.1:2209", *words):
            refused(2209, *ways, "v@foreign.example@localhost")


def main() -> None:
    """Tell the story; the rows go to standard output."""
    trial = Trial(RECIPE, "postfix")
    make_user()
    with Path("/etc/hosts").open("a") as hosts:
        hosts.write("127.0.0.1 mail.example.org\n")
    backup()
    with trial.checks("an outside client may send to those there are, and to nobody else"):
        assert outside_code("joe@example.net") == 250
        assert outside_code("nobody@example.net") == 550
        assert outside_code("joe@foreign.example") in (454, 554)
    submit("me@away.example", ["joe@example.net"], message("while down"))
    config = block(postfix.RECIPE, "[[route]]")
    with contextlib.ExitStack() as stack:
        mail_server = stack.enter_context(scripted_server(port=2525))
        with trial.checks("what came while the primary was down is handed over, once"):
            wait_until(lambda: waiting() == 1, "mail", DEADLINE_S)
            flush = ("runuser", "-u", "maildirqmtp", "--", "maildirqmtp", OUT, "mail.example.org")
            assert subprocess.run(flush, timeout=90, check=False).returncode == 111
            assert waiting() == 1
            Path("/var/lib/qmtpmaildir").mkdir(exist_ok=True)
            words = shlex.split(block(RECIPE, "# qmtpmaildir"))[2:]
            stack.enter_context(receiving(*words))
            with forwarding(config):
                wait_until(lambda: waiting() == 0, "no mail", DEADLINE_S)
                submit("me@away.example", ["joe@example.net", "ann@example.net"], message("up"))
                wait_until(lambda: len(came(mail_server, "up")) == 2, "the next", DEADLINE_S)
                wait_until(lambda: waiting() == 0, "no mail", DEADLINE_S)
            assert len(came(mail_server, "while down")) == 1
            lines = [line for c in mail_server.conversations for line in c.commands]
            assert [line for line in lines if line.startswith(b"RCPT")].count(
                b"RCPT TO:<joe@example.net>"
            ) == 2
            mails = [line for line in lines if line.startswith(b"MAIL")]
            assert all(line.startswith(b"MAIL FROM:<me@away.example>") for line in mails), mails
        with trial.checks("the primary relays nothing for strangers"):
            refused(209, "v@foreign.example", "v%foreign.example@example.net")
            assert not came(mail_server, "evil")
    routing()
    call("postfix", "stop")


if __name__ == "__main__":
    main()
