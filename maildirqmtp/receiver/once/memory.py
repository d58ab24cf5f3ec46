"""What was accepted, on disk, in an SQLite database.

A row is a key, SHA-256 over recipient, sender and text, and the time at which it was
accepted. If the mail is delivered as a file in a maildir, the row has the file's name first:

    | state                              | after a crash the row counts as accepted             |
    | ---------------------------------- | ---------------------------------------------------- |
    | row with a name, file in tmp/      | never: nothing was delivered                         |
    | the same, file in new/ or cur/     | always; these are made durable first                 |
    | the same, file in none of them     | if written since the machine booted, within a day,   |
    |                                    | and for the maildir that is at the path now: it was  |
    |                                    | in its new/, and was read or sent on since           |
    | row without a name                 | always                                               |

The next `accept` after a delivery clears the name, and so does `close`. A row that does not count,
as after a power cut, is forgotten: the message is delivered twice rather than never.

An `accept` whose last fsync fails may have left whole rows in SQLite's journal. This process does
not see them, but a start after a crash does, unless a later transaction has overwritten them.
So the file of a delivery that is taken back goes only after `forget` has done that.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from hashlib import sha256
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import names
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

#: Seconds for which a missing file counts as delivered: fewer than the 36 hours of tmp/'s cleanup.
TRUSTED_S = 86_400.0
#: Least seconds between two removals of expired keys.
EXPIRE_EVERY_S = 60.0

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS accepted (
    key BLOB PRIMARY KEY, at_s INTEGER NOT NULL, name BLOB, boot TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS accepted_at ON accepted (at_s);
CREATE INDEX IF NOT EXISTS accepted_name ON accepted (name) WHERE name IS NOT NULL;
PRAGMA user_version = 1;
"""
_VERSION = 1


def text_digest(pieces: Iterable[bytes]) -> bytes:
    """Return the digest that identifies a text. Raises what reading `pieces` raises."""
    digest = sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def key_of(text: bytes, sender: bytes, recipient: bytes) -> bytes:
    """Return the key of one recipient of a text, given the text's digest."""
    return sha256(
        b"%b%d:%b,%d:%b," % (text, len(sender), sender, len(recipient), recipient)
    ).digest()


class Memory:
    """The database at `path`, which is made if it is missing; for one process, and any thread.

    Keys older than `keep_s` seconds are forgotten. `now` is seconds since the
    epoch. Raises `LocalError` if it cannot be used, or another process has it open.
    """

    def __init__(self, path: str, keep_s: float, now: Callable[[], float]) -> None:
        self._path = path
        self._keep_s = keep_s
        self._now = now
        #: Boot of the machine and maildir, as in a row's `boot`; empty until it is known.
        self._place = ""
        self._expire_at_s = 0.0
        self._lock = threading.Lock()
        self._delivered: list[bytes] = []
        #: Keys that may be in the database, but do not count: their files are not in new/ yet. What
        #: is taken back stays here until it is forgotten, whatever fails meanwhile.
        self._staged: set[bytes] = set()
        #: True while the journal may hold rows of an `accept` that failed.
        self._is_in_doubt = False
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            self._database = sqlite3.connect(
                path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise self._trouble("open", error) from error
        try:
            self._open()
        except sqlite3.Error as error:
            self._database.close()
            raise self._trouble("use", error) from error

    def _open(self) -> None:
        database = self._database
        # Set before the journal mode, so that SQLite makes no file for shared memory.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise sqlite3.DatabaseError("a later version of this program made it")
        database.executescript(_SCHEMA)
        # The lock has been held since the journal mode was set; without keys, this changes nothing.
        self._forget([])

    def _trouble(self, doing: str, error: Exception) -> LocalError:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            reason = "another qmtpmaildir has it; give each a file of its own (--once-file)"
        return LocalError(f"cannot {doing} {printable(os.fsencode(self._path))}: {reason}")

    def recover(self, path: bytes | None) -> None:
        """Decide which deliveries that a crash may have cut off count as accepted.

        `path` is the maildir, None if mail is not delivered into one. Call it before anything else,
        and before tmp/ is cleaned. Raises `LocalError` if the database or the maildir cannot be
        used.
        """
        self._place = "" if path is None else _place(path)
        try:
            rows = self._database.execute(
                "SELECT key, at_s, name, boot FROM accepted WHERE name IS NOT NULL"
            ).fetchall()
            if not rows:
                return
            staged, delivered = (set(), set()) if path is None else _files(path)
            trusted_s = self._now() - TRUSTED_S
            lost = []
            for key, at_s, name, boot in rows:
                is_recent = bool(boot) and boot == self._place and at_s > trusted_s
                if name not in delivered and (name in staged or not is_recent):
                    lost.append(key)
            with self._transaction():
                self._forget(lost)
                self._database.execute("UPDATE accepted SET name = NULL WHERE name IS NOT NULL")
        except sqlite3.Error as error:
            raise self._trouble("use", error) from error

    def _forget(self, keys: Iterable[bytes]) -> None:
        self._database.executemany("DELETE FROM accepted WHERE key = ?", [(key,) for key in keys])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._database.in_transaction:  # an earlier ROLLBACK has failed
            self._database.execute("ROLLBACK")
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def knows(self, key: bytes) -> bool:
        """Return whether a key was accepted in the last `keep_s` seconds.

        False for a key whose delivery was not carried out; nothing may be under way to it.
        Raises `LocalError` if the database cannot be read, or has not been written to since a
        `forget` failed: each further try would leave a file in tmp/.
        """
        try:
            with self._lock:
                if self._is_in_doubt:
                    self._overwrite([])
                if key in self._staged:
                    return False
                row = self._database.execute(
                    "SELECT at_s FROM accepted WHERE key = ?", (key,)
                ).fetchone()
        except sqlite3.Error as error:
            raise self._trouble("read", error) from error
        return row is not None and row[0] > self._now() - self._keep_s

    def accept(self, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Remember keys, durable when this returns; each with the name of its file, or None.

        One with a name counts once it is `delivered`. Raises `LocalError` if the database cannot
        be written; after any error, `forget` the keys before the files go.
        """
        now_s = self._now()
        rows = [(key, int(now_s), name, self._place) for key, name in entries]
        try:
            with self._lock:
                self._staged.update(key for key, name in entries if name is not None)
                self._write(rows, now_s)
        except sqlite3.Error as error:
            raise self._trouble("write", error) from error

    def _write(self, rows: Sequence[tuple[bytes, int, bytes | None, str]], now_s: float) -> None:
        done = self._delivered
        with self._transaction():
            self._expire(now_s)
            self._clear_names(done)
            self._database.executemany("INSERT OR REPLACE INTO accepted VALUES (?, ?, ?, ?)", rows)
        self._delivered = self._delivered[len(done) :]

    def _clear_names(self, delivered: Iterable[bytes]) -> None:
        self._database.executemany(
            "UPDATE accepted SET name = NULL WHERE name = ?", [(name,) for name in delivered]
        )

    def _expire(self, now_s: float) -> None:
        if now_s >= self._expire_at_s:
            self._expire_at_s = now_s + EXPIRE_EVERY_S
            self._database.execute(
                "DELETE FROM accepted WHERE at_s <= ?", (int(now_s - self._keep_s),)
            )

    def delivered(self, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Note that the files of keys are in new/; durable with the next `accept`, or `close`."""
        with self._lock:
            self._delivered += [name for _, name in entries if name is not None]
            self._staged.difference_update(key for key, _ in entries)

    def forget(self, keys: Sequence[bytes]) -> None:
        """Forget keys whose delivery is taken back, durable when this returns.

        Raises `LocalError` if the database cannot be written. After that, or any other error, they
        do not count in this process, but a crash may bring them back: their files must stay, so
        that the next start finds these in tmp/.
        """
        with self._lock:
            self._is_in_doubt = True
            self._overwrite(keys)

    def _overwrite(self, keys: Sequence[bytes]) -> None:
        """Forget keys, and overwrite what an `accept` that failed may have left in the journal."""
        try:
            with self._transaction():
                # Without any change SQLite writes nothing; this counts as one, to the same value.
                self._database.execute(f"PRAGMA user_version = {_VERSION}")
                self._forget(keys)
        except sqlite3.Error as error:
            raise self._trouble("write", error) from error
        self._is_in_doubt = False
        self._staged.difference_update(keys)

    def close(self) -> None:
        """Close the database; harmless twice.

        What was delivered counts from then on, wherever its files go until the next start.
        """
        with self._lock, contextlib.closing(self._database), contextlib.suppress(sqlite3.Error):
            if self._delivered:
                with self._transaction():
                    self._clear_names(self._delivered)
                self._delivered = []


def _files(path: bytes) -> tuple[set[bytes], set[bytes]]:
    """Make new/ and cur/ durable; return the names in tmp/, and those in new/ and cur/.

    The latter are without what mail readers add. Raises `LocalError` if it cannot be used.
    """
    with Maildir(path) as maildir:
        maildir.new.sync()
        maildir.cur.sync()
        try:
            staged = set(map(os.fsencode, os.listdir(maildir.tmp.fd)))
            delivered = {
                names.plain(os.fsencode(name))
                for folder in (maildir.new, maildir.cur)
                for name in os.listdir(folder.fd)
            }
        except OSError as error:
            raise local_error("list", path, error) from error
    return staged, delivered


def _place(path: bytes) -> str:
    """Return what a maildir is known by until the machine boots again; empty if nothing tells.

    Raises `LocalError` if it cannot be used.
    """
    boot = _boot_id()
    with Maildir(path) as maildir:
        status = os.fstat(maildir.new.fd)
    return boot and f"{boot} {status.st_dev}:{status.st_ino}"


def _boot_id() -> str:
    """Return an ID that changes with each boot of the machine; empty if it cannot be read."""
    try:
        with open(_BOOT_ID) as file:
            return file.read().strip()
    except OSError:
        return ""
