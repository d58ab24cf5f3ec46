"""The limit of open descriptors (getrlimit(2), RLIMIT_NOFILE): raise it, restore it, explain it.

`resource` is loaded only when it is needed: most runs open a handful of files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from maildirqmtp.errors import LocalError

#: The limit to set if the hard one is higher, as in some containers; enough for any routes.
MOST = 1 << 20

# Descriptors that stay free for messages and connections, besides one for each route.
_SPARE = 8

_before: tuple[int, int] | None = None


def raise_limit() -> None:
    """Raise the soft limit to the hard one; without permission it stays as it is."""
    global _before
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        _before = soft, hard


def give_back(pid: int) -> None:
    """Give a command the limit that this process was started with.

    Programs that use select(2), or close every possible descriptor, are not made for more.
    """
    if _before is not None:
        import resource

        with contextlib.suppress(OSError, ValueError):  # it may have exited
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _before)


def reason(error: OSError) -> str:
    """Return what an error means; if descriptors have run out, also the limit and what to do."""
    text = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        # Not from `resource`: importing that takes a descriptor.
        limit = os.sysconf("SC_OPEN_MAX")
        return (
            f"{text}; this process may have {limit}: raise LimitNOFILE= of its systemd unit, "
            f"or the hard limit of ulimit -n"
        )
    if error.errno == errno.ENFILE:
        return f"{text}; this machine has no more: raise fs.file-max"
    return text


def check_room(routes: int, fd: int) -> None:
    """Raise `LocalError` if another route would take the descriptors that these routes need.

    Routes open a message, a directory or a connection now and then; one route too many would stop
    them all. `fd` is any open descriptor. The lowest free one is always used first: if a high one
    is in use, there is no room.
    """
    if not routes:
        return
    limit = os.sysconf("SC_OPEN_MAX")
    first = limit - _SPARE - routes
    try:
        found = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(first, 0))
        os.close(found)
    except OSError as error:
        raise LocalError(f"cannot open more: {reason(error)}") from error
    if found != first:
        why = reason(OSError(errno.EMFILE, "it would leave too few descriptors"))
        raise LocalError(f"cannot be forwarded beside {routes} other routes: {why}")


def threads_reason(error: RuntimeError) -> str:
    """Return why a thread could not be started, and what to do."""
    from threading import active_count  # not from /proc: descriptors may have run out as well

    return (
        f"{error}; this process has {active_count()} threads: raise TasksMax= of its systemd unit, "
        f"or ulimit -u"
    )
