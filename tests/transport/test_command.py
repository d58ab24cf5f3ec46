"""A command as the way to the server: its pipes, its complaints, and its end."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import ConnectError, TransportError
from maildirqmtp.transport import command, process
from maildirqmtp.transport.connect import connect
from maildirqmtp.transport.endpoint import CommandEndpoint
from maildirqmtp.transport.transport import Transport
from tests.helpers import DEADLINE_S, open_descriptors, runs, wait_until

Start = Callable[..., Transport]


@pytest.fixture
def log() -> list[str]:
    """What the command has written on its standard error."""
    return []


@pytest.fixture
def start(log: list[str]) -> Iterator[Start]:
    """Starts commands that end with the test; no descriptor, thread or child stays behind."""
    before = open_descriptors()
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:

        def start(*words: str) -> Transport:
            transport = connect(CommandEndpoint(words), DEADLINE_S, log=log.append)
            stack.callback(transport.close)
            return transport

        yield start
    assert open_descriptors() == before
    assert threading.active_count() == threads
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def python(code: str) -> tuple[str, ...]:
    """Return a command that runs a piece of Python."""
    return (sys.executable, "-c", code)


def received(transport: Transport) -> bytes:
    """Wait for what comes next."""
    while (data := transport.receive(1 << 16)) is None:
        assert select.select([transport.read_fd], [], [], DEADLINE_S)[0], "nothing came"
    return data


def everything(transport: Transport) -> bytes:
    """Wait for all that comes until the end."""
    return b"".join(iter(lambda: received(transport), b""))


def test_bytes_go_both_ways(start: Start) -> None:
    """By the command's input and output; and a word with a space is one word."""
    transport = start("sh", "-c", "cat; echo 'the end'")
    assert transport.name == """exec:sh -c 'cat; echo '"'"'the end'"'"''"""
    assert not transport.can_send_file
    assert transport.receive(100) is None
    assert transport.send(b"hello") == 5
    assert received(transport) == b"hello"


def test_it_never_waits(start: Start) -> None:
    """A command that does not read must not keep us from reading."""
    transport = start("sleep", "1000")
    while transport.send(bytes(65_536)):
        pass
    assert transport.receive(100) is None


def test_an_end_in_peace_is_an_end(start: Start) -> None:
    """As of any connection."""
    transport = start("echo", "bye")
    assert received(transport) == b"bye\n"
    assert received(transport) == b""
    transport.close()
    transport.close()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 255", "sh exited with status 255"),
        ("kill -9 $$", "sh was killed by signal 9"),
        ("echo K; exit 1", "sh exited with status 1"),
    ],
)
def test_how_it_ended_is_told(start: Start, script: str, says: str) -> None:
    """`ssh exited with status 255` says what an empty answer does not."""
    transport = start("sh", "-c", script)
    with pytest.raises(TransportError) as raised:
        everything(transport)
    assert str(raised.value) == f"connection to {transport.name} ended: {says}"


@pytest.mark.parametrize(("status", "never"), [(255, True), (127, True), (1, False), (111, False)])
def test_ssh_s_own_trouble_is_no_connection_at_all(start: Start, status: int, never: bool) -> None:
    """A message is not to blame for it, as it may be where the server has died of it."""
    with pytest.raises(TransportError) as raised:
        everything(start("sh", "-c", f"exit {status}"))
    assert isinstance(raised.value, ConnectError) is never
    with pytest.raises(TransportError) as raised:
        everything(start("sh", "-c", f"echo; exit {status}"))
    assert not isinstance(raised.value, ConnectError)


def test_how_it_ended_is_told_while_sending(start: Start) -> None:
    """Where we find out by the broken pipe."""
    transport = start("sh", "-c", "exec <&-; exit 3")

    def send_for_ever() -> None:
        while True:
            transport.send(b"x")

    with pytest.raises(TransportError, match="ended: sh exited with status 3"):
        send_for_ever()


def test_a_closed_pipe_of_a_command_that_runs_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no exit status to wait for; that its input is closed is all there is to say."""
    monkeypatch.setattr(command, "STATUS_S", 0.01)
    monkeypatch.setattr(command, "EXIT_GRACE_S", 0.01)
    transport = start("sh", "-c", "exec <&-; echo closed; exec sleep 1000")
    assert received(transport) == b"closed\n"
    with pytest.raises(TransportError, match="broke while sending: Broken pipe"):
        transport.send(b"x")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("/nonexistent/ssh", "cannot start ssh for exec:/nonexistent/ssh: No such file"),
        ("/etc/passwd", "cannot start passwd for exec:/etc/passwd: Permission denied"),
        ("no\x1bsuch", "cannot start no?such for exec:'no?such': No such file"),
    ],
)
def test_a_command_that_cannot_be_started_is_unreachable(
    start: Start, word: str, says: str
) -> None:
    """Nothing has been sent, and nothing was in doubt."""
    with pytest.raises(ConnectError) as raised:
        start(word)
    assert says in str(raised.value)


def test_what_it_complains_of_is_logged_line_by_line(start: Start, log: list[str]) -> None:
    """With its name before it, and nothing that a terminal would obey."""
    transport = start("sh", "-c", r"printf 'one\n\n  two\033[2J \r\nthree' >&2")
    assert received(transport) == b""
    transport.close()
    assert log == ["sh: one", "sh: two?[2J", "sh: three"]


def test_a_command_that_hangs_may_end_in_order(tmp_path: Path) -> None:
    """An ssh that is killed at once leaves its master, or its lock, behind."""
    script = f"trap 'echo bye >{tmp_path}/end; exit' TERM; echo up; while :; do sleep 0.05; done"
    running = process.Process(["sh", "-c", script], stdout=process.PIPE)
    assert running.stdout.read(3) == b"up\n"
    running.end(0.0)
    running.stdout.close()
    assert (tmp_path / "end").read_text() == "bye\n"


def test_complaints_are_bounded(start: Start, log: list[str]) -> None:
    """A command gone mad must fill neither our memory nor the log."""
    code = (
        "import sys; e = sys.stderr; e.write('x' * 10_000_000 + '\\n');"
        f"e.write('y\\n' * ({1_000} * 3)); e.write('z' * 3_000_000)"
    )
    transport = start(*python(code))
    assert received(transport) == b""
    transport.close()
    name = os.path.basename(sys.executable)
    assert log[0].startswith(f"{name}: xxxx")
    assert len(log[0]) <= command.LINE_BYTES + len(name) + 2
    assert log[1:-1] == [f"{name}: y"] * (1_000 - 1)
    assert log[-1] == f"{name}: (it says more, which is not shown)"
    assert len(log) == 1_000 + 1


def test_a_complaint_without_end_takes_no_memory(start: Start) -> None:
    """A command that prints a core dump, say."""
    transport = start("sleep", "1000")
    assert isinstance(transport, command.CommandTransport)
    assert transport._stderr is not None
    for _ in range(100):
        transport._stderr._take(bytes(100_000))
        assert len(transport._stderr._line) <= command.LINE_BYTES


def test_complaints_do_not_stop_the_command(start: Start) -> None:
    """One that waits for its standard error to be read would never answer."""
    code = (
        "import sys; sys.stderr.write('x\\n' * 200_000); sys.stderr.flush();"
        "import os; os.write(1, b'answer'); sys.stdin.read()"
    )
    assert received(start(*python(code))) == b"answer"


def test_by_default_complaints_go_to_our_log(capfd: pytest.CaptureFixture[str]) -> None:
    """`maildirqmtp: ssh: Connection refused` is what an administrator has to go by."""
    transport = connect(CommandEndpoint(("sh", "-c", "echo no route >&2")), DEADLINE_S)
    assert received(transport) == b""
    transport.close()
    assert capfd.readouterr().err == "maildirqmtp: sh: no route\n"


def test_a_log_that_cannot_be_written_stops_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk full, closed, or whoever read it is gone."""
    full = open("/dev/full", "w")  # noqa: SIM115
    closed = io.StringIO()
    closed.close()
    for stream in (None, full, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        transport = connect(CommandEndpoint(("sh", "-c", "echo no route >&2")), DEADLINE_S)
        assert received(transport) == b""
        transport.close()
    with contextlib.suppress(OSError):
        full.close()


@pytest.mark.parametrize("lacking", ["descriptors", "threads"])
def test_a_command_that_nobody_can_listen_to_is_unreachable(
    start: Start, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """A limit that is reached must not end the daemon, nor leave the command running."""

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def no_pipe() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    pids: list[int] = []
    popen = subprocess.Popen

    def noted(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(*words, **options)
        pids.append(process.pid)
        if lacking == "descriptors":
            monkeypatch.setattr(os, "pipe", no_pipe)
        return process

    monkeypatch.setattr(subprocess, "Popen", noted)
    if lacking == "threads":
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(ConnectError, match="cannot start cat for exec:cat"):
        start("cat")
    assert not runs(pids[0])
    monkeypatch.undo()


def test_a_log_that_waits_does_not_keep_the_end(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler's lock may be held by whoever closes; that must not wait for itself."""
    monkeypatch.setattr(command, "LOG_S", 0.01)
    taken = threading.Event()
    go_on = threading.Event()

    def log(line: str) -> None:
        taken.set()
        go_on.wait(DEADLINE_S)

    before = threading.active_count()
    transport = connect(
        CommandEndpoint(("sh", "-c", "echo no route >&2; exec cat")), DEADLINE_S, log=log
    )
    taken.wait(DEADLINE_S)
    transport.close()
    assert threading.active_count() == before + 1
    go_on.set()
    wait_until(lambda: threading.active_count() == before, "the thread to end")


def test_it_is_ended_with_its_children(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run every five minutes would leave one more hanging ssh behind each time."""
    monkeypatch.setattr(command, "EXIT_GRACE_S", 0.01)
    monkeypatch.setattr(process, "TERM_S", 0.5)
    transport = start(
        "sh", "-c", "trap '' TERM; sleep 1000 & echo $$ $!; while :; do sleep 1000; done"
    )
    pids = [int(word) for word in received(transport).split()]
    assert all(map(runs, pids))
    transport.close()
    wait_until(lambda: not any(map(runs, pids)), "the command's processes to end")


def test_several_have_their_time_to_end_at_the_same_time(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred that hang, closed one after the other, would stop a daemon for minutes."""
    monkeypatch.setattr(command, "EXIT_GRACE_S", 0.01)
    transports = [start("sh", "-c", "sleep 1000; true") for _ in range(5)]
    for transport in transports:
        transport.hang_up()
    monkeypatch.setattr(command, "EXIT_GRACE_S", 1_000.0)  # for one that gets its time only now
    children = [transport.process.pid for transport in transports]  # type: ignore[attr-defined]
    for transport in transports:
        transport.close()
    assert not any(map(runs, children))


def test_an_exit_at_once_takes_them_along() -> None:
    """As by a second TERM, or an error: nobody else would ever end an ssh that hangs."""
    code = (
        "from maildirqmtp.transport.endpoint import CommandEndpoint;"
        "from maildirqmtp.transport.connect import connect;"
        "t = [connect(CommandEndpoint(('sh', '-c', s + 'echo $$; sleep 1000; true')), 1)"
        " for s in ('', 'trap true TERM;')];"
        "import time; a = [b''] * 2\n"
        "while not all(a):\n"
        "    a = [x or u.receive(99) or b'' for x, u in zip(a, t)]; time.sleep(0.001)\n"
        "print(*map(int, a))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    pids = list(map(int, done.stdout.split()))
    assert len(pids) == 2
    wait_until(lambda: not any(map(runs, pids)), "the commands to end")


def test_an_exit_at_once_waits_for_what_they_say_last() -> None:
    """An interpreter that ends while a thread is writing to standard error may abort."""
    code = (
        "import sys, time; from maildirqmtp.transport.endpoint import CommandEndpoint\n"
        "from maildirqmtp.transport.connect import connect\n"
        "def log(line): time.sleep(0.1); print(line, file=sys.stderr)\n"
        "say = 'trap \"echo Bye >&2; exit\" TERM; echo x; while :; do sleep 0.01; done'\n"
        "t = connect(CommandEndpoint(('sh', '-c', say)), 1, log=log)\n"
        "while not t.receive(9): time.sleep(0.001)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "sh: Bye" in done.stderr.splitlines()


def test_a_fork_of_ours_leaves_them_alone() -> None:
    """What a program forks may exit as it likes; the connection is not its own."""
    code = (
        "import os, sys; from maildirqmtp.transport.endpoint import CommandEndpoint\n"
        "from maildirqmtp.transport.connect import connect\n"
        "t = connect(CommandEndpoint(('cat',)), 1)\n"
        "if not (pid := os.fork()): sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert t.process.exit_status() is None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0


def test_a_fork_that_closes_its_copy_leaves_the_command_alone() -> None:
    """It killed the parent's ssh; it lets go of all descriptors, and of nothing else."""
    code = (
        "import os, sys, time; from maildirqmtp.transport.endpoint import CommandEndpoint\n"
        "from maildirqmtp.transport.connect import connect\n"
        "before = set(os.listdir('/proc/self/fd'))\n"
        "t = connect(CommandEndpoint(('cat',)), 1)\n"
        "if not (pid := os.fork()):\n"
        "    t.close(); t.close()\n"
        "    os._exit(set(os.listdir('/proc/self/fd')) != before)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert t.process.exit_status() is None\n"
        "assert t.send(b'hello') == 5\n"
        "while not (answer := t.receive(9)): time.sleep(0.001)\n"
        "assert answer == b'hello'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0


def test_what_it_leaves_behind_is_ended(start: Start) -> None:
    """Also where it exited itself, in peace."""
    transport = start("sh", "-c", "sleep 1000 & echo $!")
    pid = int(received(transport).split()[0])
    transport.close()
    wait_until(lambda: not runs(pid), "what the command left behind to end")


def test_it_has_time_to_end(start: Start, log: list[str]) -> None:
    """ssh has to say goodbye to the other side; killed at once it could not."""
    transport = start("sh", "-c", "cat; echo done >&2")
    transport.close()
    assert log == ["sh: done"]


def test_one_that_went_elsewhere_does_not_hold_us_up(start: Start, log: list[str]) -> None:
    """The master process of ssh's ControlPersist keeps standard error open for hours."""
    transport = start(
        *python(
            "import os, sys; os.fork() and sys.exit(0); os.setsid();"
            "os.write(1, str(os.getpid()).encode()); os.close(1); os.close(0);"
            "import time; time.sleep(1000)"
        )
    )
    pid = int(received(transport))
    try:
        transport.close()
        assert runs(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_our_interrupts_are_not_the_commands(start: Start) -> None:
    """^C is for us: we finish what is in flight, over the connection that is still there."""
    transport = start(*python("import os; print(os.getpgid(0), os.getpid())"))
    group, pid = everything(transport).split()
    assert group == pid


def test_somebody_ignores_sigchld(start: Start) -> None:
    """Then the kernel reaps, and there is no exit status; that must not be a traceback."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        transport = start("sh", "-c", "exit 3")
        assert received(transport) == b""
        transport.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


# What it has not read


def test_what_a_command_has_not_read_is_not_in_doubt(start: Start) -> None:
    """ssh that does not reach its host leaves it all in the pipe; another server may have it."""
    transport = start("sh", "-c", "sleep 0.1; exit 255")
    assert transport.send(bytes(1_000)) == 1_000
    assert transport.bytes_unread == 0, "it may be read yet"
    with pytest.raises(ConnectError):
        everything(transport)
    assert transport.bytes_unread == 1_000
    transport.hang_up()
    assert transport.bytes_unread == 1_000, "asked for after that, when it is closed"
    transport.close()
    assert transport.bytes_unread == 1_000


def test_what_a_command_has_read_may_have_been_taken(start: Start) -> None:
    """The connection behind it may have broken after that."""
    transport = start("sh", "-c", "dd bs=300 count=1 of=/dev/null 2>/dev/null; exit 255")
    assert transport.send(bytes(1_000)) == 1_000
    with pytest.raises(ConnectError):
        everything(transport)
    assert transport.bytes_unread == 700


def test_what_another_process_may_read_yet_is_in_doubt(start: Start) -> None:
    """The command has exited, and has left one behind that has its input open."""
    transport = start("sh", "-c", "exec 3<&0; (sleep 30; cat <&3) >/dev/null 2>&1 & exit 1")
    assert transport.send(bytes(1_000)) == 1_000
    with pytest.raises(TransportError):
        everything(transport)
    assert transport.bytes_unread == 0
