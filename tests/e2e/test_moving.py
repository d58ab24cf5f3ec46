"""Files that move under us: whatever a writer or a mail reader does, the last text arrives.

Every change is made at a known moment: while the file is read, while it is in
flight, between the answer and the removal.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir.files import Message
from maildirqmtp.maildir.maildir import Maildir, Removal
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.helpers import (
    Peer,
    Script,
    ScriptedServer,
    add_message,
    add_sidecar,
    answer_all,
    names,
    run,
    serving,
    sidecar,
)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"the last line\n")


def _shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _replace(path: Path) -> None:
    other = path.parent.parent / "tmp" / "other"
    other.write_bytes(path.read_bytes().replace(b"Hello", b"HELLO"))
    other.replace(path)


def _vanish(path: Path) -> None:
    path.unlink()


CHANGES = [_grow, _shrink, _replace, _vanish]


def once(change: Callable[[], None]) -> Callable[[], None]:
    """Make something happen only the first time."""
    left = [change]
    return lambda: left.pop()() if left else None


def in_flight(change: Callable[[], None], answers: dict[bytes, bytes] | None = None) -> Script:
    """Change something when the first package is there, and only then answer."""
    change = once(change)

    def script(peer: Peer) -> None:
        while package := peer.read_package():
            change()
            peer.respond(*[(answers or {}).get(r, b"Kok") for r in package.recipients])

    return script


def go(maildir: Path, server: ScriptedServer) -> int:
    """Run in this process, so that a test can stand between two of its steps."""
    route = Route(bytes(maildir), TcpEndpoint("127.0.0.1", server.port))
    return flush(route, Report(io.StringIO()))


# While it is read


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read(
    maildir: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], moment: str
) -> None:
    """Only a text that was the whole file at some time is sent, and in the end the last one."""
    path = maildir / "new" / "1.m"
    whole = [add_message(maildir, "1.m")]
    real = os.read

    def change_it() -> None:
        change(path)
        if path.exists():
            whole.append(path.read_bytes())

    first = once(change_it)

    def read(fd: int, count: int) -> bytes:
        if f"{path.parent}{os.sep}" not in os.readlink(f"/proc/self/fd/{fd}"):
            return real(fd, count)
        if moment == "before":
            first()
        data = real(fd, count)
        first()
        return data

    monkeypatch.setattr(os, "read", read)
    with serving(answer_all()) as server:
        assert go(maildir, server) == 0, "it is looked at again in the same run"
        sent = [package.text for package in server.packages]
    assert names(maildir / "new") == []
    assert all(any(text.endswith(s) for text in whole) for s in sent)
    assert change is _vanish or whole[-1].endswith(sent[-1])


# Between the answer and the removal


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_between_answer_and_removal(
    maildir: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """What has been accepted is not what would be removed."""
    path = maildir / "new" / "1.m"
    add_message(maildir, "1.m")
    real = Maildir.remove
    first = once(lambda: change(path))

    def remove(self: Maildir, message: Message) -> Removal:
        first()
        return real(self, message)

    monkeypatch.setattr(Maildir, "remove", remove)
    with serving(answer_all()) as server:
        if change is _vanish:
            assert go(maildir, server) == 0
            assert len(server.packages) == 1
            return
        assert go(maildir, server) == 0
        first_text, last_text = [package.text for package in server.packages]
        assert first_text != last_text, "it is sent again as it is now"
    assert names(maildir / "new") == []


# Writers who know nothing of tmp/


def test_a_file_that_is_still_open_with_its_writer_is_held(maildir: Path) -> None:
    """It was sent as far as it went and removed, and the rest went nowhere."""
    add_message(maildir, "2.m", b"another\n")
    with serving(answer_all()) as server, (maildir / "new" / "1.m").open("wb") as file:
        for line in (b"Return-Path: <s@x>\nDelivered-To: r@y\n", b"first line\n", b"second\n"):
            file.write(line)
            file.flush()
            result = run(maildir, server.address)
            assert result.returncode == 111
            assert "1.m is being written to; messages are to be written in tmp/" in result.stderr
        file.write(b"the last line\n")
        file.close()
        assert run(maildir, server.address).returncode == 0
    assert [p.text for p in server.packages] == [
        b"another\n",
        b"first line\nsecond\nthe last line\n",
    ]
    assert names(maildir / "new") == []


def test_a_large_file_that_is_still_open_with_its_writer_is_held(maildir: Path) -> None:
    """A message that is copied into new/ takes its time."""
    path = maildir / "new" / "1.m"
    add_message(maildir, "1.m", b"x" * (2 << 20))
    with serving(answer_all()) as server:
        with path.open("ab") as file:
            assert run(maildir, server.address).returncode == 111
            file.write(b"the last line\n")
        assert run(maildir, server.address).returncode == 0
    (package,) = server.packages
    assert package.text.endswith(b"xthe last line\n")


def test_a_writer_is_not_disturbed_by_being_looked_at(maildir: Path) -> None:
    """Asking whether a file has a writer must kill neither side."""
    path = maildir / "new" / "1.m"
    add_message(maildir, "1.m")
    code = "import sys\nfor _ in range(3000): open(sys.argv[1], 'r+b').close()\n"
    with Maildir(bytes(maildir)) as opened:
        with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
            while writer.poll() is None:
                try:
                    assert opened.load(opened.new, b"1.m") is not None
                except Exception as error:
                    assert "is being written to" in str(error)  # noqa: PT017
        assert writer.returncode == 0
        assert opened.load(opened.new, b"1.m") is not None


def test_a_writer_and_a_forwarder_at_full_speed(maildir: Path) -> None:
    """Whichever way they meet, the last line of every message arrives."""
    count = 60

    def write() -> None:
        for number in range(count):
            with (maildir / "new" / f"{number}.m").open("wb", buffering=0) as file:
                file.write(b"Return-Path: <s@x>\nDelivered-To: r@y\n")
                for line in range(40):
                    file.write(b"%d %d\n" % (number, line))

    with serving(answer_all()) as server:
        writer = threading.Thread(target=write)
        writer.start()
        while writer.is_alive():
            go(maildir, server)
        writer.join()
        assert go(maildir, server) == 0
        texts = [package.text for package in server.packages]
    whole = {b"".join(b"%d %d\n" % (n, line) for line in range(40)) for n in range(count)}
    assert whole <= set(texts)
    assert names(maildir / "new") == []


def test_a_line_that_is_added_in_flight_arrives(maildir: Path) -> None:
    """By sending the message again, as it is then."""
    path = maildir / "new" / "1.m"
    add_message(maildir, "1.m")
    with serving(in_flight(lambda: _grow(path))) as server:
        assert run(maildir, server.address).returncode == 0
    assert [p.text.endswith(b"the last line\n") for p in server.packages] == [False, True]


@pytest.mark.parametrize("last", [b"Dnever", b"Kok"])
def test_a_file_that_changes_in_flight_keeps_its_sidecar(maildir: Path, last: bytes) -> None:
    """All its recipients are owed what it is now, and nobody else."""
    path = maildir / "new" / "1.m"
    add_message(maildir, "1.m")
    add_sidecar(maildir, "1.m", "s@x", "a@y", "b@y", "c@y")
    answers = {b"b@y": b"Zlater", b"c@y": last}
    with serving(in_flight(lambda: _grow(path), answers)) as server:
        assert run(maildir, server.address).returncode == 111
        assert [p.recipients for p in server.packages] == [(b"a@y", b"b@y", b"c@y")] * 2
        assert [p.text.endswith(b"the last line\n") for p in server.packages] == [False, True]
    assert sidecar(maildir, "1.m")["recipients"] == ["b@y"]


def test_a_file_that_changes_all_the_time_is_sent_twice_in_a_run(maildir: Path) -> None:
    """Then the next run may try its luck; else this one would never end."""
    path = maildir / "new" / "1.m"
    add_message(maildir, "1.m")

    def script(peer: Peer) -> None:
        while peer.read_package():
            _grow(path)
            peer.respond(b"Kok")

    with serving(script) as server:
        assert run(maildir, server.address).returncode == 111
        assert len(server.packages) == 2
    assert names(maildir / "new") == ["1.m"]


# Mail readers


def _read(maildir: Path, name: str = "1.m", flags: str = ":2,S") -> None:
    (maildir / "new" / name).rename(maildir / "cur" / (name + flags))


def test_a_message_that_is_read_in_flight_is_left_to_the_reader(maildir: Path) -> None:
    """Without --cur, what is in cur/ is none of our business."""
    add_message(maildir, "1.m")
    with serving(in_flight(lambda: _read(maildir))) as server:
        assert run(maildir, server.address).returncode == 0
        assert run(maildir, server.address).returncode == 0
        assert len(server.packages) == 1
    assert names(maildir / "cur") == ["1.m:2,S"]


def test_the_sidecar_of_a_message_that_is_read_in_flight_stays(maildir: Path) -> None:
    """A later run with --cur would believe the lines on top instead."""
    add_message(maildir, "1.m", recipient=b"nobody@y")
    add_sidecar(maildir, "1.m", "s@x", "a@y")
    with serving(in_flight(lambda: _read(maildir))) as server:
        assert run(maildir, server.address).returncode == 0
        assert run("--cur", maildir, server.address).returncode == 0
    assert [p.recipients for p in server.packages] == [(b"a@y",)] * 2
    assert names(maildir / "cur") == names(maildir / "envelope") == []


@pytest.mark.parametrize("flags", [":2,", ":2,S", ":2,RS", ""])
@pytest.mark.parametrize("sent", [False, True])
def test_with_cur_a_message_that_is_read_in_flight_is_not_sent_again(
    maildir: Path, flags: str, sent: bool
) -> None:
    """The file is the same; it only has another name."""
    text = add_message(maildir, "1.m")
    options = ("--sent", str(maildir.parent / "Sent")) if sent else ()
    with serving(in_flight(lambda: _read(maildir, flags=flags))) as server:
        assert run("--cur", *options, maildir, server.address).returncode == 0
        assert names(maildir / "cur") == []
        if sent:
            assert (maildir.parent / "Sent" / "new" / "1.m").read_bytes() == text
        assert run("--cur", maildir, server.address).returncode == 0
        assert len(server.packages) == 1


def test_with_cur_flags_may_change_in_flight(maildir: Path) -> None:
    """As when the user answers a message just then."""
    add_message(maildir, "1.m:2,S", folder="cur")
    cur = maildir / "cur"

    def change() -> None:
        (cur / "1.m:2,S").rename(cur / "1.m:2,RS")

    with serving(in_flight(change)) as server:
        assert run("--cur", maildir, server.address).returncode == 0
    assert names(cur) == []


def test_with_cur_opening_a_whole_mailbox_in_flight(maildir: Path) -> None:
    """That moves everything at once, and part of it may be somebody else's by now."""
    for number in range(50):
        add_message(maildir, f"{number}.m", b"%d\n" % number)

    def change() -> None:
        for number in range(1, 50):
            _read(maildir, f"{number}.m")
        _grow(maildir / "cur" / "7.m:2,S")
        (maildir / "cur" / "8.m:2,S").unlink()

    # The first package goes alone; the others are all in flight when the second is answered.
    after_first = [lambda: None, change]

    def script(peer: Peer) -> None:
        while peer.read_package():
            if after_first:
                after_first.pop(0)()
            peer.respond(b"Kok")

    with serving(script) as server:
        assert run("--cur", maildir, server.address).returncode == 0
        assert len(server.packages) == 51
        assert server.packages[-1].text == b"7\nthe last line\n"
    assert names(maildir / "cur") == names(maildir / "new") == []


def test_with_cur_the_outcomes_of_a_message_that_is_read_in_flight(maildir: Path) -> None:
    """Each recipient gets what he was answered, under whichever name."""
    add_message(maildir, "1.m")
    add_sidecar(maildir, "1.m", "s@x", "a@y", "b@y", "c@y")
    answers = {b"b@y": b"Zlater", b"c@y": b"Dnever"}
    with serving(in_flight(lambda: _read(maildir), answers)) as server:
        assert run("--cur", maildir, server.address).returncode == 111
        assert names(maildir / "cur") == ["1.m:2,S"]
        assert sidecar(maildir, "1.m")["recipients"] == ["b@y"]
        assert sidecar(maildir / ".Failed", "1.m")["recipients"] == ["c@y"]
        answers.clear()
        assert run("--cur", maildir, server.address).returncode == 0
        assert [p.recipients for p in server.packages][1:] == [(b"b@y",)]
    assert names(maildir / "cur") == names(maildir / "envelope") == []


def test_a_message_that_is_renamed_in_new_is_another_message(maildir: Path) -> None:
    """Its name is all that it is known by; better twice than never."""
    path = maildir / "new" / "1.m"
    add_message(maildir, "1.m")

    def change() -> None:
        path.rename(path.with_name("2.m"))

    with serving(in_flight(change)) as server:
        assert run(maildir, server.address).returncode == 0
    assert len(server.packages) == 2
    assert names(maildir / "new") == []
