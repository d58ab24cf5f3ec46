"""`--check-config`: the settings in effect, and what this machine lacks for them."""

from __future__ import annotations

import io
import os
import shutil
import sys
from typing import TYPE_CHECKING

from maildirqmtp.forwarder.route import BounceMethod
from maildirqmtp.settings.config import effective
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.settings.config import Config


def show(config: Config) -> None:
    """Print the settings as TOML, below comments that say what is missing.

    That is no error: a file may be checked on another machine than the one it is for.
    """
    shown = effective(config)
    missing = dict.fromkeys(text for route in config.routes for text in _missing(route))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as TOML is, whatever the locale
    sys.stdout.write("".join(f"# {text}\n" for text in missing) + shown)
    sys.stdout.flush()


def _missing(route: Route) -> Iterator[str]:
    """Yield what a route needs and this machine does not have."""
    try:
        os.stat(os.path.join(route.maildir, b"new", b""))
    except (FileNotFoundError, NotADirectoryError):
        yield f"{printable(route.maildir)}: there is no such maildir yet; the daemon waits for it"
    except OSError as error:
        yield f"{printable(route.maildir)}: it cannot be looked at: {error.strerror}"
    mailer = route.sendmail[0]
    tells_senders = route.bounce or route.warn_after_s is not None
    by_mailer = route.bounce_via.method is BounceMethod.SENDMAIL
    if tells_senders and by_mailer and shutil.which(os.fsdecode(mailer)) is None:
        yield (
            f"{printable(mailer)}: there is no such program here; bounces need it, or another "
            f"bounce-via"
        )
