"""A disk whose power can be cut: ext4 on a loop device.

FS_IOC_SHUTDOWN stops the file system on the spot; with NOLOGFLUSH nothing is
written any more, not even the journal. What is there after the next mount is
what was durable. The journal is committed by nobody but an fsync: `commit=600`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FS_IOC_SHUTDOWN = 0x8004587D
_NOLOGFLUSH = struct.pack("I", 2)
_MEGABYTES = 64


class NoDisk(Exception):
    """This machine does not let us mount a disk of our own."""


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoDisk(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


class Disk:
    """An image, mounted at `path`. `cut` may be called from any thread, once per mount."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "disk"
        self.cuts = 0
        self._image = directory / "image"
        if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
            raise NoDisk("it takes root and mkfs.ext4")
        self.path.mkdir()
        with open(self._image, "wb") as image:
            image.truncate(_MEGABYTES << 20)
        _run("mkfs.ext4", "-q", "-F", self._image)
        self._fd = -1
        self.mount()

    def mount(self) -> None:
        """Mount it, for the first time or again."""
        _run("mount", "-o", "loop,commit=600", self._image, self.path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Make everything durable that is there."""
        _run("sync", "--file-system", self.path)

    def cut(self) -> None:
        """Cut the power. Whoever uses the disk has to be killed before `remount`."""
        fcntl.ioctl(self._fd, _FS_IOC_SHUTDOWN, _NOLOGFLUSH)
        self.cuts += 1

    def remount(self) -> None:
        """Let the machine come up again.

        With a copy of the image: a mount namespace that somebody has made meanwhile (a container,
        a service, another test) keeps the file system alive, and the same image would be mounted
        as it is there, cut.
        """
        self.unmount()
        following = self._image.with_suffix(".next")
        _run("cp", "--sparse=always", self._image, following)
        following.replace(self._image)
        self.mount()

    def close(self) -> None:
        """Take it away for good, also where a test that failed has left somebody on it."""
        try:
            self.unmount()
        except NoDisk:
            _run("umount", "--lazy", self.path)

    def unmount(self) -> None:
        """Take it away."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            _run("umount", self.path)


@contextlib.contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """Make a directory on tmpfs, where there is one: for campaigns that need no disk."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK | os.X_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=shared, prefix="maildirqmtp-") as path:
        yield Path(path)
