"""qmtpmaildir --queue and maildirqmtp --watch: a relay of several hops, and never an open one."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maildirqmtp.client.client import QMTPClient
from maildirqmtp.qmtp.protocol import package_head, package_tail
from tests.certificates import Authority
from tests.e2e.daemons import empties, watching
from tests.helpers import (
    DEADLINE_S,
    answer_all,
    command,
    make_maildir,
    names,
    run,
    serving,
    sidecar,
    wait_until,
)
from tests.receiving import letters, receiver

TEXT = b"Subject: x\n\nhi\n"
OTHERS = (b"a@example.org", b"b@example.net")


def package(*recipients: bytes, text: bytes = TEXT, sender: bytes = b"s@x") -> bytes:
    return package_head(len(text)) + text + package_tail(sender, recipients)


def talk(sock: socket.socket | ssl.SSLSocket, data: bytes) -> str:
    """Send all of it, then the end; return the letters of the answers."""
    sock.settimeout(DEADLINE_S)
    said = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        sock.sendall(data)
        if not isinstance(sock, ssl.SSLSocket):
            with contextlib.suppress(OSError):  # the receiver has closed it already
                sock.shutdown(socket.SHUT_WR)
        while letters(said).count("") <= data.count(b"@example") and (more := sock.recv(4_096)):
            said += more
    return letters(said)


def connect(where: str) -> socket.socket:
    """Connect to what the receiver's log says it listens on."""
    if where.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(where.removeprefix("unix:"))
        return sock
    host, _, port = where.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), DEADLINE_S)


def queued(queue: Path) -> list[list[str]]:
    """Return the recipients of each message of a queue."""
    return sorted(sidecar(queue, name)["recipients"] for name in names(queue / "new"))


def own_address() -> str:
    """Return an address of this machine beyond loopback, by which a client is like any other's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.200", 9))  # sends nothing: asks for the way
        except OSError:
            pytest.skip("NOT TESTED: this machine has no address beyond loopback")
        address = str(sock.getsockname()[0])
    if address.startswith("127."):
        pytest.skip("NOT TESTED: this machine has no address beyond loopback")
    return address


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


# A relay


@pytest.mark.parametrize("how", ["--queue", "DIR"])
def test_brackets_for_the_null_sender_make_no_bounce(tmp_path: Path, how: str) -> None:
    """A client that writes them into the envelope sends a bounce; nobody is to be told of it."""
    there = tmp_path / "there"
    with receiver(there, *(("--queue",) if how == "--queue" else ())) as (_, where):
        with connect(where) as sock:
            assert talk(sock, package(b"no@example.org", sender=b"<>")) == "K"
        with serving(answer_all(lambda package, recipient: b"Dno")) as server:
            bounces = tmp_path / "bounces"
            ran = run("--bounce", f"--bounce-via=maildir:{bounces}", there, server.address)
    assert ran.returncode == 111
    assert [sent.sender for sent in server.packages] == [b""]
    assert not bounces.exists()


def test_a_client_that_names_a_recipient_twice_gets_two_answers(queue: Path) -> None:
    """One fewer would shift all that follow; the recipient gets one copy."""
    with receiver(queue, "--queue") as (_, where):
        with connect(where) as sock:
            assert talk(sock, package(OTHERS[0], OTHERS[1], OTHERS[0])) == "KKK"
        with serving(answer_all()) as server:
            assert run(queue, server.address).returncode == 0
    assert [sent.recipients for sent in server.packages] == [OTHERS]


def test_two_hops(tmp_path: Path) -> None:
    """Each recipient once; who is refused is in the last hop's failed maildir, with the reason."""
    first, second = tmp_path / "first", tmp_path / "second"

    def answer(package: object, recipient: bytes) -> bytes:
        return b"Dno such user" if recipient.startswith(b"no") else b"Kok"

    sent: Counter[tuple[bytes, bytes]] = Counter()
    with contextlib.ExitStack() as stack:
        last = stack.enter_context(serving(answer_all(answer)))
        where_second = stack.enter_context(receiver(second, "--queue"))[1]
        where_first = stack.enter_context(receiver(first, "--queue"))[1]
        stack.enter_context(watching("--watch", first, where_second))
        stack.enter_context(watching("--watch", second, last.address))
        with QMTPClient(where_first) as client:
            for number in range(20):
                text = b"Subject: %d\n\nhi\n" % number
                recipients = (b"k%d@example.org" % number, b'q "%d"@example.org' % number, b"no@x")
                result = client.send(b"s %d@x" % number, recipients, text)
                assert result.accepted
                sent.update((text, recipient) for recipient in recipients)
        empties(first)
        empties(second)
        failed = second / ".Failed"
        wait_until(lambda: len(names(failed / "new")) == 20, "the refused ones")
        wait_until(lambda: not names(first / "envelope") + names(second / "envelope"), "no sidecar")
        came = Counter(
            (package.text.split(b"\n", 2)[2], recipient)
            for package in last.packages
            for recipient in package.recipients
        )
        assert {package.sender for package in last.packages} == {b"s %d@x" % n for n in range(20)}
    assert came == sent
    for package in last.packages:
        assert package.text.count(b"Received: from [127.0.0.1] by ") == 2
    for name in names(failed / "new"):
        content = sidecar(failed, name)
        assert content["recipients"] == ["no@x"]  # to whom it goes if it is moved back
        ((failure,),) = (content["failures"],)
        assert (failure["recipient"], failure["response"]) == ("no@x", "Dno such user")


# Ways in: none of them is an open relay


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0", "own"])
@pytest.mark.parametrize("flags", [(), ("--relay",), ("--tls",), ("--allow-users", "0")])
def test_it_does_not_listen_to_the_world(
    queue: Path, address: str, flags: tuple[str, ...], authority: Authority
) -> None:
    """Whoever leaves --domain out has no open relay, but an error with the way out."""
    if address == "own":
        address = f"{own_address()}:0"
    if flags == ("--tls",):  # a certificate of the server's says nothing about the clients
        identity = authority.issue("localhost")
        flags = ("--tls-cert", identity.cert, "--tls-key", identity.key)
    done = subprocess.run(
        [*command("qmtpmaildir"), "--listen", address, *flags, "--queue", str(queue)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    if "cannot listen on" in done.stderr and ":" in address[:5]:
        pytest.skip("NOT TESTED: this machine has no IPv6")
    assert done.returncode == 100, done.stderr
    assert "--domain" in done.stderr or "--relay" in done.stderr or "--allow-users" in done.stderr
    assert names(queue / "new") == []


@pytest.mark.parametrize("way", ["listen", "pipe", "inetd"])
def test_a_hand_off_is_no_open_relay_either(tmp_path: Path, way: str) -> None:
    """The next server takes mail for everybody from this machine, as Postfix does."""
    deliver = [*command("qmtpmaildir"), "--deliver", "exec:tee -a taken {recipients}"]
    said = ""
    if way == "inetd":
        client, accepted = accepted_from(own_address())
        with client, accepted:
            client.sendall(package(*OTHERS))
            client.shutdown(socket.SHUT_WR)
            done = subprocess.run(
                [*deliver, "--stdio", "--relay"],
                cwd=tmp_path,
                stdin=accepted.fileno(),
                capture_output=True,
                timeout=DEADLINE_S,
                check=False,
            )
        said = letters(done.stdout)
    else:
        how = ["--listen", "0.0.0.0:0"] if way == "listen" else ["--stdio"]
        done = subprocess.run(
            [*deliver, *how],
            cwd=tmp_path,
            input=package(*OTHERS),
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert (said, done.returncode) == (("DD", 0) if way == "inetd" else ("", 100)), done.stderr
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--queue", "q"), "KDDD"),
        (("--deliver", "exec:tee -a {recipients}"), "KDDD"),
        (("--deliver", "smtp:127.0.0.1:1"), "ZDDD"),  # nobody is there
        (("--deliver", "lmtp:127.0.0.1:1"), "ZZZZ"),
        (("Maildir",), "KKKK"),
    ],
)
def test_no_way_on_through_the_domain(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """`victim%evil@here`: the next server trusts us, and would send it on to evil."""
    recipients = (b"a@h.example", b"v%evil@h.example", b"evil!v@h.example", b"v@evil@h.example")
    done = subprocess.run(
        [*command("qmtpmaildir"), "--stdio", "--domain", "h.example", *words],
        cwd=tmp_path,
        input=package(*recipients),
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert letters(done.stdout) == said, done.stderr


def activate(
    sockets: Sequence[socket.socket], *arguments: str, pid: str = "$$"
) -> subprocess.Popen[str]:
    """Start the receiver as systemd does, with sockets from descriptor 3 on (sd_listen_fds(3))."""
    fds = [sock.fileno() for sock in sockets]
    code = (
        "import os, sys\n"
        "count = int(sys.argv[1]); fds = [os.dup(int(fd)) for fd in sys.argv[2:2 + count]]\n"
        "fds = [__import__('fcntl').fcntl(fd, 0, 100) for fd in fds]\n"
        "[os.dup2(fd, 3 + n) for n, fd in enumerate(fds)]\n"
        "pid = str(os.getpid()) if sys.argv[2 + count] == '$$' else sys.argv[2 + count]\n"
        "os.environ.update(LISTEN_PID=pid, LISTEN_FDS=str(count))\n"
        "os.execv(sys.argv[3 + count], sys.argv[3 + count:])\n"
    )
    words = [sys.executable, "-c", code, str(len(fds)), *map(str, fds), pid]
    return subprocess.Popen(
        [*words, *command("qmtpmaildir"), *arguments],
        pass_fds=fds,
        stderr=subprocess.PIPE,
        text=True,
    )


def listen(*addresses: str | Path) -> list[socket.socket]:
    """Open sockets as systemd's socket units do."""
    sockets = []
    for address in addresses:
        if isinstance(address, Path):
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(address))
            sock.listen()
        else:
            sock = socket.create_server((address, 0))
        sockets.append(sock)
    return sockets


@contextlib.contextmanager
def activated(sockets: Sequence[socket.socket], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the receiver on sockets that are open already; it has to end well."""
    with activate(sockets, *arguments) as process:
        assert process.stderr is not None
        try:
            for _ in sockets:
                line = process.stderr.readline()
                assert line.startswith("qmtpmaildir: listening on "), line
            yield process
        finally:
            process.terminate()
            process.stderr.read()
            assert process.wait(DEADLINE_S) == 0


def test_sockets_of_systemd(tmp_path: Path, queue: Path) -> None:
    """All of them are served; and their names stay, for they are systemd's."""
    path = tmp_path / "q.sock"
    sockets = listen("127.0.0.1", path)
    port = sockets[0].getsockname()[1]
    with activated(sockets, "--queue", str(queue)):
        for sock in sockets:
            sock.close()
        for where in (f"127.0.0.1:{port}", f"unix:{path}"):
            with connect(where) as client:
                assert talk(client, package(*OTHERS)) == "KK"
    assert path.exists()
    assert len(queued(queue)) == 2
    received = [file.read_bytes().split(b"\n")[0] for file in (queue / "new").iterdir()]
    assert any(b"(uid %d) by " % os.geteuid() in line for line in received)
    assert any(b"from [127.0.0.1] by " in line for line in received)


@pytest.mark.parametrize("address", ["0.0.0.0", "own"])
def test_sockets_of_systemd_beyond_loopback(queue: Path, address: str) -> None:
    """They are judged as those of --listen."""
    if address == "own":
        address = own_address()
    sockets = listen(address)
    with activate(sockets, "--queue", str(queue)) as process:
        assert process.wait(DEADLINE_S) == 100
        assert process.stderr is not None
        assert "--domain" in process.stderr.read()
    sockets[0].close()


def test_variables_for_another_process(queue: Path) -> None:
    """A child of an activated service does not take descriptors that are not meant for it."""
    sockets = listen("127.0.0.1")
    with activate(sockets, "--listen", "127.0.0.1:0", "--queue", str(queue), pid="1") as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("qmtpmaildir: listening on 127.0.0.1:")
        assert str(sockets[0].getsockname()[1]) not in line
        process.terminate()
        process.stderr.read()
    sockets[0].close()


@pytest.mark.parametrize("flags", [(), ("--listen", "127.0.0.1:0")])
def test_what_is_no_listening_socket(queue: Path, flags: tuple[str, ...]) -> None:
    """A connected one (Accept=yes), or --listen as well: a clear word, and no silent half."""
    one, other = socket.socketpair()
    sockets = [one] if not flags else listen("127.0.0.1")
    with activate(sockets, *flags, "--queue", str(queue)) as process:
        assert process.wait(DEADLINE_S) == 100
        assert process.stderr is not None
        assert "LISTEN_FDS" in process.stderr.read()
    for sock in (one, other, *sockets):
        sock.close()


def stdio(
    stdin: int, queue: Path, *flags: str, stdout: int = subprocess.PIPE, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {k: v for k, v in os.environ.items() if "REMOTE" not in k and k[:4] != "SSH_"}
    return subprocess.run(
        [*command("qmtpmaildir"), "--stdio", *flags, "--queue", str(queue)],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
        env={**environment, **variables},
    )


def on_stdio(
    client: socket.socket, accepted: socket.socket, queue: Path, *flags: str, **variables: str
) -> tuple[str, int]:
    """Let the receiver serve a connected client; return the answers and the exit code."""
    with client, accepted:
        client.sendall(package(*OTHERS))
        client.shutdown(socket.SHUT_WR)
        done = stdio(accepted.fileno(), queue, *flags, stdout=accepted.fileno(), **variables)
        accepted.shutdown(socket.SHUT_RDWR)
        client.settimeout(DEADLINE_S)
        return letters(client.recv(65_536)), done.returncode


def accepted_from(address: str) -> tuple[socket.socket, socket.socket]:
    """Return a client's socket, and the one that inetd or tcpserver hands on."""
    with socket.create_server((address, 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def test_a_pipe_needs_relay(tmp_path: Path, queue: Path) -> None:
    """Under ssh somebody has logged in; under stunnel nobody has. Only the caller knows."""
    (tmp_path / "in").write_bytes(package(*OTHERS))
    for flags, code in ((), 100), (("--relay",), 0), (("--domain", "example.org"), 0):
        with (
            (tmp_path / "in").open("rb") as file,
            subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat,
        ):
            assert cat.stdout is not None
            done = stdio(cat.stdout.fileno(), queue, *flags)
        assert done.returncode == code, done.stderr
        assert letters(done.stdout) == {(): "", ("--relay",): "KK"}.get(flags, "KD")
        assert code == 0 or b"--relay" in done.stderr
    assert queued(queue) == [["a@example.org"], ["a@example.org", "b@example.net"]]


@pytest.mark.parametrize("flags", [(), ("--relay",)])
def test_a_pair_of_sockets_is_a_pipe(queue: Path, flags: tuple[str, ...]) -> None:
    """stunnel gives one to the program that it starts for a client from anywhere."""
    said, code = on_stdio(*socket.socketpair(), queue, *flags)
    assert (said, code) == (("KK", 0) if flags else ("", 100))
    assert len(names(queue / "new")) == len(flags)


@pytest.mark.parametrize("flags", [(), ("--relay",)])
def test_a_client_of_inetd_from_elsewhere_does_not_relay(
    queue: Path, flags: tuple[str, ...]
) -> None:
    """The socket tells where it comes from; --relay is about pipes."""
    assert on_stdio(*accepted_from(own_address()), queue, *flags) == ("DD", 0)
    assert names(queue / "new") == []


def test_a_client_of_inetd_from_elsewhere_with_domain(queue: Path) -> None:
    """A backup MX under tcpserver."""
    address = own_address()
    assert on_stdio(*accepted_from(address), queue, "--domain", "example.org") == ("KD", 0)
    assert queued(queue) == [["a@example.org"]]


@pytest.mark.parametrize(
    ("variables", "said"),
    [({}, "KK"), ({"TCPREMOTEIP": "127.0.0.1"}, "KK"), ({"TCPREMOTEIP": "192.0.2.9"}, "DD")],
)
def test_a_client_of_inetd_on_loopback(queue: Path, variables: dict[str, str], said: str) -> None:
    """Unless the server in between says that its own client is elsewhere."""
    client, accepted = accepted_from("127.0.0.1")
    assert on_stdio(client, accepted, queue, **variables) == (said, 0)


def test_a_proxy_on_loopback_with_domain(queue: Path) -> None:
    """haproxy, stunnel or socat makes every client one of loopback: --domain holds for all."""
    with receiver(queue, "--domain", "example.org", "--queue") as (_, where):
        with connect(where) as client:
            assert talk(client, package(*OTHERS)) == "KD"
        with connect(where) as client:  # its own protocol is none of QMTP's
            header = b"PROXY TCP4 192.0.2.9 192.0.2.1 5 209\r\n"
            assert talk(client, header + package(*OTHERS)) == ""
    assert queued(queue) == [["a@example.org"]]


def test_beyond_loopback_with_domain(queue: Path) -> None:
    """From elsewhere or not: these domains, and no others."""
    address = own_address()
    with receiver(queue, "--listen", "0.0.0.0:0", "--domain", "example.org", "--queue") as (
        _,
        where,
    ):
        port = int(where.rpartition(":")[2])
        for host in (address, "127.0.0.1"):
            with connect(f"{host}:{port}") as client:
                assert talk(client, package(*OTHERS)) == "KD"
    assert queued(queue) == [["a@example.org"]] * 2


def test_a_certificate_lets_a_client_relay(
    queue: Path, authority: Authority, tmp_path: Path
) -> None:
    """And whoever shows none of this authority gets nothing in."""
    server, known = authority.issue("localhost"), authority.issue("laptop.example.org")
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "stranger").issue("laptop.example.org")
    flags = ("--tls-cert", server.cert, "--tls-key", server.key, "--tls-client-ca", authority.file)
    with receiver(queue, "--listen", "0.0.0.0:0", *flags, "--queue") as (_, where):
        port = int(where.rpartition(":")[2])
        for identity, said in ((known, "KK"), (stranger, ""), (None, "")):
            context = ssl.create_default_context(cafile=authority.file)
            if identity is not None:
                context.load_cert_chain(identity.cert, identity.key)
            raw = connect(f"127.0.0.1:{port}")
            try:
                with context.wrap_socket(raw, server_hostname="localhost") as client:
                    assert talk(client, package(*OTHERS)) == said
            except (ssl.SSLError, ConnectionError):
                assert said == ""
            finally:
                raw.close()
        with connect(f"127.0.0.1:{port}") as plain:
            assert talk(plain, package(*OTHERS)) == ""
    assert queued(queue) == [["a@example.org", "b@example.net"]]


# The Unix socket


def test_any_local_user_may_submit(tmp_path: Path, queue: Path) -> None:
    """By its mode; and who it was is in Received, from the kernel."""
    path = tmp_path / "q.sock"
    with receiver(queue, "--listen", f"unix:{path}", "--queue") as (_, where):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        with connect(where) as client:
            assert talk(client, package(*OTHERS)) == "KK"
    assert not path.exists()
    ((file,),) = ([*(queue / "new").iterdir()],)
    assert re.match(rb"Received: from \S+ \(uid %d\) by " % os.geteuid(), file.read_bytes())
    assert f"U{os.geteuid()}." in file.name


def test_many_submissions_at_once(tmp_path: Path, queue: Path) -> None:
    """cron starts many jobs in the same second: they wait for a place, and none is refused."""
    with (
        receiver(queue, "--listen", f"unix:{tmp_path / 'q.sock'}", "--queue") as (_, where),
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(connect(where)) for _ in range(200)]
        with ThreadPoolExecutor(len(clients)) as pool:
            said = pool.map(lambda client: talk(client, package(*OTHERS)), clients)
            assert set(said) == {"KK"}
    assert len(names(queue / "new")) == 200


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (("--socket-mode", "0660", "--queue"), 0o660),
        (("--socket-mode", "600", "--queue"), 0o600),
        ((), 0o600),
    ],
)
def test_the_mode_of_the_socket(tmp_path: Path, flags: tuple[str, ...], mode: int) -> None:
    """A maildir's socket is its owner's, unless said otherwise."""
    path = tmp_path / "q.sock"
    with receiver(tmp_path / "q", "--listen", f"unix:{path}", *flags):
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("flags", [(), ("--socket-mode", "0666")])
def test_not_every_user_may_run_the_command_of_the_socket(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Only a queue is for all users of the machine, as the manual says."""
    path = tmp_path / "d.sock"
    with receiver(Path("exec:true {recipients}"), "--listen", f"unix:{path}", *flags, "--deliver"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o666 if flags else 0o600)


@pytest.mark.parametrize(
    ("users", "said"),
    [
        (str(os.geteuid()), "KK"),
        (f"1,{os.geteuid()}", "KK"),
        (str(os.geteuid() + 1), "DD"),
        ("daemon", "DD"),
    ],
)
def test_who_may_submit(tmp_path: Path, queue: Path, users: str, said: str) -> None:
    """By the kernel's word for who the client is, whatever it says itself."""
    flags = ("--listen", f"unix:{tmp_path / 'q.sock'}", "--allow-users", users)
    with receiver(queue, *flags, "--queue") as (_, where), connect(where) as client:
        assert talk(client, package(*OTHERS)) == said
    assert len(names(queue / "new")) == said.count("KK")


def test_how_much_a_user_may_have_waiting(tmp_path: Path, queue: Path) -> None:
    """The second message is deferred until the first has gone."""
    flags = ("--listen", f"unix:{tmp_path / 'q.sock'}", "--user-quota", "1k")
    data = package(*OTHERS, text=b"x" * 700)
    with receiver(queue, *flags, "--queue") as (_, where), connect(where) as client:
        assert talk(client, data * 2) == "KKZZ"
    assert len(names(queue / "new")) == 1


def test_too_little_room(queue: Path) -> None:
    """--min-free holds for a queue as for a maildir: Z, and the client keeps the mail."""
    with receiver(queue, "--min-free", "900000G", "--queue") as (_, where), connect(where) as one:
        assert talk(one, package(*OTHERS)) == "ZZ"
    assert names(queue / "new") == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--queue", "Q", "DIR"], "one of DIR, --queue DIR"),
        (["--relay", "--queue", "Q"], "--relay: only for --queue and --deliver, with --stdio"),
        (["--relay", "--stdio", "DIR"], "--relay: only for --queue and --deliver, with --stdio"),
        (["--user-quota", "1M", "--listen", "unix:s", "DIR"], "--user-quota: only for --queue"),
        (["--user-quota", "1M", "--listen", "127.0.0.1:0", "--queue", "Q"], "--user-quota: only"),
        (["--allow-users", "0", "--listen", "127.0.0.1:0", "DIR"], "--allow-users: only a Unix"),
        (["--allow-users", "no such", "--listen", "unix:s", "DIR"], "there is no user 'no such'"),
        (["--allow-users", "", "--listen", "unix:s", "DIR"], "there is no user ''"),
        (["--socket-mode", "888", "--listen", "unix:s", "DIR"], "--socket-mode"),
        (["--socket-mode", "01777", "--listen", "unix:s", "DIR"], "--socket-mode"),
        (["--socket-mode", "", "--listen", "unix:s", "DIR"], "--socket-mode"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    """An option that would do nothing is an error: its user relies on it."""
    done = subprocess.run(
        [*command("qmtpmaildir"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (100, 1), done.stderr
    assert complaint in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_maildir_is_as_before(tmp_path: Path) -> None:
    """A copy for each recipient, and nothing beside them."""
    maildir = make_maildir(tmp_path / "M")
    with receiver(maildir) as (_, where), connect(where) as client:
        assert talk(client, package(*OTHERS)) == "KK"
    assert len(names(maildir / "new")) == 2
    assert not (maildir / "envelope").exists()
