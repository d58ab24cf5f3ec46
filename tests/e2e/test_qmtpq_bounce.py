"""`qmtpq bounce` beside a daemon, by several at once, and killed in the middle."""

from __future__ import annotations

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maildirqmtp.maildir import holds
from tests.e2e.daemons import deliver, empties, watching
from tests.e2e.test_qmtpq import arrive, listed, qmtpq, tried
from tests.helpers import (
    DEADLINE_S,
    add_message,
    answer_all,
    command,
    make_maildir,
    names,
    run,
    serving,
    wait_until,
)


def mailer(tmp_path: Path, more: str = "") -> Path:
    """Make a sendmail that writes down the recipient of each bounce, and keeps its text."""
    script = tmp_path / "mailer"
    script.write_text(
        f"#!/bin/sh\nfor to; do :; done\ncat >>{tmp_path}/text\n"
        f'echo "$to" >>{tmp_path}/told\n{more}\n'
    )
    script.chmod(0o700)
    return script


def told(tmp_path: Path) -> list[str]:
    """Return who was told, sorted."""
    file = tmp_path / "told"
    return sorted(file.read_text().split()) if file.exists() else []


def test_what_the_daemon_was_answered_is_in_the_bounce(maildir: Path, tmp_path: Path) -> None:
    """As after the lifetime, but now; the daemon goes on with the others, and never sends it."""
    answers = {"now": b"Z450 4.2.1 mailbox is locked"}
    with (
        serving(answer_all(lambda _, to: answers["now"])) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        deliver(maildir, "1.a")
        wait_until(lambda: tried(maildir), "the reason in the list")
        out = qmtpq("bounce", "--yes", "--sendmail", mailer(tmp_path), maildir, "1.a")
        assert out == f"bounced {maildir}/new/1.a\n"
        assert told(tmp_path) == ["sender@example.org"]
        text = (tmp_path / "text").read_text()
        assert "Status: 4.2.1" in text
        assert "450 4.2.1 mailbox is locked (delivery was cancelled by an administrator)" in text
        answers["now"] = b"Kok"
        arrive(maildir, "2.b", b"fresh@y")
        empties(maildir)
        qmtpq("flush", maildir)
        arrive(maildir, "3.c", b"last@y")
        wait_until(lambda: server.packages[-1].recipients == (b"last@y",), "the last package")
        empties(maildir)
        assert daemon.stop() == 0
    later = [p.recipients[0] for p in server.packages if p.recipients[0].endswith(b"@y")]
    assert later == [b"fresh@y", b"last@y"]
    assert listed(maildir) == []


@pytest.mark.parametrize("failed", [False, True], ids=["waiting", "failed"])
def test_many_administrators_tell_each_sender_once(
    maildir: Path, tmp_path: Path, failed: bool
) -> None:
    """Whoever comes first; whoever comes second is refused, or finds nothing left."""
    where = make_maildir(maildir / ".Failed") if failed else maildir
    count = 15
    for number in range(count):
        add_message(where, f"{1000 + number}.a", sender=b"s%02d@x" % number)
    script = mailer(tmp_path)
    state = ["--failed"] if failed else []

    def bounce(number: int) -> int:
        # By name and by filter, and one who drops.
        what = ["drop"] if number == 3 else ["bounce", "--sendmail", str(script)]
        names_ = [f"{1000 + n}.a" for n in range(count)]
        chosen = names_ if number % 2 else ["--from", "@x"]
        words = [*command("qmtpq"), *what, "--yes", *state, str(maildir), *chosen]
        return subprocess.run(words, capture_output=True, timeout=DEADLINE_S).returncode

    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(bounce, range(4)))
    assert set(codes) <= {0, 111}
    found = told(tmp_path)
    assert len(found) == len(set(found)), "a sender was told twice"
    qmtpq("bounce", "--yes", "--sendmail", script, *state, maildir, "--all")
    assert names(where / "new") == []
    assert listed(maildir) == []
    assert run(maildir, "127.0.0.1:1").returncode in (0, 111)


def test_killed_after_the_bounce_it_is_not_lost_and_not_sent(maildir: Path, tmp_path: Path) -> None:
    """It stays on hold, so that its recipient does not get what its sender believes is lost."""
    add_message(maildir, "1.a")
    script = mailer(tmp_path, 'kill -9 "$PPID"')
    words = [*command("qmtpq"), "bounce", "--yes", "--sendmail", str(script), str(maildir), "1.a"]
    killed = subprocess.run(words, capture_output=True, timeout=DEADLINE_S)
    assert killed.returncode == -signal.SIGKILL
    assert names(maildir / "new") == ["1.a"]
    (left,) = listed(maildir)
    assert left["reason"] == holds.BOUNCING, "nobody would know that no administrator holds it"
    with serving(answer_all()) as server:
        done = run(maildir, server.address)
        assert (done.returncode, server.packages) == (111, [])
        assert holds.BOUNCING in done.stderr
    mailer(tmp_path)
    qmtpq("bounce", "--yes", "--sendmail", script, maildir, "1.a")
    assert listed(maildir) == []
    text = (tmp_path / "text").read_text()
    ids = {line for line in text.splitlines() if line.startswith("Message-ID: ")}
    assert len(ids) == 1, "the second bounce cannot be told from another one"


def test_retry_of_a_message_says_whether_it_is_tried(maildir: Path) -> None:
    """One that is not there, or is on hold, is not; the others are."""
    answers = {"now": b"Z450 mailbox is locked"}
    with (
        serving(answer_all(lambda _, to: answers["now"])) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        deliver(maildir, "1.a")
        wait_until(lambda: tried(maildir), "the first try")
        answers["now"] = b"Kok"
        qmtpq("hold", maildir, "1.a")
        qmtpq("retry", maildir, "1.a", code=111)
        qmtpq("retry", maildir, "9.none", code=111)
        qmtpq("release", maildir, "1.a")
        empties(maildir)
        deliver(maildir, "2.b")
        answers["now"] = b"Zbusy"
        deliver(maildir, "3.c")
        wait_until(lambda: tried(maildir), "the try of the third")
        answers["now"] = b"Kok"
        assert "tries all that waits" in qmtpq("retry", maildir, "3.c")
        empties(maildir)
        assert daemon.stop() == 0
