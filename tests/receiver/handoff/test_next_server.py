"""Handing on to an SMTP or LMTP server: each reply of each stage, and each way to break."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from maildirqmtp.receiver.handoff import next_server, smtp_client
from maildirqmtp.receiver.handoff.how import SmtpAddress
from maildirqmtp.receiver.handoff.next_server import NextServer
from tests.helpers import DEADLINE_S, closed_port, wait_until
from tests.receiver.doubles import Clock
from tests.scripted_smtp import CLOSE, SILENCE, Script, ScriptedServer, scripted_server

TEXT = b"Subject: x\n\nhi\n"
A, B, C = b"a@example.org", b"b@example.org", b"c@example.org"


def address(server: ScriptedServer, lmtp: bool = False) -> SmtpAddress:
    return SmtpAddress(lmtp, host="127.0.0.1", port=server.port)


@contextlib.contextmanager
def handing_on(
    server: ScriptedServer, lmtp: bool = False, clock: Clock | None = None
) -> Iterator[NextServer]:
    """A `NextServer` in front of a scripted server; its clock stands still."""
    to = NextServer(address(server, lmtp), "here.example", clock=clock or Clock())
    with contextlib.closing(to):
        yield to


def deliver(
    to: NextServer,
    *recipients: bytes,
    text: bytes | Sequence[bytes] = TEXT,
    sender: bytes = b"s@example.net",
) -> list[str]:
    pieces = [text] if isinstance(text, bytes) else text
    responses = to.deliver(sender, recipients or (A,), lambda: iter(pieces))
    assert len(responses) == len(recipients or (A,))
    return [str(response) for response in responses]


def outcomes(script: Script, *recipients: bytes, lmtp: bool = False) -> list[str]:
    """Hand a message to three recipients on by this script; the answers."""
    with scripted_server(script, lmtp=lmtp) as server, handing_on(server, lmtp) as to:
        return deliver(to, *(recipients or (A, B, C)))


def letters(answers: Sequence[str]) -> str:
    return "".join(answer[0] for answer in answers)


def test_what_the_server_is_told() -> None:
    """Envelope, size and text as RFC 5321 wants them."""
    with scripted_server() as server, handing_on(server) as to:
        assert deliver(to, A, B, text=b".x\n\xc3\xa4") == ["K250 2.0.0 queued"] * 2
        (told,) = server.conversations
    assert told.commands[:-1] == [
        b"EHLO here.example",
        b"MAIL FROM:<s@example.net> SIZE=8 BODY=8BITMIME",
        b"RCPT TO:<a@example.org>",
        b"RCPT TO:<b@example.org>",
        b"DATA",
    ]
    assert told.commands[-1] == b"QUIT"
    assert told.texts == [b"..x\r\n\xc3\xa4\r\n"]


def test_a_server_without_extensions_is_told_nothing_it_does_not_know() -> None:
    """An old server refuses parameters; the text goes as it is."""
    script = {"EHLO": b"502 5.5.1 what?\r\n"}
    with scripted_server(script) as server, handing_on(server) as to:
        assert deliver(to, text=b"\xff\n") == ["K250 2.0.0 queued"]
        (told,) = server.conversations
    assert told.commands[1:3] == [b"helo here.example", b"MAIL FROM:<s@example.net>"]
    assert told.texts == [b"\xff\r\n"]


def test_one_answer_for_each_recipient_with_lmtp(tmp_path: Path) -> None:
    """A full mailbox is one recipient's trouble."""
    script = {
        "RCPT": [b"250 ok\r\n", b"550 5.1.1 no such user\r\n", b"250 ok\r\n", b"250 ok\r\n"],
        "text": [b"250 2.0.0 saved\r\n", b"452 4.2.2 full\r\n", b"552 5.2.2 over quota\r\n"],
    }
    path = tmp_path / "lmtp"
    with scripted_server(script, lmtp=True, path=path) as server:
        to = NextServer(SmtpAddress(lmtp=True, path=str(path)), "here.example")
        with contextlib.closing(to):
            answers = deliver(to, A, B, C, b"d@example.org")
        assert server.conversations[0].verbs[0] == "LHLO"
    assert answers == [
        "K250 2.0.0 saved",
        "D550 5.1.1 no such user",
        "Z452 4.2.2 full",
        "D552 5.2.2 over quota",
    ]


#: What a script says, and the answers for a, b and c.
STAGES = [
    ({"greeting": b"554 5.7.1 not you\r\n"}, "ZZZ"),
    ({"greeting": b"421 4.3.2 too busy\r\n"}, "ZZZ"),
    ({"greeting": b"220-two\r\n220 lines\r\n"}, "KKK"),
    ({"greeting": b"HTTP/1.1 400 Bad Request\r\n"}, "ZZZ"),
    ({"greeting": CLOSE}, "ZZZ"),
    ({"EHLO": b"421 4.3.2 too busy\r\n"}, "ZZZ"),
    ({"EHLO": b"550 5.7.1 no\r\n", "HELO": b"550 5.7.1 no\r\n"}, "ZZZ"),
    ({"EHLO": CLOSE}, "ZZZ"),
    ({"EHLO": b"250-half\r\n" + CLOSE}, "ZZZ"),
    ({"MAIL": b"451 4.3.0 later\r\n"}, "ZZZ"),
    ({"MAIL": b"550 5.7.1 no mail from you\r\n"}, "ZZZ"),
    ({"MAIL": b"530 5.7.0 authenticate\r\n"}, "ZZZ"),
    ({"MAIL": b"553 5.1.7 bad sender\r\n"}, "DDD"),
    ({"MAIL": b"550 5.1.8 sender's domain unknown\r\n"}, "DDD"),
    ({"MAIL": b"552 5.3.4 too large\r\n"}, "DDD"),
    ({"MAIL": b"552 too large\r\n"}, "DDD"),
    ({"MAIL": b"552 5.2.2 full\r\n"}, "ZZZ"),
    ({"MAIL": b"421 4.3.2 closing\r\n" + CLOSE}, "ZZZ"),
    ({"MAIL": b"354 what?\r\n"}, "ZZZ"),
    ({"MAIL": b"garbage\r\n"}, "ZZZ"),
    ({"MAIL": CLOSE}, "ZZZ"),
    ({"RCPT": [b"250 ok\r\n", b"450 4.2.0 later\r\n", b"550 5.1.1 no\r\n"]}, "KZD"),
    ({"RCPT": [b"251 forwarded\r\n", b"250 ok\r\n"]}, "KKK"),
    ({"RCPT": [b"552 too many\r\n", b"250 ok\r\n"]}, "ZKK"),
    ({"RCPT": [b"452 4.5.3 too many\r\n", b"503 5.5.1 MAIL first\r\n", b"250 ok\r\n"]}, "ZZK"),
    ({"RCPT": [b"530 5.7.0 authenticate\r\n"]}, "ZZZ"),
    # Postfix refuses EHLO and the client only here (smtpd_delay_reject).
    (
        {"RCPT": [b"504 5.5.2 <laptop>: Helo command rejected: need fully-qualified hostname\r\n"]},
        "ZZZ",
    ),
    ({"RCPT": [b"554 5.7.1 <h[192.0.2.1]>: Client host rejected: Access denied\r\n"]}, "ZZZ"),
    ({"RCPT": [b"550 5.7.1 Service unavailable; client [::1] blocked using b.example\r\n"]}, "ZZZ"),
    (
        {"RCPT": [b"554 5.7.1 Service unavailable; Client host [::1] blocked using b.example\r\n"]},
        "ZZZ",
    ),
    (
        {"RCPT": [b"504 5.5.2 <c>: Recipient address rejected: need fully-qualified address\r\n"]},
        "DDD",
    ),
    ({"RCPT": [b"554 5.7.1 <c@example.org>: Relay access denied\r\n"]}, "DDD"),
    ({"RCPT": [b"550-5.1.1 no\r\n550 5.1.1 really\r\n", b"250 ok\r\n"]}, "DKK"),
    ({"RCPT": [b"550 5.1.1 no\r\n"]}, "DDD"),
    ({"RCPT": [b"550 5.1.1 no\r\n", b"421 4.3.2 closing\r\n" + CLOSE]}, "DZZ"),
    ({"RCPT": [b"250 ok\r\n", CLOSE]}, "ZZZ"),
    ({"RCPT": [b"550 no\r\n", b"250" + CLOSE]}, "DZZ"),
    ({"DATA": b"451 4.3.0 later\r\n"}, "ZZZ"),
    ({"DATA": b"554 5.7.1 no\r\n"}, "DDD"),
    ({"DATA": b"503 5.5.1 what?\r\n"}, "ZZZ"),
    ({"DATA": b"250 ok\r\n"}, "ZZZ"),
    ({"DATA": b"421 4.3.2 closing\r\n" + CLOSE}, "ZZZ"),
    ({"DATA": CLOSE}, "ZZZ"),
    ({"RCPT": [b"250 ok\r\n", b"550 no\r\n"], "DATA": b"451 later\r\n"}, "ZDD"),
    ({"text": b"451 4.3.0 later\r\n"}, "ZZZ"),
    ({"text": b"554 5.6.0 spam\r\n"}, "DDD"),
    ({"text": b"552 5.3.4 too large\r\n"}, "DDD"),
    (
        {"text": b"554 5.7.1 Service unavailable; Client host [::1] blocked using b.example\r\n"},
        "ZZZ",
    ),
    ({"text": b"554 5.7.1 <h[192.0.2.1]>: Client host rejected: Access denied\r\n"}, "ZZZ"),
    ({"text": b"530 5.7.0 authentication required\r\n"}, "ZZZ"),
    ({"text": b"354 what?\r\n"}, "ZZZ"),
    ({"text": b"421 4.3.2 closing\r\n" + CLOSE}, "ZZZ"),
    ({"text": b"250" + CLOSE}, "ZZZ"),
    ({"text": b"250-ok\r\n" + CLOSE}, "ZZZ"),
    ({"text": CLOSE}, "ZZZ"),
    ({"RCPT": [b"250 ok\r\n", b"550 no\r\n", b"250 ok\r\n"], "text": CLOSE}, "ZDZ"),
]


@pytest.mark.parametrize("pipelining", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize(("script", "expected"), STAGES)
def test_each_reply_of_each_stage(script: Script, expected: str, pipelining: bool) -> None:
    """K for what the server has not taken is lost mail; D for its trouble with us is a bounce."""
    if not pipelining:
        script = {"EHLO": b"250 next.example\r\n", **script}
    assert letters(outcomes(script)) == expected


LMTP_STAGES = [
    ({"LHLO": b"500 5.5.1 SMTP here\r\n"}, "ZZZ"),
    ({"text": [b"250 ok\r\n", b"451 4.3.0 later\r\n", b"550 5.7.1 no\r\n"]}, "KZD"),
    ({"text": [b"250 ok\r\n", b"550 5.7.1 <h[::1]>: Client host rejected: x\r\n"]}, "KZZ"),
    ({"text": [b"250 ok\r\n", CLOSE]}, "KZZ"),
    ({"text": [b"250 ok\r\n", b"421 4.3.2 closing\r\n" + CLOSE]}, "KZZ"),
    ({"text": [b"250 ok\r\n250 ok\r\n250 ok\r\n", CLOSE]}, "KKK"),
    ({"text": [b"250 ok\r\n", b"nonsense\r\n"]}, "KZZ"),
    ({"RCPT": [b"550 5.1.1 no\r\n", b"250 ok\r\n"], "text": [b"250 ok\r\n", CLOSE]}, "DKZ"),
]


@pytest.mark.parametrize(("script", "expected"), LMTP_STAGES)
def test_each_reply_of_each_stage_with_lmtp(script: Script, expected: str) -> None:
    """The recipients that an LMTP server has answered keep their answers, whatever follows."""
    assert letters(outcomes(script, lmtp=True)) == expected


def test_the_answer_says_where_it_comes_from() -> None:
    """Else a deferral that lasts cannot be traced to the server that is the cause."""
    (answer, *_) = outcomes({"text": CLOSE})
    assert answer.startswith("Z451 smtp:127.0.0.1:")
    assert "may have been taken" in answer
    (answer, *_) = outcomes({"greeting": b"554 5.7.1 not you\r\n"})
    assert "554 5.7.1 not you" in answer


def test_a_connection_is_kept_and_reset_where_needed() -> None:
    """A connection for each message is what a hand-off must not cost."""
    script = {"RCPT": [b"550 5.1.1 no\r\n", b"250 ok\r\n"]}
    with scripted_server(script) as server, handing_on(server) as to:
        assert letters(deliver(to) + deliver(to) + deliver(to)) == "DKK"
        (told,) = server.conversations
    assert told.verbs == [
        *("EHLO", "MAIL", "RCPT", "RSET", "MAIL", "RCPT", "DATA", "MAIL", "RCPT", "DATA", "QUIT")
    ]


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    """A restart of the next server is no deferral."""
    with scripted_server() as server, handing_on(server) as to:
        assert letters(deliver(to)) == "K"
        server.drop()
        assert letters(deliver(to)) == "K"
        assert len(server.conversations) == 2


def test_a_kept_connection_that_breaks_at_mail_is_replaced() -> None:
    """The end can come just after it was looked at."""
    scripts: tuple[Script, ...] = ({"MAIL": [b"250 ok\r\n", CLOSE]}, {})
    with scripted_server(*scripts) as server, handing_on(server) as to:
        assert letters(deliver(to) + deliver(to)) == "KK"
        assert len(server.conversations) == 2


def keeping(to: NextServer, count: int) -> None:
    """Have so many connections kept, by as many messages at the same time."""
    all_there = threading.Barrier(count, timeout=DEADLINE_S)

    def one() -> None:
        sends = iter([False, True])  # it is read once before

        def pieces() -> Iterator[bytes]:
            if next(sends):
                all_there.wait()
            yield TEXT

        assert letters([str(answer) for answer in to.deliver(b"", [A], pieces)]) == "K"

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(to._idle) == count


def test_after_one_kept_connection_that_breaks_a_new_one_is_used() -> None:
    """Tried one after the other, each may take five minutes; the client gives up meanwhile."""
    kept: Script = {"MAIL": [b"250 ok\r\n", CLOSE]}
    with scripted_server(kept, kept, kept, {}) as server, handing_on(server) as to:
        keeping(to, 3)
        assert letters(deliver(to)) == "K"
        verbs = [conversation.verbs for conversation in server.conversations]
        assert sum(each.count("MAIL") for each in verbs) == 3 + 1 + 1
        assert len(verbs) == 4
        wait_until(lambda: sum(c.verbs[-1] == "QUIT" for c in server.conversations) == 2, "QUIT")


def test_a_server_that_freezes_is_waited_for_twice_and_no_more(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With twenty kept connections, a message took over an hour, and was sent again."""
    kept: Script = {"MAIL": [b"250 ok\r\n", SILENCE]}
    frozen: Script = {"greeting": SILENCE}
    with scripted_server(kept, kept, kept, frozen) as server, handing_on(server, clock=clock) as to:
        keeping(to, 3)
        for name in ("OPENING_S", "COMMAND_S"):
            monkeypatch.setattr(smtp_client, name, 0.05)
        assert letters(deliver(to)) == "Z"
        verbs = [conversation.verbs for conversation in server.conversations]
        assert sum(each.count("MAIL") for each in verbs) == 3 + 1
        assert letters(deliver(to)) == "Z"
        assert len(server.conversations) == 4, "it is left alone for a while"


def test_after_the_text_nothing_is_sent_twice() -> None:
    """It may have been taken; the client decides when to try again."""
    with scripted_server({"text": [b"250 ok\r\n", CLOSE]}) as server, handing_on(server) as to:
        assert letters(deliver(to) + deliver(to)) == "KZ"
        assert len(server.texts) == 2


def test_a_late_word_on_a_kept_connection_is_no_answer() -> None:
    """Taken for the reply to MAIL, it would shift all replies by one."""
    script = {"text": [b"250 ok\r\n421 4.4.2 idle\r\n", b"250 ok\r\n"]}
    with scripted_server(script, {}) as server, handing_on(server) as to:
        assert letters(deliver(to) + deliver(to)) == "KK"
        assert len(server.conversations) == 2


def test_an_idle_connection_is_closed(clock: Clock) -> None:
    """Servers have few places, and a connection that nobody uses takes one."""
    with scripted_server() as server, handing_on(server, clock=clock) as to:
        deliver(to)
        clock.now_s += next_server.IDLE_S - 1
        to.close_idle()
        assert server.conversations[0].verbs[-1] == "DATA"
        clock.now_s += 1
        to.close_idle()
        wait_until(lambda: server.conversations[0].verbs[-1] == "QUIT", "QUIT")
        assert letters(deliver(to)) == "K"


def test_a_server_that_is_down_is_left_alone_for_a_while(clock: Clock) -> None:
    """Z at once, without another attempt for each message; it is tried again by itself."""
    port = closed_port()
    complaints: list[str] = []
    where = SmtpAddress(lmtp=True, host="127.0.0.1", port=port)
    to = NextServer(where, "here.example", complain=complaints.append, clock=clock)
    with contextlib.closing(to):
        (answer,) = deliver(to)
        assert answer == f"Z451 lmtp:127.0.0.1:{port}: cannot connect: Connection refused (#4.4.2)"
        with scripted_server(lmtp=True, port=port) as server:
            assert deliver(to) == [answer]
            clock.now_s += 0.9
            assert deliver(to) == [answer]
            assert not server.conversations
            clock.now_s += 0.1
            assert letters(deliver(to)) == "K"
            server.drop()
        for pause_s in (1, 2, 4, 8, 16, 32, 60, 60):
            assert letters(deliver(to)) == "Z"
            assert complaints[-1].endswith(f"Connection refused; not tried again for {pause_s} s")
            clock.now_s += pause_s


def test_a_server_that_is_down_keeps_no_mail(clock: Clock) -> None:
    """What is deferred meanwhile would stay in memory: 1 MB for a package of 1,000 recipients."""

    class Recipients(list[bytes]):
        pass

    where = SmtpAddress(lmtp=True, host="127.0.0.1", port=closed_port())
    with contextlib.closing(NextServer(where, "here.example", clock=clock)) as to:
        kept = []
        for _ in range(3):
            recipients = Recipients([A])
            kept.append(weakref.ref(recipients))
            to.deliver(b"", recipients, lambda: iter([TEXT]))
        del recipients
        gc.collect()
        assert [one() for one in kept] == [None] * 3


def test_a_server_that_closes_every_connection_is_left_alone_too(clock: Clock) -> None:
    """Down is also who accepts and hangs up, as a balancer without servers does."""
    with scripted_server({"MAIL": CLOSE}) as server, handing_on(server, clock=clock) as to:
        assert letters(deliver(to) + deliver(to) + deliver(to)) == "ZZZ"
        assert len(server.conversations) == 1


def test_several_threads_have_a_connection_each() -> None:
    """One recipient's slow mailbox must not hold the others up."""
    scripts: tuple[Script, ...] = ({"text": SILENCE}, {})
    with scripted_server(*scripts) as server, handing_on(server) as to:
        slow: list[str] = []
        thread = threading.Thread(target=lambda: slow.extend(deliver(to)))
        thread.start()
        wait_until(lambda: bool(server.texts), "the first text")
        assert letters(deliver(to) + deliver(to)) == "KK"
        to.abort()
        thread.join()
    assert letters(slow) == "Z"


@pytest.mark.parametrize("stage", ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "text"])
def test_a_silent_server_is_waited_for_within_limits(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 5321, 4.5.3.2: else a thread waits for ever, and in the end all of them do."""
    for name in ("OPENING_S", "COMMAND_S", "DATA_S", "END_OF_TEXT_S"):
        monkeypatch.setattr(smtp_client, name, 0.05)
    with scripted_server({stage: SILENCE}) as server, handing_on(server) as to:
        (answer,) = deliver(to)
    assert answer[0] == "Z"
    assert "no reply within" in answer


def test_the_times_are_those_of_the_standard() -> None:
    """A server may take so long, and must not be sent it twice (RFC 5321, 4.5.3.2.1 to .6)."""
    c = smtp_client
    times_s = (c.OPENING_S, c.COMMAND_S, c.DATA_S, c.PIECE_S, c.END_OF_TEXT_S)
    assert times_s == (300, 300, 120, 180, 600)


def test_a_message_larger_than_the_server_takes_is_not_sent() -> None:
    """200 MB over a slow link, to be refused at their end, at each attempt."""
    script = {"EHLO": b"250-x\r\n250 SIZE 10\r\n"}
    with scripted_server(script) as server, handing_on(server) as to:
        (answer,) = deliver(to, text=b"123456789\n")
        assert answer == "D552 message of 11 bytes; the next server takes 10 (#5.3.4)"
        assert letters(deliver(to, text=b"12345678\n")) == "K"
        assert server.conversations[0].verbs.count("MAIL") == 1


@pytest.mark.parametrize("text", [b"a\0b\n", b"a\rb\n"])
def test_what_smtp_cannot_carry_is_refused(text: bytes) -> None:
    """A bare CR is the end of a line for some servers: a message could be smuggled in."""
    with scripted_server() as server, handing_on(server) as to:
        (answer,) = deliver(to, text=text)
        assert answer.startswith("D554 ")
        assert answer.endswith("(#5.6.0)")
        assert not server.texts


UTF8 = "jürgen@example.org".encode()


def test_an_address_beyond_ascii_needs_smtputf8() -> None:
    """A server without it would refuse it by a syntax error, or take another address for it."""
    with scripted_server() as server, handing_on(server) as to:
        answers = deliver(to, A, UTF8)
        assert letters(answers) == "KD"
        assert "no SMTPUTF8" in answers[1]
        assert letters(deliver(to, A, B, sender=UTF8)) == "DD"
        assert b"SMTPUTF8" not in b"".join(server.conversations[0].commands)
    script = {"EHLO": b"250-x\r\n250-SMTPUTF8\r\n250 PIPELINING\r\n"}
    with scripted_server(script) as server, handing_on(server) as to:
        assert letters(deliver(to, A, UTF8, b"j\xfcrgen@example.org")) == "KKD"
        assert server.conversations[0].commands[1:4] == [
            b"MAIL FROM:<s@example.net> SMTPUTF8",
            b"RCPT TO:<a@example.org>",
            b"RCPT TO:<%b>" % UTF8,
        ]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"jane x@example.org", b'"jane x"@example.org'),
        (b'a"b\\c@example.org', b'"a\\"b\\\\c"@example.org'),
        (b"a> NOTIFY=NEVER@example.org", b'"a> NOTIFY=NEVER"@example.org'),
        (b"@x,@y:a@example.org", b'"@x,@y:a"@example.org'),
        (b"joe", b"joe"),
        (b"joe@[192.0.2.1]", b"joe@[192.0.2.1]"),
        (b"a@b> NOTIFY=NEVER", None),
        (b"a@b c", None),
        (b"a@[x> y]", None),
        (b"a\tb@example.org", None),
        (b"a\x7f@example.org", None),
    ],
)
def test_addresses_are_quoted_or_refused(raw: bytes, said: bytes | None) -> None:
    """What is no address for SMTP could be a parameter, or another recipient."""
    with scripted_server() as server, handing_on(server) as to:
        (answer,) = deliver(to, raw)
        rcpts = [c for c in server.conversations[0].commands if c.startswith(b"RCPT")]
    if said is None:
        assert answer.startswith("D553 ")
        assert not rcpts
    else:
        assert answer[0] == "K"
        assert rcpts == [b"RCPT TO:<%b>" % said]


@pytest.mark.parametrize("sender", [b"", b"#@[]", b"MAILER-DAEMON"])
def test_the_null_sender_is_null(sender: bytes) -> None:
    """`#@[]` is no address for SMTP servers, and a bounce refused for it is lost."""
    with scripted_server() as server, handing_on(server) as to:
        assert letters(deliver(to, sender=sender)) == "K"
        assert server.conversations[0].commands[1].startswith(b"MAIL FROM:<> ")


def test_many_recipients_go_in_transactions_that_servers_must_take() -> None:
    """A server with a limit would defer the others, again at each attempt."""
    recipients = [b"r%d@example.org" % n for n in range(250)]
    script = {"RCPT": [b"250 ok\r\n"] * 150 + [b"550 5.1.1 no\r\n"] + [b"250 ok\r\n"]}
    with scripted_server(script) as server, handing_on(server) as to:
        assert letters(deliver(to, *recipients)) == "K" * 150 + "D" + "K" * 99
        assert server.conversations[0].verbs.count("MAIL") == 3


def test_a_transaction_that_cannot_be_begun_in_time_is_deferred() -> None:
    """The answers of a batch that takes over an hour are not heard, and all of it is sent again."""
    recipients = [b"r%d@example.org" % n for n in range(250)]
    time_left = iter([True, False, False])
    with scripted_server() as server, handing_on(server) as to:
        responses = to.deliver(b"", recipients, lambda: iter([TEXT]), time_left.__next__)
        assert letters([str(response) for response in responses]) == "K" * 100 + "Z" * 150
        assert len(server.texts) == 1


def test_a_text_that_cannot_be_read_to_its_end_is_not_ended() -> None:
    """The server would take the half of it for the whole."""

    def pieces() -> Iterator[bytes]:
        yield TEXT
        if next(calls):
            raise OSError(5, "Input/output error")

    calls = iter([False, True])
    with scripted_server() as server, handing_on(server) as to:
        (response,) = to.deliver(b"", [A], pieces)
        assert str(response).startswith("Z451 ")
        assert "Input/output error" in str(response)
        assert not server.texts


def test_a_refusal_amid_the_text_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses and hangs up at once would otherwise be sent it again and again."""
    script = {"DATA": b"354 go on\r\n552 5.3.4 too large\r\n" + CLOSE}
    with scripted_server(script) as server, handing_on(server) as to:
        big = [b"x" * 1_000 + b"\n"] * 50_000
        (answer,) = deliver(to, text=big)
    assert answer[0] in "DZ"  # a reset may have overtaken the reply


@pytest.mark.parametrize(
    ("lmtp", "recipients", "expected"),
    [(False, (A, B), "DD"), (True, (A,), "D"), (True, (A, B), "ZZ")],
)
def test_one_reply_amid_the_text(lmtp: bool, recipients: Sequence[bytes], expected: str) -> None:
    """With LMTP it is that of one recipient: the others would be bounced for it."""
    script = {"DATA": b"354 go on\r\n552 5.2.2 mailbox full\r\n"}
    answers = outcomes(script, *recipients, lmtp=lmtp)
    assert letters(answers) == expected
    assert all("552 5.2.2 mailbox full" in answer for answer in answers)
    assert all("the server ended the text early" in answer for answer in answers) == (
        expected == "ZZ"
    )


def test_one_reply_amid_the_text_with_one_accepted_recipient() -> None:
    """It is about that one, whoever was refused before."""
    script: Script = {
        "RCPT": [b"550 5.1.1 no\r\n", b"250 ok\r\n"],
        "DATA": b"354 go on\r\n452 4.2.2 mailbox full\r\n",
    }
    assert outcomes(script, A, B, lmtp=True) == ["D550 5.1.1 no", "Z452 4.2.2 mailbox full"]


def test_a_server_that_greets_after_the_stop_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client was told nothing, sends it again, and it would come twice."""
    with scripted_server() as server, handing_on(server) as to:

        class Slow(smtp_client.SmtpClient):
            def _hello(self) -> None:
                to.abort()
                super()._hello()

        monkeypatch.setattr(next_server, "SmtpClient", Slow)
        assert deliver(to) == [f"Z451 {address(server)}: the receiver stops (#4.4.2)"]
        assert server.texts == []
