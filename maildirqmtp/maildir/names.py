"""Names of files in a maildir, as bytes.

    1700000000.M1P2.host,S=123,W=130,U=7:2,FS
    `------------- unique name ---------'`--'  info: a mail reader's flags (maildir(5))

Dovecot adds ,S=SIZE and ,W=SIZE to the unique name. mbsync adds ,U=UID when it first sees a
message, and may change the number later; neither makes it another message.
"""

import re

# One such tag, at the end of a unique name. Compiled when a name first has a comma.
_TAG = rb",[SUW]=[0-9]+\Z"
_UID = rb",U=[0-9]+(?=,[SUW]=[0-9]|\Z)"
_TAGS = rb"(?:,[SUW]=[0-9]+)+\Z"

#: The most digits of the seconds that begin a name (maildir(5)).
SECONDS_DIGITS = 11


def unique(name: bytes) -> bytes:
    """Return a message's unique name: its file name before the first `:`."""
    return name.partition(b":")[0]


def plain(name: bytes) -> bytes:
    """Return a message's unique name as its writer made it, without `,S=`, `,U=` and `,W=`."""
    base = name.partition(b":")[0]  # as `unique`, without the call: this runs for each name
    return re.sub(_TAGS, b"", base) if b"," in base else base


def without_uid(name: bytes) -> bytes:
    """Return a message's unique name without `,U=`, which has a meaning in one maildir only."""
    base = name.partition(b":")[0]  # as `unique`, without the call: this runs for each name
    return re.sub(_UID, b"", base) if b",U=" in base else base


def seconds_in(name: bytes) -> int | None:
    """Return the seconds of the epoch that begin a name (maildir(5)), None if there are none."""
    seconds = name.partition(b".")[0]
    return int(seconds) if seconds.isdigit() and len(seconds) <= SECONDS_DIGITS else None


def seconds_of(name: bytes) -> int:
    """Return the seconds of the epoch that begin a name (maildir(5)), 0 if there are none."""
    return seconds_in(name) or 0


def of_sidecar(name: bytes) -> bytes:
    """Return the name of the sidecar of the message of exactly this name."""
    return unique(name) + b".json"


def of_sidecars(name: bytes) -> list[bytes]:
    """Return the names that a message's sidecar may have, in the order they are looked for.

    The exact name first, then the name as it was before `,U=` and the other
    tags were added.
    """
    base = unique(name)
    found = [base]
    if b",U=" in base and (bare := without_uid(base)) != base:
        found.append(bare)  # that of `sidecars.write`
    while b"," in base and (shorter := re.sub(_TAG, b"", base)) != base:
        base = shorter
        found.append(base)
    return [one + b".json" for one in dict.fromkeys(found)]


def is_trash_or_draft(name: bytes) -> bool:
    """Return whether a file in cur/ is flagged T (trashed) or D (draft); maildir(5)."""
    flags = _flags(name)
    return b"T" in flags or b"D" in flags


def is_flagged(name: bytes) -> bool:
    """Return whether a file has the flag F (flagged); maildir(5)."""
    return b"F" in _flags(name)


def _flags(name: bytes) -> bytes:
    return name.rpartition(b":2,")[2] if b":2," in name else b""
