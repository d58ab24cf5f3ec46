"""`--deliver HOW`: what the command line says about the next server.

lmtp:HOST[:PORT]   LMTP (RFC 2033), port 24 unless said otherwise
lmtp:unix:PATH
smtp:HOST[:PORT]   SMTP (RFC 5321), port 25
exec:COMMAND       a command, in which {recipient} or {recipients} stand for addresses
"""

from __future__ import annotations

from typing import NamedTuple

from maildirqmtp.errors import ConfigError
from maildirqmtp.transport.endpoint import parse_tcp

#: The default of messages handed on at once; Postfix's limit for a destination.
CONNECTIONS = 20
LMTP_PORT = 24
SMTP_PORT = 25
#: What `Command` replaces.
SENDER, RECIPIENT, RECIPIENTS = "{sender}", "{recipient}", "{recipients}"


class SmtpAddress(NamedTuple):
    """Where a next server is: `host` and `port`, or `path` of a Unix socket; LMTP or SMTP."""

    lmtp: bool
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        scheme = "lmtp" if self.lmtp else "smtp"
        if self.path:
            return f"{scheme}:unix:{self.path}"
        place = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}:{place}:{self.port}"


class CommandWords(NamedTuple):
    """A command, by its words."""

    words: tuple[str, ...]


def parse_how(text: str) -> SmtpAddress | CommandWords:
    """Parse HOW. Raises `ConfigError`, with what is understood, if it has none of the forms."""
    scheme, _, rest = text.partition(":")
    if scheme == "exec":
        return CommandWords(_words(rest))
    if scheme == "lmtp" and rest.startswith("unix:"):
        path = rest.removeprefix("unix:")
        if not path or "\0" in path:
            raise ConfigError(f"--deliver {text!r}: a path is needed, as in lmtp:unix:/run/lmtp")
        return SmtpAddress(lmtp=True, path=path)
    if scheme not in ("lmtp", "smtp"):
        raise ConfigError(
            f"--deliver {text!r}: write lmtp:HOST:PORT, lmtp:unix:PATH, smtp:HOST[:PORT] or "
            f"exec:COMMAND"
        )
    lmtp = scheme == "lmtp"
    try:
        place = parse_tcp(rest, LMTP_PORT if lmtp else SMTP_PORT)
    except ConfigError:
        raise ConfigError(
            f"--deliver {text!r}: write {scheme}:HOST:PORT, as in {scheme}:localhost:"
            f"{LMTP_PORT if lmtp else SMTP_PORT} or {scheme}:[::1]:2525"
        ) from None
    return SmtpAddress(lmtp, place.host, place.port)


def _words(command: str) -> tuple[str, ...]:
    """Split a command as a shell would, without one. Raises `ConfigError` if it cannot be run."""
    import shlex

    where = f"--deliver exec:{command}"
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not words or not words[0] or "\0" in command:
        raise ConfigError(f"{where}: a command is needed, as in exec:dovecot-lda -d {RECIPIENT}")
    for_one = any(RECIPIENT in word for word in words)
    for_all = RECIPIENTS in words
    if not for_one and not for_all:
        raise ConfigError(
            f"{where}: without {RECIPIENT}, to run it for each one, or {RECIPIENTS}, the command "
            f"does not learn whom the mail is for"
        )
    if for_one and for_all:
        raise ConfigError(f"{where}: {RECIPIENT} and {RECIPIENTS}: one or the other")
    if any(RECIPIENTS in word and word != RECIPIENTS for word in words):
        raise ConfigError(f"{where}: {RECIPIENTS} becomes several words, and has to be one itself")
    if RECIPIENT in words[0] or SENDER in words[0] or words[0] == RECIPIENTS:
        raise ConfigError(f"{where}: the command itself cannot be an address")
    return words
