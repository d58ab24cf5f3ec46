"""recipes/backup-mx.md: Postfix as the backup, and the primary's mail server behind QMTP."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import wait_until
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
def primary() -> Iterator[None]:
    """Run the receiver of the recipe."""
    Path("/var/lib/qmtpmaildir").mkdir(exist_ok=True)
    words = shlex.split(block(RECIPE, "# qmtpmaildir").removeprefix("# "))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert "listening" in server.stderr.readline()
        try:
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
            assert server.wait(60) == 0


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
            with forwarding(config):
                wait_until(lambda: bool(list((OUT / "new").iterdir())), "mail", DEADLINE_S)
                assert not mail_server.texts
            stack.enter_context(primary())
            with forwarding(config):
                wait_until(lambda: not list((OUT / "new").iterdir()), "no mail", DEADLINE_S)
                submit("me@away.example", ["joe@example.net", "ann@example.net"], message("up"))
                wait_until(lambda: len(came(mail_server, "up")) == 2, "the next", DEADLINE_S)
                wait_until(lambda: not list((OUT / "new").iterdir()), "no mail", DEADLINE_S)
            assert len(came(mail_server, "while down")) == 1
            lines = [line for c in mail_server.conversations for line in c.commands]
            assert [line for line in lines if line.startswith(b"RCPT")].count(
                b"RCPT TO:<joe@example.net>"
            ) == 2
            mails = [line for line in lines if line.startswith(b"MAIL")]
            assert all(line.startswith(b"MAIL FROM:<me@away.example>") for line in mails), mails
        with trial.checks("the primary relays nothing for strangers"):
            words = ("maildirqmtp", "--enqueue", "/srv/evil", "--sender", "me@evil.example")
            for recipient in ("v@foreign.example", "v%foreign.example@example.net"):
                call(*words, "--recipient", recipient, text="Subject: evil\n\nHello\n")
            done = subprocess.run(
                ["maildirqmtp", "--no-bounce", "/srv/evil", "127.0.0.1"], timeout=90, check=False
            )
            assert done.returncode == 111
            assert len(list(Path("/srv/evil/.Failed/new").iterdir())) == 2
            assert not came(mail_server, "evil")
    call("postfix", "stop")


if __name__ == "__main__":
    main()
