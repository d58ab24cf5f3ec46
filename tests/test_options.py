"""Options for bounces: what a route is made of, and what is refused before anything is sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maildirqmtp.errors import ConfigError
from maildirqmtp.options import make_parser, make_route
from maildirqmtp.route import MAX_BOUNCES, SENDMAIL, Route


def route(*words: str) -> Route:
    """Make the route of a command line."""
    return make_route(make_parser().parse_args(words))


@pytest.mark.parametrize(
    ("words", "bounces"),
    [
        (("M", "server"), False),
        (("M", "pre-", "server"), True),
        (("M", "", "server"), True),
        (("--bounce", "M", "server"), True),
        (("--no-bounce", "M", "pre-", "server"), False),
        (("--no-bounce", "--bounce", "M", "server"), True),
    ],
)
def test_serialmails_form_bounces_and_the_short_one_does_not(
    words: tuple[str, ...], bounces: bool
) -> None:
    """An old script's senders go on being told; a first try tells nobody."""
    assert route(*words).bounce is bounces


def test_defaults() -> None:
    """As serialmail, but not without limit."""
    made = route("M", "server")
    assert (made.bounce_via, made.sendmail, made.max_bounces) == ("sendmail", SENDMAIL, MAX_BOUNCES)
    assert SENDMAIL == (b"/usr/sbin/sendmail",)
    assert MAX_BOUNCES == 100


@pytest.mark.parametrize("how", ["sendmail", "server", "maildir:B", "maildir:/a:b"])
def test_ways_for_a_bounce(how: str) -> None:
    """Exactly as they were given."""
    assert route("--bounce-via", how, "M", "server").bounce_via == how


@pytest.mark.parametrize(
    "how", ["", "maildir", "maildir:", "smtp", "Server", "server:x", "sendmail:"]
)
def test_no_other_ways(how: str) -> None:
    """A typing error must not send bounces some other way than was meant."""
    with pytest.raises(ConfigError, match="--bounce-via: sendmail, server or maildir:DIR"):
        route("--bounce-via", how, "M", "server")


def test_bounces_cannot_go_where_they_would_be_forwarded(tmp_path: Path) -> None:
    """With PREFIX they would lie there unseen; --bounce-via server is what is meant."""
    (tmp_path / "M").mkdir()
    (tmp_path / "link").symlink_to("M")
    with pytest.raises(ConfigError, match=r"--bounce-via: .* is the maildir that is forwarded"):
        route(f"--bounce-via=maildir:{tmp_path}/link", f"{tmp_path}/M", "server")


def test_the_command_is_split_as_a_shell_does() -> None:
    """With its own options, and blanks in its name; nothing is run by a shell."""
    made = route("--sendmail", "'/opt/my mta/send' -C x;y \udce4", "M", "server")
    assert made.sendmail == (b"/opt/my mta/send", b"-C", b"x;y", os.fsencode("\udce4"))


@pytest.mark.parametrize("command", ["", "  ", "'"])
def test_a_command_that_is_none(command: str) -> None:
    """Found out at once, not with the first failure weeks later."""
    with pytest.raises(ConfigError, match="--sendmail: "):
        route("--sendmail", command, "M", "server")


def test_max_bounces() -> None:
    """0 is allowed, and means none."""
    assert route("--max-bounces", "0", "M", "server").max_bounces == 0
    assert route("--max-bounces", "5000", "M", "server").max_bounces == 5000


@pytest.mark.parametrize("number", ["", "-1", "many", "1.5", "\u0661", "\u00b2", "1" * 10, " 1"])
def test_max_bounces_is_a_number(number: str) -> None:
    """And not an endless one."""
    with pytest.raises(ConfigError, match="--max-bounces: a number is needed"):
        route(f"--max-bounces={number}", "M", "server")
