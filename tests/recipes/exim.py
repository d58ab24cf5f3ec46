"""recipes/exim.md with Debian's Exim, and what Exim writes on top of messages by itself."""

from __future__ import annotations

from pathlib import Path

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

RECIPE = "recipes/exim.md"
ROUTER = Path("/etc/exim4/conf.d/router/150_maildirqmtp")
TRANSPORT = Path("/etc/exim4/conf.d/transport/30_maildirqmtp")

#: What Exim writes without message_prefix, all recipients in one file.
BATCH = """\
maildirqmtp:
  driver = appendfile
  directory = /var/lib/maildirqmtp/out
  maildir_format
  return_path_add
  envelope_to_add
  delivery_date_add
  batch_max = 100
  user = maildirqmtp
  group = maildirqmtp
"""

DEBIAN = """\
dc_eximconfig_configtype='internet'
dc_other_hostnames='here.example'
dc_local_interfaces=''
dc_relay_domains='backup.example'
dc_relay_nets=''
dc_use_split_config='true'
dc_hide_mailname=''
dc_mailname_in_oh='true'
dc_localdelivery='mail_spool'
"""


def install(router: str, transport: str) -> None:
    """Put a router and a transport where the recipe says, and let Debian check the whole."""
    for path, text in ((ROUTER, router), (TRANSPORT, transport)):
        assert str(path) in (Path("/srv/maildirqmtp/contrib") / RECIPE).read_text()
        path.write_text(text)
    call("update-exim4.conf")


def main() -> None:
    """Tell the story; the rows go to standard output."""
    trial = Trial(RECIPE, "exim4-daemon-light")
    make_user()
    Path("/etc/exim4/update-exim4.conf.conf").write_text(DEBIAN)
    Path("/etc/mailname").write_text("mx.here.example\n")
    with Path("/etc/aliases").open("a") as aliases:
        aliases.write("joe: Joe.Elsewhere@example.net\n")
    router = block(RECIPE, "driver = accept")
    install(router, block(RECIPE, "driver = appendfile"))
    call("exim4", "-bd")
    listening(25)
    submit("me@here.example", ["Joe@example.net", "blind@example.com"], message("some"))
    with far_end("mail.example.org"), forwarding(block("recipes/postfix.md", "[[route]]")):
        with trial.checks("no relay for an outside client"):
            assert outside_code("joe@foreign.example") == 550
            assert outside_code("joe@backup.example") == 250
        with trial.checks("each recipient once, the blind one unnamed"):
            expect("some", "me@here.example", "Joe@example.net", "blind@example.com")
        with trial.checks("a bounce keeps its null sender"):
            submit("", ["joe@example.net"], message("null"))
            expect("null", "", "joe@example.net")
        with trial.checks("an address that needs quoting"):
            submit("me@here.example", ['"jane x"@example.net'], message("quoted"))
            expect("quoted", "me@here.example", "jane x@example.net")
        with trial.checks("an alias to another host goes to that host"):
            submit("me@here.example", ["joe@here.example"], message("alias"))
            expect("alias", "me@here.example", "Joe.Elsewhere@example.net")
        with trial.checks("Envelope-to with three recipients in one file: the blind one unnamed"):
            install(router, BATCH)
            recipients = ["ann@example.net", "blind@example.com", "bob@example.net"]
            submit("me@here.example", recipients, message("batch"))
            expect("batch", "me@here.example", *recipients)


if __name__ == "__main__":
    main()
