"""`--deliver HOW`: what is understood, and what is refused with a word of help."""

import pytest

from maildirqmtp.errors import ConfigError
from maildirqmtp.receiver.handoff.how import CommandWords, SmtpAddress, parse_how


@pytest.mark.parametrize(
    ("text", "found", "shown"),
    [
        ("lmtp:mx:2424", SmtpAddress(True, "mx", 2424), "lmtp:mx:2424"),
        ("lmtp:mx", SmtpAddress(True, "mx", 24), "lmtp:mx:24"),
        ("lmtp:[::1]:24", SmtpAddress(True, "::1", 24), "lmtp:[::1]:24"),
        ("lmtp:unix:/run/a b", SmtpAddress(True, path="/run/a b"), "lmtp:unix:/run/a b"),
        ("smtp:mx.example.org", SmtpAddress(False, "mx.example.org", 25), "smtp:mx.example.org:25"),
        ("smtp:127.0.0.1:2525", SmtpAddress(False, "127.0.0.1", 2525), "smtp:127.0.0.1:2525"),
    ],
)
def test_servers(text: str, found: SmtpAddress, shown: str) -> None:
    """And how they are named in log and answers."""
    assert parse_how(text) == found
    assert str(found) == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exec:lda -d {recipient}", ("lda", "-d", "{recipient}")),
        (
            "exec:sendmail -f '{sender}' -- {recipients}",
            ("sendmail", "-f", "{sender}", "--", "{recipients}"),
        ),
        ("exec:'/opt/my lda' --to={recipient}", ("/opt/my lda", "--to={recipient}")),
    ],
)
def test_commands(text: str, words: tuple[str, ...]) -> None:
    """Split as a shell would."""
    assert parse_how(text) == CommandWords(words)


@pytest.mark.parametrize(
    "text",
    [
        "", "lmtp", "lmtp:", "lmtp:unix:", "smtp:", "smtp:mx:", "smtp:mx:0", "smtp:mx:70000",
        "smtp:unix:/run/x", "qmtp:mx", "mx:25", "/run/lmtp", "smtp:a b", "exec:", "exec: ",
        "exec:'lda {recipient}", "exec:lda", "exec:lda {sender}", "exec:lda --to={recipients}",
        "exec:lda {recipient} {recipients}", "exec:{recipient} x", "exec:{recipients}",
    ],
)  # fmt: skip
def test_what_is_not_understood(text: str) -> None:
    """A command that does not learn the recipient delivers everything to one mailbox."""
    with pytest.raises(ConfigError, match="--deliver"):
        parse_how(text)
