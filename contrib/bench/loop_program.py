"""A program with many clients in one event loop, to be measured.

    loop_program.py CLIENTS PACKAGES PORT

Each client sends so many packages. Printed are the milliseconds that the loop was busy between two
of its rounds, at most: of the thread's processor time, for a busy machine may take it away at any
moment.
"""

import asyncio
import sys
import time

from maildirqmtp import AsyncQMTPClient, Package

TEXT = b"Subject: benchmark\n\n" + b"The quick brown fox jumps over the lazy dog.\n" * 44


async def send(server: str, count: int) -> None:
    """Send by one client; each must be accepted."""
    async with AsyncQMTPClient(server) as client:
        packages = (Package("s@example.org", "r@example.net", TEXT) for _ in range(count))
        async for result in client.send_many(packages):
            if not result.accepted:
                raise SystemExit(f"not accepted: {result}")


async def main(clients: int, packages: int, port: str) -> float:
    """Return the longest round, in seconds."""
    sending = asyncio.gather(*[send(f"127.0.0.1:{port}", packages) for _ in range(clients)])
    longest_s, before_s = 0.0, time.thread_time()
    while not sending.done():
        await asyncio.sleep(0)
        now_s = time.thread_time()
        longest_s, before_s = max(longest_s, now_s - before_s), now_s
    await sending
    return longest_s


if __name__ == "__main__":
    print(asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])) * 1_000)
