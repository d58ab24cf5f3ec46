"""Reports what happens: log lines, JSON lines, counters, a progress bar.

Each event is a call of the report, which never calls back. Lines for people go to
standard error, data (`--json`) to standard output. Whatever comes from a
server, a message or a file name is made printable first.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.text import printable, printable_text

# Not from typing: importing that would be a good part of the start-up.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, TextIO

    from maildirqmtp.forwarder.queued_message import QueuedMessage

    class Progress(Protocol):
        """A display of a run's progress; see `progress`."""

        def update(self, done: int, total: int) -> None:
            """Show that `done` of `total` messages have been dealt with."""

        def close(self) -> None:
            """Leave the terminal as it was."""


#: Priorities, as syslog(3) numbers them.
ERROR, WARNING, INFO = 3, 4, 6


def plain_line(event: str, level: int, text: str) -> str:
    """Return a line of the log in the form for a run by hand or by cron."""
    return f"maildirqmtp: {text}"


class Counters:
    """What a run did. Outcomes count recipients; `held`, `messages` and `others` count messages.

    `others` are those without a recipient that begins with the prefix.
    `failed` and `bounced` include deferrals that were too old; `in_doubt` are the recipients
    who may get a message twice; `problems` counts what went wrong on this machine
    or on the way to the server; `left` are messages that were not tried.
    """

    __slots__ = (
        "accepted",
        "bounced",
        "bytes",
        "deferred",
        "failed",
        "held",
        "in_doubt",
        "left",
        "messages",
        "others",
        "problems",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.deferred = 0
        self.failed = 0
        self.bounced = 0
        self.held = 0
        self.in_doubt = 0
        self.messages = 0
        self.others = 0
        self.bytes = 0
        self.problems = 0
        self.left = 0

    def as_dict(self) -> dict[str, int]:
        """Return all counters by their names in the status file."""
        return {
            "trouble" if name == "problems" else name: getattr(self, name)
            for name in self.__slots__
        }

    def as_tuple(self) -> tuple[int, ...]:
        """Return all counters, to be compared."""
        return tuple([getattr(self, name) for name in self.__slots__])

    @property
    def exit_code(self) -> int:
        """0 if no message of this route is left or failed, and nothing went wrong; else 111."""
        left = self.deferred or self.failed or self.held or self.problems or self.left
        return EXIT_TEMPORARY if left else EXIT_OK


class ServerCounters:
    """The counters of a run, divided among the servers that were connected to."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._server = ""
        self._before = counters.as_tuple()
        self._found: dict[str, tuple[int, ...]] = {}

    def connected(self, server: str) -> None:
        """Attribute what is counted from now on to this server."""
        if server != self._server:
            self._divide()
            self._server = server

    def _divide(self) -> None:
        now = self._counters.as_tuple()
        so_far = self._found.get(self._server, (0,) * len(now))
        news = zip(so_far, now, self._before, strict=True)
        self._found[self._server] = tuple([a + b - c for a, b, c in news])
        self._before = now

    def as_dicts(self) -> dict[str, dict[str, int]]:
        """Return for each server what `Counters.as_dict` returns for all of them."""
        self._divide()
        names = self._counters.as_dict()
        return {
            server: dict(zip(names, found, strict=True)) for server, found in self._found.items()
        }


class Report:
    """Counts, and writes lines.

    `verbosity` -1 is errors only, 0 a line for each message that is not
    accepted and a summary, 1 a line for each recipient. `data` gets JSON lines
    when it is not None. `clock` is monotonic seconds, `wall_clock` seconds of
    the epoch.

    `line` makes a line of the log from an event's name, as in `--json`, a priority
    and a text. `attempts`, for a daemon, is a line for each attempt, with all that
    is known.
    """

    def __init__(
        self,
        log: TextIO,
        data: TextIO | None = None,
        verbosity: int = 0,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        wall_clock: Callable[[], float] = time.time,
        attempts: bool = False,
        line: Callable[[str, int, str], str] = plain_line,
    ) -> None:
        self.counters = Counters()
        self.by_server = ServerCounters(self.counters)
        self._wall_clock = wall_clock
        self._attempts = attempts
        self._line_of = line
        self._server = ""
        self._log: TextIO | None = log
        self._data_failed = False
        self.set_output(verbosity, data)
        self._progress = progress
        self._clock = clock
        self._began = clock()

    def set_output(
        self,
        verbosity: int,
        data: TextIO | None,
        line: Callable[[str, int, str], str] | None = None,
    ) -> None:
        """Change the verbosity, the output of JSON lines and the form of log lines."""
        self._verbosity = verbosity
        self._line_of = line or self._line_of
        self._data = data
        #: True if a message's Message-ID is shown.
        self.detailed = self._attempts or data is not None
        #: True if there is a line for each accepted message.
        self.tells_all = self.detailed or verbosity > 0

    # One message

    def accepted(self, queued: QueuedMessage) -> None:
        """Report that every recipient of a message was accepted: the frequent case."""
        counters = self.counters
        counters.accepted += len(queued.recipients)
        counters.messages += 1
        counters.bytes += queued.length
        if self.tells_all:
            for index, answer in enumerate(queued.answers):
                assert answer is not None
                self._outcome("accepted", queued, index, answer.text, INFO)

    def small_accepted(self, messages: int, text_bytes: int) -> None:
        """Count accepted messages to one recipient each, when there is no line for each."""
        counters = self.counters
        counters.accepted += messages
        counters.messages += messages
        counters.bytes += text_bytes

    def one_accepted(self, queued: QueuedMessage, index: int, text: str) -> None:
        """Report that one recipient was accepted, of a message that is not done yet."""
        self.counters.accepted += 1
        self._outcome("accepted", queued, index, text, INFO)

    def deferred(self, queued: QueuedMessage, index: int, text: str) -> None:
        """Report that a recipient will be tried again."""
        self.counters.deferred += 1
        self._outcome("deferred", queued, index, text)

    def failed(self, queued: QueuedMessage, index: int, text: str, where: bytes) -> None:
        """Report that a recipient is given up on; the message is at the path `where`."""
        self.counters.failed += 1
        self._outcome("failed", queued, index, text, where=where)

    def bounced(self, queued: QueuedMessage, index: int, text: str) -> None:
        """Report that a recipient is given up on; the sender has been told."""
        self.counters.bounced += 1
        self._outcome("bounced", queued, index, text)

    def in_doubt(self, queued: QueuedMessage, silent: bool = False) -> None:
        """Report the recipients in doubt: their package was sent whole, and never answered.

        `silent`: the server has never sent anything, so a line for each recipient
        would only hide what is wrong; they are counted.
        """
        self.counters.in_doubt += len(queued.doubtful)
        for index in queued.doubtful:
            text = "not answered; it may have been taken, and will then come twice"
            self._outcome("in-doubt", queued, index, text, quiet=silent)

    def held(self, name: bytes, reason: str, event: str = "held") -> None:
        """Report a message that cannot be sent as it is; or one that `changed`, to be retried."""
        self.counters.held += 1
        self._line(event, 0, f"{printable(name)}: {event}: {reason}")
        self._json(event, message=printable(name), reason=reason)

    def for_others(self) -> None:
        """Count a message without a recipient that begins with the prefix; it stays for others."""
        self.counters.others += 1

    def no_longer_held(self, messages: int = 1) -> None:
        """Uncount messages that were held in this run, and are done now, or were tried again."""
        self.counters.held -= messages

    def _outcome(
        self,
        event: str,
        queued: QueuedMessage,
        index: int,
        text: str,
        level: int = WARNING,
        *,
        where: bytes | None = None,
        quiet: bool = False,
    ) -> None:
        verbosity = 1 if quiet or (level == INFO and not self._attempts) else 0
        if self._data is None and verbosity > self._verbosity:
            return
        name, to = printable(queued.message.name), printable(queued.recipients[index])
        moved = f" (moved to {printable(where)})" if where is not None else ""
        line = f"{name}: {to}: {event}: {text}{moved}"
        if not self.detailed:
            self._line(event, verbosity, line, level)
            return
        sender, message_id = printable(queued.sender), printable(queued.message_id)
        delay_s = max(0.0, self._wall_clock() - queued.message.mtime_s)
        if self._attempts:
            line += f" (from <{sender}>, {message_id or 'no Message-ID'}, {queued.length} bytes"
            line += f", delay {delay_s:.2f} s)"
        self._line(event, verbosity, line, level)
        self._json(
            event,
            message=name,
            message_id=message_id,
            sender=sender,
            recipient=to,
            bytes=queued.length,
            delay_s=round(delay_s, 3),
            text=text,
            server="" if queued.refusal else self._server,
            **({} if where is None else {"moved_to": printable(where)}),
        )

    # The run

    def connected(self, server: str) -> None:
        """Report an open connection; from now on, outcomes come from this server."""
        self._server = server
        self.by_server.connected(server)
        self._line("connected", 1, f"connected to {server}")
        self._json("connected", server=server)

    def closed(self, server: str, reason: str, idle: bool = False) -> None:
        """Report that a connection ended unexpectedly; `idle`: it may, with nothing in flight."""
        self._line("closed", 1 if idle else 0, f"{server}: {reason}")
        self._json("closed", server=server, reason=reason)

    def problem(self, what: str, left: int = 0) -> None:
        """Report that the run cannot go on as it should; `left` messages are left because of it."""
        self.counters.problems += 1
        self.counters.left += left
        self._line("trouble", -1, what, ERROR)
        self._json("trouble", reason=what, left=left)

    def note(self, what: str) -> None:
        """Report something that an administrator wants to know, and that changes nothing."""
        self._line("note", 0, what, INFO)
        self._json("note", text=what)

    def warning(self, what: str) -> None:
        """Report something for an administrator to put right; no message is left because of it."""
        self._line("warning", -1, what, WARNING)
        self._json("warning", text=what)

    def expired(self, key: str, where: bytes, messages: int) -> None:
        """Report how many messages were removed from a maildir because of the setting `key`."""
        shown = printable(where)
        self._line("expired", 0, f"{key}: {messages} removed from {shown}", INFO)
        self._json("expired", maildir=shown, messages=messages, setting=key)

    def command_said(self, line: str) -> None:
        """Report a line that an `exec:` command wrote on its standard error; from any thread."""
        self._line("command", -1, line, WARNING)

    def progress(self, done: int, total: int) -> None:
        """Show that `done` of `total` messages have been dealt with."""
        if self._progress is not None:
            self._progress.update(done, total)

    def summary(self, exit_code: int | None = None) -> None:
        """Report in one line what the run did, now that it is over.

        `exit_code` is that of the process, if it does not follow from the counters.
        """
        if self._progress is not None:
            self._progress.close()
        c = self.counters
        seconds = self._clock() - self._began
        bounced = f"{c.bounced} bounced, " if c.bounced else ""
        left = f", {c.left} left" if c.left else ""
        others = f", {c.others} for others" if c.others else ""
        self._line(
            "summary",
            0,
            f"{c.accepted} accepted, {c.deferred} deferred, {c.failed} failed, {bounced}"
            f"{c.held} held, "
            f"{c.in_doubt} in doubt{left}{others}, {c.bytes} bytes, {seconds:.2f} s",
            INFO,
        )
        self._json(
            "summary",
            accepted=c.accepted,
            deferred=c.deferred,
            failed=c.failed,
            bounced=c.bounced,
            held=c.held,
            in_doubt=c.in_doubt,
            left=c.left,
            others=c.others,
            messages=c.messages,
            bytes=c.bytes,
            seconds=round(seconds, 3),
            exit_code=c.exit_code if exit_code is None else exit_code,
        )

    def _line(self, event: str, verbosity: int, text: str, level: int | None = None) -> None:
        if verbosity <= self._verbosity:
            level = level or (INFO if verbosity > 0 else WARNING)
            error = self._write(self._log, self._line_of(event, level, printable_text(text)))
            if isinstance(error, BrokenPipeError):
                self._log = None

    def _json(self, event: str, **fields: object) -> None:
        if self._data is not None:
            import json

            error = self._write(self._data, json.dumps({"event": event, **fields}))
            if isinstance(error, BrokenPipeError):
                self._data = None
            if error is not None and not self._data_failed:
                what = f"cannot write to standard output: {error.strerror}"
                self._line("trouble", -1, what, ERROR)
            self._data_failed = error is not None

    def _write(self, stream: TextIO | None, line: str) -> OSError | None:
        """Write a line; return the error if that fails.

        A log that fails must not stop the run: a message that the server has taken is still to be
        removed. The exit code shows the failure. Only a reader that has gone never returns: a full
        disk may have room for the next line.
        """
        if stream is not None:
            try:
                # In one piece: several routes may share the stream.
                stream.write(f"{line}\n")
                stream.flush()
            except OSError as error:
                self.counters.problems += 1
                return error
        return None
