"""Messages that an administrator holds back: by name, in the state file of the maildir.

    {"version": 1, ..., "held": {"UNIQUE NAME": 1800000000, "ANOTHER": {"bounce": 1800000000}}}

The time is that of the hold. With `bounce` it is one of `qmtpq bounce`, for as long as that works;
killed, it leaves it, since the sender may have been told. Forwarders only read `held`; it is
written by `change` alone. Since they write the rest of the file, each of them writes under the
lock of DIR/.maildirqmtp-state-lock, and with what `held` is at that moment.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import files, names
from maildirqmtp.maildir.files import Folder, Identity, identity_of, local_error
from maildirqmtp.text import LAST_S, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

LOCK_NAME = b".maildirqmtp-state-lock"
#: Messages that may be held at the same time: the file has a limit.
MOST = 5_000
#: What people are told of a held message, and of one that `qmtpq bounce` holds, or has left so.
REASON = "an administrator holds it; qmtpq release lets it go"
BOUNCING = "qmtpq bounce is at work, or was killed amid that; bounce it again, or release it"
#: Seconds that another writer of the file is waited for.
_WAIT_S = 10.0
_POLL_S = 0.02
#: Errors of this moment, not of the file.
_PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def key(name: bytes) -> str:
    """Return how the state file calls a message: as its writer named it."""
    return names.plain(name).decode("utf-8", "surrogateescape")


class Holds:
    """The messages that are held, as a running forwarder sees them; `root` is the maildir's own.

    Looked up in the file only where that is another than the last time.
    """

    def __init__(self, root: Folder, name: bytes, max_bytes: int) -> None:
        self._root = root
        self._name = name
        self._max_bytes = max_bytes
        self._seen: Identity | None = None
        self._held: dict[str, str] = {}

    def now(self) -> Mapping[str, str]:
        """Return the messages that are held now, by their `key`, and why.

        A file that cannot be read holds what it held before.
        """
        try:
            status = os.stat(self._name, dir_fd=self._root.fd, follow_symlinks=False)
        except FileNotFoundError:
            self._seen, self._held = None, {}
            return self._held
        except OSError:
            return self._held
        if identity_of(status) != self._seen:
            try:
                data, self._seen = files.load_known(self._root, self._name, self._max_bytes)
                held = _held_of(_loaded(data))
                self._held = {n: BOUNCING if type(at) is dict else REASON for n, at in held.items()}
            except (OSError, ValueError, RecursionError):
                return self._held
        return self._held

    def content(self) -> dict[str, Any]:
        """Return what the file says of them now; nothing where it is of no use.

        Raises `LocalError` where that cannot be told now: who wrote the file anew would release
        them. A file that is none is of no use for ever.
        """
        try:
            return _held_of(_loaded(files.load(self._root, self._name, self._max_bytes)))
        except (ValueError, RecursionError):
            return {}
        except OSError as error:
            if error.errno in _PASSING:
                raise local_error("read", self._root.join(self._name), error) from error
            return {}


def _loaded(data: bytes) -> Any:
    import json

    # Empty is what a power cut leaves of a file that was not made durable.
    return json.loads(data or b'{"version": 1}')


def _held_of(content: Any) -> dict[str, Any]:
    """Return `held` of a state file. Raises `ValueError` for what is none."""
    held = content.get("held", {}) if isinstance(content, dict) else None
    if not isinstance(held, dict):
        raise ValueError("'held' is no object")
    return {
        name: at
        for name, at in held.items()
        if _is_time(at.get("bounce") if isinstance(at, dict) else at)
    }


def _is_time(at: object) -> bool:
    # Not a bool, and nothing of hundreds of digits.
    return isinstance(at, int | float) and not isinstance(at, bool) and 0 <= at < LAST_S


@contextmanager
def locked(root: Folder) -> Iterator[None]:
    """Keep other writers of the state file away, for a moment. Raises `LocalError`."""
    path = root.join(LOCK_NAME)
    try:
        with suppress(FileExistsError):
            os.close(files.create(root, LOCK_NAME))
        fd = os.open(LOCK_NAME, _OPEN, dir_fd=root.fd)
    except OSError as error:
        raise local_error("open", path, error) from error
    try:
        give_up = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise LocalError(f"{printable(path)} is locked by another process") from None
                time.sleep(_POLL_S)
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
    """Hold these messages, and release those; durable when this returns. Raises `LocalError`.

    `name` is that of the state file, and `max_bytes` its limit. Its other content is left as it is.
    `bouncing`: for `qmtpq bounce`; what an administrator holds stays theirs.
    """
    import json

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
        data = json.dumps(content, indent=0).encode("ascii")
        if len(data) > max_bytes:
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
