"""The forwarder on a stage: its maildir, its server, and what has become of everybody's mail.

A `Stage` is one telling of a scenario: `faulty` runs the program once, under
whatever is given to it (strace); `recover` runs it without faults until all is
as it has to be in the end; `verdict` asks the oracle at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from tests.faults.oracle import Ledger, Mail, Owed, Places, Verdict, judge, look
from tests.faults.programs import Programs, Run
from tests.faults.scenarios import Scenario, Spec
from tests.helpers import Peer, ScriptedServer, command, make_maildir, wait_until

#: A recipient whom no message is for; who trusts the lines on top instead of a sidecar meets it.
DECOY = b"decoy@wrong.example"


class Stage(Protocol):
    """One telling of a scenario, in a directory of its own."""

    scenario: Scenario
    root: Path
    ledger: Ledger

    @property
    def connections(self) -> int:
        """Connections that the program has made so far."""
        ...

    def faulty(self, wrapper: Sequence[str] = ()) -> Run:
        """Run the program once, under a command that is put before it."""

    def recover(self) -> None:
        """Run it without faults until all is as it has to be; fail where that never comes."""

    def verdict(self) -> Verdict:
        """Ask the oracle."""

    def state(self) -> object:
        """Return what can be compared with the same of another telling."""

    def left(self) -> list[str]:
        """Say what is left to be done or told of: what a run that ends with 0 must not leave."""

    def close(self) -> None:
        """Let go of everything."""


def make_mail(
    number: int,
    spec: Spec,
    *,
    prefix: bytes = b"",
    by_flags: bool = False,
    promised: bool = True,
) -> Mail:
    """Make the message that a spec describes; `by_flags`, its envelope is on the command line."""
    name = f"100{number}.story"
    recipients = tuple(b"r%d@y.example" % index for index in range(len(spec.answers)))
    body = (b"line %d of this message\n" % number) * (spec.text_bytes // 22)
    text = b"Subject: %b\n\n%b" % (name.encode(), body or b"short\n")
    on_top = DECOY if spec.sidecar or by_flags else prefix + recipients[0]
    trace = b"Return-Path: <s@x.example>\nDelivered-To: %b\n" % on_top
    otherwise = recipients if by_flags else (on_top,)
    return Mail(name, b"s@x.example", recipients, trace + text, text, otherwise, prefix, promised)


def _answer_by(
    mails: Sequence[Mail], specs: Sequence[Spec], replace: Callable[[str], None]
) -> Callable[[str, bytes, int], bytes | None]:
    letters = {
        (mail.name, recipient): said
        for mail, spec in zip(mails, specs, strict=True)
        for recipient, said in zip(mail.recipients, spec.answers, strict=True)
    }

    def answer(name: str, recipient: bytes, times: int) -> bytes | None:
        said = letters.get((name, recipient), "D")
        letter = said[min(times, len(said) - 1)]
        if letter == "R":
            replace(name)
            letter = "K"
        return None if letter == "H" else letter.encode() + b"text of the server"

    return answer


class Forward:
    """The forwarder, from a maildir to a scripted server."""

    def __init__(self, scenario: Scenario, root: Path, elsewhere: Path, programs: Programs) -> None:
        self.scenario = scenario
        self.programs = programs
        self.root = root
        self.maildir = make_maildir(root / "maildir")
        self.mails = [
            make_mail(
                number, spec, prefix=scenario.prefix, by_flags="--recipient" in scenario.flags
            )
            for number, spec in enumerate(scenario.specs)
        ]
        for mail, spec in zip(self.mails, scenario.specs, strict=True):
            if spec.sidecar:
                self._add_sidecar(mail)
            (self.maildir / "new" / mail.name).write_bytes(mail.raw)
        self.specs = list(scenario.specs)
        self._add_replacements()
        self.ledger = Ledger(self.mails, _answer_by(self.mails, self.specs, self._replace))
        self.flags = [flag.format(root=root, elsewhere=elsewhere) for flag in scenario.flags]
        self._failed = self._flag_path("--failed")
        self._sent = self._flag_path("--sent")
        self._bounces = root / "bounces" if scenario.bounces in ("sendmail", "maildir") else None
        self._sendmail = root / "sendmail"
        if scenario.bounces:
            self.flags += self._bounce_flags()
        self._finished = 0
        self._server = ScriptedServer(self._serve)

    def _add_replacements(self) -> None:
        """Make what will replace messages in flight; nobody is promised it before it does."""
        for mail, spec in zip(tuple(self.mails), tuple(self.specs), strict=True):
            if any("R" in letters for letters in spec.answers):
                text = mail.text.replace(b".story\n", b".story.again\n", 1)
                raw = mail.raw.replace(b".story\n", b".story.again\n", 1)
                self.mails.append(
                    replace(mail, name=f"{mail.name}.again", text=text, raw=raw, promised=False)
                )
                self.specs.append(
                    replace(spec, answers=tuple(said.replace("R", "") for said in spec.answers))
                )

    def _replace(self, name: str) -> None:
        """Put the replacement of a message in its place, as somebody else would."""
        number = [mail.name for mail in self.mails].index(f"{name}.again")
        path = self.maildir / "tmp" / "replacement"
        path.write_bytes(self.mails[number].raw)
        path.replace(self.maildir / "new" / name)
        self.mails[number] = replace(self.mails[number], promised=True)

    def _add_sidecar(self, mail: Mail) -> None:
        directory = self.maildir / "envelope"
        directory.mkdir(exist_ok=True)
        content = {
            "version": 1,
            "sender": mail.sender.decode(),
            "recipients": [(mail.prefix + recipient).decode() for recipient in mail.recipients],
        }
        (directory / f"{mail.name}.json").write_text(json.dumps(content))

    def _flag_path(self, flag: str) -> Path | None:
        if flag not in self.flags:
            return None
        return Path(self.flags[self.flags.index(flag) + 1])

    def _bounce_flags(self) -> list[str]:
        how = self.scenario.bounces
        if how == "maildir":
            return ["--bounce-via", f"maildir:{self._bounces}"]
        if how == "sendmail":
            make_maildir(self.root / "bounces")
            # What it takes it has for good, as a real one; a bounce that is cut off is seen.
            self._sendmail.write_text(
                "#!/bin/sh\n"
                f"cd {self.root}/bounces || exit 75\n"
                '{ printf "Return-Path: <>\\nDelivered-To: %s\\n" "$5"; cat; } >tmp/$$ || exit 75\n'
                "exec mv tmp/$$ new/$$\n"
            )
            self._sendmail.chmod(0o755)
            return ["--bounce-via", how, "--sendmail", str(self._sendmail)]
        return ["--bounce-via", how]

    def _serve(self, peer: Peer) -> None:
        try:
            while (package := peer.read_package()) is not None:
                responses = self.ledger.take(package)
                if responses is None:
                    return
                peer.respond(*responses)
        finally:
            self._finished += 1

    @property
    def connections(self) -> int:
        """Connections that the program has made so far."""
        return self._server.connections

    @property
    def address(self) -> str:
        """SERVER, as the program is told."""
        return self._server.address

    def argv(self) -> list[str]:
        """Return the command line of a run."""
        words = [*command(), "--window", str(self.scenario.window), *self.flags]
        prefix = [self.scenario.prefix.decode()] if self.scenario.prefix else []
        return [*words, str(self.maildir), *prefix, self.address]

    def faulty(self, wrapper: Sequence[str] = ()) -> Run:
        """See `Stage`."""
        run = self._run(self.argv(), wrapper)
        self._settle()
        return run

    def _run(
        self, argv: Sequence[str], wrapper: Sequence[str] = (), stdin: int = subprocess.DEVNULL
    ) -> Run:
        return self.programs.start(argv, wrapper, stdin, subprocess.DEVNULL).finish()

    def recover(self) -> None:
        """See `Stage`."""
        said: list[str] = []
        for _ in range(self.scenario.rounds):
            run = self.faulty()
            assert run.status in (0, 111), run
            assert "Traceback" not in run.errors, run.errors
            said.append(run.errors)
            if not (wrong := self._not_final()):
                return
        raise AssertionError(f"never as it has to be: {wrong}; {said}")

    def _settle(self) -> None:
        """Wait until nobody does anything on behalf of the last run any more."""
        if self.scenario.bounces == "sendmail":
            wait_until(lambda: not _runs(self._sendmail), "sendmail to end")
        # Connections are accepted in their order: after this one, all of the run's are.
        with socket.create_connection(("127.0.0.1", self._server.port)) as last:
            last.shutdown(socket.SHUT_WR)
            last.recv(1)
        wait_until(lambda: self._finished == self._server.connections, "the server to be done")
        self._server.connections -= 1
        self._finished -= 1

    def places(self) -> Places:
        """Read what is on disk."""
        return look(
            self.mails,
            self.maildir,
            failed=self._failed,
            sent=self._sent,
            bounces=self._bounces,
        )

    def verdict(self) -> Verdict:
        """See `Stage`."""
        return judge(self.mails, self.ledger, self.places())

    def state(self) -> object:
        """See `Stage`."""
        places = self.places()
        bounced = places.bounced | set(self.ledger.bounced)
        accepted = {who for who, times in self.ledger.accepted.items() if times}
        return (accepted, places.owed, places.failed, bounced, places.kept, places.strange)

    def left(self) -> list[str]:
        """See `Stage`."""
        places = self.places()
        return [*self._not_final(), *map(str, places.owed | places.failed)]

    def _not_final(self) -> list[str]:
        """Say what is not as it has to be in the end."""
        places = self.places()
        bounced = places.bounced | set(self.ledger.bounced)
        wrong = [*places.strange]
        for mail, spec in zip(self.mails, self.specs, strict=True):
            if self._sent is not None and places.kept[mail.name] != 1:
                wrong.append(f"{mail.name} is {places.kept[mail.name]} times among the sent ones")
            for recipient, letters in zip(mail.recipients, spec.answers, strict=True):
                who: Owed = (mail.name, recipient)
                found = {
                    "K": self.ledger.accepted[who] > 0,
                    "Z": who in places.owed,
                    "D": who in places.failed or who in bounced,
                }
                wrong += [
                    f"{who}, {letters}, is {'' if found[letter] else 'not '}{letter}"
                    for letter in found
                    if found[letter] is not (letter == letters[-1])
                ]
        # The proof that new/ can be changed may be left there, until the next run with messages.
        left = {name for name in os.listdir(self.maildir / "new") if name.startswith(".")}
        wrong += sorted(left - {".maildirqmtp-probe"})
        return wrong

    def close(self) -> None:
        """Stop the server."""
        self._server.close()


class Enqueue(Forward):
    """`--enqueue`: what it says is taken must be there, with its sidecar."""

    def __init__(self, scenario: Scenario, root: Path, elsewhere: Path, programs: Programs) -> None:
        super().__init__(scenario, root, elsewhere, programs)
        shutil.rmtree(self.maildir)
        make_maildir(self.maildir)
        self._take(promised=False)
        (root / "message").write_bytes(make_mail(0, scenario.specs[0]).raw)
        self._tries = 0

    def _take(self, *, promised: bool) -> None:
        # The trace lines on top of the input are not put in.
        mail = make_mail(0, self.scenario.specs[0], promised=promised)
        self.mails = [replace(mail, raw=mail.text)]

    def faulty(self, wrapper: Sequence[str] = ()) -> Run:
        """See `Stage`; the forwarder's runs come from `recover` only."""
        self._tries += 1
        mail = self.mails[0]
        argv = [*command(), "--enqueue", str(self.maildir), "--sender", mail.sender.decode()]
        for recipient in mail.recipients:
            argv += ["--recipient", recipient.decode()]
        with open(self.root / "message", "rb") as message:
            run = self._run(argv, wrapper, message.fileno())
        if run.status == 0:
            self._take(promised=True)
        return run

    def recover(self) -> None:
        """Enqueue once more where that failed; then one message, whole, goes to everybody."""
        if not self.mails[0].promised:
            assert self.faulty().status == 0
        names = [n for n in os.listdir(self.maildir / "new") if not n.startswith(".")]
        run = self._run(self.argv())
        assert run.status == 0, run
        self._settle()
        assert not os.listdir(self.maildir / "new")
        assert all(self.ledger.accepted[who] == len(names) for who in self.mails[0].owed)
        assert 1 <= len(names) <= self._tries


def _runs(script: Path) -> bool:
    """Say whether any process runs this script."""
    wanted = os.fsencode(script)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
            if wanted in words[:2]:
                return True
    return False
