"""The configuration of the daemon: its routes, and the settings of the process.

Flags override the `[[route]]` of a file, which overrides its `[defaults]`, which
override the built-in defaults.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maildirqmtp.errors import ConfigError
from maildirqmtp.settings import flags_and_keys, submission
from maildirqmtp.settings.command_line import CommandLine, make_route
from maildirqmtp.settings.config_file import ConfigFile, TomlPath
from maildirqmtp.settings.conflicts import find_conflict, find_conflict_between
from maildirqmtp.text import printable
from maildirqmtp.transport.endpoint import UcspiEndpoint

if TYPE_CHECKING:
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.settings.flags_and_keys import Setting, Values

_DEFAULTS = flags_and_keys.by_key((flags_and_keys.SERVER, *flags_and_keys.ROUTE))
_ROUTE = flags_and_keys.by_key(
    (flags_and_keys.MAILDIR, flags_and_keys.PREFIX, flags_and_keys.SERVER, *flags_and_keys.ROUTE)
)
_PROCESS = flags_and_keys.by_key(flags_and_keys.PROCESS)
#: The settings that a table of the file may have, by the table's place in it.
_PLACES = {"at the top": _PROCESS, "in [defaults]": _DEFAULTS, "in [[route]]": _ROUTE}


@dataclass(frozen=True, slots=True)
class Config:
    """What the daemon is to do.

    `verbosity` is -1 (quiet), 0 or 1 (verbose). `path` is the file it came from;
    `submission` has its settings for `qmtp-sendmail`, None if there are none.
    """

    routes: tuple[Route, ...]
    metrics_file: bytes | None = None
    metrics_listen: tuple[str, int] | None = None
    health_listen: tuple[str, int] | None = None
    log_format: str = "text"
    json: bool = False
    verbosity: int = 0
    path: str | None = None
    submission: Values | None = None


def from_command_line(line: CommandLine) -> Config:
    """Return the configuration of `--watch`: one route, and no file.

    Raises `ConfigError` if arguments or settings are wrong or conflict, or SERVER is `-`.
    """
    return _make((make_route(line),), line.values(flags_and_keys.PROCESS), None)


def _make(routes: tuple[Route, ...], values: Values, path: str | None) -> Config:
    if any(isinstance(route.server, UcspiEndpoint) for route in routes):
        where = f"{printable(os.fsencode(path))}: " if path else ""
        raise ConfigError(
            f"{where}server -: a UCSPI client makes one connection, and then the program exits; "
            f"it cannot be used with --watch or --config"
        )
    rest = {field: value for field, value in values.items() if field not in ("verbose", "quiet")}
    return Config(routes, verbosity=flags_and_keys.verbosity(values), path=path, **rest)


def read(path: str, flags: CommandLine) -> Config:
    """Read a file; flags that were given override it.

    Raises `ConfigError` if it is wrong, with the file's name and, if known, line and key.
    """
    file = ConfigFile(path)
    process = flags.values(flags_and_keys.PROCESS)
    found = _values(file, (), "at the top", {"defaults", "route", submission.TABLE})
    if found.get("verbose") and found.get("quiet"):
        raise file.wrong(("quiet",), "quiet: not together with verbose; write one of them")
    if "verbose" in process or "quiet" in process:
        found.pop("verbose", None)
        found.pop("quiet", None)
    defaults: Values = {}
    if "defaults" in file.tables:
        if not isinstance(file.tables["defaults"], dict):
            raise file.wrong(("defaults",), "defaults: a table is needed, written [defaults]")
        defaults = _values(file, ("defaults",), "in [defaults]")
    tables = file.tables.get("route", [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise file.wrong(("route",), "route: each route is a table, written [[route]]")
    if not tables:
        raise ConfigError(f"{file.name}: no route; write a [[route]] with maildir and server")
    flagged = flags.values(flags_and_keys.ROUTE)
    routes = tuple(_route(file, number, defaults, flagged) for number in range(len(tables)))
    _check_different(file, routes)
    if submission.TABLE in file.tables:
        found["submission"] = submission.from_file(file)
    return _make(routes, found | process, path)


def _values(file: ConfigFile, place: TomlPath, where: str, other: set[str] | None = None) -> Values:
    """Return the values of a table; `other` are keys of tables in it, which are left out.

    Raises `ConfigError` if a key is unknown, or a value is wrong.
    """
    known = _PLACES[where]
    found: Values = {}
    for key, value in file.at(place).items():
        if other is not None and key in other:
            continue
        if key not in known:
            raise file.wrong((*place, key), _unknown(key, where, [*known, *(other or ())]))
        try:
            found[known[key].field] = known[key].type.from_toml(value, key)
        except ConfigError as error:
            raise file.wrong((*place, key), str(error)) from None
    return found


def _unknown(key: str, where: str, known: list[str]) -> str:
    from difflib import get_close_matches

    for elsewhere, settings in _PLACES.items():
        if key in settings:
            return f"unknown key {key!r} {where}; it has its place {elsewhere}"
    near = get_close_matches(key, known, 1)
    return f"unknown key {key!r} {where}" + (f"; did you mean {near[0]}?" if near else "")


def _route(file: ConfigFile, number: int, defaults: Values, flagged: Values) -> Route:
    place: TomlPath = ("route", number)
    own = _values(file, place, "in [[route]]")
    classic = bool(own.get(flags_and_keys.PREFIX.field))
    values = flags_and_keys.prefix_defaults(classic) | defaults | own | flagged
    for setting in (flags_and_keys.MAILDIR, flags_and_keys.SERVER):
        if setting.field not in values:
            raise file.wrong(place, f"the route has no {setting.key}")

    def place_of(setting: Setting[Any]) -> TomlPath:
        return (*place, setting.key) if setting.field in own else ("defaults", setting.key)

    try:
        route = flags_and_keys.make_route(values)
    except ConfigError as error:
        raise file.wrong(place_of(flags_and_keys.SERVER), str(error)) from None
    if found := find_conflict(route):
        setting, message = found
        if setting.field in flagged:
            raise file.wrong((*place, "maildir"), f"{setting.flag}: {message}")
        raise file.wrong(place_of(setting), f"{setting.key}: {message}")
    return route


def _check_different(file: ConfigFile, routes: tuple[Route, ...]) -> None:
    """Raise `ConfigError` if two routes forward the same messages, or one removes another's."""
    seen: dict[tuple[bytes, bytes], int] = {}
    shards: dict[bytes, int] = {}
    for number, route in enumerate(routes):
        other = shards.setdefault(os.path.realpath(route.maildir), number)
        if routes[other].shard != route.shard:
            raise file.wrong(
                ("route", number, "maildir"),
                f"shard: {printable(route.maildir)} has another shard in its route at line "
                f"{file.line(('route', other, 'maildir'))}; the routes of a maildir share one",
            )
        first = seen.setdefault((os.path.realpath(route.maildir), route.prefix), number)
        if first != number:
            line = file.line(("route", first, "maildir"))
            raise file.wrong(
                ("route", number, "maildir"),
                f"maildir: {printable(route.maildir)} with this prefix has its route at line "
                f"{line}; give one of them another prefix",
            )
    if found := find_conflict_between(routes):
        setting, message, (number, other) = found
        line = file.line(("route", other, "maildir"))
        raise file.wrong(
            ("route", number, "maildir"),
            f"{setting.key}: {message} (the other route is at line {line})",
        )


def effective(config: Config) -> str:
    """Return the configuration as TOML with every setting; `read` makes the same of it.

    Raises `ConfigError` if a value is not UTF-8.
    """
    process = {
        "metrics_file": config.metrics_file,
        "metrics_listen": config.metrics_listen,
        "health_listen": config.health_listen,
        "log_format": config.log_format,
        "json": config.json,
        "verbose": config.verbosity > 0,
        "quiet": config.verbosity < 0,
    }
    lines = _lines(_PROCESS, process)
    if config.submission is not None:
        lines += ["", *submission.to_toml(config.submission)]
    for route in config.routes:
        lines += ["", "[[route]]", *_lines(_ROUTE, flags_and_keys.route_values(route))]
    return "\n".join(lines) + "\n"


def _lines(settings: dict[str, Setting[Any]], values: Values) -> list[str]:
    lines = []
    for key, setting in settings.items():
        value = values.get(setting.field)
        if value is None or value == ():
            continue
        try:
            lines.append(f"{key} = {setting.type.to_toml(value)}")
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
    return lines
