"""The README's examples of the library run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.receiver.serving import Server
from tests.e2e import test_net_qmtp

README = (Path(__file__).parents[2] / "README.md").read_text()
LIBRARY = README.partition("\n## The library\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", LIBRARY, re.MULTILINE | re.DOTALL)

#: What stands before an example: mail.example.org is our receiver.
PROLOGUE = """
import maildirqmtp.client
from maildirqmtp.route import Server
real = maildirqmtp.client.connect
def connect(server, timeout_s, *more):
    assert (server.host, server.port) == ("mail.example.org", 209)
    return real(Server("127.0.0.1", {port}), timeout_s)
maildirqmtp.client.connect = connect
"""


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Run our receiver."""
    with Server(tmp_path / "Maildir", listen=("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            assert server.address is not None
            yield server.address[1]
        finally:
            server.stop()
            thread.join()


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example: str, port: int, tmp_path: Path) -> None:
    """An example that does not run is the first thing that a new user tries."""
    (tmp_path / "report.txt").write_bytes(b"All is well.\n")
    (tmp_path / "letter.eml").write_bytes(b"Subject: x\r\n\r\nHi\r\n")
    code = PROLOGUE.format(port=port) + example
    done = subprocess.run(
        [sys.executable, "-bb", "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if "QMTPClient(" in example:
        assert list((tmp_path / "Maildir" / "new").iterdir())


def test_there_are_examples() -> None:
    """Or the test above tests nothing."""
    assert len(EXAMPLES) >= 7


def test_the_table_has_a_line_for_each_row_of_the_test() -> None:
    """What is promised is tried, and what is tried is told."""
    table = LIBRARY.partition("### Net::QMTP and this\n")[2]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    todo = [line for line in lines if line.startswith("| TODO: ")]
    rows = [row.__name__ for row in test_net_qmtp.ROWS]
    assert len(todo) == sum(name.startswith("todo_") for name in rows)
    names = "new Port Debug DeferConnect ConnectTimeout sender recipient server message_from_file"
    for name in [*names.split(), "message(", "encoding(", "send()", "new_envelope", "new_message"]:
        assert any(name in line for line in lines), name
    for name in ("disconnect", "reconnect", "destructor"):
        assert any(name in line for line in lines), name
