"""The user who runs the program: login name and full name, as the password file has them."""

from __future__ import annotations

import os
from typing import NamedTuple


class User(NamedTuple):
    """Login name, and full name, which may be empty."""

    login: bytes
    full_name: str


def current_user() -> User:
    """Return the real user of this process; without an entry for it, its ID as login name."""
    import pwd

    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return User(b"%d" % os.getuid(), "")
    return User(os.fsencode(entry.pw_name), full_name(entry.pw_gecos, entry.pw_name))


def full_name(gecos: str, login: str) -> str:
    """Return the name in a GECOS field: up to the first comma; `&` is the login name."""
    return gecos.partition(",")[0].replace("&", login.capitalize()).strip()
