"""The state file: what must outlive a run and is in no sidecar.

    DIR/.maildirqmtp-state.json, or for a shard .maildirqmtp-state-shard-K-N.json
    {"version": 1,
     "first_deferred": {"UNIQUE NAME": 1800000000, "UNIQUE NAME/bounce": 1800000000},
     "accepted": {"UNIQUE NAME": 1800000000},
     "broken": {"UNIQUE NAME": {"at": 1800000000, "sent": 710000, "of": 5000000}},
     "told": {"slow answers": 1800000000},
     "warned": {...}, "attempts": {...}, "in_doubt": {...}, "servers": {...},
     "stop": "cannot connect to mx.example.org:209: Connection refused"}

Times are seconds of the epoch. `first_deferred`: when a server first deferred a message that is
over its lifetime, or will be within two days, and a mailer its bounce. `accepted`: when a message
was last accepted for one of its recipients, who is not in its sidecar any more. `broken`: a large
message over which a connection broke, when, and how many of its bytes had arrived. `told`: when a
hint was last given. `stop`: why the last run left messages, unless it reached a server.
`attempts`, `in_doubt` (`doubts`), `servers` (`shown`) and `warned` have modules of their own;
`held` belongs to `holds`, and is only copied here. Unknown keys are kept.

Losing the file loses no mail: messages are given up a day later, servers have to show again how
they answer, a message may arrive twice, by two servers, and one be missing in the archive `--sent`.
"""

from __future__ import annotations

from _thread import allocate_lock  # `threading` is not loaded for a lock
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import doubts, files, holds, state_content
from maildirqmtp.maildir.attempts import FORGOTTEN_S, AttemptHistory
from maildirqmtp.maildir.doubts import Doubts
from maildirqmtp.maildir.holds import Holds
from maildirqmtp.maildir.holds import key as _key
from maildirqmtp.maildir.shown import SERVER_S, ShownByServers
from maildirqmtp.maildir.state_size import encoded
from maildirqmtp.maildir.warned import WARNED_S, Noted, WarnedMessages
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from typing import Any

    from maildirqmtp.maildir.attempts import Attempts
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.shard import Shard

NAME = b".maildirqmtp-state.json"
VERSION = 1
#: The most bytes of the file that are read or written.
MAX_BYTES = 1 << 20
#: Seconds between two writes.
SAVE_S = 30.0
#: Seconds after which the first deferral of a message that is never tried is forgotten.
DEFERRAL_S = 90 * 86_400.0
#: What can be known of a server.
ONE_RECIPIENT, PROVEN = "one_recipient", "proven"
#: Marks the deferral of a message's bounce; no file name has a slash.
BOUNCE = "/bounce"


class State:
    """The state file of a maildir; `root` is the maildir's own directory.

    It is read when first needed, and written by `save_if_due` and `save` if something has
    changed. `lock` protects an object that threads share. `clock` is monotonic seconds,
    `wall_clock` seconds of the epoch.
    """

    def __init__(
        self,
        root: Folder,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        lock: AbstractContextManager[Any] | None = None,
        shard: Shard | None = None,
    ) -> None:
        self._root = root
        self._name = NAME if shard is None else shard.own_file(NAME)
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = allocate_lock() if lock is None else lock
        self._fault: str | None = None
        self._told = self._stop = ""
        self._is_loaded = self._changed = False
        self._save_at = 0.0
        self._others: dict[str, Any] = {}
        self._holds = Holds(root, NAME, MAX_BYTES)
        self._first_deferred: dict[str, float] = {}
        self._doubts = Doubts()
        self._accepted: dict[str, float] = {}
        self._broken: dict[str, dict[str, float]] = {}
        self._told_s: dict[str, float] = {}
        self._warned = WarnedMessages()
        self._attempts = AttemptHistory()
        self._shown = ShownByServers()

    def take_fault(self) -> str | None:
        """Return, once, why the file could not be read or written; None if there is nothing new."""
        with self._lock:
            fault, self._fault = self._fault, None
            return fault

    # Messages

    def first_deferral(self, name: bytes, what: str = "") -> float:
        """Return when a message was first deferred; if that is not known, note that it is now.

        `what` is `BOUNCE` for its bounce, which a mailer does not take.
        """
        key = _key(name) + what
        now_s = self._wall_clock()
        with self._lock:
            self._load()
            since_s = self._first_deferred.get(key)
            if since_s is None or since_s > now_s:  # or the clock was set back
                since_s = self._first_deferred[key] = now_s
                self._change()
            return since_s

    def forget(self, message_names: Iterable[bytes]) -> None:
        """Forget messages that are done."""
        attempts, warned = self._attempts, self._warned
        with self._lock:
            known = (self._first_deferred, self._accepted, self._broken)
            if not (attempts or warned or self._doubts or any(known)):
                return
            for key in map(_key, message_names):
                if attempts.forget(key) | warned.forget(key) | self._doubts.forget(key):
                    self._change()
                for of_messages in known:
                    for entry in (key, key + BOUNCE):
                        if of_messages.pop(entry, None) is not None:
                            self._change()

    def forget_deferral(self, name: bytes, what: str) -> None:
        """Forget when `what` of a message was first deferred."""
        with self._loaded():
            if self._first_deferred.pop(_key(name) + what, None) is not None:
                self._change()

    def note_attempt(self, name: bytes, text: str) -> None:
        """Record how an attempt ended, for a message that is to be tried again."""
        with self._lock:
            self._load()
            if self._attempts.note(_key(name), text, self._wall_clock()):
                self._change()

    def attempts(self, name: bytes) -> Attempts:
        """Return how often a message was tried, and how the last attempts ended."""
        with self._loaded():
            return self._attempts.of(_key(name))

    def note_in_doubt(self, name: bytes, server: str) -> None:
        """Note that a server may have a message; see `Doubts.note`."""
        with self._loaded():
            if self._doubts.note(_key(name), server, self._wall_clock()):
                self._change()

    def end_doubt(self, name: bytes, server: str) -> None:
        """Note that a server has answered for a message, so that it is in doubt there no more."""
        with self._loaded():
            if self._doubts and self._doubts.end(_key(name), server):
                self._change()

    def in_doubt(self, name: bytes) -> dict[str, float]:
        """Return the servers that may have a message, and since when."""
        with self._loaded():
            return self._doubts.of(_key(name)) if self._doubts else {}

    def note_accepted(self, name: bytes) -> None:
        """Note that a message that stays here was accepted for one of its recipients."""
        with self._loaded():
            self._accepted[_key(name)] = self._wall_clock()
            self._change()

    def was_accepted(self, name: bytes) -> bool:
        """Return whether a message was accepted for a recipient before."""
        with self._loaded():
            return _key(name) in self._accepted

    def note_broken(self, name: bytes, sent: int, length: int) -> None:
        """Note that a connection broke over a message, of which `sent` bytes had arrived."""
        with self._loaded():
            self._broken[_key(name)] = {"at": self._wall_clock(), "sent": sent, "of": length}
            self._change()

    def broken(self, name: bytes) -> tuple[int, int] | None:
        """Return (bytes arrived, length) of a message over which a connection broke, or None."""
        with self._loaded():
            found = self._broken.get(_key(name))
            return None if found is None else (int(found["sent"]), int(found["of"]))

    def was_warned(self, name: bytes, prefix: bytes) -> bool:
        """Return whether a route of this prefix has warned a message's sender of its delay."""
        with self._loaded():
            return self._warned.has(_key(name), state_content.text_of(prefix))

    def note_warned(self, name: bytes, prefix: bytes) -> Noted:
        """Record on disk that a message's sender is being warned; only `NEW` allows the warning."""
        key, of = _key(name), state_content.text_of(prefix)
        with self._loaded():
            if self._warned.has(key, of):
                return Noted.ALREADY
            if not self._warned.add(key, of, self._wall_clock()):
                return Noted.FULL
            self._changed = True
            if self._write():
                return Noted.NEW
            self._warned.remove(key, of)
            return Noted.FAILED

    def forget_warned(self, name: bytes, prefix: bytes) -> None:
        """Forget a warning, which could not be sent."""
        with self._lock:
            if self._warned.remove(_key(name), state_content.text_of(prefix)):
                self._change()

    def keep_warned(self, names: Iterable[bytes], prefix: bytes) -> bool:
        """Forget the warnings for all messages but these; return whether there were any."""
        with self._lock:
            return self._warned.keep(frozenset(map(_key, names)), state_content.text_of(prefix))

    def held(self, *, must_know: bool = False) -> Mapping[str, str]:
        """Return the messages that are on hold now, by `holds.key`, and why; see `Holds.now`."""
        with self._lock:
            return self._holds.now(must_know=must_know)

    # Servers

    def has_shown(self, server: str, what: str) -> bool:
        """Return whether a server has shown `what` within the last 30 days."""
        with self._loaded():
            return self._shown.has(server, what, self._wall_clock())

    def remember(self, server: str, what: str) -> None:
        """Note that a server has shown `what` now."""
        with self._loaded():
            if self._shown.note(server, what, self._wall_clock()):
                self._change()

    def forget_shown(self, server: str, what: str) -> None:
        """Note that a server has shown that `what` no longer holds."""
        with self._loaded():
            if self._shown.forget(server, what):
                self._change()

    def note_stop(self, why: str) -> None:
        """Note why a run has left messages; empty once a server is reached."""
        with self._loaded():
            if why != self._stop:
                self._stop = why
                self._change()

    def last_stop(self) -> str:
        """Return why the last run has left messages; empty if it reached a server."""
        with self._loaded():
            return self._stop

    # Hints

    def may_tell(self, what: str, every_s: float) -> bool:
        """Return whether a hint may be given, once in `every_s` seconds; if so, note that it is."""
        now_s = self._wall_clock()
        with self._loaded():
            if 0 <= now_s - self._told_s.get(what, 0.0) < every_s:
                return False
            self._told_s[what] = now_s
            self._change()
            return True

    # The file

    def _change(self) -> None:
        if not self._changed:
            self._changed = True
            self._save_at = self._clock() + SAVE_S

    @property
    def next_deadline(self) -> float | None:
        """The clock's time at which `save_if_due` will have something to do."""
        return self._save_at if self._changed else None

    def save_if_due(self) -> None:
        """Write the file if something has changed, at most every 30 s."""
        if self._changed and self._clock() >= self._save_at:
            self.save()

    def save(self) -> None:
        """Write the file if something has changed."""
        with self._lock:
            if self._changed:
                self._write()

    def _write(self) -> bool:
        self._changed = False
        try:
            # Durable only with holds or warnings: all else that a power cut takes is found out
            # again. The file of a shard has one writer, and needs no lock.
            with holds.locked(self._root) if self._name == NAME else nullcontext():
                # The holds of all shards are in the file that belongs to no shard.
                held = self._holds.content() if self._name == NAME else {}
                data = self._encoded(held)
                files.replace(self._root, self._name, data, durable=bool(self._warned or held))
        except LocalError as error:
            self._change()  # it is tried again
            self._tell(str(error))
            return False
        return True

    def _tell(self, fault: str) -> None:
        if fault != self._told:
            self._fault = self._told = fault

    def _encoded(self, held: dict[str, Any]) -> bytes:
        """Return the file's bytes. Raises `LocalError` if they are too many."""
        self._forget_old()
        content = {
            **self._others,
            "version": VERSION,
            "first_deferred": self._first_deferred,
            "accepted": self._accepted,
            "in_doubt": self._doubts.content(),
            "broken": self._broken,
            "told": self._told_s,
            "servers": self._shown.content(),
            "held": held,
            "warned": self._warned.content(),
            "stop": self._stop,
        }
        for key in ("accepted", "in_doubt", "held", "warned", "stop"):
            if not content[key]:
                del content[key]
        data = encoded(content, self._attempts, MAX_BYTES)
        if data is None:
            path = printable(self._root.join(self._name))
            raise LocalError(f"{path} would have more than {MAX_BYTES} bytes")
        return data

    def _forget_old(self) -> None:
        now_s = self._wall_clock()
        self._attempts.forget_older(now_s - FORGOTTEN_S)
        self._warned.forget_older(now_s - WARNED_S)
        self._doubts.forget_older(now_s - doubts.FORGOTTEN_S)
        self._shown.forget_older(now_s - SERVER_S)
        self._first_deferred = state_content.newer(self._first_deferred, now_s - DEFERRAL_S)
        self._accepted = state_content.newer(self._accepted, now_s - DEFERRAL_S)
        self._broken = {n: b for n, b in self._broken.items() if now_s - b["at"] < DEFERRAL_S}

    @contextmanager
    def _loaded(self) -> Iterator[None]:
        with self._lock:
            self._load()
            yield

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        path = printable(self._root.join(self._name))
        try:
            data = files.load(self._root, self._name, MAX_BYTES)
        except FileNotFoundError:
            return
        except OSError as error:
            self._tell(f"cannot read {path}: {error.strerror}; beginning it anew")
            return
        if not data:
            return  # what a power cut leaves of a file that was not made durable
        try:
            self._take(data)
        except (ValueError, RecursionError) as error:
            self._tell(f"{path} is of no use: {error}; beginning it anew")

    def _take(self, data: bytes) -> None:
        """Load the file's content. Raises `ValueError` if it is not that of a state file."""
        content = state_content.checked(data, VERSION)
        first_deferred = state_content.take_times(content, "first_deferred")
        in_doubt = state_content.take_tables(content, "in_doubt")
        accepted = state_content.take_times(content, "accepted")
        content.pop("held", None)
        attempts = content.pop("attempts", None)
        broken = state_content.take_tables(content, "broken")
        if any(how.keys() != {"at", "sent", "of"} for how in broken.values()):
            raise ValueError("'broken' has something else")
        told_s = state_content.take_times(content, "told")
        warned = state_content.take_times(content, "warned")
        stop = state_content.take_text(content, "stop")
        self._shown = ShownByServers(state_content.take_tables(content, "servers"))
        self._attempts.take(attempts)
        self._told_s = told_s
        self._warned.take(warned)
        self._broken = broken
        self._doubts = Doubts(in_doubt)
        self._accepted = accepted
        self._first_deferred = first_deferred
        self._stop = stop
        self._others = content
