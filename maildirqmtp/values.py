"""Values: small objects that are compared, shown and never changed.

What a dataclass would do. Importing `dataclasses` (and with it `inspect`) takes
longer than everything else a run needs that finds the maildir empty, and that
is what most runs of a cron job find.
"""


class Value:
    """Equal, hashed and shown by the slots of its class; treat it as frozen."""

    __slots__: tuple[str, ...] = ()

    def _content(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in self.__slots__])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({shown})"
