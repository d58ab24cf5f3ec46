"""Lists of addresses in header fields (RFC 5322, 3.4): names, comments, groups, folded lines.

    To: Ann <ann@example.org>, "jane x"@example.net (at home),
        friends: bob, carl@example.com;

The obsolete syntax of RFC 5322, 4.4 is accepted: blanks around dots and `@`, empty elements, routes
(`<@a,@b:c@d>`). One element that is not an address makes the whole list invalid: otherwise half of
its recipients would get the message, and the others never. `email.utils.getaddresses` guesses at
such a list, and its guess changes from one Python version to the next.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from maildirqmtp.mail.addresses import unquote
from maildirqmtp.text import printable

_BLANKS = re.compile(rb"[ \t\r\n]+")
_ATOM = re.compile(rb'[^ \t\r\n()<>\[\]:;@\\,"\0]+')
_QUOTED = re.compile(rb'"(?:[^"\\\0]|\\[^\0])*"', re.DOTALL)
_LITERAL = re.compile(rb"\[[^\[\]\\\r\n\0]*\]")
_IN_COMMENT = re.compile(rb"[()]|\\.", re.DOTALL)
_FOLD = re.compile(rb"\r?\n(?=[ \t])")
# Bytes of a list that an error shows.
_SHOWN = 60


class Mailbox(NamedTuple):
    """One address of a list, in its raw form.

    `domain_at` is the index in the text at which its domain is missing, None if it has one.
    """

    address: bytes
    domain_at: int | None


class _Token(NamedTuple):
    """A token: an atom (with its dots), a quoted string, a domain literal, or a special."""

    kind: bytes
    text: bytes
    end: int


def parse(text: bytes) -> list[Mailbox]:
    """Return the addresses of a list in order, including those of its groups.

    Raises `ValueError`, which shows the place, if anything in it is not an address.
    """
    return list(_Parser(text).run())


class _Parser:
    """Parses one list; `_words` are the tokens of the current element outside angle brackets."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._words: list[_Token] = []
        self._angle: list[_Token] | None = None
        self._angle_open = False
        self._in_group = False

    def run(self) -> Iterator[Mailbox]:
        for token in _tokens(self._text):
            if self._angle_open:
                self._in_angle(token)
            elif token.kind in (b",", b";"):
                yield from self._element()
                if token.kind == b";":
                    self._end_group(token)
            elif token.kind == b":":
                self._begin_group(token)
            elif token.kind == b"<" and self._angle is None:
                self._angle, self._angle_open = [], True
            elif token.kind == b">" or self._angle is not None:
                raise _wrong(self._text, token.end)
            else:
                self._words.append(token)
        if self._angle_open:
            raise _wrong(self._text, len(self._text))
        # Many programs leave out the `;` of a group at the end of the field.
        yield from self._element()

    def _in_angle(self, token: _Token) -> None:
        assert self._angle is not None
        if token.kind == b">":
            self._angle_open = False
        elif token.kind == b":":
            # What was before it is a route, which is to be ignored (RFC 5322, 4.4).
            if not self._angle or self._angle[0].kind != b"@":
                raise _wrong(self._text, token.end)
            self._angle.clear()
        elif token.kind in (b"<", b";"):
            raise _wrong(self._text, token.end)
        else:
            self._angle.append(token)

    def _begin_group(self, token: _Token) -> None:
        named = self._words and all(word.kind in (b"atom", b"quoted") for word in self._words)
        if self._in_group or self._angle is not None or not named:
            raise _wrong(self._text, token.end)
        self._in_group = True
        self._words.clear()

    def _end_group(self, token: _Token) -> None:
        if not self._in_group:
            raise _wrong(self._text, token.end)
        self._in_group = False

    def _element(self) -> Iterator[Mailbox]:
        chosen = self._words if self._angle is None else self._angle
        if chosen or self._angle is not None:
            yield self._mailbox(chosen)
        self._words, self._angle = [], None

    def _mailbox(self, tokens: list[_Token]) -> Mailbox:
        """Return the address that these tokens form: a local part, and at most one domain."""
        mark = next((place for place, token in enumerate(tokens) if token.kind == b"@"), None)
        end = tokens[-1].end if tokens else len(self._text)
        local, domain = tokens[:mark], [] if mark is None else tokens[mark + 1 :]
        if not _joined(local, b"quoted") or (mark is not None and not _joined(domain, b"literal")):
            raise _wrong(self._text, end)
        raw = b"".join(unquote(token.text) for token in local)
        if mark is None:
            return Mailbox(raw, local[-1].end)
        return Mailbox(b"%b@%b" % (raw, b"".join(token.text for token in domain)), None)


def _joined(tokens: list[_Token], other: bytes) -> bool:
    """Return whether these are words joined by dots; a word is an atom, or of kind `other`."""
    if not tokens or not all(token.kind in (b"atom", other) for token in tokens):
        return False
    if other == b"literal" and len(tokens) > 1 and any(t.kind == other for t in tokens):
        return False
    return all(
        (before.kind == b"atom" and before.text.endswith(b"."))
        or (after.kind == b"atom" and after.text.startswith(b"."))
        for before, after in pairwise(tokens)
    )


def _tokens(text: bytes) -> Iterator[_Token]:
    """Yield the tokens of a list, without blanks and comments."""
    text = _FOLD.sub(lambda match: b" " * len(match[0]), text)  # of the same length
    kinds = ((b"atom", _ATOM), (b"quoted", _QUOTED), (b"literal", _LITERAL))
    at = 0
    while at < len(text):
        if text[at : at + 1] == b"(":
            at = _comment_end(text, at)
            continue
        if blanks := _BLANKS.match(text, at):
            at = blanks.end()
            continue
        for kind, pattern in kinds:
            if match := pattern.match(text, at):
                yield _Token(kind, match[0], match.end())
                at = match.end()
                break
        else:
            special = text[at : at + 1]
            at += 1
            if special not in b"<>:;@,":
                raise _wrong(text, at)
            yield _Token(special, special, at)


def _comment_end(text: bytes, at: int) -> int:
    """Return the index after the comment that begins at `at`; comments nest (RFC 5322, 3.2.2)."""
    depth = 0
    for match in _IN_COMMENT.finditer(text, at):
        depth += {b"(": 1, b")": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    raise _wrong(text, len(text))


def _wrong(text: bytes, end: int) -> ValueError:
    shown = text[max(0, end - _SHOWN) : end].strip()
    return ValueError(f"not a list of addresses: {printable(shown)!r}")
