"""recipes/opensmtpd.md with Debian's OpenSMTPD."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.recipes.trial import (
    Trial,
    block,
    expect,
    far_end,
    forwarding,
    listening,
    make_user,
    message,
    outside_code,
    submit,
)

RECIPE = "recipes/opensmtpd.md"


def main() -> None:
    """Tell the story; the rows go to standard output."""
    trial = Trial(RECIPE, "opensmtpd")
    make_user()
    Path("/etc/smtpd.conf").write_text(block(RECIPE, "listen on"))
    with far_end("mail.example.org"), subprocess.Popen(["smtpd", "-d"]) as daemon:
        listening(25)
        submit("me@here.example", ["Joe@example.net", "blind@example.com"], message("some"))
        with forwarding(block(RECIPE, "[[route]]")):
            with trial.checks("no relay for an outside client"):
                assert outside_code("joe@foreign.example") == 550
            with trial.checks("each recipient once, the blind one unnamed"):
                expect("some", "me@here.example", "Joe@example.net", "blind@example.com")
            with trial.checks("a bounce keeps its null sender"):
                submit("", ["joe@example.net"], message("null"))
                expect("null", "", "joe@example.net")
        daemon.terminate()


if __name__ == "__main__":
    main()
