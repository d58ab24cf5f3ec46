"""The reference of the hand-off: what a script does that empties a maildir by LMTP.

smtplib_program.py DIR PORT     each file of DIR/new by smtplib, one after the other
"""

import os
import smtplib
import sys


def main() -> None:
    """Send each message to the recipient of its second line, and remove it."""
    directory, port = sys.argv[1], int(sys.argv[2])
    with smtplib.LMTP("127.0.0.1", port, "bench") as server:
        for name in sorted(os.listdir(f"{directory}/new")):
            path = f"{directory}/new/{name}"
            with open(path, "rb") as file:
                sender, recipient, text = file.read().split(b"\n", 2)
            envelope = sender.split(b" ")[1].decode(), recipient.split(b" ")[1].decode()
            if server.sendmail(*envelope, text):
                raise SystemExit(f"{name}: refused")
            os.unlink(path)


if __name__ == "__main__":
    main()
