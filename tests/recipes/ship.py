"""recipes/ship.md with OpenSSH: from `qmtp-sendmail` on board to the mail server ashore."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import wait_until
from tests.recipes.sendmail import QUEUE, SOCKET, running
from tests.recipes.trial import DEADLINE_S, Trial, block, call, make_user
from tests.scripted_smtp import ScriptedServer, scripted_server

RECIPE = "recipes/ship.md"
KEY = Path("/var/lib/maildirqmtp/.ssh/id_ed25519.pub")


@contextlib.contextmanager
def ssh_server() -> Iterator[None]:
    """Run the ssh server ashore: the link is up."""
    listens = "Server listening"
    words = ["/usr/sbin/sshd", "-D", "-e", "-o", "ListenAddress=127.0.0.1", "-o", "UsePAM=no"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert listens in server.stderr.readline()
        try:
            yield
        finally:
            server.terminate()
            server.stderr.read()
            server.wait(60)


def ashore() -> None:
    """Make the user of the recipe, with the ship's key."""
    call("useradd", "--create-home", "--password", "*", "--shell", "/bin/sh", "ship")
    directory = Path("/home/ship/.ssh")
    directory.mkdir()
    line = block(RECIPE, "restrict,command").replace("KEY", KEY.read_text().strip())
    (directory / "authorized_keys").write_text(line)
    call("chown", "-R", "ship:", directory)


def on_board() -> None:
    """Do what the recipe says on board."""
    Path("/etc/maildirqmtp.toml").write_text(block(RECIPE, "[submission]"))
    for command in block(RECIPE, "# install -d").splitlines():
        call("sh", "-ec", command.removeprefix("# "))


def submit(subject: str, *recipients: str) -> None:
    """Hand in a message on board."""
    call(
        "qmtp-sendmail",
        "-f",
        "me@ship.example.org",
        *recipients,
        text=f"Subject: {subject}\n\nHello\n",
    )


def came(server: ScriptedServer, subject: str) -> list[bytes]:
    """Return the texts ashore with this subject."""
    return [text for text in server.texts if f"\r\nSubject: {subject}\r\n".encode() in text]


def check(server: ScriptedServer, subject: str, *recipients: str) -> None:
    """Wait for a message: once, with its envelope, and nothing left on board."""
    wait_until(lambda: bool(came(server, subject)), f"{subject} ashore", DEADLINE_S)
    wait_until(lambda: not list((QUEUE / "new").iterdir()), "an empty queue", DEADLINE_S)
    (text,) = came(server, subject)
    assert b"Hello" in text
    (told,) = [c for c in server.conversations if text in c.texts]
    last = len(told.commands) - told.verbs[::-1].index("MAIL") - 1
    assert told.commands[last].startswith(b"MAIL FROM:<me@ship.example.org>"), told.commands
    rcpts = [line for line in told.commands[last:] if line.startswith(b"RCPT")]
    assert rcpts == [f"RCPT TO:<{recipient}>".encode() for recipient in recipients]


def main() -> None:
    """Tell the story; the rows go to standard output."""
    trial = Trial(RECIPE, "openssh-server", "ssh")
    make_user()
    with Path("/etc/hosts").open("a") as hosts:
        hosts.write("127.0.0.1 shore.example.org\n")
    SOCKET.parent.mkdir()
    call("chown", "maildirqmtp:", SOCKET.parent)
    Path("/run/sshd").mkdir(exist_ok=True)
    call("ssh-keygen", "-A")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(scripted_server(port=25))
        link = stack.enter_context(contextlib.ExitStack())
        link.enter_context(ssh_server())
        on_board()
        ashore()
        queue = ("qmtpmaildir", "--queue", QUEUE, "--listen", f"unix:{SOCKET}")
        stack.enter_context(running(*queue))
        wait_until(lambda: SOCKET.exists() and QUEUE.is_dir(), "the queue", DEADLINE_S)
        words = ("maildirqmtp", "--config", "/etc/maildirqmtp.toml")
        daemon = stack.enter_context(running(*words))
        with trial.checks("from qmtp-sendmail to the mail server ashore, with envelope, once"):
            submit("aboard", "joe@example.net", "blind@example.com")
            check(server, "aboard", "joe@example.net", "blind@example.com")
        with trial.checks("the key does nothing else"):
            ssh = ("runuser", "-u", "maildirqmtp", "--", "ssh", "-o", "BatchMode=yes")
            assert call(*ssh, "ship@shore.example.org", "id") == ""
        link.close()
        with trial.checks("what waits while the link is down goes when it is up again"):
            submit("waits", "joe@example.net")
            wait_until(lambda: bool(list((QUEUE / "new").iterdir())), "mail that waits")
            link.enter_context(ssh_server())
            daemon.send_signal(signal.SIGALRM)
            check(server, "waits", "joe@example.net")


if __name__ == "__main__":
    main()
