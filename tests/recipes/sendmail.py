"""recipes/sendmail.md: a machine without a mail server, from its programs to the far end."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import wait_until
from tests.recipes.trial import (
    DEADLINE_S,
    HOME,
    Trial,
    arrived,
    block,
    call,
    expect,
    far_end,
    make_user,
)

RECIPE = "recipes/sendmail.md"
QUEUE = HOME / "queue"
SOCKET = Path("/run/maildirqmtp/submit.sock")
FROM = "laptop@example.org"


@contextlib.contextmanager
def running(*words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon of the recipe as its user, until the end; it has to end well."""
    with subprocess.Popen(
        [*map(str, words)], user="maildirqmtp", group="maildirqmtp", extra_groups=[], cwd="/"
    ) as daemon:
        try:
            yield daemon
        finally:
            daemon.terminate()
            assert daemon.wait(60) == 0


def install() -> None:
    """Do what the recipe says for the whole machine."""
    Path("/etc/maildirqmtp.toml").write_text(block(RECIPE, "[submission.aliases]"))
    for command in block(RECIPE, "# dpkg-divert").splitlines():
        call("sh", "-ec", command.removeprefix("# "))


def changed_over() -> None:
    """A user who had msmtp, with mutt and git; the recipe's commands change that."""
    Path("/root/.muttrc").write_text('set sendmail="/usr/bin/msmtp -a work"\nset copy=no\n')
    call("git", "config", "--global", "sendemail.smtpServer", "/usr/bin/msmtp")
    call("git", "config", "--global", "sendemail.smtpServerOption", "-a")
    call("git", "config", "--global", "--add", "sendemail.smtpServerOption", "work")
    msmtp = Trial(RECIPE, "msmtp-mta", "from msmtp-mta")
    with msmtp.checks("its sendmail is set aside, mutt and git are changed over"):
        assert Path("/usr/sbin/sendmail.distrib").readlink().name == "msmtp"
        for command in block(RECIPE, "sed -i").splitlines():
            call("sh", "-ec", command.removeprefix("$ "))
    with msmtp.checks("mutt: with an envelope sender of its own"):
        words = ("-e", "set use_envelope_from", "-e", "set from=ann@example.org")
        call("mutt", *words, "-s", "changed", "--", "bob@example.net", text="Hello\n")
        expect("changed", "ann@example.org", "bob@example.net", maildir=QUEUE)
    with Trial(RECIPE, "git-email", "git send-email").checks("a patch to two, one of them blind"):
        patch = Path("/tmp/1.patch")
        patch.write_text(
            "From 1234567890123456789012345678901234567890 Mon Sep 17 00:00:00 2001\n"
            "From: Ann <ann@example.org>\nDate: Thu, 26 Nov 2026 12:00:00 +0000\n"
            "Subject: patched\n\nHello\n---\n.\n--\n2.39\n"
        )
        call(
            *("git", "send-email", "--from=ann@example.org", "--envelope-sender=ann@example.org"),
            *("--to=bob@example.net", "--bcc=cat@example.net", "--confirm=never"),
            *("--suppress-cc=all", patch),
        )
        wait_until(lambda: len(arrived("patched")) >= 2, "both copies", DEADLINE_S)
        found = arrived("patched")
        assert [one.recipient for one in found] == ["bob@example.net", "cat@example.net"]
        assert all(one.sender == "ann@example.org" for one in found), found
        assert all(one.text.endswith("\n---\n.\n--\n2.39\n") for one in found), found
        assert not any("cat@example.net" in one.text for one in found), found


def main() -> None:
    """Tell the story; the rows go to standard output."""
    make_user()
    SOCKET.parent.mkdir()
    call("chown", "maildirqmtp:", SOCKET.parent)
    install()
    queue = ("qmtpmaildir", "--queue", QUEUE, "--listen", f"unix:{SOCKET}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(far_end("mail.example.org"))
        stack.enter_context(running(*queue))
        wait_until(lambda: SOCKET.exists() and QUEUE.is_dir(), "the queue", DEADLINE_S)
        # A maildir that does not exist is looked for every 30 s only.
        stack.enter_context(running("maildirqmtp", "--config", "/etc/maildirqmtp.toml"))
        mailx = Trial(RECIPE, "bsd-mailx")
        with mailx.checks("mail of this machine's root goes to a person"):
            call("mail", "-s", "aliased", "root", text="Hello\n")
            expect("aliased", FROM, "ann@example.org", maildir=QUEUE)
        with mailx.checks("a user's mail; the blind one is told to nobody"):
            words = ("mail", "-s", "blind", "-b", "cat@example.net", "bob@example.net")
            user = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
            call(*user, *words, text="Hello\n")
            wait_until(lambda: len(arrived("blind")) >= 2, "both copies", DEADLINE_S)
            found = arrived("blind")
            assert [one.recipient for one in found] == ["bob@example.net", "cat@example.net"]
            assert not any("cat@example.net" in one.text for one in found), found
        changed_over()
        with Trial(RECIPE, "mutt").checks("a message; the sender is the configured one"):
            call("mutt", "-s", "muttered", "--", "bob@example.net", text="Hello\n")
            expect("muttered", FROM, "bob@example.net", maildir=QUEUE)


if __name__ == "__main__":
    main()
