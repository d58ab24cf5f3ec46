"""The sidecar: an envelope beside its message, as JSON.

    DIR/envelope/NAME.json
    {"version": 1, "sender": "bounce@example.org",
     "recipients": ["a@example.net", "b@example.net"],
     "failures": [{"recipient": "...", "response": "D...", "at": "2026-01-31T12:00:00Z"}]}

NAME is the message's file name up to the first `:`. UTF-8; bytes that are not
UTF-8 by surrogateescape. `recipients` are those still owed the message, each once;
`failures`, optional, lists recipients that will not get it, and why.
"""

import json
from dataclasses import dataclass, replace

from maildirqmtp.errors import SidecarError
from maildirqmtp.qmtp.protocol import MAX_RECIPIENTS as MAX_RECIPIENTS
from maildirqmtp.qmtp.protocol import check_address

#: Bytes of a sidecar.
MAX_BYTES = 1 << 20
VERSION = 1
#: Characters that are left of each response if the sidecar would be too large otherwise.
_SHORT = 100


@dataclass(frozen=True, slots=True)
class Failure:
    """One recipient that will not get the message, and why.

    `response` is the server's answer with its letter (`Dno such user`), `at`
    the time in UTC, as `2026-01-31T12:00:00Z`.
    """

    recipient: bytes
    response: str
    at: str


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Sender, recipients still owed the message, and failures."""

    sender: bytes
    recipients: tuple[bytes, ...]
    failures: tuple[Failure, ...] = ()


def encode(sidecar: Sidecar) -> bytes:
    """Return the content of the sidecar's file, from which `decode` makes it again.

    If many long failures would make it larger than `MAX_BYTES`, their responses
    are cut or, if that is not enough, the failures left out: a sidecar that cannot
    be read again would hold the message for good.
    """
    data = _dump(sidecar, indent=1)
    if len(data) > MAX_BYTES:
        short = tuple(replace(f, response=f.response[:_SHORT]) for f in sidecar.failures)
        data = _dump(replace(sidecar, failures=short))
    if len(data) > MAX_BYTES:
        data = _dump(replace(sidecar, failures=()))
    return data


def _dump(sidecar: Sidecar, indent: int | None = None) -> bytes:
    content: dict[str, object] = {
        "version": VERSION,
        "sender": _text(sidecar.sender),
        "recipients": [_text(r) for r in sidecar.recipients],
    }
    if sidecar.failures:
        content["failures"] = [
            {"recipient": _text(f.recipient), "response": f.response, "at": f.at}
            for f in sidecar.failures
        ]
    separators = None if indent else (",", ":")
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=separators)
    return (text + "\n" if indent else text).encode("utf-8", "surrogateescape")


def decode(data: bytes) -> Sidecar:
    """Parse the content of a sidecar's file; each recipient is in the result once.

    Raises `SidecarError` if it has more than `MAX_BYTES` or is not exactly a
    sidecar: the message is then held, never sent by its headers.
    """
    if len(data) > MAX_BYTES:
        raise SidecarError(f"its sidecar has more than {MAX_BYTES} bytes")
    try:
        content = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise SidecarError(f"its sidecar is no JSON: {error}") from None
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is not int or version != VERSION:  # `true` and 1.0 are equal to 1
        raise SidecarError(f"its sidecar is not of version {VERSION}")
    unknown = content.keys() - {"version", "sender", "recipients", "failures"}
    if unknown:
        raise SidecarError(f"its sidecar has an unknown key {min(unknown)!a}")
    sender = _address(content.get("sender"), "sender")
    recipients = content.get("recipients")
    if not isinstance(recipients, list) or len(recipients) > MAX_RECIPIENTS:
        raise SidecarError(
            f"its sidecar has no list of at most {MAX_RECIPIENTS} under 'recipients'"
        )
    failures = content.get("failures", [])
    if not isinstance(failures, list) or len(failures) > MAX_RECIPIENTS:
        raise SidecarError(f"its sidecar has no list of at most {MAX_RECIPIENTS} under 'failures'")
    return Sidecar(
        sender,
        tuple(dict.fromkeys(_address(r, "recipient") for r in recipients)),
        tuple(_failure(f) for f in failures),
    )


def _failure(entry: object) -> Failure:
    if not isinstance(entry, dict) or entry.keys() != {"recipient", "response", "at"}:
        raise SidecarError("a failure in its sidecar is not recipient, response and at")
    response, at = entry["response"], entry["at"]
    if not isinstance(response, str) or not isinstance(at, str):
        raise SidecarError("a failure in its sidecar has a response or a time that is no text")
    for text in (response, at):
        _bytes(text, "failure")
    return Failure(_address(entry["recipient"], "recipient"), response, at)


def _address(value: object, what: str) -> bytes:
    if not isinstance(value, str):
        raise SidecarError(f"its sidecar has a {what} that is no text")
    address = _bytes(value, what)
    if what == "sender" and address == b"<>":
        return b""  # the null sender, with its brackets
    reason = check_address(address, what)
    if reason is None and what == "recipient" and not address:
        reason = "empty recipient"
    if reason is not None:
        raise SidecarError(f"its sidecar cannot be used: {reason}")
    return address


def _bytes(text: str, what: str) -> bytes:
    """Encode a text of the JSON; escapes in it may stand for surrogates, which no file can hold."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise SidecarError(f"its sidecar has a {what} with a lone surrogate") from None


def _text(address: bytes) -> str:
    return address.decode("utf-8", "surrogateescape")
