"""A connection that is cut after any byte, in either direction, by FIN or by RST.

Three messages: one to two recipients, of whom one is told to come later the
first time, one that is accepted, one that is refused. The server is correct;
between it and the forwarder stands a proxy that is not.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.faults.disk import in_memory
from tests.faults.ledger import Ledger, Who, note_figures, serve, view
from tests.faults.proxy import Proxy, proxied
from tests.helpers import ScriptedServer, serving

FAR = 1 << 30


def forward(ledger: Ledger, port: int) -> Counter[Who]:
    """Run once, in this process; return who the report says may get a second copy."""
    log, data = io.StringIO(), io.StringIO()
    route = Route(
        os.fsencode(ledger.maildir),
        TcpEndpoint("127.0.0.1", port),
        connect_timeout_s=20.0,
        write_timeout_s=20.0,
        response_timeout_s=20.0,
        grace_s=20.0,
    )
    code = flush(route, Report(log, data))
    assert "Traceback" not in log.getvalue()
    events = [json.loads(line) for line in data.getvalue().splitlines()]
    left = any((ledger.maildir / "new").iterdir()) or any(e["event"] == "failed" for e in events)
    assert code == (111 if left else 0), log.getvalue()
    return Counter(
        (e["message"], e["recipient"].encode()) for e in events if e["event"] == "in-doubt"
    )


def session(
    base: Path,
    server: ScriptedServer,
    ledger: Ledger,
    after: int,
    to_server: bool,
    reset: bool,
    stays: bool,
) -> tuple[Proxy, Ledger]:
    """Cut one session there; judge what is left; run again; judge that."""
    with proxied(server.port, after, to_server, reset, stays) as proxy:
        doubts = forward(ledger, proxy.port)
    where = (after, to_server, reset, stays)
    try:
        ledger.judge(view(base))
        read = ledger.read.copy()  # the server may still be reading what was cut off
        again = read - Counter(dict.fromkeys(read, 1))
        deferred = {who for who in read if who[1][:1] == b"y"}
        for who in again:
            assert doubts[who] or who in deferred, f"{who} came twice, and nobody was warned"
        for who, copies in read.items():
            if not stays and not _settled(ledger, who):
                assert doubts[who] == copies, f"{who} was read, and is not named as in doubt"
        # The next run meets no proxy.
        for _ in range(2):
            doubts += forward(ledger, server.port)
        after_all = view(base)
        ledger.judge(after_all)
        assert not after_all["m/new"]
        assert not after_all.get("m/envelope")
        assert len(after_all["m/.Failed/new"]) == 1
        for who, copies in ledger.read.items():
            tries = 2 if who[1][:1] == b"y" else 1
            assert copies <= tries + doubts[who], f"{who} came {copies} times"
    except AssertionError as error:
        raise AssertionError(f"cut at {where}: {error}") from error
    return proxy, ledger


def _settled(ledger: Ledger, who: Who) -> bool:
    """Say whether the forwarder has learnt what the server said of this recipient."""
    name, recipient = who
    if not (ledger.maildir / "new" / name).exists():
        return True
    file = ledger.maildir / "envelope" / f"{name}.json"
    if not file.exists():
        return False
    owed = json.loads(file.read_text())["recipients"]
    return recipient.decode() not in owed or recipient[:1] == b"y"


def stocked(base: Path) -> Ledger:
    """Make the three messages."""
    ledger = Ledger(base)
    # The one with two recipients is the fence; then the others are in flight together.
    ledger.add(b"k@y", b"y@y")
    ledger.add(b"k@y")
    ledger.add(b"d@y")
    return ledger


def lengths(base: Path) -> tuple[int, int]:
    """Return the bytes of an undisturbed session, to the server and back."""
    ledger = stocked(base)
    with serving(serve(ledger)) as server, proxied(server.port, FAR, True, False, True) as proxy:
        forward(ledger, proxy.port)
    return proxy.seen[True], proxy.seen[False]


@pytest.mark.parametrize("stays", [False, True], ids=["gone", "back"])
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("to_server", [True, False], ids=["to-server", "to-client"])
def test_cut_after_any_byte(tmp_path: Path, to_server: bool, reset: bool, stays: bool) -> None:
    """Nothing is lost, nobody gets a second copy without a warning, the next run finishes."""
    duplicates = 0
    with in_memory(tmp_path) as directory:
        total = lengths(directory / "whole")[0 if to_server else 1]
        assert total > (200 if to_server else 30)
        for after in range(total + 1):
            base = directory / str(after)
            ledger = stocked(base)
            with serving(serve(ledger)) as server:
                proxy, ledger = session(base, server, ledger, after, to_server, reset, stays)
            assert proxy.was_cut
            duplicates += ledger.duplicates
            shutil.rmtree(base)
    note_figures("proxy", offsets=total + 1, lost=0, duplicates=duplicates)
