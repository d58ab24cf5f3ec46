"""The configuration of the daemon: its routes, and what the process does besides.

From a file, flags beat its `[[route]]`, that beats its `[defaults]`, and these
beat what is built in.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.settings import table
from maildirqmtp.text import printable
from maildirqmtp.transport.endpoint import UcspiEndpoint
from maildirqmtp.values import Value

if TYPE_CHECKING:
    from typing import Any

    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.settings.config_file import ConfigFile, KeyPath
    from maildirqmtp.settings.table import Options
    from maildirqmtp.settings.types import Setting

_DEFAULTS = (table.SERVER, *table.ROUTE)
_ROUTE = (table.MAILDIR, table.PREFIX, *_DEFAULTS)
_TABLES = {"at the top": table.PROCESS, "in [defaults]": _DEFAULTS, "in [[route]]": _ROUTE}


class Config(Value):
    """What the daemon is to do.

    `verbosity` is -1 (quiet), 0 or 1 (verbose). `path` is the file it came from.
    """

    __slots__ = ("json", "metrics_file", "metrics_listen", "path", "routes", "verbosity")

    def __init__(
        self,
        routes: tuple[Route, ...],
        *,
        metrics_file: bytes | None = None,
        metrics_listen: tuple[str, int] | None = None,
        json: bool = False,
        verbosity: int = 0,
        path: str | None = None,
    ) -> None:
        self.routes = routes
        self.metrics_file = metrics_file
        self.metrics_listen = metrics_listen
        self.json = json
        self.verbosity = verbosity
        self.path = path


def make(routes: tuple[Route, ...], values: dict[str, Any], path: str | None = None) -> Config:
    """Return the configuration of these routes; `values` are those of the process, by key.

    Raises `ConfigError` for a server that is there only once.
    """
    if any(isinstance(route.server, UcspiEndpoint) for route in routes):
        where = f"{printable(os.fsencode(path))}: " if path else ""
        raise ConfigError(
            f"{where}server -: a UCSPI client makes one connection, and then we exit; "
            f"not for those who stay"
        )
    return Config(
        routes,
        metrics_file=values.get("metrics-file"),
        metrics_listen=values.get("metrics-listen"),
        json=values.get("json", False),
        verbosity=-1 if values.get("quiet") else int(values.get("verbose", False)),
        path=path,
    )


def read(path: str, flags: Options) -> Config:
    """Read a file; the flags that were given beat it.

    Raises `ConfigError`, which names the file and, where it can be said, line and key.
    """
    from maildirqmtp.settings.config_file import ConfigFile

    flagged = table.given(flags, table.ROUTE)
    process = table.given(flags, table.PROCESS)
    file = ConfigFile(path)
    found = _values(file, (), "at the top", {"defaults", "route"})
    if found.get("verbose") and found.get("quiet"):
        raise file.wrong(("quiet",), "quiet: not together with verbose; write one of them")
    if "verbose" in process or "quiet" in process:
        found.pop("verbose", None)
        found.pop("quiet", None)
    defaults: dict[str, Any] = {}
    if "defaults" in file.tables:
        if not isinstance(file.tables["defaults"], dict):
            raise file.wrong(("defaults",), "defaults: a table is needed, written [defaults]")
        defaults = _values(file, ("defaults",), "in [defaults]")
    tables = file.tables.get("route", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise file.wrong(("route",), "route: each route is a table, written [[route]]")
    if not tables:
        raise ConfigError(f"{file.name}: no route; write a [[route]] with maildir and server")
    routes = tuple(_route(file, number, defaults, flagged) for number in range(len(tables)))
    _check_different(file, routes)
    return make(routes, found | process, path)


def _values(
    file: ConfigFile,
    place: KeyPath,
    where: str,
    other: set[str] = frozenset(),  # type: ignore[assignment]
) -> dict[str, Any]:
    """Return the values of a table by key, all of them known and of the right type."""
    by_key = {setting.key: setting for setting in _TABLES[where]}
    found: dict[str, Any] = {}
    for key, value in file.at(place).items():
        if key in other:
            continue
        if key not in by_key:
            raise file.wrong((*place, key), _unknown(key, where, [*by_key, *other]))
        try:
            found[key] = by_key[key].from_toml(value, key)
        except ConfigError as error:
            raise file.wrong((*place, key), str(error)) from None
    return found


def _unknown(key: str, where: str, known: list[str]) -> str:
    from difflib import get_close_matches

    for elsewhere, settings in _TABLES.items():
        if any(setting.key == key for setting in settings):
            return f"unknown key {key!r} {where}; it has its place {elsewhere}"
    near = get_close_matches(key, known, 1)
    return f"unknown key {key!r} {where}" + (f"; did you mean {near[0]}?" if near else "")


def _route(
    file: ConfigFile, number: int, defaults: dict[str, Any], flagged: dict[str, Any]
) -> Route:
    place: KeyPath = ("route", number)
    own = _values(file, place, "in [[route]]")
    values = {"bounce": bool(own.get("prefix"))} | defaults | own | flagged
    for key in ("maildir", "server"):
        if key not in values:
            raise file.wrong(place, f"the route has no {key}")

    def key_in(key: str) -> KeyPath:
        return (*place, key) if key in own else ("defaults", key)

    try:
        made = table.make_route(
            values["maildir"], values.get("prefix", b""), values["server"], values
        )
    except ConfigError as error:
        raise file.wrong(key_in("server"), str(error)) from None
    if found := table.own_target(made):
        key, message = found
        if key in flagged:
            raise file.wrong((*place, "maildir"), f"--{key}: {message}")
        raise file.wrong(key_in(key), f"{key}: {message}")
    return made


def _check_different(file: ConfigFile, routes: tuple[Route, ...]) -> None:
    """Refuse to forward the same messages twice."""
    seen: dict[tuple[bytes, bytes], int] = {}
    for number, route in enumerate(routes):
        first = seen.setdefault((os.path.realpath(route.maildir), route.prefix), number)
        if first != number:
            line = file.line(("route", first, "maildir"))
            raise file.wrong(
                ("route", number, "maildir"),
                f"maildir: {printable(route.maildir)} with this prefix has its route at line "
                f"{line}; give one of them another prefix",
            )


def effective(config: Config) -> str:
    """Return the configuration as TOML, every setting in it: `read` makes the same of it."""
    lines = []
    value: Any
    for setting in table.PROCESS:
        if setting.key in ("verbose", "quiet"):
            value = config.verbosity == (1 if setting.key == "verbose" else -1)
        else:
            value = setting.of(config)
        if value is not None:
            lines.append(_line(setting, value))
    for route in config.routes:
        lines += ["", "[[route]]"]
        for setting in _ROUTE:
            value = route.server.text if setting is table.SERVER else setting.of(route)
            if value is not None:
                lines.append(_line(setting, value))
    return "\n".join(lines) + "\n"


def _line(setting: Setting, value: Any) -> str:
    try:
        return f"{setting.key} = {setting.to_toml(value)}"
    except ConfigError as error:
        raise ConfigError(f"{setting.key}: {error}") from None
