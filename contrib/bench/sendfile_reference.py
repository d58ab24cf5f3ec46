"""The least work by which Python can send one large file over QMTP.

    sendfile_reference.py [--keep] FILE PORT

connects, sends the file as one package with os.sendfile on a blocking socket, waits for one
response and removes the file, as the C loop does with its small ones: to free 190 MB of page cache
takes the kernel some 20 ms, whoever asks for it. With --keep the file stays where it is. Nothing is
made durable.
"""

import os
import socket
import sys


def main() -> int:
    """Send the file and remove it, unless it is to be kept; 0 if it was accepted."""
    *keep, name, port = sys.argv[1:]
    with open(name, "rb") as file, socket.create_connection(("127.0.0.1", int(port))) as server:
        size = os.fstat(file.fileno()).st_size
        server.sendall(b"%d:\n" % (size + 1))
        offset = 0
        while offset < size:
            sent = os.sendfile(server.fileno(), file.fileno(), offset, size - offset)
            if sent == 0:
                raise SystemExit(f"{name} shrank while it was sent")
            offset += sent
        server.sendall(b",18:sender@example.org,20:16:user@example.net,,")
        response = b""
        while not response.endswith(b","):
            data = server.recv(4096)
            if not data:
                raise SystemExit("the server closed without a response")
            response += data
    if response != b"3:Kok,":
        return 1
    if keep != ["--keep"]:
        os.unlink(name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
