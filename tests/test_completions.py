"""Completions for bash, zsh and fish: as the tables of settings say today, and in real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import DEADLINE_S, add_message, make_maildir
from tests.test_contrib import CONTRIB, call, tool

COMPLETIONS = CONTRIB / "completions"
SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def environment() -> dict[str, str]:
    """An environment in which the programs of this package are found."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return found | {"PATH": f"{Path(sys.executable).parent}:{found['PATH']}", "TERM": "dumb"}


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """A maildir with two messages, and a failed one."""
    maildir = make_maildir(tmp_path / "Outgoing")
    add_message(maildir, "1.a")
    add_message(maildir, "2.b")
    add_message(make_maildir(maildir / ".Failed"), "3.f")
    return maildir


def test_they_are_those_of_the_tables_of_settings(tmp_path: Path) -> None:
    """A new flag is completed; python contrib/completions/make_completions.py writes them."""
    call(sys.executable, COMPLETIONS / "make_completions.py", tmp_path)
    for shell in SHELLS:
        fresh = {file.name: file.read_text() for file in (tmp_path / shell).iterdir()}
        shipped = {file.name: file.read_text() for file in (COMPLETIONS / shell).iterdir()}
        assert shipped == fresh, f"{shell}: run contrib/completions/make_completions.py"
        assert len(fresh) == 4


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_them(shell: str) -> None:
    """One quote too many would break each new shell of its user."""
    for file in (COMPLETIONS / shell).iterdir():
        call(tool(shell), "-n", file)


def in_bash(environment: dict[str, str], cwd: Path, *words: str) -> list[str]:
    """Return what bash completes the last word to."""
    function = "_" + words[0].replace("-", "_")
    script = f"""
        source "{COMPLETIONS}/bash/{words[0]}"
        complete -p {words[0]} >/dev/null || exit 1
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        {function}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-uc", script, "bash", *words],
        env=environment,
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return sorted(done.stdout.split())


def in_fish(environment: dict[str, str], cwd: Path, *words: str) -> list[str]:
    """Return what fish completes the last word to."""
    line = " ".join(word or "''" if word != words[-1] else word for word in words)
    script = f"source {COMPLETIONS}/fish/{words[0]}.fish; complete -C '{line}'"
    done = subprocess.run(
        [tool("fish"), "--no-config", "-c", script],
        env=environment | {"HOME": str(cwd), "XDG_CONFIG_HOME": str(cwd)},
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return sorted(found.split("\t")[0] for found in done.stdout.splitlines() if found)


def in_zsh(environment: dict[str, str], cwd: Path, *words: str) -> list[str]:
    """Return what zsh lists for the last word, on a terminal."""
    (cwd / ".zshrc").write_text(
        f"fpath=({COMPLETIONS}/zsh $fpath)\nautoload -Uz compinit\ncompinit -D -u\n"
        f"zstyle ':completion:*' list-separator '#'\nzstyle ':completion:*' list-packed no\n"
        f"setopt no_auto_menu no_list_beep\nLISTMAX=1000\nPS1='READY> '\n"
    )
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(cwd)
        env = environment | {"ZDOTDIR": str(cwd), "HOME": str(cwd), "TERM": "xterm"}
        os.execve(tool("zsh"), ["zsh", "-i"], env | {"COLUMNS": "200", "LINES": "100"})
    try:
        wait_for(terminal, rb"READY> ")
        # ^D lists what there is, and completes nothing; the last word shows that it is done.
        os.write(terminal, " ".join(words).encode() + b"\x04")
        os.write(terminal, b"\x15print d''one\n")
        shown = wait_for(terminal, rb"\n\s*done\s")
        return sorted(set(shown.decode(errors="replace").split()))
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)


def wait_for(terminal: int, pattern: bytes) -> bytes:
    """Return what a terminal shows until this is there; what moves its cursor are blanks."""
    shown = b""
    give_up = time.monotonic() + DEADLINE_S
    plain = b""
    while not re.search(pattern, plain):
        assert time.monotonic() < give_up, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65_536)
        plain = re.sub(rb"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])|[\r\0\x08]", b" ", shown)
    return plain


CASES = [
    (["maildirqmtp", "--wat"], {"--watch"}, {"--config"}),
    (["maildirqmtp", "--bounce-via", "s"], {"sendmail", "server"}, {"maildir:"}),
    (["maildirqmtp", "--no-"], {"--no-bounce", "--no-cur"}, set()),
    (["maildirqmtp", "Out"], {"Outgoing"}, {"Outfile"}),
    (["maildirqmtp", "--config", "Out"], {"Outfile"}, set()),
    (["qmtpmaildir", "--tls-"], {"--tls-cert", "--tls-client-ca"}, {"--domain"}),
    (["qmtp-sendmail", "--ver"], {"--version"}, set()),
    (["qmtpq", "re"], {"resend", "retry", "release"}, {"drop"}),
    (["qmtpq", "show", "Out"], {"Outgoing"}, {"Outfile"}),
    (["qmtpq", "show", "Outgoing", ""], {"1.a", "2.b", "3.f"}, set()),
    (["qmtpq", "--yes", "drop", "--to", "@x", "Outgoing", "2"], {"2.b"}, {"1.a"}),
    (["qmtpq", "resend", "Outgoing", ""], {"3.f"}, {"1.a"}),
    (["qmtpq", "drop", "--config", "m.toml", ""], {"1.a", "2.b"}, {"Outgoing"}),
]


@pytest.mark.parametrize(
    ("words", "there", "not_there"), CASES, ids=[" ".join(words) for words, _, _ in CASES]
)
@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_completed(
    shell: str,
    words: list[str],
    there: set[str],
    not_there: set[str],
    tmp_path: Path,
    queue: Path,
    environment: dict[str, str],
) -> None:
    """Flags, commands, maildirs, files, and the names of messages."""
    tool(shell)
    (tmp_path / "Outfile").touch()
    (tmp_path / "m.toml").write_text(f'[[route]]\nmaildir = "{queue}"\nserver = "h"\n')
    complete = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[shell]
    found = {word.rstrip("/=") for word in complete(environment, tmp_path, *words)}
    wanted = {word.rstrip("/=") for word in there}
    assert wanted <= found, f"{sorted(wanted - found)} not in {sorted(found)}"
    assert not not_there & found


#: What those who may write into new/ can call a message.
EVIL_NAMES = ("1700.x$(touch${IFS}PWNED).h", "1700.`touch PWNED`", "1700.a b;touch PWNED;'\"")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_messages_name_is_never_run(
    shell: str, tmp_path: Path, queue: Path, environment: dict[str, str]
) -> None:
    """TAB, typed by root, would run what a user has called a file in new/."""
    tool(shell)
    for name in EVIL_NAMES:
        add_message(queue, name)
    complete = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[shell]
    found = complete(environment, tmp_path, "qmtpq", "show", "Outgoing", "17")
    assert any("touch${IFS}PWNED" in word.replace("\\", "") for word in found), found
    assert not list(tmp_path.glob("PWNED*"))


def test_bash_completes_a_messages_name_in_quotes(
    tmp_path: Path, queue: Path, environment: dict[str, str]
) -> None:
    """Else Enter would run it: what is inserted means the name, and nothing else."""
    for name in EVIL_NAMES:
        add_message(queue, name)
    script = f"""
        source "{COMPLETIONS}/bash/qmtpq"
        COMP_WORDS=(qmtpq show Outgoing '1700.') COMP_CWORD=3
        _qmtpq
        eval "set -- ${{COMPREPLY[*]}}"
        printf '%s\\n' "$@"
    """
    arguments = ["bash", "--norc", "-uc", script]
    done = subprocess.run(
        arguments, env=environment, cwd=tmp_path, text=True, capture_output=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted(EVIL_NAMES)
    assert not list(tmp_path.glob("PWNED*"))


@pytest.mark.parametrize("words", [["show"], ["show", "--config"]], ids=" ".join)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_path_is_no_pattern(
    shell: str, words: list[str], tmp_path: Path, queue: Path, environment: dict[str, str]
) -> None:
    """The qualifier e of zsh runs commands, and it may stand in the name of a directory."""
    tool(shell)
    evil = f"{queue.name}(e#touch PWNED#)"
    if "--config" in words:
        (tmp_path / evil).write_text(f'[[route]]\nmaildir = "{queue}"\nserver = "h"\n')
    else:
        add_message(make_maildir(tmp_path / evil), "1.a")
    typed = evil.replace("(", "\\(").replace(")", "\\)").replace(" ", "\\ ").replace("#", "\\#")
    complete = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[shell]
    found = complete(environment, tmp_path, "qmtpq", *words, typed, "")
    assert "1.a" in found
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_path_in_the_home_directory(
    shell: str, tmp_path: Path, queue: Path, environment: dict[str, str]
) -> None:
    """It is written with ~ as a rule; no name would be completed there."""
    tool(shell)
    complete = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[shell]
    home = environment | {"HOME": str(tmp_path)}
    assert "1.a" in complete(home, tmp_path, "qmtpq", "show", f"~/{queue.name}", "")
