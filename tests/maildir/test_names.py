"""Names of messages: taken for another's, a sidecar sends its mail to the wrong people."""

import pytest

from maildirqmtp.maildir.names import (
    is_flagged,
    of_sidecar,
    of_sidecars,
    plain,
    unique,
    without_uid,
)

# A file name: unique, plain, without the UID.
NAMES = [
    (b"1.a.h", b"1.a.h", b"1.a.h", b"1.a.h"),
    (b"1.a.h:2,S", b"1.a.h", b"1.a.h", b"1.a.h"),
    (b"1.a.h:2,U=7", b"1.a.h", b"1.a.h", b"1.a.h"),
    (b"1.a.h,U=7:2,", b"1.a.h,U=7", b"1.a.h", b"1.a.h"),
    (b"1.a.h,S=12,W=13:2,S", b"1.a.h,S=12,W=13", b"1.a.h", b"1.a.h,S=12,W=13"),
    (b"1.a.h,S=12,W=13,U=7", b"1.a.h,S=12,W=13,U=7", b"1.a.h", b"1.a.h,S=12,W=13"),
    (b"1.a.h,U=7,S=12", b"1.a.h,U=7,S=12", b"1.a.h", b"1.a.h,S=12"),
    (b"1.a.h,U=x", b"1.a.h,U=x", b"1.a.h,U=x", b"1.a.h,U=x"),
    (b"1.a.h,U=", b"1.a.h,U=", b"1.a.h,U=", b"1.a.h,U="),
    (b"1.a,U=7.h", b"1.a,U=7.h", b"1.a,U=7.h", b"1.a,U=7.h"),
    (b"1.a.h,X=7", b"1.a.h,X=7", b"1.a.h,X=7", b"1.a.h,X=7"),
    (b"1.a.h,u=7", b"1.a.h,u=7", b"1.a.h,u=7", b"1.a.h,u=7"),
    (b":2,S", b"", b"", b""),
    (b"a:b:c", b"a", b"a", b"a"),
]


@pytest.mark.parametrize(("name", "expected", "written", "elsewhere"), NAMES)
def test_what_mail_readers_add_is_told_from_the_name(
    name: bytes, expected: bytes, written: bytes, elsewhere: bytes
) -> None:
    """A name that is cut too short belongs to another message."""
    assert unique(name) == expected
    assert plain(name) == written
    assert without_uid(name) == elsewhere


def test_a_sidecar_is_looked_for_by_the_exact_name_first() -> None:
    """mbsync renames the message, not its sidecar; a sidecar written since has the new name."""
    assert of_sidecar(b"1.a.h,U=7:2,S") == b"1.a.h,U=7.json"
    assert of_sidecars(b"1.a.h:2,S") == [b"1.a.h.json"]
    assert of_sidecars(b"1.a.h,S=1,W=2,U=7:2,S") == [
        b"1.a.h,S=1,W=2,U=7.json",
        b"1.a.h,S=1,W=2.json",
        b"1.a.h,S=1.json",
        b"1.a.h.json",
    ]
    # That of `sidecars.write`, which leaves out the UID wherever it is.
    assert of_sidecars(b"1.a.h,U=7,S=1:2,S") == [
        b"1.a.h,U=7,S=1.json",
        b"1.a.h,S=1.json",
        b"1.a.h,U=7.json",
        b"1.a.h.json",
    ]
    assert of_sidecars(b"1.a,b.h") == [b"1.a,b.h.json"]


@pytest.mark.parametrize("name", [one[0] for one in NAMES])
def test_the_sidecar_that_is_written_is_found(name: bytes) -> None:
    """Else all recipients get it again with each run."""
    assert of_sidecar(without_uid(name)) in of_sidecars(name)


@pytest.mark.parametrize("name", [b"1.a:2,F", b"1.a:2,FS", b"1.a,U=7:2,DFS", b":2,F"])
def test_a_flag_is_seen(name: bytes) -> None:
    """What somebody has marked is kept for them."""
    assert is_flagged(name)


@pytest.mark.parametrize("name", [b"1.F", b"1.a:2,S", b"1.F:2,", b"1.F:2,S", b"1.a:1,F", b"F"])
def test_no_flag_is_seen_that_is_none(name: bytes) -> None:
    """Else the mail of a host whose name has an F would be kept for ever."""
    assert not is_flagged(name)
