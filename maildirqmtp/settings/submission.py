"""The settings of `qmtp-sendmail`: the table `[submission]` of a configuration file.

Two files may have it: the system's, and the user's own, which overrides it key by key (and alias
by alias). Little is imported here, because a cron job's mail waits for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from maildirqmtp.errors import ConfigError
from maildirqmtp.settings.types import AddressType, HostNameType, PathType, ValueType, quoted
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.settings.config_file import ConfigFile

TABLE = "submission"
SYSTEM_FILE = "/etc/maildirqmtp.toml"
USER_FILE = "~/.config/maildirqmtp.toml"
#: Where `qmtpmaildir --queue` listens for mail of local programs.
SOCKET = b"/run/maildirqmtp/submit.sock"
#: Where `qmtpmaildir --queue` keeps that mail.
QUEUE = b"/var/lib/maildirqmtp/queue"

#: Names, and the addresses that their mail goes to: quoted in the file, raw here.
Aliases = dict[bytes, tuple[bytes, ...]]
# How targets of sendmail begin that are no addresses: commands, files, lists (aliases(5)).
_NO_ADDRESS = (b"|", b"/", b":include:")
# Characters that may stand before them.
_BEFORE_ADDRESS = b' \t<"\\'


class Submission(NamedTuple):
    """The settings in `[submission]`.

    `domain` completes addresses without one. `sender` is the envelope sender of
    this machine's users. `maildir` is the user's own, for mail that the queue does
    not take; `queue` is the maildir of `qmtpmaildir --queue`. -bp and -q use both.
    """

    socket: bytes = SOCKET
    maildir: bytes | None = None
    queue: bytes = QUEUE
    domain: str | None = None
    sender: bytes | None = None
    aliases: Aliases = {}  # noqa: RUF012 (nothing changes it)


class AliasesType(ValueType[Aliases]):
    """A table of names, each with an address or an array of them."""

    wanted = "a table as in [submission.aliases]"

    def from_toml(self, value: object, where: str) -> Aliases:
        if not isinstance(value, dict):
            raise self.wrong(value, where)
        found: Aliases = {}
        for key, targets in value.items():
            name = key.encode().lower()
            if not name or name in found or any(c in b"@ \t\r\n\0" for c in name):
                twice = "stands there twice" if name in found else "is no name without a domain"
                raise ConfigError(f"{where}: {key!r} {twice}; letter case does not count")
            found[name] = _targets(targets, f"{where}, {key}")
        return found

    def to_toml(self, value: Aliases) -> str:
        address = AddressType("recipient")
        rows = [
            f"{quoted(os.fsdecode(name))} = [{', '.join(map(address.to_toml, targets))}]"
            for name, targets in value.items()
        ]
        return f"{{ {', '.join(rows)} }}"


def _targets(value: object, where: str) -> tuple[bytes, ...]:
    found = []
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            raise ConfigError(f"{where}: an address in quotes, or an array of them, is needed")
        if os.fsencode(text).lstrip(_BEFORE_ADDRESS).startswith(_NO_ADDRESS):
            raise ConfigError(
                f"{where}: {text!r}: an alias leads to addresses only, not to commands, files or "
                f":include:"
            )
        found.append(AddressType("recipient").parse(text, where))
    if not found:
        raise ConfigError(f"{where}: at least one address is needed; the mail would be lost")
    return tuple(found)


class AbsolutePathType(PathType):
    """A path that is the same in every directory: programs send mail from any of them."""

    wanted = "a path in quotes, from / or ~/ on,"

    def from_toml(self, value: object, where: str) -> bytes:
        found = super().from_toml(value, where)
        if not found.startswith(b"/"):
            raise ConfigError(f"{where}: {self.wanted} is needed, not {value!r}")
        return found


#: The keys of the table.
KEYS: dict[str, ValueType[Any]] = {
    "socket": AbsolutePathType("PATH"),
    "maildir": AbsolutePathType("DIR"),
    "queue": AbsolutePathType("DIR"),
    "domain": HostNameType("NAME"),
    "sender": AddressType("sender"),
    "aliases": AliasesType(),
}


def from_file(file: ConfigFile) -> dict[str, Any]:
    """Return the settings in a file's `[submission]`, by key; none if it has no such table.

    Raises `ConfigError`, with file and line, if a key is unknown or a value is wrong.
    """
    table = file.tables.get(TABLE, {})
    if not isinstance(table, dict):
        raise file.wrong((TABLE,), f"{TABLE}: a table is needed, written [{TABLE}]")
    found = {}
    for key, value in table.items():
        place = (TABLE, key)
        if key not in KEYS:
            known = ", ".join(KEYS)
            raise file.wrong(place, f"unknown key {key!r} in [{TABLE}]; it may have {known}")
        try:
            found[key] = KEYS[key].from_toml(value, key)
        except ConfigError as error:
            raise file.wrong(place, str(error)) from None
    return found


def to_toml(values: dict[str, Any]) -> list[str]:
    """Return the lines of a `[submission]` that `from_file` reads as `values`.

    Raises `ConfigError` if a value is not UTF-8.
    """
    return [f"[{TABLE}]", *(f"{key} = {KEYS[key].to_toml(value)}" for key, value in values.items())]


def read(warn: Callable[[str], object]) -> Submission:
    """Return the combined settings of the system's and the user's file.

    A missing file is ignored; so is one that cannot be opened, and `warn` is told
    about that. Raises `ConfigError` if a file has an error.
    """
    values: dict[str, Any] = {}
    for path in (SYSTEM_FILE, os.path.expanduser(USER_FILE)):
        found = _read_file(path, warn)
        found["aliases"] = values.get("aliases", {}) | found.get("aliases", {})
        values |= found
    return Submission(**values)


def _read_file(path: str, warn: Callable[[str], object]) -> dict[str, Any]:
    try:
        with open(path, "rb"):
            pass
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        warn(f"{printable(os.fsencode(path))} is skipped: {error.strerror}")
        return {}
    from maildirqmtp.settings.config_file import ConfigFile  # tomllib: only where there is a file

    return from_file(ConfigFile(path))
