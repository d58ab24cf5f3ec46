"""One mail transaction with a next server: MAIL, RCPT for each recipient, DATA, the text.

    | stage  | the connection breaks     | so the recipients without an answer are |
    | ------ | ------------------------- | --------------------------------------- |
    | MAIL   | on a kept one, no reply   | tried once more on a new connection     |
    | MAIL   | otherwise                 | Z                                       |
    | RCPT   |                           | Z                                       |
    | DATA   |                           | Z                                       |
    | text   | before its last line      | Z; the server throws it away            |
    | text   | after its last line       | Z; in doubt, for it may have been taken |

MAIL and RCPT of one transaction go out together if the server has
PIPELINING (RFC 2920). With LMTP each accepted recipient has a reply after the
text (RFC 2033, 4.2); a reply amid the text does not cover all of several recipients, and
so means Z for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.mail import addresses
from maildirqmtp.receiver.handoff import smtp_client, verdicts
from maildirqmtp.receiver.handoff.mail_text import TextFeatures, for_smtp
from maildirqmtp.receiver.handoff.outside_addresses import fault_of, outside_sender
from maildirqmtp.receiver.handoff.smtp_client import Broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from maildirqmtp.qmtp.protocol import Response
    from maildirqmtp.receiver.handoff.replies import Reply
    from maildirqmtp.receiver.handoff.smtp_client import SmtpClient

#: Recipients of one transaction; servers must take as many (RFC 5321, 4.5.3.1.8).
MAX_RECIPIENTS = 100

#: The reply to DATA that asks for the text.
_GO_ON = 354
#: The reply with which a server closes the connection (RFC 5321, 3.8).
_CLOSING = 421
#: Seconds for a reply that a server may have sent before it closed the connection.
_LAST_WORDS_S = 2.0
_SMTPUTF8_MISSING = "the next server has no SMTPUTF8, and the address is not ASCII (#5.6.7)"


class OutgoingMail(NamedTuple):
    """A text with its sender, and `pieces` that reads it from the beginning at each call."""

    sender: bytes
    features: TextFeatures
    pieces: Callable[[], Iterator[bytes]]


class Transaction:
    """The transaction of one message with at most `MAX_RECIPIENTS` recipients, raw and not empty.

    After `run`, `responses` has the answer to each recipient, in their order.
    `reusable` is false if the connection must be closed; `unheard` is true if it broke,
    with `trouble`, before the server had replied: then nothing has happened.
    """

    def __init__(self, client: SmtpClient, mail: OutgoingMail, recipients: Sequence[bytes]) -> None:
        self._client = client
        self._mail = mail
        self._sender = outside_sender(mail.sender)
        self._recipients = recipients
        self._answers: list[Response | None] = [None] * len(recipients)
        self._heard = False
        self.reusable = True
        self.unheard = False
        self.trouble = Broken("")

    @property
    def responses(self) -> list[Response]:
        """The answers, once `run` has returned."""
        found = [answer for answer in self._answers if answer is not None]
        assert len(found) == len(self._recipients)
        return found

    def run(self) -> None:
        """Hand the message on."""
        refusal = self._refuse_message()
        if refusal is not None:
            self._answer_rest(refusal)
            return
        self._refuse_recipients()
        if not self._owed:
            return
        try:
            accepted = self._open()
            if not (accepted and self._begin_text()):
                self._reset()
            elif self._send_text():
                self._read_verdicts(accepted)
        except Broken as error:
            self.reusable = False
            self.trouble = error
            self.unheard = not self._heard
            self._answer_rest(broken(self._client.server, error))
        except BaseException:
            # No memory, say, amid the text: what is sent next would be a part of it.
            self.reusable = False
            raise

    @property
    def _owed(self) -> list[int]:
        """The indexes of the recipients without an answer."""
        return [place for place, answer in enumerate(self._answers) if answer is None]

    def _answer_rest(self, response: Response) -> None:
        for place in self._owed:
            self._answers[place] = response

    def _refuse_message(self) -> Response | None:
        features, limit = self._mail.features, self._client.max_size
        if features.fault:
            return verdicts.failed(f"554 {features.fault} (#5.6.0)")
        if limit and features.size > limit:
            return verdicts.failed(
                f"552 message of {features.size} bytes; the next server takes {limit} (#5.3.4)"
            )
        fault = fault_of(self._sender)
        if fault is not None:
            return verdicts.failed(f"553 sender: {fault} (#5.1.7)")
        if not self._sender.isascii() and not self._client.has("smtputf8"):
            return verdicts.failed(f"553 sender: {_SMTPUTF8_MISSING}")
        return None

    def _refuse_recipients(self) -> None:
        for place, recipient in enumerate(self._recipients):
            fault = fault_of(recipient)
            if fault is not None:
                self._answers[place] = verdicts.failed(f"553 {fault} (#5.1.3)")
            elif not recipient.isascii() and not self._client.has("smtputf8"):
                self._answers[place] = verdicts.failed(f"553 {_SMTPUTF8_MISSING}")

    def _mail_command(self, recipients: Sequence[bytes]) -> bytes:
        command = b"MAIL FROM:<%b>" % addresses.quote(self._sender)
        if self._client.has("size"):
            command += b" SIZE=%d" % self._mail.features.size
        if self._mail.features.is_8bit and self._client.has("8bitmime"):
            command += b" BODY=8BITMIME"
        if not (self._sender.isascii() and all(recipient.isascii() for recipient in recipients)):
            command += b" SMTPUTF8"
        return command

    def _ask(self, commands: Sequence[bytes]) -> Iterator[Reply]:
        """Send commands, all at once if the server has PIPELINING; yield the reply to each."""
        pipelining = self._client.has("pipelining")
        if pipelining:
            self._client.say(commands)
        for command in commands:
            if not pipelining:
                self._client.say([command])
            reply = self._client.reply(smtp_client.COMMAND_S)
            self._heard = True
            yield _expected(reply)

    def _open(self) -> list[int]:
        """Send MAIL and RCPT; record refusals, and return the indexes of accepted recipients."""
        owed = self._owed
        recipients = [self._recipients[place] for place in owed]
        mail = self._mail_command(recipients)
        rcpts = [b"RCPT TO:<%b>" % addresses.quote(recipient) for recipient in recipients]
        replies = self._ask([mail, *rcpts])
        reply = next(replies)
        if not reply.is_positive:
            self._answer_rest(verdicts.of_mail(reply))
            if self._client.has("pipelining"):
                list(replies)  # the refusals of RCPT without MAIL
            return []
        for place, reply in zip(owed, replies, strict=True):
            if not reply.is_positive:
                self._answers[place] = verdicts.of_rcpt(reply)
        return self._owed

    def _begin_text(self) -> bool:
        """Send DATA; return False if it is refused."""
        self._client.say([b"DATA"])
        reply = self._client.reply(smtp_client.DATA_S)
        if reply.code == _GO_ON:
            return True
        self._answer_rest(verdicts.of_data(_expected(reply, negative=True)))
        return False

    def _send_text(self) -> bool:
        """Send the text; return False if the server refused it before its last line."""
        try:
            self._client.send_text(for_smtp(self._mail.pieces()))
        except Broken as error:
            reply = error.reply or self._last_words()
            if reply is None or reply.code < 400:
                raise
            if reply.code == _CLOSING:
                raise Broken(str(error), reply) from error
            if self._client.server.lmtp and len(self._owed) > 1:
                raise Broken("the server ended the text early", reply) from error
            self.reusable = False
            self._answer_rest(verdicts.of_text(reply))
            return False
        except OSError as error:
            # Without its last line, the server throws the text away.
            raise Broken(f"cannot read the message: {error.strerror}") from error
        return True

    def _last_words(self) -> Reply | None:
        """Return the reply, if any, that the server sent before it closed the connection."""
        try:
            return self._client.reply(_LAST_WORDS_S)
        except Broken as error:
            return error.reply

    def _read_verdicts(self, accepted: Sequence[int]) -> None:
        """Read the reply after the text: LMTP has one for each accepted recipient."""
        try:
            if self._client.server.lmtp:
                for place in accepted:
                    self._answers[place] = verdicts.of_text(self._verdict())
            else:
                self._answer_rest(verdicts.of_text(self._verdict()))
        except Broken as error:
            doubt = f"{error}; the message was sent whole, and may have been taken"
            raise Broken(doubt, error.reply) from error

    def _verdict(self) -> Reply:
        return _expected(self._client.reply(smtp_client.END_OF_TEXT_S))

    def _reset(self) -> None:
        """End a transaction that sent no text, so that the connection can be used again."""
        self._client.say([b"RSET"])
        if not self._client.reply(smtp_client.COMMAND_S).is_positive:
            self.reusable = False


def _expected(reply: Reply, negative: bool = False) -> Reply:
    """Return the reply. Raises `Broken` if its code has no meaning here."""
    if (reply.is_positive and not negative) or reply.code >= 400:
        return reply
    raise Broken("an unexpected reply", reply)


def broken(server: object, error: Broken) -> Response:
    """Return what a connection that broke, or could not be made, means for a recipient."""
    if error.reply is not None and error.reply.code >= 400:
        said = error.reply.text.decode("utf-8", "replace")
        return verdicts.deferred(f"451 {server}: {error}: {said} (#4.4.2)")
    return verdicts.deferred(f"451 {server}: {error} (#4.4.2)")
