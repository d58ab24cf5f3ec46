"""A run for the picture: a daemon with three routes, their servers, mail, trouble, Prometheus.

All of it is real: `maildirqmtp --config`, `qmtpmaildir` at the other end of each route, Debian's
Prometheus with the alerts of `contrib/prometheus`. Only the mail is made up.
"""

from __future__ import annotations

import json
import mailbox
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

RULES = Path(__file__).parent.parent / "prometheus" / "maildirqmtp.rules.yml"
#: Of Prometheus: at these times it asks the daemon, and looks at the alerts.
SCRAPE_S = 2
#: One server a route, each at an address of its own: the legends tell them apart.
SERVERS = {"office": "127.0.0.1", "ship": "127.0.0.2", "shop": "127.0.0.3"}
PORT = 20209
DURATION_S = 300
#: From the start of the run: when the server of `ship` is gone, and when the maildir of `shop` is
#: away, which a daemon sees within half a minute, and is an alert a minute later.
DOWN_S = (60, 120)
AWAY_S = (150, 250)
#: Messages that come just before the server goes, so that some are in flight.
BURST = 60
#: So many messages of a route are accepted before the first is refused.
FIRST = 60
_READY_S = 60

#: What the servers hand mail to, and who is refused: sysexits(3), 67 no such user, 75 later.
DELIVER = """#!/bin/sh
cat >/dev/null
sleep 0.05
case $1 in
nobody@*) echo 'no such user' >&2; exit 67 ;;
full@*) echo 'mailbox full' >&2; exit 75 ;;
esac
"""


class RunError(Exception):
    """The run cannot begin, or came to an end before its time."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run leaves while its Prometheus still answers."""

    url: str
    folder: Path
    begin_s: float
    end_s: float


def prometheus() -> str:
    """Return the path of Prometheus. Raises `RunError` if there is none."""
    found = shutil.which("prometheus")
    if found is None:
        raise RunError(
            "there is no prometheus on PATH. Debian has it; without installing it:\n"
            "  apt-get download prometheus && dpkg-deb -x prometheus_*.deb prometheus\n"
            '  PATH="$PWD/prometheus/usr/bin:$PATH"'
        )
    return found


def ours(name: str) -> Path:
    """Return the path of a program of this installation. Raises `RunError` if there is none."""
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        raise RunError(f"there is no {found}: pip install -e '.[metrics]'")
    return found


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def recipient_of(route: str, number: int) -> str:
    """Return to whom the message with this number goes: to some who are refused, now and then."""
    if number < FIRST:
        return "user@example.net"
    if route == "office" and number % 16 == 15:
        return "nobody@example.net"
    if route == "shop" and number % 24 == 11:
        return "nobody@example.net"
    if route == "shop" and number % 24 == 23:
        return "full@example.net"
    return f"user{number % 7}@example.net"


def arrivals(route: str, at_s: int) -> int:
    """Return how many messages come for a route within this second of the run."""
    if route == "ship":
        return BURST if at_s == DOWN_S[0] - 1 else 2
    if route == "shop":
        return 0 if AWAY_S[0] - 1 <= at_s <= AWAY_S[1] else 3
    return 1 + abs(at_s % 60 - 30) // 6


class Programs:
    """The programs of a run, in a folder of their own, each with a log there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str | Path) -> None:
        """Start a program."""
        words = [*map(str, command)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one of them."""
        self._running[name].send_signal(number)

    def kill(self, name: str) -> None:
        """End one of them as a crash does."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def check(self) -> None:
        """Raises `RunError` if one has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                said = (self.folder / f"{name}.log").read_text(errors="replace")
                raise RunError(f"{name} has ended with {process.returncode}:\n{said[-2000:]}")

    def wait_for(self, name: str, ready: Callable[[], object]) -> None:
        """Return as soon as `ready` gives something. Raises `RunError` after a minute.

        An `OSError` of `ready` is a server that does not listen yet.
        """
        deadline = time.monotonic() + _READY_S
        said: object = "no answer"
        while True:
            self.check()
            try:
                if ready():
                    return
            except OSError as error:
                said = error
            if time.monotonic() > deadline:
                raise RunError(f"{name} is not ready after {_READY_S} s: {said}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End all of them."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait()


def configuration(folder: Path, metrics: str) -> str:
    """Return the daemon's: only `office` tells senders of failures."""
    lines = [f'metrics-listen = "{metrics}"']
    for route, address in SERVERS.items():
        lines += [
            "[[route]]",
            f'maildir = "{folder / route}"',
            f'server = "{address}:{PORT}"',
            f"bounce = {'true' if route == 'office' else 'false'}",
            f'bounce-via = "maildir:{folder / "bounces"}"',
        ]
    return "\n".join([*lines, ""])


def scraping(metrics: str) -> str:
    """Return the configuration of Prometheus (JSON is YAML, too)."""
    job = {"job_name": "maildirqmtp", "static_configs": [{"targets": [metrics]}]}
    each = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    return json.dumps({"global": each, "rule_files": [str(RULES)], "scrape_configs": [job]})


def _start(programs: Programs) -> str:
    """Start all that a run needs; return the URL of Prometheus."""
    server = prometheus()
    folder = programs.folder
    (folder / "deliver").write_text(DELIVER)
    for name in (*SERVERS, "bounces"):
        mailbox.Maildir(folder / name)
    for route in SERVERS:
        _start_server(programs, route)
    metrics, listen = (f"127.0.0.1:{free_port()}" for _ in range(2))
    (folder / "daemon.toml").write_text(configuration(folder, metrics))
    programs.start("daemon", ours("maildirqmtp"), "--config", folder / "daemon.toml")
    programs.wait_for("daemon", lambda: b"maildirqmtp_stuck{" in _get(f"http://{metrics}/metrics"))
    (folder / "prometheus.yml").write_text(scraping(metrics))
    programs.start(
        "prometheus",
        server,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={listen}",
        "--log.level=warn",
    )
    url = f"http://{listen}"
    scraped = f"{url}/api/v1/query?query=maildirqmtp_stuck"
    programs.wait_for("prometheus", lambda: json.loads(_get(scraped))["data"]["result"])
    return url


def _start_server(programs: Programs, route: str) -> None:
    deliver = f"exec:sh {programs.folder / 'deliver'} {{recipient}}"
    address = SERVERS[route]
    given = ("--quiet", "--listen", f"{address}:{PORT}", "--deliver", deliver)
    programs.start(f"server-{route}", ours("qmtpmaildir"), *given, "--deliver-connections", "4")
    programs.wait_for(route, lambda: _listens(address))


def _listens(address: str) -> bool:
    with socket.create_connection((address, PORT)):
        return True


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        found: bytes = response.read()
        return found


class Mail:
    """Puts messages into the maildirs of the routes, as a mail server does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._random = random.Random(1)
        self._count = dict.fromkeys(SERVERS, 0)

    def come(self, at_s: int) -> None:
        """Add what comes within this second of the run."""
        for route in SERVERS:
            for _ in range(arrivals(route, at_s)):
                recipient = recipient_of(route, self._count[route])
                self._count[route] += 1
                text = "All is well.\n" * self._random.randint(50, 1500)
                mailbox.Maildir(self._folder / route, create=False).add(
                    f"Return-Path: <sender@example.org>\nDelivered-To: {recipient}\n"
                    f"Subject: picture\n\n{text}".encode()
                )


def _trouble(programs: Programs, at_s: int) -> None:
    """Do what goes wrong, or well again, at this second of the run."""
    shop, away = programs.folder / "shop", programs.folder / "shop.away"
    if at_s == DOWN_S[0]:
        programs.kill("server-ship")
    elif at_s == DOWN_S[1]:
        _start_server(programs, "ship")
        # As contrib/hooks does when a link is up: retry at once.
        programs.signal("daemon", signal.SIGALRM)
    elif at_s == AWAY_S[0]:
        shop.rename(away)
    elif at_s == AWAY_S[1]:
        away.rename(shop)


@contextmanager
def real_run(folder: Path) -> Iterator[Finished]:
    """Run it all in `folder` for `DURATION_S`; then give what is left to ask.

    Raises `RunError` if something is missing, or has ended before its time.
    """
    with ExitStack() as stack:
        programs = Programs(folder)
        stack.callback(programs.stop)
        url = _start(programs)
        mail = Mail(folder)
        begin_s, start = time.time(), time.monotonic()
        for at_s in range(DURATION_S):
            while time.monotonic() < start + at_s:
                time.sleep(0.05)
            mail.come(at_s)
            _trouble(programs, at_s)
            programs.check()
        yield Finished(url, folder, begin_s, time.time())
