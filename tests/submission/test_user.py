"""The user who sends."""

from __future__ import annotations

import os
import pwd

import pytest

from maildirqmtp.submission.user import current_user, full_name


@pytest.mark.parametrize(
    ("gecos", "name"),
    [
        ("Ann Bee", "Ann Bee"),
        ("Ann Bee,Room 1,+1 234,,", "Ann Bee"),
        ("& Bee", "Ann Bee"),
        (",,,", ""),
        ("", ""),
    ],
)
def test_the_name_in_the_password_file(gecos: str, name: str) -> None:
    """Not the telephone number, which is after it."""
    assert full_name(gecos, "ann") == name


def test_a_user_without_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container runs as any number."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert current_user() == (b"%d" % os.getuid(), "")
