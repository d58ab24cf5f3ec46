"""A link between two network namespaces that delays every packet, one way and the other.

    delay_link.py ONE_WAY_MS

prints the process IDs of two holders, near and far: `nsenter -t PID -n COMMAND` runs a command on
one side. The far side is 192.0.2.1 for the near one (RFC 5737). Ends, and takes both namespaces
along, with its standard input. Unlike `delay_proxy.py` it delays connect(), too, but needs root.

Bandwidth is unlimited, and so that TCP makes use of that at once, it begins with a large window.
"""

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

NEAR, FAR = "192.0.2.2", "192.0.2.1"
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES = 1 << 16
#: Bytes of a packet: few large ones, for this process carries each.
MTU = 65_000
#: Packets that may wait in the kernel for this process.
QUEUE = 10_000
#: Bytes of a socket's buffers, and packets of TCP's first window.
BUFFER_BYTES = 16 << 20
WINDOW = 5_000


def namespace() -> subprocess.Popen[bytes]:
    """A network namespace, held by a process that ends with its standard input."""
    holder = subprocess.Popen(
        ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(b".")
    if holder.stdout.read(1) != b".":
        sys.exit("delay_link.py: no network namespace can be made")
    return holder


def device(holder: subprocess.Popen[bytes], own: str, other: str) -> int:
    """A device in that namespace that leads to the other address; what it sends is read here."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", b"", IFF_TUN | IFF_NO_PI)
    name = fcntl.ioctl(fd, TUNSETIFF, request)[:16].rstrip(b"\0").decode()
    pid = str(holder.pid)
    run("ip", "link", "set", name, "netns", pid)
    inside = ("nsenter", "-t", pid, "-n")
    buffers = f"4096 {BUFFER_BYTES} {BUFFER_BYTES}"
    run(*inside, "sysctl", "-qw", f"net.ipv4.tcp_rmem={buffers}", f"net.ipv4.tcp_wmem={buffers}")
    run(*inside, "ip", "link", "set", "lo", "up")
    run(*inside, "ip", "address", "add", own, "dev", name)
    run(*inside, "ip", "link", "set", name, "up", "mtu", str(MTU), "txqueuelen", str(QUEUE))
    window = ("initcwnd", str(WINDOW), "initrwnd", str(WINDOW))
    run(*inside, "ip", "route", "add", other, "dev", name, *window)
    return fd


def run(*words: str) -> None:
    """Run a command that has to succeed."""
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


def forward(sides: tuple[int, int], delay_s: float) -> None:
    """Carry packets from each side to the other, until standard input ends."""
    other = dict(zip(sides, reversed(sides), strict=True))
    waiting: deque[tuple[float, int, bytes]] = deque()
    poll = select.poll()
    for fd in (sys.stdin.fileno(), *sides):
        poll.register(fd, select.POLLIN)
    while True:
        wait_ms = max(0.0, waiting[0][0] - time.monotonic()) * 1000 if waiting else None
        ready = {fd for fd, _ in poll.poll(wait_ms)}
        if sys.stdin.fileno() in ready:
            return
        for fd in ready:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = os.read(fd, PACKET_BYTES)
                    waiting.append((time.monotonic() + delay_s, other[fd], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, target, packet = waiting.popleft()
            os.write(target, packet)


def main() -> None:
    """Make the link, say who holds its sides, and carry packets."""
    delay_s = float(sys.argv[1]) / 1000
    near, far = namespace(), namespace()
    try:
        sides = device(near, NEAR, FAR), device(far, FAR, NEAR)
        print(near.pid, far.pid, flush=True)
        forward(sides, delay_s)
    finally:
        near.kill()
        far.kill()


if __name__ == "__main__":
    main()
