"""The bounce: whatever is put into it, every mail reader must read it as a delivery report."""

from __future__ import annotations

import email
import email.message
import email.policy
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maildirqmtp.mail import dsn
from maildirqmtp.mail.dsn import Bounce, Failed, build, identify
from maildirqmtp.text import rfc5322_date

NOW = 1_800_000_000.0
ORIGINAL = b"From: me@x\nSubject: hello\nMessage-ID: <1@x>\n\nHow are you?\n"
HEADER_FIELDS = [
    "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type",
]  # fmt: skip
STATUS_FIELDS = [
    "Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code", "Last-Attempt-Date",
]  # fmt: skip


def make(*failed: tuple[bytes, str], **changed: object) -> bytes:
    """Build a bounce; one failure where none is given."""
    content: dict[str, object] = {
        "sender": b"sender@example.org",
        "failed": tuple(Failed(*f) for f in failed) or (Failed(b"r@y", "Dno such user (#5.1.1)"),),
        "original": ORIGINAL,
        "complete": True,
        "identifier": "0123456789abcdef",
        "host": "relay.example.org",
        "server": "mail.example.net",
        "arrived_s": NOW - 60,
        "now_s": NOW,
    }
    return build(Bounce(**(content | changed)))  # type: ignore[arg-type]


def read(bounce: bytes) -> list[email.message.EmailMessage]:
    """Read a bounce as a program that gets one does; return it and its three parts."""
    assert all(len(line) <= 998 for line in bounce.split(b"\n"))
    assert not {b"\0", b"\r"} & {bounce[i : i + 1] for i in range(len(bounce))}
    message = email.message_from_bytes(bounce, policy=email.policy.default)
    assert isinstance(message, email.message.EmailMessage)
    assert message.defects == []
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    fields = [name for name in message.keys() if name != "Content-Transfer-Encoding"]  # noqa: SIM118
    assert fields == HEADER_FIELDS
    assert message["Auto-Submitted"] == "auto-replied"
    encoding = message.get("Content-Transfer-Encoding", "7bit")
    assert encoding == ("7bit" if bounce.isascii() else "8bit")
    parts = list(message.iter_parts())
    assert [part.get_content_maintype() for part in parts] in (
        ["text", "message", "message"],
        ["text", "message", "text"],
    )
    assert all(part.defects == [] for part in parts)
    return [message, *parts]  # type: ignore[list-item]


def status_text(bounce: bytes) -> str:
    """Return the part for programs as it stands there."""
    kind = re.search(rb"Content-Type: message/(global-)?delivery-status\n(.*\n)?\n", bounce)
    assert kind is not None
    text = bounce[kind.end() :].partition(b"\n\n--")[0]
    return text.partition(b"\n--0123456789abcdef-")[0].decode()


def groups(bounce: bytes) -> list[dict[str, str]]:
    """Return the groups of fields of the part for programs, the message's first."""
    made = []
    for group in status_text(bounce).strip("\n").split("\n\n"):
        fields = [line.partition(": ") for line in group.split("\n")]
        assert len({name for name, _, _ in fields}) == len(fields)
        made.append({name: value for name, _, value in fields})
    return made


# What stands where


def test_a_bounce_says_what_failed_to_people_and_to_programs() -> None:
    """A list manager reads the second part, a person the first."""
    bounce = make((b"a@y", "Dno such user (#5.1.1)"), (b"b@y", "Dmailbox full 5.2.2."))
    message, text, status, original = read(bounce)
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@relay.example.org>"
    assert message["To"] == "sender@example.org"
    assert message["Message-ID"] == "<0123456789abcdef@relay.example.org>"
    assert message["Date"] == "Fri, 15 Jan 2027 08:00:00 +0000"
    content = text.get_content()
    assert "relay.example.org" in content
    assert "mail.example.net" in content
    assert "<a@y>:\n  no such user (#5.1.1)\n" in content
    assert "<b@y>:\n  mailbox full 5.2.2.\n" in content
    assert status.get_content_type() == "message/delivery-status"
    assert groups(bounce) == [
        {
            "Reporting-MTA": "dns; relay.example.org",
            "Arrival-Date": "Fri, 15 Jan 2027 07:59:00 +0000",
        },
        *(
            {
                "Final-Recipient": f"rfc822; {recipient}",
                "Action": "failed",
                "Status": code,
                "Remote-MTA": "dns; mail.example.net",
                "Diagnostic-Code": f"x-qmtp; {said}",
                "Last-Attempt-Date": "Fri, 15 Jan 2027 08:00:00 +0000",
            }
            for recipient, code, said in (
                ("a@y", "5.1.1", "Dno such user (#5.1.1)"),
                ("b@y", "5.2.2", "Dmailbox full 5.2.2."),
            )
        ),
    ]
    assert original.get_content_type() == "message/rfc822"
    assert bounce.count(ORIGINAL) == 1
    (quoted,) = original.iter_parts()
    assert quoted["Subject"] == "hello"


def test_what_was_said_before_is_for_people_only() -> None:
    """The oldest first, each in one line, whatever a server has written."""
    bounce = make(earlier=((int(NOW) - 60, "busy\nTo: all"), (int(NOW) - 120, "greylisted")))
    explanation, status, _ = read(bounce)[1:]
    text = explanation.get_content()
    assert text.index("greylisted") < text.index("busy?To: all")
    assert f"  {rfc5322_date(NOW - 120)}: greylisted\n" in text
    assert "greylisted" not in str(status)
    assert "tried before" not in read(make())[1].get_content()


def test_python_reads_the_groups_of_the_status_part() -> None:
    """The parser that most list managers use finds each failure in a group of its own."""
    _, _, status, _ = read(make(*[(b"%d@y" % number, "Dno") for number in range(5)]))
    found = list(status.iter_parts())
    assert len(found) == 6
    assert [group["Final-Recipient"] for group in found[1:]] == [
        f"rfc822; {number}@y" for number in range(5)
    ]


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("Dno such user (#5.1.1)", "5.1.1"),
        ("D5.7.1 not you.", "5.7.1"),
        ("Dsorry, no such user. 5.1.1.", "5.1.1"),
        ("D", "5.0.0"),
        ("Dno", "5.0.0"),
        ("D2.0.0 ok", "5.0.0"),
        ("D4.2.2, then 5.2.2", "5.2.2"),
        ("D4.2.2 full", "5.2.2"),
        ("D421 4.4.2 timed out", "5.4.2"),
        ("D4.4.2, then 4.7.1", "5.4.2"),
        ("D5.1.1.7 is blocked", "5.0.0"),
        ("D15.1.1", "5.0.0"),
        ("D5.1.1234", "5.0.0"),
        ("D5.\u0661.\u0661", "5.0.0"),
        ("Zfull (#4.2.2) (too old: 14.0 days)", "4.2.2"),
        ("Zfull (too old: 14.0 days)", "4.4.7"),
        ("Z5.1.1 (too old: 14.0 days)", "4.4.7"),
    ],
)
def test_the_status_code(response: str, code: str) -> None:
    """RFC 3463: programs drop an address by this, so that a wrong class loses a subscriber."""
    assert groups(make((b"r@y", response)))[1]["Status"] == code


@pytest.mark.parametrize(
    ("server", "shown"),
    [
        ("mail.example.net", "mail.example.net"),
        ("192.0.2.1", "[192.0.2.1]"),
        ("::1", "[::1]"),
        ("b\u00fccher.example", "b?cher.example"),
        ("a\nb: c", "a?b: c"),
    ],
)
def test_the_servers_name(server: str, shown: str) -> None:
    """RFC 3464, 2.1.1: ASCII only, whatever the administrator calls the server."""
    bounce = make(server=server)
    read(bounce)
    assert groups(bounce)[1]["Remote-MTA"] == f"dns; {shown}"


def test_a_response_without_text_is_no_empty_field() -> None:
    """Some parsers refuse a field without a value."""
    bounce = make((b"r@y", "D"))
    assert groups(bounce)[1]["Diagnostic-Code"] == "x-qmtp; D"
    assert "(no reason given)" in read(bounce)[1].get_content()


# Other alphabets


def test_a_recipient_in_utf8_makes_the_parts_of_rfc_6533() -> None:
    """message/delivery-status may hold ASCII only."""
    recipient = "jürgen@exämple.org"
    failed = (recipient.encode(), "Dжфя"), (b"plain@y", "Dno")
    bounce = make(*failed, original="Subject: ü\n\nü\n".encode())
    _, _, status, original = read(bounce)
    assert status.get_content_type() == "message/global-delivery-status"
    assert status["Content-Transfer-Encoding"] == "8bit"
    assert original.get_content_type() == "message/global"
    _, first, second = groups(bounce)
    assert first["Final-Recipient"] == f"utf-8; {recipient}"
    assert first["Diagnostic-Code"] == "x-qmtp; Dжфя"
    assert second["Final-Recipient"] == "rfc822; plain@y"
    long = make((recipient.encode(), "Dno"), original=b"Subject: \xc3\xbc\n\n" + b"x" * 999)
    assert read(long)[3].get_content_type() == "message/global-headers"


def test_with_ascii_addresses_the_status_part_is_ascii() -> None:
    """RFC 3464, 2.1.1, also where the server speaks otherwise; people still read what it said."""
    bounce = make((b"r@y", "Dждя?"))
    assert groups(bounce)[1]["Diagnostic-Code"] == "x-qmtp; D????"
    _, text, status, _ = read(bounce)
    assert "Content-Transfer-Encoding" not in status
    assert "ждя?" in text.get_content()


def test_8bit_anywhere_is_declared_on_the_whole() -> None:
    """RFC 2045, 6.4: else a relay takes the report for 7 bits and strips the eighth."""
    assert b"\nContent-Transfer-Encoding: 8bit\n" not in make()
    bounce = make(original=b"Subject: x\n\n\xe4\n")
    assert bounce.partition(b"\n\n")[0].endswith(b"\nContent-Transfer-Encoding: 8bit")
    assert read(bounce)[3]["Content-Transfer-Encoding"] == "8bit"


# The original


@pytest.mark.parametrize("size", [dsn.QUOTE_BYTES, dsn.QUOTE_BYTES + 1])
def test_up_to_50_kb_are_quoted(size: int) -> None:
    """A bounce of a large message must not be large itself."""
    head = b"Subject: s\n\n"
    body = (b"0123456789\n" * 5_000)[: size - len(head) - 1] + b"\n"
    bounce = make(original=head + body)
    original = read(bounce)[3]
    if size <= dsn.QUOTE_BYTES:
        assert original.get_content_type() == "message/rfc822"
        assert head + body in bounce
    else:
        assert original.get_content_type() == "text/rfc822-headers"
        assert original.get_content().strip() == "Subject: s"
        assert b"0123456789\n" not in bounce


def test_the_beginning_of_a_message_is_not_passed_for_the_whole() -> None:
    """Of a streamed message only the top is at hand."""
    assert read(make(complete=False))[3].get_content_type() == "text/rfc822-headers"


@pytest.mark.parametrize("bad", [b"\0", b"\rx", b"x" * 999, b"\r\r\n"])
def test_what_cannot_travel_is_not_quoted(bad: bytes) -> None:
    """A NUL, a bare CR or a line of more than 998 bytes has the report itself refused."""
    bounce = make(original=b"Subject: s\n\n" + bad + b"\n")
    original = read(bounce)[3]
    assert original.get_content_type() == "text/rfc822-headers"
    assert original.get_content().strip() == "Subject: s"


def test_a_line_of_998_bytes_can_travel() -> None:
    """The longest that RFC 5322, 2.1.1 allows."""
    text = b"Subject: s\n\n" + b"x" * 998 + b"\n"
    assert text in make(original=text)


def test_a_message_from_dos_gets_the_line_ends_of_the_report() -> None:
    """CR LF among LF would come out as CR CR LF."""
    original = read(make(original=b"Subject: s\r\n\r\nbody\r\n"))[3]
    (quoted,) = original.iter_parts()
    assert (quoted["Subject"], quoted.get_content()) == ("s", "body\n")
    original = read(make(original=b"Subject: s\r\nTo: x\r\n\r\nbody\r\n", complete=False))[3]
    assert original.get_content() == "Subject: s\nTo: x\n"


def test_a_header_is_quoted_fit_to_travel() -> None:
    """Long lines are cut, folded ones stay folded, nothing of the body comes along."""
    header = b"Subject: a\n\tb\nX: " + b"y" * 2_000 + b"\nZ: \0\x1b[31m\nTo: x\n"
    text = read(make(original=header + b"\nsecret\n\nmore\n", complete=False))[3].get_content()
    assert text == "Subject: a\n b\nX: " + "y" * 197 + "\nZ: ??[31m\nTo: x\n"


def test_a_message_without_a_header_has_none_quoted() -> None:
    """The body of a large message that begins with an empty line is no header."""
    bounce = make(original=b"\nsecret: x\n\nmore\n", complete=False)
    read(bounce)
    assert b"secret" not in bounce


# Senders


@pytest.mark.parametrize(
    "sender",
    [
        b"a@example.org",
        b"first.last+tag=x@sub.example.org",
        b"owner-list-joe=example.org@example.net",
        "jürgen@exämple.org".encode(),
    ],
)
def test_the_sender_is_named(sender: bytes) -> None:
    """So that mail readers show who the report is for."""
    assert b"\nTo: <%b>\n" % sender in make(sender=sender)


@pytest.mark.parametrize(
    ("sender", "to"),
    [
        (b"jane x@y", '"jane x"@y'),
        (b"a..b@x", '"a..b"@x'),
        (b".a@x", '".a"@x'),
        (b"a?b@x", "a?b@x"),
    ],
)
def test_a_sender_with_a_quoted_local_part_is_named_as_headers_write_it(
    sender: bytes, to: str
) -> None:
    """Raw, it would be no address; and who reads the bounce looks for their own."""
    bounce = make(sender=sender)
    assert f"\nTo: <{to}>\n".encode() in bounce


def test_recipients_are_quoted_as_headers_write_them() -> None:
    """Programs read them (RFC 3464, 2.3.2)."""
    bounce = make((b"jane x@y", "Dno"))
    assert groups(bounce)[1]["Final-Recipient"] == 'rfc822; "jane x"@y'


def test_where_no_server_was_asked_none_is_blamed() -> None:
    """A message in a loop is refused here."""
    bounce = make(server=None)
    assert b"The reason is with each of them." in bounce
    assert b"Remote-MTA" not in bounce


@pytest.mark.parametrize(
    "sender",
    [
        b"a,b@x",
        b"a@x>, <victim@y",
        b'"a"@x',
        b"(a)@x",
        b"a;b@x",
        b"a:b@x",
        b"a\\@x",
        b"a@[192.0.2.1]",
        b"root",
        b"a@b@c",
        b"a\xff@x",
        b"a\x1b@x",
        b"a\x85@x",
        "a\u2028b@x".encode(),
        "a\u202eb@x".encode(),
        b"l" * 900 + b"@x",
        b"a@" + b"x" * 900,
    ],
)
def test_a_sender_that_could_be_more_than_an_address_is_not_named(sender: bytes) -> None:
    """A To: of the attacker's making: further addresses, further fields, a line too long."""
    message = read(make(sender=sender))[0]
    assert message["To"] == "undisclosed-recipients:;"


# Identity


def test_the_same_failure_has_the_same_identifier() -> None:
    """A bounce made again after a crash must be known for the same one."""
    one = identify(b"1.a", 5, [b"a@y", b"b@y"])
    assert one == identify(b"1.a", 5, [b"b@y", b"a@y"])
    others = [
        identify(b"1.b", 5, [b"a@y", b"b@y"]),
        identify(b"1.a", 6, [b"a@y", b"b@y"]),
        identify(b"1.a", 5, [b"a@y"]),
        identify(b"1.a", 5, [b"a@yb@y"]),
        identify(b"1.a", 5, []),
    ]
    assert len({one, *others}) == 6
    assert re.fullmatch("[0-9a-f]{32}", one)


def test_the_boundary_is_in_no_part() -> None:
    """A message that has guessed the boundary could end its own quotation."""
    evil = b"".join(b"\n--0123456789abcdef-%d%b\n" % (n, e) for n in range(5) for e in (b"", b"--"))
    _, _, _, original = read(make(original=b"Subject: s\n\n" + evil))
    assert original.get_content_type() == "message/rfc822"


@pytest.mark.parametrize("seconds", [-1e12, -1.0, 0.0, 2e11, 2.6e11, 1e18])
def test_any_time_a_file_can_have_is_written(seconds: float) -> None:
    """`touch -d @99999999999999` in a user's maildir must not stop the run."""
    form = r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000"
    assert re.fullmatch(form, rfc5322_date(seconds))
    read(make(arrived_s=seconds))


# Whatever they send us

# What a response can be: the server's bytes made printable, or anything else to be safe.
hostile_text = st.text(st.characters(), max_size=1_500) | st.sampled_from(
    [
        "",
        "\r\nX: y",
        "\n\n--0123456789abcdef-0--\n",
        "ü" * 700,
        "😀" * 600,
        "\x85\u2028\u2029\x0b\x0c\x1c",
    ]
)
hostile_address = st.binary(min_size=1, max_size=999).map(
    lambda a: re.sub(rb"[\0\r\n]", b"?", a)
) | st.sampled_from(
    [
        b"x" * 999,
        "ü".encode() * 499,
        b"a@b\x85Bcc: v@w",
        "\u2028".encode() * 333,
        b"--",
        b" ",
        b"a: b",
    ]
)
hostile_original = st.binary(max_size=3_000) | st.lists(
    st.sampled_from(
        [
            b"Subject: x",
            b"\n",
            b"\r\n",
            b"\r",
            b"\0",
            b"--0123456789abcdef-0",
            b"\xe4",
            b"x" * 999,
            b"Content-Type: multipart/mixed; boundary=x\n\n--x\n",
            b"MIME-Version: 1.0\n",
            b": \n",
            b" \n",
        ]
    )
).map(b"".join)


@settings(max_examples=300)
@given(
    failed=st.lists(st.tuples(hostile_address, hostile_text), min_size=1, max_size=4),
    sender=hostile_address,
    original=hostile_original,
    complete=st.booleans(),
    names=st.tuples(hostile_text, hostile_text),
)
@example(
    failed=[(b"x" * 999, "D" + "😀" * 600)],
    sender=b"x" * 999,
    original=b"",
    complete=True,
    names=("", ""),
)
def test_whatever_is_put_in_a_parser_finds_the_three_parts(
    failed: list[tuple[bytes, str]],
    sender: bytes,
    original: bytes,
    complete: bool,
    names: tuple[str, str],
) -> None:
    """No response, address, message, host or server name adds a field, a part or a recipient."""
    failed = [(recipient, "D" + text) for recipient, text in failed]
    bounce = make(
        *failed, sender=sender, original=original, complete=complete, host=names[0], server=names[1]
    )
    _, text, status, quoted = read(bounce)
    assert text.get_content_type() == "text/plain"
    wide = any(not recipient.isascii() for recipient, _ in failed)
    prefix = "global-" if wide else ""
    assert status.get_content_type() == f"message/{prefix}delivery-status"
    assert quoted.get_content_type() in (
        ("message/global", "message/global-headers")
        if wide
        else ("message/rfc822", "text/rfc822-headers")
    )
    if not wide:
        assert status_text(bounce).isascii()
    first, *others = groups(bounce)
    assert list(first) == ["Reporting-MTA", "Arrival-Date"]
    fields = [field for field in STATUS_FIELDS if names[1] or field != "Remote-MTA"]
    assert [list(other) for other in others] == [fields] * len(failed)
    assert [other["Action"] for other in others] == ["failed"] * len(failed)


def test_a_server_without_a_name_in_the_dns_is_not_named() -> None:
    """The sender is far away; the paths of sockets and commands stay here."""
    bounce = make(server="")
    _, text, *_ = read(bounce)
    assert "again. What the server said is with each of them." in text.get_content()
    assert "Remote-MTA" not in groups(bounce)[1]
