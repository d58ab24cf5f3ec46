"""Watching a directory for files that appear. The only importer of watchdog.

What it tells is a hint, never the truth: the kernel's queue may overflow, the
directory may be replaced, unmounted, or on another machine, and there may be no
inotify instance left. The caller scans from time to time, and calls `check` with
each scan.

watchdog is asked for as little as will do: names that appear, and the end of the
directory itself. What leaves is not asked for, for three reasons: we would wake
ourselves with each message we remove; watchdog holds back every later event for
half a second after a name that was moved away, waiting for its other half; and it
keeps such halves in memory.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchdog.observers.api import BaseObserver

#: File systems on which other machines make files, of which this kernel hears nothing.
_REMOTE = frozenset(
    {"9p", "afs", "ceph", "cifs", "coda", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3"}
)
#: Seconds that a thread of watchdog is waited for when it has been told to end.
_END_S = 5.0


class Watch:
    """Watches one directory, from `check` on until `close`.

    `hint` is called from other threads, and has to be quick: with the name of a
    file that has appeared, or None for anything else. `say` is called, in the
    caller's thread, when watching turns out to be impossible, and when it works
    again after that.
    """

    def __init__(
        self, directory: bytes, hint: Callable[[bytes | None], None], say: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._hint = hint
        self._say = say
        self._observer: BaseObserver | None = None
        self._said = ""
        self._hopeless = False

    @property
    def watching(self) -> bool:
        """True while events can be hoped for."""
        return self._observer is not None

    def check(self) -> None:
        """Begin to watch, or see whether that still works, and mend it where it does not."""
        if self._observer is not None and not _is_alive(self._observer):
            self.close()
        if self._observer is not None or self._hopeless:
            return
        kind = file_system(self._directory)
        if kind in _REMOTE or kind.startswith("fuse"):
            self._cannot(f"is on {kind}, where other machines' files make no events")
            return
        try:
            self._observer = _observe(self._directory, self._hint)
        except OSError as error:
            self._cannot(_reason(error))
            return
        except RuntimeError as error:
            # No thread is left; and each try would leave descriptors of watchdog's open.
            self._hopeless = True
            self._cannot(f"cannot be watched: {error}")
            return
        if self._said:
            self._say("watching for events again")
            self._said = ""

    def _cannot(self, why: str) -> None:
        if why != self._said:
            self._say(f"cannot wait for events of new/: it {why}; looking from time to time")
            self._said = why

    def close(self) -> None:
        """Stop watching."""
        observer, self._observer = self._observer, None
        if observer is not None:
            _overheard.listeners.discard(self._hint)
            _end(observer)


def _reason(error: OSError) -> str:
    limits = {errno.EMFILE: "fs.inotify.max_user_instances", errno.ENOSPC: "max_user_watches"}
    limit = limits.get(error.errno or 0)
    return f"cannot be watched: {error.strerror}" + (f" (see {limit})" if limit else "")


def file_system(path: bytes) -> str:
    """Return the type of the file system that a path is on; empty where nobody tells."""
    try:
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                left, _, right = line.partition(" - ")
                if left.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                    return right.split()[0]
    except OSError:
        pass  # no /proc, or no such directory: whoever scans it will say so
    return ""


def _observe(directory: bytes, hint: Callable[[bytes | None], None]) -> BaseObserver:
    """Start watchdog on a directory. Raises `OSError`."""
    from watchdog import events
    from watchdog.observers import Observer

    class Handler(events.FileSystemEventHandler):
        def on_any_event(self, event: events.FileSystemEvent) -> None:
            if isinstance(event, events.FileCreatedEvent):
                hint(os.path.basename(os.fsencode(event.src_path)))
            else:
                hint(None)

    observer = _without_leavers() or Observer()
    try:
        observer.start()
        observer.schedule(
            Handler(),
            os.fsdecode(directory),
            recursive=False,
            event_filter=[
                events.FileCreatedEvent,
                events.FileMovedEvent,
                events.DirDeletedEvent,
            ],
        )
    except BaseException:
        _end(observer)
        raise
    _overhear(hint)
    return observer


def _without_leavers() -> BaseObserver | None:
    """Return an observer that asks inotify for nothing but what appears; None without inotify."""
    try:
        from watchdog.observers.inotify import InotifyEmitter, InotifyObserver
        from watchdog.observers.inotify_c import InotifyConstants, Mask
    except ImportError:
        return None  # another system than Linux

    class Emitter(InotifyEmitter):
        def get_event_mask_from_filter(self) -> Mask:
            return Mask(
                InotifyConstants.IN_CREATE
                | InotifyConstants.IN_MOVED_TO
                | InotifyConstants.IN_DELETE_SELF
            )

    observer = InotifyObserver()
    observer._emitter_class = Emitter  # noqa: SLF001 (watchdog has no other way)
    return observer


class _Overhear(logging.Handler):
    """Listens to watchdog's own log, where alone it tells that events were lost."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.listeners: set[Callable[[bytes | None], None]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a warning of watchdog for an event."""
        for hint in list(self.listeners):
            hint(None)


_overheard = _Overhear()
_overheard_lock = threading.Lock()


def _overhear(hint: Callable[[bytes | None], None]) -> None:
    logger = logging.getLogger("watchdog")
    with _overheard_lock:
        _overheard.listeners.add(hint)
        if _overheard not in logger.handlers:
            logger.addHandler(_overheard)
            # Its lines are about inotify; ours, about the maildir, go to the log.
            logger.propagate = False


def _is_alive(observer: BaseObserver) -> bool:
    reader = getattr(observer, "_inotify_fd", observer)
    emitters = list(observer.emitters)
    return (
        observer.is_alive()
        and reader.is_alive()
        and bool(emitters)
        and all(emitter.is_alive() for emitter in emitters)
    )


def _end(observer: BaseObserver) -> None:
    # What it has for ill-timed endings is no business of ours: it is thrown away.
    with contextlib.suppress(OSError, RuntimeError):
        observer.stop()
        observer.join(_END_S)
