"""A program that sends with the library, to be measured.

    client_program.py many DIR PORT          every file of DIR/new by one send_many
    client_program.py one  DIR PORT          the same, with one send after the other

The envelope is of the benchmark's own making, and as long as that of the forwarder's messages.
"""

import os
import sys
from collections.abc import Iterator

from maildirqmtp import Package, QMTPClient

SENDER = b"sender@example.org"


def packages(directory: str) -> Iterator[Package]:
    """A package for each message."""
    for number, name in enumerate(sorted(os.listdir(directory))):
        yield Package(SENDER, b"user%06d@example.net" % number, f"{directory}/{name}")


def main() -> None:
    """Send; each must be accepted."""
    how, maildir, port = sys.argv[1:]
    with QMTPClient("127.0.0.1", port=int(port)) as client:
        if how == "many":
            results = client.send_many(packages(f"{maildir}/new"))
        else:
            results = (
                client.send(p.sender, p.recipients, p.message) for p in packages(f"{maildir}/new")
            )
        for result in results:
            if not result.accepted:
                raise SystemExit(f"not accepted: {result}")


if __name__ == "__main__":
    main()
