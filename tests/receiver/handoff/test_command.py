"""Handing on to a command: its words, its input, and what its exit means."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from maildirqmtp.receiver.handoff.command import Command
from tests.helpers import wait_until

TEXT = b"Subject: x\n\nhi\n"
A, B, C = b"a@example.org", b"b@example.org", b"c@example.org"

#: Writes its arguments, and then its input, behind what its first argument names.
RECORDER = """
import os, sys
with open(sys.argv[1], "ab") as file:
    file.write(b"\\0".join(map(os.fsencode, sys.argv[2:])) + b"\\n" + sys.stdin.buffer.read())
"""


def python(program: str, *words: str) -> list[str]:
    return [sys.executable, "-c", program, *words]


def deliver(
    command: Command, *recipients: bytes, text: Sequence[bytes] = (TEXT,), sender: bytes = b"s@x"
) -> list[str]:
    responses = command.deliver(sender, recipients or (A,), lambda: iter(text))
    assert len(responses) == len(recipients or (A,))
    return [str(response) for response in responses]


def test_once_for_each_recipient(tmp_path: Path) -> None:
    """As a delivery agent wants it."""
    record = tmp_path / "record"
    command = Command(python(RECORDER, str(record), "-f", "{sender}", "-d{recipient}"))
    assert [answer[0] for answer in deliver(command, A, b"jane x@example.org")] == ["K", "K"]
    assert record.read_bytes() == (
        b"-f\0s@x\0-da@example.org\n" + TEXT + b'-f\0s@x\0-d"jane x"@example.org\n' + TEXT
    )


def test_once_for_all(tmp_path: Path) -> None:
    """As sendmail wants it."""
    record = tmp_path / "record"
    command = Command(python(RECORDER, str(record), "-f", "{sender}", "--", "{recipients}"))
    assert [answer[0] for answer in deliver(command, A, B, sender=b"#@[]")] == ["K", "K"]
    assert record.read_bytes() == b"-f\0\0--\0a@example.org\0b@example.org\n" + TEXT


def test_an_address_is_never_taken_for_a_placeholder(tmp_path: Path) -> None:
    """Else a recipient could have the sender's address in their words."""
    record = tmp_path / "record"
    command = Command(python(RECORDER, str(record), "{sender}", "{recipient}"))
    deliver(command, b"{sender}@example.org", sender=b"{recipient}@example.org")
    assert record.read_bytes().startswith(b"{recipient}@example.org\0{sender}@example.org\n")


@pytest.mark.parametrize("recipient", [b"-oQ/tmp@example.org", b"-", b"a\tb@example.org", b"a@b c"])
def test_a_recipient_that_a_command_could_mistake_is_refused(
    tmp_path: Path, recipient: bytes
) -> None:
    """`-oQ/tmp` is an option of sendmail."""
    record = tmp_path / "record"
    for words in (["{recipient}"], ["{recipients}"]):
        record.unlink(missing_ok=True)
        answers = deliver(Command(python(RECORDER, str(record), *words)), A, recipient, B)
        assert [answer[0] for answer in answers] == ["K", "D", "K"]
        assert answers[1].endswith("(#5.1.3)")
        assert recipient not in record.read_bytes()


def test_a_sender_that_a_command_could_mistake_is_refused(tmp_path: Path) -> None:
    """But only where the command gets it."""
    record = tmp_path / "record"
    command = Command(python(RECORDER, str(record), "{sender}", "{recipient}"))
    assert deliver(command, A, B, sender=b"-x@y")[1].startswith("D553 sender: ")
    assert not record.exists()
    command = Command(python(RECORDER, str(record), "{recipient}"))
    assert deliver(command, sender=b"-x@y")[0][0] == "K"


@pytest.mark.parametrize(
    ("ending", "letter"),
    [
        ("sys.exit(0)", "K"),
        *((f"sys.exit({code})", "D") for code in (64, 65, 67, 68, 77, 100)),
        *((f"sys.exit({code})", "Z") for code in (1, 2, 66, 69, 70, 75, 78, 99, 111, 127, 255)),
        ("os.kill(os.getpid(), 9)", "Z"),
        ("os.kill(os.getpid(), 15)", "Z"),
    ],
)
def test_what_its_exit_means(ending: str, letter: str) -> None:
    """A crash is no rejection, and must not become a bounce."""
    program = f"import os, sys; print('no such user\\x1b', flush=True); {ending}"
    for word in ("{recipient}", "{recipients}"):
        (answer,) = deliver(Command(python(program, word)))
        assert answer[0] == letter
        assert "no such user?" in answer


def test_an_exit_code_that_nobody_knows_defers() -> None:
    """In a program that ignores SIGCHLD; taken for 0, mail that the command refused was lost."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for word in ("{recipient}", "{recipients}"):
            (answer,) = deliver(Command(["sh", "-c", "cat > /dev/null; exit 75", word]))
            assert answer.startswith("Z451 sh: exit code unknown")
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_all_or_nothing(tmp_path: Path) -> None:
    """What one run says is said for all of its recipients."""
    command = Command(python("import sys; sys.exit(67)", "{recipients}"))
    assert [answer[0] for answer in deliver(command, A, B, C)] == ["D", "D", "D"]


def test_a_command_that_does_not_exist_defers() -> None:
    """It may be there after the upgrade that is going on."""
    (answer,) = deliver(Command(["/nonexistent/command", "{recipient}"]))
    assert answer == "Z451 command: No such file or directory (#4.3.0)"


def test_a_command_that_does_not_want_the_text() -> None:
    """It refuses by its exit code before it reads; that is what counts."""
    big = [b"x" * 99 + b"\n"] * 20_000
    for code, letter in ((0, "K"), (67, "D")):
        (answer,) = deliver(Command(python(f"raise SystemExit({code})", "{recipient}")), text=big)
        assert answer[0] == letter


@pytest.mark.parametrize("reads", ["input(); ", ""])
def test_a_command_that_does_not_end_is_ended(reads: str) -> None:
    """With all that it has started, whether it reads or not."""
    big = [b"x" * 99 + b"\n"] * 20_000
    program = f"import time; {reads}time.sleep(600)"
    (answer,) = deliver(Command(python(program, "{recipient}"), timeout_s=0.3), text=big)
    assert answer.startswith("Z451 ")
    assert "took more than 0.3 s" in answer


def test_what_it_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    """A daemon that it starts holds its standard output."""
    program = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True)"
    (answer,) = deliver(Command(python(program, "{recipient}")))
    assert answer[0] == "K"


def test_a_text_that_cannot_be_read_defers(tmp_path: Path) -> None:
    """The command must not be shown the end of it: it would deliver a half, and later the whole."""

    def pieces() -> Iterator[bytes]:
        yield TEXT
        raise OSError(5, "Input/output error")

    record = tmp_path / "record"
    for words in (
        python(RECORDER, str(record), "{recipient}"),
        ["/missing/command", "{recipient}"],
    ):
        (response,) = Command(words).deliver(b"", [A], pieces)
        assert str(response).startswith("Z451 ")
        assert "Input/output error" in str(response), "read to the end before the command begins"
        assert not record.exists()


def test_a_command_that_is_ended_has_never_half_a_text(tmp_path: Path) -> None:
    """A delivery agent that uses its last second to deliver what it has got must have it all."""
    record = tmp_path / "record"
    program = (
        "import os, signal, sys\n"
        "def late(*_):\n"
        f"    with open({str(record)!r}, 'wb') as file: file.write(sys.stdin.buffer.read())\n"
        f"    os.rename({str(record)!r}, {str(record)!r} + '.whole')\n"
        "signal.signal(signal.SIGTERM, late)\n"
        "while True: signal.pause()\n"
    )
    big = [b"x" * 99 + b"\n"] * 20_000
    for _ in range(3):
        (answer,) = deliver(Command(python(program, "{recipient}"), timeout_s=1.0), text=big)
        assert answer[0] == "Z"
        with contextlib.suppress(FileNotFoundError):
            assert record.with_suffix(".whole").stat().st_size == 2_000_000


def test_what_cannot_be_begun_in_time_is_deferred(tmp_path: Path) -> None:
    """The answers of a batch that takes over an hour are not heard, and all of it is sent again."""
    record = tmp_path / "record"
    for word, time_left, told in (
        ("{recipient}", [True, False], "KDZ"),
        ("{recipients}", [True], "KDK"),
        ("{recipients}", [False], "ZDZ"),
    ):
        record.write_bytes(b"")
        command, left = Command(python(RECORDER, str(record), word)), iter(time_left)
        recipients = [A, b"-x@example.org", B]
        answers = command.deliver(b"", recipients, lambda: iter([TEXT]), left.__next__)
        assert "".join(str(answer)[0] for answer in answers) == told
        assert record.read_bytes().count(TEXT) == ("K" in told)


def test_no_command_is_begun_once_the_receiver_stops(tmp_path: Path) -> None:
    """It would deliver a message to which Z is said, or an empty one."""
    record = tmp_path / "record"
    command = Command(python(RECORDER, str(record), "{recipient}"))
    command.abort()
    assert deliver(command, A, B) == ["Z451 the receiver stops (#4.3.2)"] * 2
    assert not record.exists()


def test_abort_ends_what_runs(tmp_path: Path) -> None:
    """The receiver stops within seconds, whatever a command does."""
    started = tmp_path / "started"
    program = f"open({str(started)!r}, 'w'); import time; time.sleep(600)"
    command = Command(python(program, "{recipient}"))
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.extend(deliver(command)))
    thread.start()
    with contextlib.closing(command):
        wait_until(started.exists, "the command")
        command.abort()
        thread.join(30)
    assert [answer[0] for answer in answers] == ["Z"]
