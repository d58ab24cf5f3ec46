"""Hostile local users and servers: what each can plant, and that it has no effect.

contrib/doc/security.md says what was decided; each row has its test here.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import maildirqmtp
from maildirqmtp.errors import LocalError
from maildirqmtp.mail.sidecar import Sidecar
from maildirqmtp.maildir import sidecars, writing
from maildirqmtp.maildir.maildir import Maildir
from tests.helpers import (
    add_message,
    add_sidecar,
    answer_all,
    command,
    make_maildir,
    names,
    run,
    serving,
    sidecar,
    snapshot,
)

STRANGER = 54_321
OWNER = 54_322
#: Clear the screen, set the title, turn the text around, end the line, say something else.
NASTY = "\x1b[2J\x1b]0;owned\x07\u202eevil\u2066\x9b31m\r\n\x00\x7f\u2028FAKE"
NASTY_BYTES = NASTY.encode() + b"\xff\xfe"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="NEEDS ROOT: SKIPPED")


@pytest.fixture
def maildir(path: Path) -> Path:
    """A maildir with one good message in it."""
    add_message(path, "5.good", b"good\n")
    return path


def forward(maildir: Path, *flags: str, code: int = 111) -> tuple[list[bytes], str]:
    """Run once against a server that takes everything; return what it got, and standard error."""
    with serving(answer_all()) as server:
        result = run(*flags, maildir, server.address)
    assert result.returncode == code, result.stderr
    return [package.text for package in server.packages], result.stderr


# Links


def test_a_linked_message_is_none(maildir: Path, tmp_path: Path) -> None:
    """Whoever can write to new/ would be sent any file that we can read."""
    add_message(tmp_path, "secret", folder=".")
    (maildir / "new" / "1.link").symlink_to(tmp_path / "secret")
    (maildir / "new" / "2.link").symlink_to("2.link")
    assert forward(maildir, code=0)[0] == [b"good\n"]
    assert names(maildir / "new") == ["1.link", "2.link"]


@pytest.mark.parametrize("part", ["new", "cur", "tmp", "envelope"])
def test_a_linked_part_of_the_maildir_stops_everything(
    maildir: Path, tmp_path: Path, part: str
) -> None:
    """It leads to somebody else's files; nothing there is sent, removed or written."""
    elsewhere = make_maildir(tmp_path / "Elsewhere")
    add_message(elsewhere, "1.m")
    add_sidecar(elsewhere, "1.m", "s@x", "a@y")
    before = snapshot(elsewhere)
    if (maildir / part).exists():
        (maildir / part).rename(tmp_path / "away")
    (maildir / part).symlink_to(elsewhere / part)
    texts, stderr = forward(maildir)
    assert texts == []
    assert f"cannot open the maildir directory {maildir / part}" in stderr
    assert snapshot(elsewhere) == before


def test_a_linked_sidecar_holds_its_message(maildir: Path, tmp_path: Path) -> None:
    """Neither is it believed, nor are the lines on top instead."""
    add_sidecar(tmp_path, "other", "s@x", "thief@y")
    (maildir / "envelope").mkdir()
    (maildir / "envelope" / "5.good.json").symlink_to(tmp_path / "envelope" / "other.json")
    texts, stderr = forward(maildir)
    assert texts == []
    assert "5.good: held: its sidecar cannot be read" in stderr


@pytest.mark.parametrize("part", ["", "new", "tmp", "cur", "envelope"])
def test_a_linked_failed_maildir_gets_nothing(maildir: Path, tmp_path: Path, part: str) -> None:
    """Failed mail and its sidecars would be written wherever somebody likes."""
    elsewhere = make_maildir(tmp_path / "Elsewhere")
    (elsewhere / "envelope").mkdir()
    (elsewhere / part / "there").write_bytes(b"before\n")
    before = snapshot(elsewhere)
    failed = maildir / ".Failed"
    if part:
        make_maildir(failed)
        if part != "envelope":
            (failed / part).rmdir()
    (failed / part).symlink_to(elsewhere / part)
    with serving(answer_all(lambda package, recipient: b"Dno")) as server:
        result = run(maildir, server.address)
    assert result.returncode == 111
    assert names(maildir / "new") == ["5.good"]
    assert snapshot(elsewhere) == before
    assert f"{failed}" in result.stderr


def test_a_failed_maildir_that_we_are_told_of_may_be_a_link(maildir: Path, tmp_path: Path) -> None:
    """Whoever gives the option knows where it leads."""
    make_maildir(tmp_path / "Elsewhere")
    (tmp_path / "link").symlink_to("Elsewhere")
    with serving(answer_all(lambda package, recipient: b"Dno")) as server:
        run("--failed", tmp_path / "link", maildir, server.address)
    assert names(tmp_path / "Elsewhere" / "new") == ["5.good"]


# Hard links


@root_only
@pytest.mark.parametrize("size", [10, 2 << 20])
def test_root_sends_no_strangers_file(maildir: Path, tmp_path: Path, size: int) -> None:
    """Whoever can write to new/ may have linked a file there that only its owner may read."""
    os.chown(maildir, OWNER, -1)
    for name, owner in (("1.strangers", STRANGER), ("2.owners", OWNER), ("3.roots", 0)):
        add_message(maildir, name, name.encode() + b"x" * size)
        os.chown(maildir / "new" / name, owner, -1)
    os.link(maildir / "new" / "1.strangers", tmp_path / "original")
    texts, stderr = forward(maildir)
    assert sorted(text[:5] for text in texts) == [b"2.own", b"3.roo", b"good\n"]
    assert names(maildir / "new") == ["1.strangers"]
    assert f"1.strangers belongs to user {STRANGER}, who is not the maildir's owner" in stderr
    assert "or run this as the maildir's owner" in stderr


@root_only
def test_a_user_may_send_what_he_can_read(maildir: Path, tmp_path: Path) -> None:
    """A delivery agent of its own user, and a forwarder in its group, are quite usual."""
    for path in (maildir, *maildir.iterdir(), maildir / "new" / "5.good"):
        os.chown(path, STRANGER, OWNER)
        path.chmod(path.stat().st_mode | 0o070)
    for parent in list(maildir.parents)[:-2]:
        parent.chmod(0o755)
    code = (
        "from maildirqmtp.maildir.maildir import *; import sys\nm = Maildir(sys.argv[1].encode())\n"
    )
    code += "print(m.load(m.new, b'5.good').size)"
    # The other user may be unable to read the checkout and the virtual environment.
    shutil.copytree(Path(maildirqmtp.__file__).parent, tmp_path / "package" / "maildirqmtp")
    subprocess.run(["chmod", "-R", "a+rX", tmp_path / "package"], check=True)
    python = os.path.realpath(sys.executable)
    become = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups", python]
    if subprocess.run([*become, "-c", ""], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"SKIPPED: another user cannot run {python}")
    done = subprocess.run(
        [*become, "-c", code, str(maildir)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "package")},
    )
    assert done.stdout.strip().isdigit(), done.stderr


# What is no file


@root_only
def test_fifos_and_devices_stop_nothing(maildir: Path) -> None:
    """Opening a FIFO waits for its writer; reading some devices never ends."""
    new = maildir / "new"
    os.mkfifo(new / "1.fifo")
    for name, device in (("2.zero", (1, 5)), ("3.tty", (5, 0)), ("4.none", (250, 99))):
        os.mknod(new / name, stat.S_IFCHR | 0o600, os.makedev(*device))
    os.mknod(new / "4.block", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    os.mkdir(new / "4.directory")
    os.mkdir(new / ".maildirqmtp-probe")
    assert forward(maildir, code=0)[0] == [b"good\n"]
    assert "5.good" not in names(new)


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_a_sidecar_that_is_no_file_holds_its_message(maildir: Path, kind: str) -> None:
    """And does not wait for a writer."""
    (maildir / "envelope").mkdir()
    path = maildir / "envelope" / "5.good.json"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert forward(maildir)[0] == []


# Too much of everything


#: Runs a command from a small process: what a child had before its exec counts as its own.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_kib(maildir: Path, address: str) -> tuple[int, str]:
    """Run once; return the most memory the process had, in KiB, and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command(), str(maildir), address],
        capture_output=True,
        text=True,
        check=True,
    )
    code, kib = map(int, done.stdout.split())
    assert code == 111, done.stderr
    return kib, done.stderr


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


def _million(path: Path) -> None:
    recipients = [f"r{number}@y" for number in range(1_000_000)]
    path.write_text(json.dumps({"version": 1, "sender": "s@x", "recipients": recipients}))


def _many_short(path: Path) -> None:
    path.write_text('{"version": 1, "sender": "", "recipients": [' + '"a",' * 260_000 + '"a"]}')


def _deep(path: Path) -> None:
    path.write_text('{"version": 1, "sender": ' + "[" * (1 << 19) + "]" * (1 << 19) + "}")


def _deep_objects(path: Path) -> None:
    path.write_text('{"a":' * 200_000 + "1" + "}" * 200_000)


def _empty_lists(path: Path) -> None:
    path.write_text("[" + "[]," * 340_000 + "[]]")


def _long_number(path: Path) -> None:
    path.write_text('{"version": ' + "1" * 1_000_000 + "}")


@pytest.mark.parametrize(
    "make", [_sparse, _million, _many_short, _deep, _deep_objects, _empty_lists, _long_number]
)
def test_a_monstrous_sidecar_holds_only_its_message(maildir: Path, make: object) -> None:
    """Within memory that does not depend on it."""
    add_message(maildir, "1.bad")
    (maildir / "envelope").mkdir()
    assert callable(make)
    make(maildir / "envelope" / "1.bad.json")
    with serving(answer_all()) as server:
        kib, stderr = peak_kib(maildir, server.address)
    assert kib < 70_000
    assert "1.bad: held: its sidecar " in stderr
    assert [p.text for p in server.packages] == [b"good\n"]


def test_a_monstrous_first_line_holds_only_its_message(maildir: Path) -> None:
    """It is not read to its end."""
    for number, top in enumerate((b"Return-Path: <", b"X-Original-To: ", b"\n \n", b"")):
        path = maildir / "new" / f"{number}.bad"
        path.write_bytes(top + b"x" * 100_000)
        os.truncate(path, 1 << 30)
    add_message(maildir, "4.bad", b"x\n", b"s" * 1_000, b"r@y")
    add_message(maildir, "4.worse", b"x\n", b"s@x", b"r" * 200_000)
    with serving(answer_all()) as server:
        kib, stderr = peak_kib(maildir, server.address)
    assert kib < 70_000
    assert stderr.count(": held: ") == 6
    assert [p.text for p in server.packages] == [b"good\n"]


def test_a_thousand_trace_lines_hold_only_their_message(maildir: Path) -> None:
    """A block without end is not looked for to its end."""
    for number, line in enumerate((b"X-Original-To: r@y\n", b"Envelope-to: r@y,\n r@y,\n")):
        (maildir / "new" / f"{number}.bad").write_bytes(line * 200_000)
    texts, stderr = forward(maildir)
    assert texts == [b"good\n"]
    assert stderr.count(": held: ") == 2


# Addresses


@pytest.mark.parametrize("bad", ["a\nb@y", "a\rb@y", "a\0b@y", "", "x" * 1_000])
def test_an_address_that_could_become_another_command_holds_its_message(
    maildir: Path, bad: str
) -> None:
    """Behind the server it may go into a queue file, a header, an SMTP line."""
    add_message(maildir, "1.bad")
    add_sidecar(maildir, "1.bad", "s@x", "a@y", bad)
    texts, stderr = forward(maildir)
    assert texts == [b"good\n"]
    assert "1.bad: held: " in stderr
    assert stderr.replace("\n", "").isprintable()


# What servers say


@pytest.mark.parametrize("status", ["K", "Z", "D"])
def test_a_server_cannot_write_to_terminals_logs_or_sidecars(maildir: Path, status: str) -> None:
    """Escape sequences, text that runs backwards, lines that look like ours."""
    with serving(answer_all(lambda p, r: status.encode() + NASTY_BYTES)) as server:
        result = run("-v", "--json", maildir, server.address)
    assert result.stderr.replace("\n", "").isprintable()
    assert not any(line.startswith("FAKE") for line in result.stderr.splitlines())
    for line in result.stdout.splitlines():
        for value in json.loads(line).values():
            assert not isinstance(value, str) or value.isprintable()
    if status == "D":
        (failure,) = sidecar(maildir / ".Failed", "5.good")["failures"]
        assert failure["response"].isprintable()
        assert failure["response"].startswith("D?[2J?]0;owned??evil")


def test_a_server_cannot_write_into_bounces(maildir: Path, tmp_path: Path) -> None:
    """Neither header lines nor another part of the bounce."""
    text = b"D" + NASTY_BYTES + b"\r\nBcc: everybody@y\r\n\r\n--boundary\r\n"
    bounces = tmp_path / "Bounces"
    with serving(answer_all(lambda p, r: text)) as server:
        result = run("--bounce", f"--bounce-via=maildir:{bounces}", maildir, server.address)
    (name,) = names(bounces / "new")
    bounce = (bounces / "new" / name).read_bytes()
    assert b"\nBcc:" not in bounce
    assert b"\n--boundary" not in bounce
    assert not set(bounce) & {0x1B, 0x07, 0x00, 0x7F}
    assert b"\xe2\x80\xae" not in bounce
    assert result.returncode in (0, 111)


# File names


NAMES = [
    b"1.new\nline",
    b"1.\x1b[2Jescape",
    b"1.\xff\xfe-no-utf8",
    "1.\u202egnp.exe".encode(),
    b"1. space ",
    b"--help",
    b":2,S",
    b":",
    b"1:2:3:4",
    b"1." + b"n" * 253,
    b"1." + b"n" * 240 + b":2,RS",
    b"%s%n",
    b"9" * 255,
]


@pytest.mark.parametrize("status", [b"K", b"Z", b"D"])
def test_a_file_may_have_any_name(maildir: Path, tmp_path: Path, status: bytes) -> None:
    """Names are bytes; none stops the others, and none writes to the terminal."""
    for name in NAMES:
        add_message(maildir, name, b"text of %r\n" % name)
    with serving(answer_all(lambda p, r: status + b"text")) as server:
        result = run("-v", "--json", maildir, server.address)
    assert len(server.packages) == len(NAMES) + 1
    assert result.stderr.replace("\n", "").isprintable()
    assert len(result.stdout.splitlines()) == len(NAMES) + 3
    assert len(names(maildir / "new")) == (len(NAMES) + 1 if status == b"Z" else 0)
    failed = maildir / ".Failed"
    assert len(names(failed / "new")) == (len(NAMES) + 1 if status == b"D" else 0)
    for taken in names(failed / "new"):
        assert sidecar(failed, taken)["recipients"] == ["recipient@example.net"]
        text = (failed / "new" / taken).read_bytes()
        assert not taken.startswith(".")
        assert text.startswith(b"Return-Path: ")


def test_a_file_may_have_any_name_and_several_recipients(maildir: Path) -> None:
    """Where no sidecar can be written it is held, before anybody gets it."""
    top = b"Return-Path: <s@x>\nEnvelope-to: a@y, b@y\nx\n"
    for name in NAMES:
        add_message(maildir, name, top, None, None)
    answers = {b"a@y": b"Kok", b"b@y": b"Zno", b"recipient@example.net": b"Kok"}
    with serving(answer_all(lambda p, r: answers[r])) as server:
        result = run(maildir, server.address)
        assert result.returncode == 111
        long = [name for name in NAMES if len(name.partition(b":")[0]) > 250]
        assert result.stderr.count("its name is too long to have a sidecar") == len(long) == 2
        assert len(server.packages) == len(NAMES) - len(long) + 1
        # Names that differ only after the `:` share a sidecar; these two do, and the same envelope.
        for name in NAMES:
            if name not in long:
                base = os.fsdecode(name.partition(b":")[0])
                assert sidecar(maildir, base)["recipients"] == ["b@y"], name


# Names that we would use ourselves


def test_planted_names_are_never_written_through(
    maildir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file planted under the next name in tmp/ stops the run; it is never written into."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    monkeypatch.setattr(writing, "unique_name", lambda mark: b"guessed")
    with Maildir(bytes(maildir)) as opened:
        for plant_link in (True, False):
            path = maildir / "tmp" / "guessed"
            if plant_link:
                path.symlink_to(victim)
            else:
                path.hardlink_to(victim)
            with pytest.raises(LocalError, match="File exists"):
                writing.write_tmp(opened, [b"overwritten"])
            path.unlink()
            assert victim.read_bytes() == b"precious\n"
        # A sidecar is renamed into place: a link of its name is replaced, not followed.
        (maildir / "envelope").mkdir()
        (maildir / "envelope" / "5.good.json").symlink_to(victim)
        sidecars.write(opened, b"5.good", Sidecar(b"s@x", (b"a@y",)))
    assert victim.read_bytes() == b"precious\n"
    assert sidecar(maildir, "5.good")["recipients"] == ["a@y"]


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "file"])
def test_a_planted_probe_stops_nothing(maildir: Path, tmp_path: Path, kind: str) -> None:
    """Its name can be known; what is behind it is not touched."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    probe = maildir / "new" / ".maildirqmtp-probe"
    if kind == "link":
        probe.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(probe)
    elif kind == "directory":
        (probe / "full").mkdir(parents=True)
    else:
        probe.hardlink_to(victim)
    assert forward(maildir, code=0)[0] == [b"good\n"]
    assert victim.read_bytes() == b"precious\n"
    assert names(maildir / "new") == ([".maildirqmtp-probe"] if kind == "directory" else [])


def test_a_name_that_is_taken_in_the_failed_maildir_is_left_alone(
    maildir: Path, tmp_path: Path
) -> None:
    """Whatever was put there, links included, is neither replaced nor followed."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    failed = make_maildir(maildir / ".Failed")
    (failed / "new" / "5.good").symlink_to(victim)
    with serving(answer_all(lambda package, recipient: b"Dno")) as server:
        run(maildir, server.address)
    assert names(failed / "new") == ["5.good", "5.good.1"]
    assert (failed / "new" / "5.good").is_symlink()
    assert victim.read_bytes() == b"precious\n"


# A maildir that others can write to


@root_only
def test_root_in_a_maildir_that_everybody_can_write_to(maildir: Path) -> None:
    """What root made or may read stays with root; the owner's mail goes."""
    os.chown(maildir, OWNER, -1)
    for path in (maildir, maildir / "new", maildir / "tmp"):
        path.chmod(0o777)
    add_message(maildir, "1.strangers", b"planted\n")
    os.chown(maildir / "new" / "1.strangers", STRANGER, -1)
    os.chown(maildir / "new" / "5.good", OWNER, -1)
    add_message(maildir, "6.shared", b"Return-Path: <s@x>\nEnvelope-to: a@y, b@y\nx\n", None, None)
    answers = {b"b@y": b"Zno"}
    with serving(answer_all(lambda p, r: answers.get(r, b"Kok"))) as server:
        assert run(maildir, server.address).returncode == 111
    assert [p.text[-5:] for p in server.packages] == [b"good\n", b"x\n"]
    assert names(maildir / "new") == ["1.strangers", "6.shared"]
    assert stat.S_IMODE((maildir / "envelope").stat().st_mode) == 0o700
    assert stat.S_IMODE((maildir / "envelope" / "6.shared.json").stat().st_mode) == 0o600
