"""Messages that an administrator holds back: by name, in the state file of the maildir.

    {"version": 1, ..., "held": {"UNIQUE NAME": 1800000000, "ANOTHER": {"bounce": 1800000000}}}

The time is when the hold began. `bounce` marks a hold by `qmtpq bounce`, for as long as that runs;
if it is killed, the hold stays, since the sender may have been told. Forwarders only read `held`;
`change` alone changes it. Since forwarders write the rest of the file, each writer locks
DIR/.maildirqmtp-state-lock, and a forwarder writes `held` as it is in the file at that moment.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import files, locking, names
from maildirqmtp.maildir.attempts import AttemptHistory
from maildirqmtp.maildir.files import Folder, Identity, identity_of, local_error
from maildirqmtp.maildir.state_size import encoded
from maildirqmtp.text import LAST_S, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

LOCK_NAME = b".maildirqmtp-state-lock"
#: Messages that may be held at the same time: the file has a limit.
MOST = 5_000
#: The reason shown for a held message, and for one that `qmtpq bounce` holds, or has left on hold.
REASON = "an administrator holds it; qmtpq release lets it go"
BOUNCING = "qmtpq bounce is at work, or was killed amid that; bounce it again, or release it"
#: Seconds to wait for another writer of the file.
_WAIT_S = 10.0
#: Errors that may pass, and say nothing about the file.
_PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def key(name: bytes) -> str:
    """Return a message's key in the state file: its unique name as its writer made it."""
    return names.plain(name).decode("utf-8", "surrogateescape")


class Holds:
    """The messages on hold, as a running forwarder sees them; `root` is the maildir's directory.

    The file is read again only if its identity has changed since the last look.
    """

    def __init__(self, root: Folder, name: bytes, max_bytes: int) -> None:
        self._root = root
        self._name = name
        self._max_bytes = max_bytes
        self._seen: Identity | None = None
        self._raw: dict[str, Any] = {}
        self._held: dict[str, str] = {}

    def now(self, *, must_know: bool = False) -> Mapping[str, str]:
        """Return the messages that are on hold now, by their `key`, and why.

        If the file cannot be read, the holds seen last stay in force. With `must_know`, raises
        `LocalError` if this user may not read it: nobody knows then what is on hold.
        """
        try:
            status = os.stat(self._name, dir_fd=self._root.fd, follow_symlinks=False)
        except FileNotFoundError:
            self._seen, self._raw, self._held = None, {}, {}
            return self._held
        except OSError:
            return self._held
        if identity_of(status) != self._seen:
            try:
                data, self._seen = files.load_known(self._root, self._name, self._max_bytes)
                self._take(_held_of(_loaded(data)))
            except (OSError, ValueError, RecursionError) as error:
                if must_know and isinstance(error, PermissionError):
                    raise local_error("read", self._root.join(self._name), error) from error
                return self._held
        return self._held

    def _take(self, held: dict[str, Any]) -> None:
        self._raw = held
        self._held = {n: BOUNCING if type(at) is dict else REASON for n, at in held.items()}

    def content(self) -> dict[str, Any]:
        """Return `held` as it is in the file now, or was last, if the file is unusable now.

        Raises `LocalError` if it cannot be read for a reason that may pass, or by this user: to
        replace the file then would release the messages.
        """
        try:
            self._take(_held_of(_loaded(files.load(self._root, self._name, self._max_bytes))))
        except FileNotFoundError:
            self._take({})
        except (ValueError, RecursionError):
            pass
        except OSError as error:
            if error.errno in _PASSING or isinstance(error, PermissionError):
                raise local_error("read", self._root.join(self._name), error) from error
        return self._raw


def _loaded(data: bytes) -> Any:
    import json

    # A power cut may leave a file empty that was not made durable.
    return json.loads(data or b'{"version": 1}')


def _held_of(content: Any) -> dict[str, Any]:
    """Return the valid holds of a state file. Raises `ValueError` if it has no table of them."""
    held = content.get("held", {}) if isinstance(content, dict) else None
    if not isinstance(held, dict):
        raise ValueError("'held' is no object")
    return {
        name: at
        for name, at in held.items()
        if _is_time(at.get("bounce") if isinstance(at, dict) else at)
    }


def _is_time(at: object) -> bool:
    # No bool, no NaN, and no number of hundreds of digits.
    return isinstance(at, int | float) and not isinstance(at, bool) and 0 <= at < LAST_S


@contextmanager
def locked(root: Folder) -> Iterator[None]:
    """Lock out other writers of the state file for a moment.

    Raises `LocalError` if it cannot be locked, also when another writer has it for over 10 s.
    """
    path = root.join(LOCK_NAME)
    try:
        with suppress(FileExistsError):
            os.close(files.create(root, LOCK_NAME))
        fd = os.open(LOCK_NAME, _OPEN, dir_fd=root.fd)
    except OSError as error:
        raise local_error("open", path, error) from error
    try:
        if not locking.flock_within(fd, _WAIT_S):
            raise LocalError(f"{printable(path)} is locked by another process")
        yield
    except OSError as error:
        raise local_error("lock", path, error) from error
    finally:
        os.close(fd)


def change(
    root: Folder,
    name: bytes,
    max_bytes: int,
    *,
    hold: Iterable[bytes],
    release: Iterable[bytes],
    bouncing: bool = False,
) -> None:
    """Put messages on hold, and release others; durable when this returns.

    `name` is that of the state file, and `max_bytes` its limit. Its other content is left as it is,
    if there is room for it. `bouncing` is for `qmtpq bounce`, and leaves holds by an administrator
    alone. Raises `LocalError` if the file cannot be locked, read or written, or would exceed a
    limit.
    """
    with locked(root):
        content = _content(root, name, max_bytes)
        held = _held_of(content)
        now_s = int(time.time())
        for message in hold:
            if not _is_time(held.get(key(message))):
                held[key(message)] = {"bounce": now_s} if bouncing else now_s
        for message in release:
            if not (bouncing and _is_time(held.get(key(message)))):
                held.pop(key(message), None)
        if len(held) > MOST:
            raise LocalError(
                f"at most {MOST:,} messages of {printable(root.path)} can be held; stop the daemon "
                f"in their place"
            )
        content["held"] = held
        if not held:
            del content["held"]
        attempts = AttemptHistory()
        attempts.take(content.get("attempts"))
        data = encoded(content, attempts, max_bytes)
        if data is None:
            raise LocalError(f"{printable(root.join(name))} would have more than {max_bytes} bytes")
        files.replace(root, name, data)


def _content(root: Folder, name: bytes, max_bytes: int) -> dict[str, Any]:
    path = printable(root.join(name))
    try:
        content = _loaded(files.load(root, name, max_bytes))
        _held_of(content)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return {"version": 1}
        raise local_error("read", root.join(name), error) from error
    except (ValueError, RecursionError) as error:
        raise LocalError(f"{path} is of no use: {error}; remove it") from None
    if not isinstance(content, dict) or content.get("version") != 1:
        raise LocalError(f"{path} is not of version 1; use the qmtpq of the daemon's version")
    return content
