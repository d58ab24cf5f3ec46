"""Watch directories for files that appear, by one inotify instance. Only this imports watchdog.

An event is a hint, never the truth: the kernel's queue may overflow, the directory
may be replaced, unmounted, or on another machine, and there may be no inotify
instance left. So the caller scans from time to time, and calls `check` with each scan.

The kernel is asked for as little as possible: names that appear, and the end of the
directory itself. Names that disappear are left out: each message we remove would wake us.

This uses watchdog's reader of an inotify instance, not the observers above it. Those would
take a thread for each directory, hold back every later event for half a second after a name
was moved away, and report nothing from a directory that is scheduled again after its
emitter has ended.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from typing import TYPE_CHECKING

from maildirqmtp.descriptor_limit import reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchdog.observers.inotify_c import InotifyEvent, InotifyFD, WatchDescriptor

#: File systems on which other machines can make files without an event in this kernel.
_REMOTE = frozenset(
    {"9p", "afs", "ceph", "cifs", "coda", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3"}
)
#: The most seconds to wait for the end of watchdog's thread.
_END_S = 5.0
#: The events that are asked for (inotify(7)): IN_MOVED_TO, IN_CREATE, IN_DELETE_SELF; and the
#: flags IN_ONLYDIR and IN_DONT_FOLLOW: only a directory, not a link to one.
APPEARS = 0x80 | 0x100 | 0x400
_MASK = APPEARS | 0x0100_0000 | 0x0200_0000


def load() -> None:
    """Import watchdog, so that no route has to. If that fails, the first watch reports it."""
    with contextlib.suppress(ImportError):
        import watchdog.observers.inotify_c  # noqa: F401


class Watcher:
    """The inotify instance of a process, and the watches on it; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader: InotifyFD | None = None
        self._watches: set[Watch] = set()
        #: Why this process can never have an instance; empty while it can.
        self._hopeless = ""

    def add(self, watch: Watch) -> None:
        """Have the kernel report events to a watch. Raises `OSError` if it cannot now, and
        `RuntimeError`, or `ImportError` without watchdog, if this process never can.
        """
        with self._lock:
            if self._reader is None or not self._reader.is_alive():
                self._begin()
            try:
                self._add(watch)
                self._watches.add(watch)
            finally:
                if not self._watches:
                    self._end()

    def remove(self, watch: Watch) -> None:
        """Report nothing more to a watch; without watches there is no instance and no thread."""
        with self._lock:
            if watch in self._watches:
                self._watches.discard(watch)
                self._forget(watch)
            if not self._watches:
                self._end()

    def has(self, watch: Watch) -> bool:
        """Return whether events of a watch can be expected."""
        reader = self._reader
        return reader is not None and reader.is_alive() and watch.is_known

    def _begin(self) -> None:
        """Make an instance, and give it all watches of one that has ended."""
        from watchdog.observers.inotify_c import InotifyFD

        if self._hopeless:
            raise RuntimeError(self._hopeless)
        self._end()
        reader = InotifyFD()
        logger = logging.getLogger("watchdog")
        if not logger.handlers:
            # Its lines are about inotify; the log gets ours, about the maildir.
            logger.addHandler(logging.NullHandler())
            logger.propagate = False
        try:
            reader.start()
        except RuntimeError as error:
            # There is no thread for it, and each try would leak descriptors of watchdog's.
            self._hopeless = str(error)
            raise
        self._reader = reader
        for watch in self._watches:
            # Where this fails, the watch's own next check says why.
            with contextlib.suppress(OSError):
                self._add(watch)
            watch.hint(None)  # what came meanwhile was not told

    def _add(self, watch: Watch) -> None:
        from watchdog.observers.inotify_c import CallbackId, Mask

        assert self._reader is not None
        self._forget(watch)
        watch.ended = None
        key = CallbackId(id(watch))
        watch.descriptor = self._reader.add_callback(watch.directory, Mask(_MASK), watch, key)
        if watch.descriptor < 0:  # watchdog takes that for a success
            self._forget(watch)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def _forget(self, watch: Watch) -> None:
        from watchdog.observers.inotify_c import CallbackId

        descriptor, watch.descriptor = watch.descriptor, None
        if descriptor is not None and descriptor != watch.ended and self._reader is not None:
            # The directory may have gone this very moment.
            with contextlib.suppress(OSError):
                self._reader.remove_callbacks([(descriptor, CallbackId(id(watch)))])

    def _end(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            # An instance that is broken may not be able to remove its watches.
            with contextlib.suppress(OSError, RuntimeError):
                reader.stop()
                reader.join(_END_S)


class Watch:
    """Watches one directory, from `check` on until `close`.

    `hint` is called from another thread, and has to be quick: with the name of a
    file that has appeared, or None for anything else. `say` is called, in the
    caller's thread, when watching turns out to be impossible, and when it works
    again after that. `descriptor` is the kernel's number of the watch, `ended` one
    that the kernel has removed; `Watcher` sets both.
    """

    def __init__(
        self,
        directory: bytes,
        hint: Callable[[bytes | None], None],
        say: Callable[[str], None],
        watcher: Watcher,
    ) -> None:
        self.directory = directory
        self.hint = hint
        self.descriptor: WatchDescriptor | None = None
        self.ended: WatchDescriptor | None = None
        self._say = say
        self._said = ""
        self._hopeless = False
        self._watcher = watcher

    @property
    def is_known(self) -> bool:
        """True while the kernel has this watch."""
        return self.descriptor is not None and self.descriptor != self.ended

    @property
    def watching(self) -> bool:
        """True while events can be expected."""
        return self._watcher.has(self)

    def check(self) -> None:
        """Begin to watch, or repair a watch that does not work any more."""
        if self._hopeless or self.watching:
            return
        kind = file_system(self.directory)
        if kind in _REMOTE or kind.startswith("fuse"):
            self._cannot(f"is on {kind}, where other machines' files make no events")
            return
        try:
            self._watcher.add(self)
        except OSError as error:
            self._cannot(_reason(error))
            return
        except (RuntimeError, ImportError) as error:
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
        self._watcher.remove(self)

    # Called by watchdog, in its thread

    def on_event(self, event: InotifyEvent) -> None:
        """Pass on that a file has appeared, or that the directory has gone."""
        if not event.name:
            self.hint(None)
        # Dot-files are no messages. Our own probe is one: a route that makes it would wake itself.
        elif not (event.is_directory or event.name.startswith(b".")):
            self.hint(event.name)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Note that the kernel has removed the watch: the directory is gone, or unmounted."""
        self.ended = wd
        self.hint(None)

    def on_queue_overflow(self) -> None:
        """Pass on that events were lost."""
        self.hint(None)


def _reason(error: OSError) -> str:
    limits = {errno.EMFILE: "fs.inotify.max_user_instances", errno.ENOSPC: "max_user_watches"}
    limit = limits.get(error.errno or 0)
    if error.errno == errno.EMFILE and "inotify" not in (error.strerror or ""):
        return f"cannot be watched: {reason(error)}"
    return f"cannot be watched: {error.strerror}" + (f" (see {limit})" if limit else "")


def file_system(path: bytes) -> str:
    """Return the type of the file system that a path is on; empty if that cannot be found out."""
    try:
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", "rb") as mounts:
            for line in mounts:  # a CR in a path is not written in octal, as LF is
                left, _, right = line.partition(b" - ")
                if left.split(b" ")[2] == b"%d:%d" % (os.major(device), os.minor(device)):
                    return right.split(b" ")[0].decode()
    except OSError:
        pass  # no /proc, or no such directory: the next scan says so
    return ""
