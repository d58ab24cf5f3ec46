"""What a reply of the next server means for a recipient: K, Z or D.

    | reply to           | 2xx      | 4xx | 5xx                                               |
    | ------------------ | -------- | --- | ------------------------------------------------- |
    | greeting, EHLO     | go on    | Z   | Z: it is about us                                 |
    | MAIL               | go on    | Z   | Z; D for a refused sender, and for the size       |
    | RCPT               | go on    | Z   | D; Z for 552 (RFC 5321, 4.5.3.1.10), and about us |
    | DATA               | -        | Z   | D; Z about us                                     |
    | the end of the text| K        | Z   | D; Z about us                                     |

About us are 503, 530, and Postfix's refusals of the client or its EHLO, which it keeps until RCPT,
or until the end of the text (smtpd_end_of_data_restrictions).
Anything else (1xx, 3xx but for 354 after DATA) is Z, and ends the connection.
"""

import re

from maildirqmtp.qmtp.protocol import Response, Status
from maildirqmtp.receiver.handoff.replies import Reply

#: Refusals of the sender's address (RFC 3463, 3.2) and of the size (RFC 3463, 3.3 and 3.4).
_SENDER_REFUSED = frozenset({"5.1.7", "5.1.8"})
_TOO_LARGE = frozenset({"5.2.3", "5.3.4"})
#: Bad sequence of commands, authentication required: about us, not about the recipient.
_ABOUT_US = frozenset({503, 530})
#: Postfix, as in `504 5.5.2 <laptop>: Helo command rejected: need fully-qualified hostname` and
#: `554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org`.
_WE_ARE_REFUSED = re.compile(
    rb"(?:[Cc]lient(?: host)?|Helo command)(?: rejected:| \[[^]]*\] blocked using)"
)
#: For what was not begun: its client has gone, the receiver stops, or what came before took long.
NO_TIME = Response(Status.DEFERRED, b"451 its turn has not come, try again later (#4.4.5)")


def _said(status: Status, reply: Reply) -> Response:
    return Response(status, reply.text)


def _deferred_or(failed: bool, reply: Reply) -> Response:
    return _said(Status.FAILED if failed and reply.code >= 500 else Status.DEFERRED, reply)


def _is_about_us(reply: Reply) -> bool:
    return reply.code in _ABOUT_US or _WE_ARE_REFUSED.search(reply.text) is not None


def of_mail(reply: Reply) -> Response:
    """Return what a refused MAIL means for every recipient."""
    enhanced = reply.enhanced
    # RFC 1870, 6.1: 552 without an enhanced status code is about the size.
    too_large = enhanced in _TOO_LARGE or (reply.code == 552 and not enhanced)
    return _deferred_or(too_large or enhanced in _SENDER_REFUSED, reply)


def of_rcpt(reply: Reply) -> Response:
    """Return what a refused RCPT means for its recipient."""
    return _deferred_or(reply.code != 552 and not _is_about_us(reply), reply)


def of_data(reply: Reply) -> Response:
    """Return what a refused DATA means for the accepted recipients."""
    return _deferred_or(not _is_about_us(reply), reply)


def of_text(reply: Reply) -> Response:
    """Return what the reply after the text means for its recipients."""
    return _said(Status.ACCEPTED, reply) if reply.is_positive else of_data(reply)


def accepted(text: str) -> Response:
    """Return a K with a text of our own."""
    return Response(Status.ACCEPTED, text.encode("utf-8", "surrogateescape"))


def deferred(text: str) -> Response:
    """Return a Z with a text of our own."""
    return Response(Status.DEFERRED, text.encode("utf-8", "surrogateescape"))


def failed(text: str) -> Response:
    """Return a D with a text of our own."""
    return Response(Status.FAILED, text.encode("utf-8", "surrogateescape"))
