"""What stands in for every program in the documents' shell blocks: it checks how it was called.

Ours are checked by their own parsers, and nothing else is done. What others would run with words
of the documents (a client, a shell) is checked in turn. What is wrong goes into a file.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from maildirqmtp.cli import qmtp_sendmail, qmtpmaildir, qmtpq
from maildirqmtp.errors import ConfigError
from maildirqmtp.serialmail import maildirserial
from maildirqmtp.settings import command_line

#: Programs that are not ours; the words after these are not looked at.
OTHERS = (
    *("apt", "apt-get", "chown", "crontab", "debootstrap", "dpkg-buildpackage", "dpkg-divert"),
    *("find", "git", "install", "kubectl", "ln", "maildirmake", "man", "mkdir", "mv", "openssl"),
    *("pip", "pipx", "podman", "python3", "rm", "runuser", "sed", "sha256sum", "ssh-keygen"),
    *("ssh-keyscan", "systemctl", "systemd-sysusers", "touch", "uv", "watch", "cat", "kill", "run"),
)


def _maildirqmtp(words: list[str]) -> None:
    line = command_line.parse(words)
    command_line.check_together(line)
    for word in words:
        if word.startswith("exec:"):
            _check_command(shlex.split(word.removeprefix("exec:")))
    if line.config is None and line.enqueue is None and not (line.status or line.demo):
        command_line.make_route(line)


def _qmtpmaildir(words: list[str]) -> None:
    options = qmtpmaildir.make_parser().parse_args(words)
    if [options.dir, options.queue, options.deliver].count(None) != 2:
        raise ConfigError("one of DIR, --queue DIR and --deliver HOW")


def _qmtpq(words: list[str]) -> None:
    qmtpq.read_command_line(words)


def _qmtp_sendmail(words: list[str]) -> None:
    qmtp_sendmail.make_parser().parse_intermixed_args(words)


def _maildirserial(words: list[str]) -> None:
    arguments = maildirserial.parse(words)
    _check_command([*map(_text, arguments.client)])


def _text(word: str | bytes) -> str:
    return word if isinstance(word, str) else word.decode()


def _serialqmtp(words: list[str]) -> None:
    if len(words) != 1:
        raise ConfigError("serialqmtp PREFIX")


def _tcpclient(words: list[str]) -> None:
    while words and words[0].startswith("-"):
        words = words[1:]
    _check_command(words[2:])


def _tcpserver(words: list[str]) -> None:
    """Check a command that is a script of sh."""
    script = words[words.index("-c") + 1]
    if words[words.index("-c") - 1] == "sh":
        subprocess.run(["/bin/sh", "-n", "-c", script], check=True)


def _ssh(words: list[str]) -> None:
    while words and words[0] == "-o":
        words = words[2:]
    _check_command(words[1:])


OURS: dict[str, Callable[[list[str]], None]] = {
    "maildirqmtp": _maildirqmtp,
    "qmtpmaildir": _qmtpmaildir,
    "qmtpq": _qmtpq,
    "qmtp-sendmail": _qmtp_sendmail,
    "maildirserial": _maildirserial,
    "serialqmtp": _serialqmtp,
    "tcpclient": _tcpclient,
    "tcpserver": _tcpserver,
    "ssh": _ssh,
}


def _check_command(words: list[str]) -> None:
    """Check a command among words; one that is none of these is not known, and wrong."""
    name = words[0].rpartition("/")[2]
    if name not in OTHERS:
        OURS[name](words[1:])


def main(wrong: str) -> None:
    """Check how this program was called, by its name."""
    try:
        _check_command([Path(sys.argv[0]).name, *sys.argv[1:]])
    except (Exception, SystemExit) as error:
        with open(wrong, "a") as file:
            file.write(f"{shlex.join(sys.argv)}: {error!r}\n")
        sys.exit(1)
