"""`qmtp-sendmail` as the sendmail of real mail programs; those that are not there are skipped."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import command
from tests.submission.sending import Home

SENDMAIL = " ".join(command("qmtp-sendmail"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user whose mail goes into a maildir of their own."""
    made = Home(tmp_path / "home")
    made.configure()
    return made


def run(home: Home, *argv: str | Path, text: bytes = b"hi\n") -> None:
    """Run a mail program with this on standard input; it has to be content."""
    if shutil.which(argv[0]) is None:
        pytest.skip(f"NOT TESTED: there is no {argv[0]}")
    done = subprocess.run(
        [*map(str, argv)],
        input=text,
        capture_output=True,
        timeout=90,
        check=False,
        env={**home.environment, "EMAIL": "me@x", "TERM": "dumb"},
        cwd=home.path,
    )
    assert done.returncode == 0, done.stderr


def only(home: Home) -> tuple[str, list[str], dict[bytes, bytes], bytes]:
    """Return sender, recipients, header and body of the only message that was sent."""
    ((sender, recipients, text),) = home.kept()
    header, _, body = text.replace(b"\n ", b" ").partition(b"\n\n")
    fields = dict(line.split(b": ", 1) for line in header.split(b"\n") if b": " in line)
    assert {b"From", b"Date", b"Message-ID"} <= {name.replace(b"-Id", b"-ID") for name in fields}
    return sender, recipients, fields, body


@pytest.mark.parametrize("program", ["mutt", "neomutt"])
def test_mutt(home: Home, program: str) -> None:
    """With copies, blind ones, an envelope sender, and a line with a dot."""
    settings = ("set use_envelope_from", "set from=me@x", "set copy=no", "set write_bcc")
    words = [word for setting in settings for word in ("-e", setting)]
    run(
        home, program, "-n", "-F", "/dev/null", "-e", f'set sendmail="{SENDMAIL} -oem -oi"', *words,
        "-s", "Hällo", "-c", "b@y", "-b", "c@y", "--", "Ann <a@y>", text=b"hi\n.\nmore\n",
    )  # fmt: skip
    sender, recipients, fields, body = only(home)
    assert (sender, recipients) == ("me@x", ["a@y", "b@y", "c@y"])
    assert (fields[b"To"], fields[b"Cc"]) == (b"Ann <a@y>", b"b@y")
    assert b"Bcc" not in fields
    assert body == b"hi\n.\nmore\n"


def test_git_send_email(home: Home) -> None:
    """A patch, with lines of a dot and To, Cc and Bcc of its own."""
    patch = home.path / "1.patch"
    patch.write_bytes(
        b"From 1234567890123456789012345678901234567890 Mon Sep 17 00:00:00 2001\n"
        b"From: Ann <ann@x>\nDate: Thu, 26 Nov 2026 12:00:00 +0000\nSubject: [PATCH] x\n\n"
        b"y\n---\n.\n--\n2.39\n"
    )
    if not Path("/usr/lib/git-core/git-send-email").exists():
        pytest.skip("NOT TESTED: there is no git send-email")
    run(
        home, "git", "send-email", f"--smtp-server={command('qmtp-sendmail')[0]}",
        "--from=me@x.example", "--envelope-sender=env@x.example", "--to=a@y.example",
        "--cc=b@y.example", "--bcc=c@y.example",
        "--confirm=never", "--suppress-cc=all", patch,
    )  # fmt: skip
    sender, recipients, fields, body = only(home)
    assert sender == "env@x.example"
    assert recipients == ["a@y.example", "b@y.example", "c@y.example"]
    assert fields[b"Subject"] == b"[PATCH] x"
    assert b"Bcc" not in fields
    assert body.endswith(b"---\n.\n--\n2.39\n")


def test_s_nail(home: Home) -> None:
    """The mailx of many distributions."""
    # As root, it gives sendmail another HOME than it has.
    mta = home.path / "sendmail"
    mta.write_text(f'#!/bin/sh\nHOME={home.path} exec {SENDMAIL} "$@"\n')
    mta.chmod(0o755)
    run(
        home, "s-nail", "-n", "-S", f"mta={mta}", "-S", "v15-compat",
        "-r", "me@x", "-s", "Hello", "-c", "b@y", "-b", "c@y", "a@y", text=b"hi\n.\nmore\n",
    )  # fmt: skip
    sender, recipients, fields, body = only(home)
    assert (sender, sorted(recipients)) == ("me@x", ["a@y", "b@y", "c@y"])
    assert fields[b"To"] == b"a@y"
    assert b"Bcc" not in fields
    assert body == b"hi\n.\nmore\n"


def test_bsd_mailx(home: Home) -> None:
    """What cron jobs, logwatch and smartd call `mail`; From is left to sendmail."""
    (home.path / ".mailrc").write_text(f"set sendmail={command('qmtp-sendmail')[0]}\n")
    run(home, "bsd-mailx", "-s", "Hello", "-c", "b@y", "-b", "c@y", "root", text=b"hi\n.\nmore\n")
    _, recipients, fields, body = only(home)
    assert sorted(recipients) == ["b@y", "c@y", "root@example.org"]
    assert fields[b"To"] == b"root@example.org"
    assert b"Bcc" not in fields
    assert fields[b"From"].rstrip(b">").endswith(b"@example.org")
    assert body == b"hi\n.\nmore\n"


def test_php(home: Home) -> None:
    """Its mail() function, with lines that end with CR LF."""
    code = r"exit(mail('a@y', 'S', 'hi', ['Cc' => 'b@y', 'Bcc' => 'c@y'], '-fme@x') ? 0 : 1);"
    run(home, "php", "-d", f"sendmail_path={SENDMAIL} -t -i", "-r", code)
    sender, recipients, fields, body = only(home)
    assert (sender, recipients) == ("me@x", ["a@y", "b@y", "c@y"])
    assert fields[b"Subject"] == b"S"
    assert b"Bcc" not in fields
    assert body == b"hi\n"
    assert b"\r" not in home.kept()[0][2]


def test_emacs(home: Home) -> None:
    """Its sendmail.el."""
    lisp = (
        '(progn (require (quote sendmail)) (setq mail-interactive t user-mail-address "me@x"'
        f' sendmail-program "{command("qmtp-sendmail")[0]}" mail-specify-envelope-from t'
        " send-mail-function (quote sendmail-send-it)) (mail-setup"
        ' "a@y" "S" nil nil nil nil) (goto-char (point-max)) (insert "hi\\n.\\nmore\\n")'
        ' (mail-add-field "Bcc" "c@y") (sendmail-send-it))'
    )
    run(home, "emacs", "-Q", "--batch", "--eval", lisp)
    sender, recipients, fields, body = only(home)
    assert (sender, recipients) == ("me@x", ["a@y", "c@y"])
    assert b"Bcc" not in fields
    assert body == b"hi\n.\nmore\n"
