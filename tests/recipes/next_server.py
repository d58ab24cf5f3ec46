"""What the stories of the hand-off share: 200 messages, and a mail server that comes and goes."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers import add_message, add_sidecar, make_maildir, wait_until
from tests.recipes.trial import Trial, call

RECIPE = "recipes/hand-off.md"
#: Where the next server keeps the mail of ann, bob and cat, a maildir for each.
BOXES = Path("/srv/mail")
USERS = ("ann", "bob", "cat")
#: One whom the next server does not know, and one whom it defers.
UNKNOWN, LATER = "nobody@here.example", "later@here.example"
MESSAGES = 200
#: The receiver's log. A pipe would be full, and the receiver wait for a reader.
LOG = Path("/var/log/qmtpmaildir")
DEADLINE_S = 90.0


def boxes() -> None:
    """Make the user and the directory of the mailboxes."""
    call("useradd", "--system", "--home-dir", BOXES, "vmail")
    BOXES.mkdir()
    call("chown", "vmail:vmail", BOXES)


def recipients(number: int) -> list[str]:
    """Return whom a message is for: one to five, some of them refused or deferred."""
    found = [f"{USERS[number % 3]}@here.example"]
    if number % 2:
        found.append(f"{USERS[(number + 1) % 3]}@here.example")
    if number % 5 == 0:
        found.insert(0, UNKNOWN)
    if number % 7 == 0:
        found.append(LATER)
    return found


def text(number: int) -> bytes:
    """Return a message: dots, long lines, 8-bit bytes, no end of line, and one of 3 MB."""
    body = (
        b".\n..dots\n" if number % 3 == 0 else "h\xe4\xe4\n".encode(),
        b"x" * 900 + b"\n",
        b"crlf\r\n",
        b"large\n" * 500_000 if number == 77 else b"",
        b"no end of line" if number % 4 == 0 else b"end\n",
    )
    return b"Subject: number %d\nFrom: me@away.example\n\n" % number + b"".join(body)


def fill(maildir: Path) -> None:
    """Write the messages, with sidecars."""
    make_maildir(maildir)
    for number in range(MESSAGES):
        name = f"{1_700_000_000 + number}.M{number}.away"
        add_sidecar(maildir, name, "me@away.example", *recipients(number))
        add_message(maildir, name, text(number), None, None)


def delivered() -> Counter[tuple[str, int]]:
    """Return how often each of the users has each message."""
    found: Counter[tuple[str, int]] = Counter()
    for user in USERS:
        for folder in ("new", "cur"):
            for path in (BOXES / user).glob(f"{folder}/*"):
                match = re.search(rb"^Subject: number (\d+)$", path.read_bytes(), re.MULTILINE)
                assert match is not None, path
                found[user, int(match[1])] += 1
    return found


def count_left(maildir: Path) -> int:
    """Return how many messages wait in a maildir."""
    return sum(1 for _ in (maildir / "new").iterdir())


def expected() -> Counter[tuple[str, int]]:
    """Return what `delivered` has to be in the end."""
    return Counter(
        (recipient.partition("@")[0], number)
        for number in range(MESSAGES)
        for recipient in recipients(number)
        if recipient not in (UNKNOWN, LATER)
    )


def sidecars(folder: Path) -> Iterator[dict[str, Any]]:
    """Return the sidecars in a maildir."""
    for path in sorted((folder / "envelope").glob("*.json")):
        yield json.loads(path.read_text())


@contextlib.contextmanager
def receiver(how: str) -> Iterator[str]:
    """Run the receiver in front of the next server, as the recipe has it; where it listens."""
    words = ("--listen", "127.0.0.1:2209", "--domain", "here.example", "--deliver", how)
    with LOG.open("wb") as stderr, subprocess.Popen(["qmtpmaildir", *words], stderr=stderr) as one:
        try:
            wait_until(lambda: b"listening" in LOG.read_bytes(), "the receiver", DEADLINE_S)
            yield "127.0.0.1:2209"
        finally:
            one.terminate()
            assert one.wait(60) == 0, LOG.read_text()


def forward(maildir: Path, server: str) -> subprocess.Popen[bytes]:
    """Begin a run of the forwarder."""
    return subprocess.Popen(["maildirqmtp", "--no-bounce", "-q", str(maildir), server])


def campaign(
    trial: Trial, maildir: Path, how: str, stop: Callable[[], None], start: Callable[[], None]
) -> None:
    """Forward the messages while the next server stops and starts, and look what has become."""
    call("rm", "-rf", *[BOXES / user for user in USERS])
    fill(maildir)
    with receiver(how) as server:
        with trial.checks(f"{how}: {MESSAGES} messages, the mail server stopped and started amid"):
            first = forward(maildir, server)
            # Not how many are in mailboxes: Exim may have taken all of them by then.
            wait_until(lambda: count_left(maildir) < MESSAGES, "the first messages", DEADLINE_S)
            stop()
            assert first.wait(DEADLINE_S) == 111
            assert forward(maildir, server).wait(DEADLINE_S) == 111
            before = delivered()
            assert sum(before.values()) < sum(expected().values())
            start()

            def is_done() -> bool:
                assert forward(maildir, server).wait(DEADLINE_S) == 111  # those deferred stay
                return {r for one in sidecars(maildir) for r in one["recipients"]} == {LATER}

            wait_until(is_done, "all but the deferred", DEADLINE_S)
        with trial.checks(f"{how}: each recipient once, but for what was in doubt at the stop"):
            wait_until(lambda: len(delivered()) >= len(expected()), "all mail", DEADLINE_S)
            twice = delivered() - expected()
            assert delivered() - twice == expected()
            in_doubt = LOG.read_text().count("may have been taken")
            assert len({number for _, number in twice}) <= in_doubt, (twice, in_doubt)
        with trial.checks(f"{how}: each refusal with its code, each deferral still owed"):
            refused = [f for one in sidecars(maildir / ".Failed") for f in one["failures"]]
            assert Counter(f["recipient"] for f in refused) == {UNKNOWN: MESSAGES // 5}, refused
            assert all("5.1." in f["response"] and f["response"][0] == "D" for f in refused)
            owed = Counter(tuple(one["recipients"]) for one in sidecars(maildir))
            assert owed == {(LATER,): len(range(0, MESSAGES, 7))}, owed
        with trial.checks(f"{how}: texts as they were"):
            check_texts()


def check_texts() -> None:
    """Compare what the mailboxes have with what was sent; they may end lines as they like."""
    for user in USERS:
        for path in (BOXES / user).glob("new/*"):
            found = path.read_bytes().replace(b"\r\n", b"\n")
            match = re.search(rb"^Subject: number (\d+)$", found, re.MULTILINE)
            assert match is not None
            sent = text(int(match[1])).replace(b"\r\n", b"\n").removesuffix(b"\n")
            body = sent.partition(b"\n\n")[2]
            assert found.partition(b"\n\n")[2].removesuffix(b"\n") == body, path
