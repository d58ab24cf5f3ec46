"""recipes/postfix.md with Postfix: nobody else's mail is relayed, and ours goes out once."""

from __future__ import annotations

import pwd

from tests.recipes.trial import (
    Trial,
    block,
    call,
    expect,
    far_end,
    forwarding,
    listening,
    make_user,
    message,
    outside_code,
    submit,
)

RECIPE = "recipes/postfix.md"


def start() -> None:
    """Start Postfix as Debian configures it, with a log file and this machine's addresses."""
    settings(
        """
        myhostname = mx.here.example
        mydestination = localhost
        mynetworks = 127.0.0.0/8
        inet_interfaces = all
        inet_protocols = ipv4
        maillog_file = /var/log/postfix.log
        """
    )
    call("postfix", "start")
    listening(25)


def settings(text: str) -> None:
    """Put the lines of a code block into main.cf."""
    for line in text.splitlines():
        if line.strip():
            call("postconf", "-e", line.strip())


def restart() -> None:
    """Let all processes of Postfix read main.cf again."""
    call("postfix", "stop")
    call("postfix", "start")
    listening(25)


def with_user(text: str) -> str:
    """Return a code block with the numbers of the user in place of UID and GID."""
    user = pwd.getpwnam("maildirqmtp")
    assert "static:UID" in text
    assert "static:GID" in text
    return text.replace("static:UID", f"static:{user.pw_uid}").replace(
        "static:GID", f"static:{user.pw_gid}"
    )


def some_domains(trial: Trial) -> None:
    """The first form: mail for the domains, from anybody; no other mail from outside."""
    with trial.checks("some domains: an outside client may send to them"):
        assert outside_code("joe@example.net") == 250
    with trial.checks("some domains: no relay for an outside client"):
        assert outside_code("joe@foreign.example") in (454, 554)
    with trial.checks("some domains: each recipient once, the blind one unnamed"):
        expect("some", "me@here.example", "joe@example.net", "blind@example.com")
    with trial.checks("some domains: a bounce keeps its null sender"):
        submit("", ["joe@example.net"], message("null"))
        expect("null", "", "joe@example.net")
    with trial.checks("some domains: an address that needs quoting"):
        submit("me@here.example", ['"jane x"@example.net'], message("quoted"))
        expect("quoted", "me@here.example", "jane x@example.net")


def everything(trial: Trial) -> None:
    """The second form: mail from this machine for anybody; none from outside."""
    settings(block(RECIPE, "default_transport = virtual"))
    restart()
    with trial.checks("everything: no relay for an outside client"):
        for recipient in ("joe@foreign.example", "joe@example.net", "joe@sub.example.net"):
            assert outside_code(recipient) in (454, 554), recipient
    with trial.checks("everything: each recipient once, the blind one unnamed"):
        submit("me@here.example", ["joe@foreign.example", "blind@other.example"], message("all"))
        expect("all", "me@here.example", "joe@foreign.example", "blind@other.example")
    with trial.checks("everything: without virtual_mailbox_domains it is a relay, and we notice"):
        call("postconf", "-X", "virtual_mailbox_domains")
        restart()
        assert outside_code("joe@foreign.example") == 250


def main() -> None:
    """Tell the story; the rows go to standard output."""
    trial = Trial(RECIPE, "postfix")
    make_user()
    start()
    settings(with_user(block(RECIPE, "virtual_mailbox_base")))
    restart()
    submit("me@here.example", ["joe@example.net", "blind@example.com"], message("some"))
    config = block(RECIPE, "[[route]]")
    with far_end("mail.example.org"), forwarding(config):
        some_domains(trial)
        everything(trial)
    call("postfix", "stop")


if __name__ == "__main__":
    main()
