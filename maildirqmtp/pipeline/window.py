"""The window: how much may be in flight at once.

Pure. It starts wide open, falls to an eighth after an unclean close, so that
less is in doubt the next time, and doubles with each full window of responses.
"""

#: Messages in flight at once.
WINDOW_MESSAGES = 4_096
#: Bytes in flight at once.
WINDOW_BYTES = 32 << 20
#: The same until a peer not known to be a QMTP server has answered once: if it is none, all of it
#: is in doubt. One package is always allowed, however large.
UNPROVEN_MESSAGES = 64
UNPROVEN_BYTES = 64 << 10


class Window:
    """Messages in flight at once: at most `maximum`, at least 1.

    `max_bytes` bounds the bytes: a package is begun only while less than that
    is in flight, so that the last one begun may go beyond it. `unsettled` messages count
    as in flight although they were answered: their files still say that they are to be sent.
    """

    __slots__ = ("_answered", "max_bytes", "maximum", "size", "unsettled")

    def __init__(self, maximum: int, max_bytes: int) -> None:
        self.maximum = maximum
        self.max_bytes = max_bytes
        self.size = maximum
        self.unsettled = 0
        self._answered = 0

    def limits(self, proven: bool) -> tuple[int, int]:
        """Return the most messages and bytes in flight; `proven`: the server has answered once."""
        messages = self.size - self.unsettled
        if proven:
            return messages, self.max_bytes
        return min(messages, UNPROVEN_MESSAGES), min(self.max_bytes, UNPROVEN_BYTES)

    def shrink(self, in_flight: int) -> bool:
        """Shrink to an eighth of what was in flight; return whether the window is smaller now."""
        before = self.size
        self.size = max(1, min(before, in_flight) // 8)
        self._answered = 0
        return self.size < before

    def answered(self, packages: int) -> None:
        """Count answers, and double the size with each full window of them."""
        if self.size < self.maximum:
            self._answered += packages
            while self._answered >= self.size < self.maximum:
                self._answered -= self.size
                self.size = min(self.maximum, self.size * 2)


def shares(messages: int, max_bytes: int, connections: int) -> list[Window]:
    """Return a window for each connection; together they limit what may be in doubt.

    Each has at least one message, so together they exceed `messages` if it is below `connections`.
    """
    return [
        Window(max(1, messages // connections), max(1, max_bytes // connections))
        for _ in range(connections)
    ]
