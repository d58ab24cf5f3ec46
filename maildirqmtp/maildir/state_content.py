"""The state file's content: whatever is malformed is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.text import LAST_S

if TYPE_CHECKING:
    from typing import Any


def checked(data: bytes, version: int) -> dict[str, Any]:
    """Return the JSON object of a file, without its version.

    Raises `ValueError` if it is none, or not of this version.
    """
    import json

    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    found = content.pop("version", None)
    if type(found) is not int or found != version:
        raise ValueError(f"it is not of version {version}")
    return content


def take_tables(content: dict[str, Any], key: str) -> dict[str, dict[str, float]]:
    """Remove an object of objects of numbers from the content, and return it.

    Empty if it is not there. Raises `ValueError` if it is of another form.
    """
    value = content.pop(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} is no object")
    return {name: _times(times) for name, times in value.items()}


def take_times(content: dict[str, Any], key: str) -> dict[str, float]:
    """Remove an object of names and times from the content, and return it; as `take_tables`."""
    return _times(content.pop(key, {}))


def take_text(content: dict[str, Any], key: str) -> str:
    """Remove a text from the content, and return it; as `take_tables`."""
    value = content.pop(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is no text")
    return value


def newer(times: dict[str, float], than_s: float) -> dict[str, float]:
    """Return the times after this one."""
    return {name: at_s for name, at_s in times.items() if at_s > than_s}


def text_of(prefix: bytes) -> str:
    """Return a route's prefix as it stands in the file."""
    return prefix.decode("utf-8", "surrogateescape")


def _times(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ValueError("there is something else where times are to be")
    for at_s in value.values():
        # No bool, no NaN, and no number of hundreds of digits.
        if type(at_s) not in (int, float) or not 0 <= at_s < LAST_S:
            raise ValueError("it has a time that is none")
    return value
