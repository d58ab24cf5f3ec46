"""Addresses for the names of this machine's users: aliases, completion, the envelope sender.

A name is local if it has no domain, or its domain is localhost or this host. Aliases come first,
then completion by the configured domain. At the host's full name, which may be a domain that
takes mail, recipients are only looked up in the aliases; a sender there is rewritten, because
most servers refuse one at `laptop.local`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError, EnvelopeError
from maildirqmtp.text import printable
from maildirqmtp.transport.host_name import full_host_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from maildirqmtp.settings.submission import Submission

#: Most aliases that may lead to each other before an address.
MAX_DEPTH = 10

_LOCALHOST = (b"", b"localhost", b"localhost.localdomain")


class NoSuchUser(EnvelopeError):
    """A local name that is no alias, while no domain is configured to complete it."""


class LocalNames:
    """The local names of this machine, as configured. Addresses are raw."""

    def __init__(self, settings: Submission) -> None:
        self._settings = settings
        self._host = socket.gethostname().lower().encode("utf-8", "replace")
        self._short = self._host.partition(b".")[0]
        #: The configured domain, empty without one.
        self.domain = (settings.domain or "").encode()

    def recipients(self, given: Iterable[bytes]) -> tuple[bytes, ...]:
        """Return the addresses that these recipients expand to, each once.

        Raises `NoSuchUser` for a local name that leads to no address, and `ConfigError`
        for aliases that lead back to themselves, or are nested too deeply.
        """
        found: dict[bytes, bytes] = {}
        expanded: set[bytes] = set()
        for address in given:
            for one in self._expand(address, (), expanded):
                local, at, domain = one.rpartition(b"@")
                found.setdefault(local + at + domain.lower(), one)
        return tuple(found.values())

    def _expand(
        self, address: bytes, path: tuple[bytes, ...], expanded: set[bytes]
    ) -> Iterator[bytes]:
        name = self._alias(address)
        if name is None:
            yield self._completed(address)
            return
        if name in path or len(path) == MAX_DEPTH:
            shown = " -> ".join(printable(each) for each in (*path, name))
            why = "leads back to itself" if name in path else f"is more than {MAX_DEPTH} deep"
            raise ConfigError(f"the alias {printable(path[0])} {why}: {shown}")
        if name not in expanded:
            for target in self._settings.aliases[name]:
                yield from self._expand(target, (*path, name), expanded)
            expanded.add(name)

    def _alias(self, address: bytes) -> bytes | None:
        """Return the name of the alias that this address is; None if it is none."""
        local, domain = _parts(address)
        name = local.lower()
        is_alias = name in self._settings.aliases and self._is_here(domain)
        return name if is_alias else None

    def _completed(self, address: bytes) -> bytes:
        local, domain = _parts(address)
        if not self._is_short(domain):
            return address
        if not self.domain:
            raise NoSuchUser(
                f"no such user: {printable(address)}; no alias of that name, and no domain is "
                f"configured to complete it"
            )
        return b"%b@%b" % (local, self.domain)

    def sender(self, address: bytes) -> bytes:
        """Return the envelope sender: for a local one the configured one, any other as it is."""
        if not address:
            return address
        local, domain = _parts(address)
        if not self._is_here(domain):
            return address
        configured = self._settings.sender
        if configured is None:
            return self.own(local)
        is_name = configured and b"@" not in configured
        return self.own(configured) if is_name else configured

    def own(self, name: bytes) -> bytes:
        """Return the address of a user of this machine."""
        return b"%b@%b" % (name, self.host)

    @property
    def host(self) -> bytes:
        """The domain of this machine's users, and of its Message-IDs."""
        return self.domain or full_host_name().encode("utf-8", "replace")

    def _is_short(self, domain: bytes) -> bool:
        """Return whether a domain, in lower case, names this machine, but only on this machine."""
        return domain in _LOCALHOST or domain == self._short

    def _is_here(self, domain: bytes) -> bool:
        if self._is_short(domain) or domain == self._host:
            return True
        if domain == self.domain.lower() or not domain.startswith(self._short + b"."):
            return False
        # Last, because it may ask the DNS.
        return domain == full_host_name().lower().encode("utf-8", "replace")


def _parts(address: bytes) -> tuple[bytes, bytes]:
    """Return the local part, and the domain in lower case, empty if there is none."""
    local, at, domain = address.rpartition(b"@")
    return (local, domain.lower().removesuffix(b".")) if at else (address, b"")
