"""What is in contrib/ works as it stands there: units, run scripts, hooks, alerts, recipes.

Each with the program that it is for. Where that is missing the test is skipped,
and says so.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import blocks, place
from tests.helpers import (
    add_message,
    answer_all,
    closed_port,
    command,
    make_maildir,
    names,
    run,
    serving,
    wait_until,
)

CONTRIB = Path(__file__).parent.parent / "contrib"
SYSTEMD = CONTRIB / "systemd"
UNITS = sorted(
    path.name for kind in ("service", "socket", "timer") for path in SYSTEMD.glob(f"*.{kind}")
)
SERVICES = [name for name in UNITS if name.endswith(".service")]
SCRIPTS = [
    "hooks/maildirqmtp-link-up",
    "hooks/networkmanager",
    "hooks/ifupdown",
    "runit/maildirqmtp/run",
    "runit/maildirqmtp/finish",
    "runit/maildirqmtp/log/run",
    "daemontools/maildirqmtp/run",
    "daemontools/maildirqmtp/log/run",
]

HAVE_DAEMON = importlib.util.find_spec("maildirqmtp.daemon.supervisor") is not None
needs_daemon = pytest.mark.skipif(not HAVE_DAEMON, reason="NOT TESTED: there is no daemon yet")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: needs root")


def tool(name: str) -> str:
    """Return the path of a program; skip the test where there is none."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip(f"NOT TESTED: there is no {name}; tests/run installs it on Debian")
    return found


def call(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a program that has to end well; return what it says."""
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, text=True, capture_output=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def analyzer() -> str:
    """Return systemd-analyze, which wants the programs that units call; see `tool`."""
    tool("kill")
    return tool("systemd-analyze")


# Shell


def test_no_script_is_forgotten() -> None:
    """What begins as a script is checked as one."""
    found = set()
    for path in CONTRIB.rglob("*"):
        # debian/rules is a makefile.
        other = {"bench", "debian"} & set(path.parts)
        if path.is_file() and path.suffix not in (".c", ".py") and not other:
            with path.open("rb") as file:
                if file.read(2) == b"#!":
                    found.add(str(path.relative_to(CONTRIB)))
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck(name: str) -> None:
    """No quoting that breaks with the first blank."""
    call(tool("shellcheck"), CONTRIB / name)
    assert os.access(CONTRIB / name, os.X_OK)
    assert (CONTRIB / name).read_text().startswith("#!/bin/sh\n")


@pytest.mark.parametrize("name", ["run", "fresh/run", "recipes/run"])
def test_the_test_command_is_checked_too(name: str) -> None:
    """It installs packages as root, and removes folders."""
    call(tool("shellcheck"), Path(__file__).parent / name)


# systemd


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, starting the programs of this installation, with man pages that exist."""
    for name in UNITS:
        text = (SYSTEMD / name).read_text()
        for program in ("maildirqmtp", "qmtpmaildir"):
            (path,) = command(program)
            text = re.sub(f"(?m)^ExecStart={program} ", f"ExecStart={path} ", text)
        text = re.sub("(?m)^Documentation=.*", "Documentation=man:sh(1)", text)
        (tmp_path / name).write_text(text)
    return tmp_path


def directives(path: Path) -> dict[str, list[str]]:
    """Return a unit's [Service] directives, each with all that is said for it."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and line[0] not in "#;":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_the_unit(name: str, units: Path) -> None:
    """It would pass over a line that it does not know, and harden nothing."""
    said = call(analyzer(), "verify", "--man=no", f"./{name}", cwd=units)
    assert said.strip() == ""


@pytest.mark.parametrize("name", SERVICES)
def test_exposure(name: str, units: Path) -> None:
    """At most 1.5 of 10, by systemd's own count."""
    analyze = analyzer()
    call(
        analyze,
        "security",
        "--offline=true",
        "--threshold=15",
        "--no-pager",
        f"./{name}",
        cwd=units,
    )


@pytest.mark.parametrize("name", SERVICES)
def test_the_programs_are_found_on_the_path(name: str) -> None:
    """In /usr/local/bin after pip, in /usr/bin from a package."""
    (line,) = directives(SYSTEMD / name)["ExecStart"]
    assert line.split()[0] in ("maildirqmtp", "qmtpmaildir")
    help_text = call(*command(line.split()[0]), "--help")
    for flag in re.findall(r"--[a-z-]+", line):
        assert flag in help_text


def test_the_queue_can_tell_a_reboot() -> None:
    """`qmtpmaildir --once` reads the kernel's boot ID, which ProcSubset=pid hides."""
    assert "ProcSubset" not in directives(SYSTEMD / "qmtp-queue.service")


IMPLIES_NO_NEW_PRIVILEGES = {
    "DynamicUser", "LockPersonality", "MemoryDenyWriteExecute", "PrivateDevices", "ProtectClock",
    "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
    "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID",
    "SystemCallArchitectures", "SystemCallFilter",
}  # fmt: skip


def test_sendmail_can_become_somebody_else() -> None:
    """The drop-in takes back all that has the kernel ignore setuid (systemd.exec(5))."""
    implied = IMPLIES_NO_NEW_PRIVILEGES | {"NoNewPrivileges"}
    back = directives(SYSTEMD / "with-sendmail.conf")
    for name in SERVICES:
        if name.startswith("maildirqmtp"):
            for key in implied & set(directives(SYSTEMD / name)):
                assert back[key] in (["no"], [""]), key


def test_systemd_understands_the_drop_in(units: Path) -> None:
    """On top of the unit that it is for."""
    (units / "maildirqmtp.service.d").mkdir()
    shutil.copy(SYSTEMD / "with-sendmail.conf", units / "maildirqmtp.service.d" / "sendmail.conf")
    analyze = analyzer()
    said = call(analyze, "verify", "--man=no", "./maildirqmtp.service", cwd=units)
    assert said.strip() == ""


def test_the_users_can_be_made(tmp_path: Path) -> None:
    """With the homes that the units give them."""
    (tmp_path / "etc").mkdir()
    call(tool("systemd-sysusers"), f"--root={tmp_path}", SYSTEMD / "maildirqmtp.sysusers")
    homes = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    assert {(fields[0], fields[5]) for fields in homes} == {
        ("maildirqmtp", "/var/lib/maildirqmtp"),
        ("qmtpmaildir", "/var/lib/qmtpmaildir"),
    }


@needs_root
def test_the_directories_can_be_made(tmp_path: Path) -> None:
    """For the users that the other file makes, and with the modes that the units give them."""
    (tmp_path / "etc").mkdir()
    call(tool("systemd-sysusers"), f"--root={tmp_path}", SYSTEMD / "maildirqmtp.sysusers")
    said = call(
        tool("systemd-tmpfiles"),
        "--create",
        f"--root={tmp_path}",
        SYSTEMD / "maildirqmtp.tmpfiles",
    )
    assert said.strip() == ""
    modes = {
        path: (tmp_path / path).stat().st_mode & 0o777
        for path in ("run/maildirqmtp", "var/lib/maildirqmtp")
    }
    assert modes == {"run/maildirqmtp": 0o755, "var/lib/maildirqmtp": 0o700}


def allowed_calls(name: str) -> set[str]:
    """Return the system calls that a unit's filter lets through."""
    analyze = analyzer()

    def members(group: str) -> set[str]:
        if not group.startswith("@"):
            return {group}
        found = set()
        for line in call(analyze, "syscall-filter", "--no-pager", group).splitlines()[1:]:
            word = line.strip()
            if word.startswith("@"):
                found |= members(word)
            elif word and not word.startswith("#"):
                found.add(word)
        return found

    allowed: set[str] = members("@default")
    for line in directives(SYSTEMD / name)["SystemCallFilter"]:
        for group in line.lstrip("~").split():
            allowed = allowed - members(group) if line.startswith("~") else allowed | members(group)
    return allowed


#: Makes memory that is written and executed impossible, as MemoryDenyWriteExecute does; from now
#: on and for whatever is run (PR_SET_MDWE, Linux 6.3).
_DENY = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit(77)
os.execv(sys.argv[1], sys.argv[1:])
"""


def denied(*words: str) -> list[str]:
    """Return a command that is run without memory that is written and executed."""
    if subprocess.run([sys.executable, "-c", _DENY, "/bin/true"], check=False).returncode == 77:
        pytest.skip("NOT TESTED: this kernel has no PR_SET_MDWE")
    return [sys.executable, "-c", _DENY, *words]


def calls_in(trace: Path) -> set[str]:
    """Return the system calls in strace's output that did not fail for want of them."""
    return set(re.findall(r"(?m)^(?:\d+ +)?([a-z_0-9]+)\(", trace.read_text()))


def test_a_flush_needs_no_more_than_its_unit_allows(tmp_path: Path) -> None:
    """Else it would fail on other people's machines only."""
    path = make_maildir(tmp_path / "M")
    add_message(path, "1.a")
    add_message(path, "2.a", b"x" * (2 << 20))
    add_message(path, "3.a", recipient=b"refused@example.net")
    trace = tmp_path / "trace"
    strace = [tool("strace"), "-f", "-qq", "-o", str(trace)]
    answer = answer_all(lambda _, to: b"Dno" if to.startswith(b"refused") else b"Kok")
    with serving(answer) as server:
        line = denied(*strace, *command(), str(path), server.address)
        done = subprocess.run(line, capture_output=True, timeout=90, text=True, check=False)
        assert done.returncode == 111, done.stderr
    assert names(path / "new") == []
    used = calls_in(trace)
    assert "sendfile" in used
    assert used <= allowed_calls("maildirqmtp-flush@.service")


@contextlib.contextmanager
def started(*words: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start a program; it is asked to end at the end, and has to do so."""
    with subprocess.Popen(
        words, cwd=cwd, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
            process.terminate()
            process.communicate(timeout=60)
        finally:
            process.kill()


@needs_daemon
def test_the_daemon_needs_no_more_than_its_unit_allows(tmp_path: Path) -> None:
    """With watchdog, which goes through ctypes."""
    path = make_maildir(tmp_path / "M")
    trace = tmp_path / "trace"
    # -D: the signal goes to the daemon and not to strace.
    strace = [tool("strace"), "-D", "-f", "-q", "-o", str(trace)]
    with serving(answer_all()) as server:
        file = tmp_path / "m.toml"
        file.write_text(f'[[route]]\nmaildir = "{path}"\nserver = "{server.address}"\n')
        with started(*denied(*strace, *command(), "--config", str(file))):
            wait_until(lambda: trace.exists() and "inotify_add_watch" in trace.read_text(), "watch")
            add_message(path, "1.a", folder="tmp")
            (path / "tmp" / "1.a").rename(path / "new" / "1.a")
            wait_until(lambda: names(path / "new") == [], "the message to be sent")
    wait_until(lambda: "+++ exited with 0" in trace.read_text(), "the end")
    assert calls_in(trace) <= allowed_calls("maildirqmtp@.service")


def test_the_receiver_under_a_socket_unit(tmp_path: Path) -> None:
    """One process for each client, its socket on standard input and output."""
    port = closed_port()
    trace = tmp_path / "trace"
    activate = [tool("systemd-socket-activate"), "--accept", "--inetd", "-l", f"127.0.0.1:{port}"]
    strace = [tool("strace"), "-f", "-qq", "-o", f"{trace}"]
    (exec_start,) = directives(SYSTEMD / "qmtpmaildir@.service")["ExecStart"]
    words = exec_start.replace("$OPTIONS", "").replace("${MAILDIR}", str(tmp_path / "M")).split()
    path = make_maildir(tmp_path / "Out")
    add_message(path, "1.a")
    with started(*activate, "--", *denied(*strace, *command(words[0]), *words[1:])):
        wait_until(lambda: run(path, f"127.0.0.1:{port}").returncode == 0, "it to listen")
        assert len(names(tmp_path / "M" / "new")) == 1
        wait_until(lambda: "exit_group(0" in trace.read_text(), "the receiver to end")
    assert calls_in(trace) <= allowed_calls("qmtpmaildir@.service")


def test_the_queue_under_its_socket_unit(tmp_path: Path) -> None:
    """Activated by its first client, whom the kernel names; no system call that it may not."""
    path = tmp_path / "submit.sock"
    queue = tmp_path / "queue"
    trace = tmp_path / "trace"
    activate = [tool("systemd-socket-activate"), "-l", str(path)]
    strace = [tool("strace"), "-D", "-f", "-q", "-o", f"{trace}"]
    (exec_start,) = directives(SYSTEMD / "qmtp-queue.service")["ExecStart"]
    words = exec_start.replace("$OPTIONS", "").replace("/var/lib/maildirqmtp/queue", str(queue))
    program, *arguments = words.split()
    outgoing = make_maildir(tmp_path / "Out")
    add_message(outgoing, "1.a")
    add_message(outgoing, "2.a", b"x" * (2 << 20))
    with started(*activate, "--", *denied(*strace, *command(program), *arguments)):
        wait_until(path.exists, "the socket")
        assert run(outgoing, f"unix:{path}").returncode == 0
        assert len(names(queue / "new")) == len(names(queue / "envelope")) == 2
    for name in names(queue / "new"):
        assert b"(uid %d) by " % os.geteuid() in (queue / "new" / name).read_bytes()[:200]
    wait_until(lambda: "+++ exited with 0" in trace.read_text(), "the end")
    assert calls_in(trace) <= allowed_calls("qmtp-queue.service")


# runit, daemontools

STAND_IN = """\
#!/bin/sh
echo "started as $(id -un): $*" >&2
trap 'echo "got ALRM" >&2' ALRM
trap 'echo "got TERM" >&2; exit 0' TERM
while :; do sleep 0.05; done
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `maildirqmtp` on the path that says how it was called, and what signals it gets."""
    path = tmp_path / "bin" / "maildirqmtp"
    path.parent.mkdir()
    path.write_text(STAND_IN)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path


@contextlib.contextmanager
def supervised(kind: str, tmp_path: Path, file: Path) -> Iterator[tuple[Path, Path]]:
    """Run the service directory of runit or daemontools; yields the service and its log."""
    tool("svlogd" if kind == "runit" else "multilog")
    log = tmp_path / "log"
    log.mkdir()
    service = tmp_path / "services" / "maildirqmtp"
    shutil.copytree(CONTRIB / kind / "maildirqmtp", service)
    (service / "env" / "MAILDIRQMTP_USER").write_text(pwd.getpwuid(os.geteuid()).pw_name + "\n")
    (service / "env" / "MAILDIRQMTP_CONFIG").write_text(f"{file}\n")
    (service / "env" / "MAILDIRQMTP_LOG").write_text(f"{log}\n")
    process = subprocess.Popen(
        [tool("runsvdir" if kind == "runit" else "svscan"), service.parent],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: (log / "current").exists(), "the log")
        yield service, log / "current"
    finally:
        if kind == "runit":
            process.send_signal(signal.SIGHUP)  # stop the services, and then itself
        else:
            process.terminate()
            for part in (service, service / "log"):
                subprocess.run(["svc", "-dx", str(part)], check=False)
        process.wait(60)


def control(kind: str, service: Path, what: str) -> None:
    """Send a signal through the supervisor: `alarm`, `hup` or `down`."""
    letter = {"alarm": "-a", "hup": "-h", "down": "-d"}[what]
    call(*(["sv", what] if kind == "runit" else ["svc", letter]), service)


@needs_root
@pytest.mark.parametrize("kind", ["runit", "daemontools"])
def test_run_scripts(kind: str, tmp_path: Path, stand_in: Path) -> None:
    """The program gets its user, its file and its signals; what it says is logged."""
    with supervised(kind, tmp_path, Path("/etc/m.toml")) as (service, log):
        me = pwd.getpwuid(os.geteuid()).pw_name
        line = f"started as {me}: --config /etc/m.toml"
        wait_until(lambda: line in log.read_text(), line)
        control(kind, service, "alarm")
        wait_until(lambda: "got ALRM" in log.read_text(), "the signal")
        control(kind, service, "down")
        wait_until(lambda: "got TERM" in log.read_text(), "the end")
        assert log.read_text().count(line) == 1, "a signal must not start the program again"


@needs_root
@needs_daemon
@pytest.mark.parametrize("kind", ["runit", "daemontools"])
def test_a_supervised_daemon_forwards(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with the real program, from the message to the server."""
    (program,) = command()
    monkeypatch.setenv("PATH", f"{Path(program).parent}:{os.environ['PATH']}")
    path = make_maildir(tmp_path / "M")
    file = tmp_path / "m.toml"
    with serving(answer_all()) as server:
        file.write_text(f'[[route]]\nmaildir = "{path}"\nserver = "{server.address}"\n')
        with supervised(kind, tmp_path, file) as (service, log):
            add_message(path, "1.a")
            wait_until(lambda: names(path / "new") == [], "the message to be sent")
            control(kind, service, "down")
            wait_until(lambda: " 1 accepted" in log.read_text(), "the summary")
    assert len(server.packages) == 1


# Hooks


class Machine:
    """A machine made up of stand-ins that note how they were called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.noted = path / "noted"
        (path / "bin").mkdir()
        (path / "etc").mkdir()
        for name in ("systemctl", "runuser", "logger", "sv", "svc", "link-up"):
            script = path / "bin" / name
            # In one write each, since some run at the same time.
            script.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.noted}"\n')
            script.chmod(0o755)
        self.environment = {
            "PATH": f"{path}/bin:/usr/bin:/bin",
            "MAILDIRQMTP_ETC": f"{path}/etc",
            "MAILDIRQMTP_SYSTEMD": f"{path}/systemd",
            "MAILDIRQMTP_LINK_UP": f"{path}/bin/link-up",
            "SVDIR": f"{path}/service",
        }

    def call(self, hook: str, *words: str, **environment: str) -> None:
        """Run a hook, which has to end well and say nothing."""
        done = subprocess.run(
            [CONTRIB / "hooks" / hook, *words],
            env=self.environment | environment,
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert done.stdout + done.stderr == b""

    def lines(self) -> list[str]:
        """Return what was called, sorted."""
        return sorted(self.noted.read_text().splitlines()) if self.noted.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without systemd."""
    return Machine(tmp_path)


def test_link_up_under_systemd(machine: Machine) -> None:
    """Daemons try now, timers' services are started, and nothing is waited for."""
    (machine.path / "systemd").mkdir()
    (machine.path / "etc" / "ann.env").write_text("ARGUMENTS=/home/ann/Maildir h\n")
    (machine.path / "etc" / "bob.toml").write_text("")
    machine.call("maildirqmtp-link-up")
    assert machine.lines() == [
        "systemctl kill --kill-who=main --signal=ALRM maildirqmtp.service maildirqmtp@*.service "
        "maildirqmtp-shard@*.service",
        "systemctl start --no-block maildirqmtp-flush@ann.service",
    ]


def test_systemctl_knows_the_option() -> None:
    """It is the old name; the new one is not known by old versions."""
    done = subprocess.run(
        [tool("systemctl"), "--kill-who=main", "--version"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_link_up_without_systemd(machine: Machine) -> None:
    """As the user, with words split and nothing else done to them."""
    (machine.path / "etc" / "ann.env").write_text(
        "# ARGUMENTS=old\nARGUMENTS=/home/ann/Maildir alias-*- $(id) h:2009\n"
    )
    machine.call("maildirqmtp-link-up")
    line = "runuser -u ann -- maildirqmtp -q /home/ann/Maildir alias-*- $(id) h:2009"
    wait_until(lambda: line in machine.lines(), line)


def test_link_up_without_anything(machine: Machine) -> None:
    """No error: the network must come up nevertheless."""
    machine.call("maildirqmtp-link-up")
    assert machine.lines() == []


def test_link_up_with_runit(machine: Machine) -> None:
    """A supervised daemon is told through its supervisor."""
    (machine.path / "service" / "maildirqmtp" / "supervise").mkdir(parents=True)
    machine.call("maildirqmtp-link-up")
    assert machine.lines() == [f"sv alarm {machine.path}/service/maildirqmtp"]


@pytest.mark.parametrize(
    ("words", "connectivity", "called"),
    [
        (["eth0", "up"], "UNKNOWN", True),
        (["wg0", "vpn-up"], "FULL", True),
        (["none", "connectivity-change"], "FULL", True),
        (["none", "connectivity-change"], "PORTAL", False),
        (["none", "connectivity-change"], "NONE", False),
        (["lo", "up"], "FULL", False),
        (["eth0", "down"], "FULL", False),
        (["eth0", "pre-up"], "FULL", False),
        (["none", "hostname"], "FULL", False),
        ([], "", False),
    ],
)
def test_networkmanager(
    machine: Machine, words: list[str], connectivity: str, called: bool
) -> None:
    """For links that come up, and lead somewhere."""
    machine.call("networkmanager", *words, CONNECTIVITY_STATE=connectivity)
    assert machine.lines() == (["link-up "] if called else [])


@pytest.mark.parametrize(
    ("interface", "mode", "called"),
    [
        ("eth0", "start", True),
        ("ppp0", "start", True),
        ("lo", "start", False),
        ("--all", "start", False),
        ("eth0", "stop", False),
    ],
)
def test_ifupdown(machine: Machine, interface: str, mode: str, called: bool) -> None:
    """For real interfaces only."""
    machine.call("ifupdown", IFACE=interface, MODE=mode)
    assert machine.lines() == (["link-up "] if called else [])


# Prometheus


def names_of_histories() -> list[str]:
    """Return the names of promtool's tests."""
    return sorted(path.name for path in (CONTRIB / "prometheus").glob("*.test.yml"))


def test_rules() -> None:
    """Prometheus refuses to start with a wrong file."""
    call(tool("promtool"), "check", "rules", CONTRIB / "prometheus" / "maildirqmtp.rules.yml")


def test_alerts_come_and_go() -> None:
    """On made-up histories: when they are to come, and when they are not."""
    promtool = tool("promtool")
    histories = names_of_histories()
    assert len(histories) == 2
    call(promtool, "test", "rules", *histories, cwd=CONTRIB / "prometheus")


def test_every_alert_is_tried_and_told() -> None:
    """One that was never seen to come may never come."""
    rules = (CONTRIB / "prometheus" / "maildirqmtp.rules.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", rules)
    histories = [CONTRIB / "prometheus" / name for name in names_of_histories()]
    tried = "".join(path.read_text() for path in histories)
    told = (CONTRIB / "prometheus" / "README.md").read_text()
    assert alerts
    for alert in alerts:
        assert f"alertname: {alert}\n        exp_alerts:\n" in tried
        assert f"| `{alert}` |" in told


def test_the_node_exporter_may_read_the_metrics(tmp_path: Path) -> None:
    """It is another user, and the units have a umask that keeps others out of what we make."""
    from maildirqmtp.daemon.metrics import write

    assert directives(SYSTEMD / "maildirqmtp.service")["UMask"] == ["0077"]
    before = os.umask(0o077)
    try:
        write(os.fsencode(tmp_path / "m.prom"), [])
    finally:
        os.umask(before)
    assert (tmp_path / "m.prom").stat().st_mode & 0o777 == 0o644


def test_timers_start_what_there_is() -> None:
    """A timer starts the service of its own name."""
    for name in UNITS:
        if name.endswith(".timer"):
            parser = configparser.ConfigParser(strict=False)
            parser.read(SYSTEMD / name)
            assert "Unit" not in parser["Timer"]
            assert name.replace(".timer", ".service") in SERVICES


# Recipes


def test_no_recipe_makes_an_open_relay_of_postfix() -> None:
    """Without this line Postfix takes mail from anybody for any domain that `static:` has: all.

    `tests/recipes/run postfix` tries it with Postfix itself.
    """
    virtual = [
        block
        for block in blocks()
        if "virtual_mailbox_maps = static:" in block.text
        or "default_transport = virtual" in block.text
    ]
    assert {block.path.name for block in virtual} >= {"postfix.md"}
    for block in virtual:
        assert re.search(r"(?m)^virtual_mailbox_domains =", block.text), place(block)
