"""Reading the state file's content: what is not as it should be is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.text import LAST_S

if TYPE_CHECKING:
    from typing import Any


def checked(data: bytes, version: int) -> dict[str, Any]:
    """Return the object that a file holds, without its version. Raises `ValueError`."""
    import json

    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    found = content.pop("version", None)
    if type(found) is not int or found != version:
        raise ValueError(f"it is not of version {version}")
    return content


def take_tables(content: dict[str, Any], key: str) -> dict[str, dict[str, float]]:
    """Take an object of objects of numbers out of the content. Raises `ValueError`."""
    value = content.pop(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} is no object")
    return {name: _times(times) for name, times in value.items()}


def take_times(content: dict[str, Any], key: str) -> dict[str, float]:
    """Take an object of names and times out of the content. Raises `ValueError`."""
    return _times(content.pop(key, {}))


def _times(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ValueError("there is something else where times are to be")
    for at_s in value.values():
        # Not a bool, no NaN, and nothing of hundreds of digits.
        if type(at_s) not in (int, float) or not 0 <= at_s < LAST_S:
            raise ValueError("it has a time that is none")
    return value
