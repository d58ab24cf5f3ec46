"""recipes/delivery-agents.md: Dovecot, maildrop and procmail, each behind Postfix."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import wait_until
from tests.recipes.postfix import restart, settings, start
from tests.recipes.trial import (
    DEADLINE_S,
    OUT,
    Trial,
    block,
    call,
    expect,
    far_end,
    forwarding,
    make_user,
    message,
    outside_code,
    submit,
)

RECIPE = "recipes/delivery-agents.md"
ANN = Path("/home/ann")


def some_domains(trial: Trial, name: str) -> None:
    """What has to hold for Dovecot and maildrop alike."""
    with trial.checks("no relay for an outside client"):
        assert outside_code("joe@example.net") == 250
        assert outside_code("joe@foreign.example") in (454, 554)
    first = f"{name}-some"
    submit("me@here.example", ["Joe+x@example.net", "blind@example.com"], message(first))
    with forwarding(block("recipes/postfix.md", "[[route]]")):
        with trial.checks("each recipient once, the blind one unnamed"):
            expect(first, "me@here.example", "Joe+x@example.net", "blind@example.com")
        with trial.checks("a bounce keeps its null sender"):
            submit("", ["joe@example.net"], message(f"{name}-null"))
            expect(f"{name}-null", "", "joe@example.net")
        with trial.checks("addresses that are seldom seen"):
            submit(
                "me@here.example",
                ['"jane x"@example.net', "o'brien=x/y@example.net"],
                message(f"{name}-seldom"),
            )
            expect(
                f"{name}-seldom",
                "me@here.example",
                "jane x@example.net",
                "o'brien=x/y@example.net",
            )


@contextlib.contextmanager
def dovecot() -> Iterator[None]:
    """Run Dovecot with the recipe's configuration, and nothing but a log added to it."""
    file = Path("/etc/dovecot/dovecot.conf")
    file.write_text(block(RECIPE, "protocols = lmtp") + "log_path = /dev/stderr\n")
    with subprocess.Popen(["dovecot", "-F", "-c", file]) as daemon:
        socket = Path("/var/spool/postfix/private/dovecot-lmtp")
        try:
            wait_until(socket.is_socket, "Dovecot's socket", DEADLINE_S)
            yield
        finally:
            daemon.terminate()
            assert daemon.wait(60) == 0


def maildrop() -> None:
    """Put the parts of the recipe for maildrop where they belong."""
    with Path("/etc/postfix/master.cf").open("a") as file:
        file.write(block(RECIPE, "maildrop unix"))
    settings(block(RECIPE, "virtual_transport = maildrop"))
    assert (
        "`maildirmake /var/lib/maildirqmtp/out`"
        in Path("/srv/maildirqmtp/contrib", RECIPE).read_text()
    )
    call("runuser", "-u", "maildirqmtp", "--", "maildirmake", OUT)
    mailfilter = OUT.with_name(".mailfilter")
    mailfilter.write_text(block(RECIPE, 'to "/var'))
    mailfilter.chmod(0o600)
    user = pwd.getpwnam("maildirqmtp")
    os.chown(mailfilter, user.pw_uid, user.pw_gid)


def procmail(trial: Trial) -> None:
    """Both forms, for a user ann, whose mail local(8) gives to procmail."""
    call("useradd", "--create-home", "--home-dir", ANN, "ann")
    settings("mailbox_command = /usr/bin/procmail\nmydestination = localhost, here.example")
    restart()
    maildir = ANN / "Outgoing"

    def deliver(subject: str, sender: str, recipe: str) -> None:
        (ANN / ".procmailrc").write_text(recipe)
        submit(sender, ["ann@here.example"], message(subject))
        new = maildir / "new"
        wait_until(lambda: new.is_dir() and any(new.iterdir()), "the maildir", DEADLINE_S)
        call("runuser", "-u", "ann", "--", "maildirqmtp", maildir, "mail.example.org")

    lines, sidecar = block(RECIPE, "$HOME/Outgoing/\n"), block(RECIPE, "--enqueue $HOME")
    with trial.checks("a maildir: envelope from the lines on top"):
        deliver("procmail", "me@here.example", lines)
        expect("procmail", "me@here.example", "ann@here.example", maildir=maildir)
    with trial.checks("a maildir: a bounce keeps its null sender"):
        deliver("procmail-null", "", lines)
        expect("procmail-null", "", "ann@here.example", maildir=maildir)
    with trial.checks("--enqueue: envelope from the sidecar"):
        deliver("sidecar", "me@here.example", sidecar)
        expect("sidecar", "me@here.example", "joe@example.net", maildir=maildir)
    with trial.checks("--enqueue: a bounce keeps its null sender"):
        deliver("sidecar-null", "", sidecar)
        expect("sidecar-null", "", "joe@example.net", maildir=maildir)


def main() -> None:
    """Tell the story; the rows go to standard output."""
    make_user()
    start()
    with far_end("mail.example.org"):
        settings(block(RECIPE, "virtual_transport = lmtp"))
        restart()
        with dovecot():
            some_domains(Trial(RECIPE, "dovecot-lmtpd"), "dovecot")
        OUT.rename(OUT.with_name("out-of-dovecot"))
        maildrop()
        restart()
        some_domains(Trial(RECIPE, "maildrop"), "maildrop")
        procmail(Trial(RECIPE, "procmail"))
    call("postfix", "stop")


if __name__ == "__main__":
    main()
