"""The stories that are told again and again, each time with a fault at another place: a table."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spec:
    """A message of a scenario: for each recipient, what the server says, time after time.

    `"ZK"` is Z the first time and K from then on; `H` hangs up without an answer.
    `R` is K, but somebody replaces the file before it is said: the new one is owed too.
    With a `sidecar`, the lines on top of the message name the decoy.
    """

    answers: tuple[str, ...]
    sidecar: bool = False
    text_bytes: int = 30


@dataclass(frozen=True, slots=True)
class Scenario:
    """One story; `clean_runs` come before the one with the fault.

    In `flags`, `{elsewhere}` is a directory of another file system, `{root}` one of the
    same. `elsewhere` says that the story needs that other file system.
    """

    name: str
    kind: str
    specs: tuple[Spec, ...]
    flags: tuple[str, ...] = ()
    prefix: bytes = b""
    bounces: str = ""
    clean_runs: int = 0
    elsewhere: bool = False

    @property
    def slug(self) -> str:
        """Return the name as one word."""
        return self.name.replace(",", "").replace(" ", "-")

    @property
    def threads(self) -> bool:
        """True where the program works in several threads, and starts no other program."""
        return self.kind in ("receive", "queue")

    @property
    def window(self) -> int:
        """Messages in flight at once, in every scenario."""
        return 2

    @property
    def bound(self) -> int:
        """The most recipients that may get a message twice after one kill."""
        return self.window * max(len(spec.answers) for spec in self.specs)

    @property
    def rounds(self) -> int:
        """Runs after which all is as it has to be, with some to spare for faults."""
        return 2 + max(len(letters) for spec in self.specs for letters in spec.answers)


def _all(*letters: str) -> tuple[Spec, ...]:
    return tuple(Spec((letter,)) for letter in letters)


_TWO_MB = 2_000_000
_MIXED = (Spec(("K", "Z", "D"), True), Spec(("K",)), Spec(("D", "K", "K"), True))
_BOUNCED = (Spec(("D",)), Spec(("K",)), Spec(("K", "D", "Z"), True))
_FLAGS_OF_MANY = ("--sender", "s@x.example", "--recipient", "r0@y.example", "--recipient")
_FOUR = (*_FLAGS_OF_MANY, "r1@y.example", "--recipient", "r2@y.example")
_PARTIAL = (Spec(("K", "ZK", "ZZK")), Spec(("D", "ZZK", "K")))

SCENARIOS = (
    Scenario("all accepted", "forward", (*_all("K", "K", "K"), Spec(("K", "K"), True))),
    Scenario("mixed outcomes with sidecars", "forward", _MIXED),
    Scenario("partial, the first time", "forward", _PARTIAL, _FOUR),
    Scenario("partial, the second time", "forward", _PARTIAL, _FOUR, clean_runs=1),
    Scenario("bounce by sendmail", "forward", _BOUNCED, prefix=b"alias-", bounces="sendmail"),
    Scenario("bounce into a maildir", "forward", _BOUNCED, prefix=b"alias-", bounces="maildir"),
    Scenario("bounce by the server", "forward", _BOUNCED, prefix=b"alias-", bounces="server"),
    Scenario(
        "sent kept",
        "forward",
        (*_all("K", "K"), Spec(("K", "ZK"), True)),
        ("--sent", "{root}/sent"),
    ),
    Scenario(
        "sent kept elsewhere",
        "forward",
        (*_all("K", "K"), Spec(("K", "K"), True)),
        ("--sent", "{elsewhere}/sent"),
        elsewhere=True,
    ),
    Scenario("failed", "forward", (*_all("D", "D", "K"), Spec(("D", "K", "D"), True))),
    Scenario(
        "failed elsewhere",
        "forward",
        (*_all("D", "K"), Spec(("D", "K", "D"), True)),
        ("--failed", "{elsewhere}/failed"),
        elsewhere=True,
    ),
    Scenario("reconnect", "forward", (*_all("K", "HK", "K", "HHK"), Spec(("K", "HK"), True))),
    Scenario("replaced in flight", "forward", (*_all("K", "RK", "RK"), Spec(("K", "RK"), True))),
    Scenario("large", "forward", (Spec(("K",)), Spec(("K",), False, _TWO_MB), Spec(("K",)))),
    Scenario(
        "large over which connections broke",
        "forward",
        (Spec(("K",)), Spec(("HK",), False, _TWO_MB), Spec(("HHK",), False, _TWO_MB)),
    ),
    Scenario(
        "a shard of a maildir",
        "forward",
        (*_all("K", "HK", "D"), Spec(("K", "ZK"), True)),
        ("--shard", "0/1"),
    ),
    Scenario("enqueue", "enqueue", (Spec(("K", "K"), True),)),
    Scenario(
        "receiver into a queue",
        "queue",
        (Spec(("K",), True), Spec(("K", "K", "K"), True), Spec(("K", "K"), True)),
    ),
    Scenario("receiver into a queue, large", "queue", (Spec(("K", "K"), True, 300_000),)),
    # All of one batch, for what other batches do at the same time would show as not durable.
    Scenario("receiver", "receive", (Spec(("K",)), Spec(("K", "K")), Spec(("K",)))),
    Scenario("receiver, large", "receive", (Spec(("K", "K"), False, 300_000),)),
)


def report(kind: str, scenario: Scenario, **figures: int) -> None:
    """Print the figures; and append them to the file that MAILDIRQMTP_FIGURES names."""
    line = json.dumps({"kind": kind, "scenario": scenario.name, **figures})
    print(line)
    path = os.environ.get("MAILDIRQMTP_FIGURES")
    if path:
        with open(path, "a") as file:
            file.write(line + "\n")
