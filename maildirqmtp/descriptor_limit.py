"""The limit of open descriptors (getrlimit(2), RLIMIT_NOFILE): raised, given back, and told of.

`resource` is loaded only where it is needed: most runs open a handful of files.
"""

from __future__ import annotations

import contextlib
import errno
import os

#: Where there is no hard limit to speak of, as in some containers, this is enough for any routes.
MOST = 1 << 20

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
    """Have a command run with the limit that this process was started with.

    Programs that use select(2), or close whatever may be open, are not made for more.
    """
    if _before is not None:
        import resource

        with contextlib.suppress(OSError, ValueError):  # it may have exited
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _before)


def reason(error: OSError) -> str:
    """Return what an error means; where descriptors have run out, also the limit and what to do."""
    text = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        # Not by `resource`: to import it takes a descriptor.
        limit = os.sysconf("SC_OPEN_MAX")
        return (
            f"{text}; this process may have {limit}: raise LimitNOFILE= of its systemd unit, "
            f"or the hard limit of ulimit -n"
        )
    if error.errno == errno.ENFILE:
        return f"{text}; this machine has no more: raise fs.file-max"
    return text


def threads_reason(error: RuntimeError) -> str:
    """Return what it means that a thread could not be started, and what to do."""
    used = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    return (
        f"{error}; this process has {used} threads: raise TasksMax= of its systemd unit, "
        f"or ulimit -u"
    )
