"""How much the asyncio clients of one event loop may do before other tasks get their turn."""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

#: Packages, answers and results that all clients of a loop together handle in one of its rounds,
#: about. A slow machine handles some 30 of them in a millisecond.
ROUND_WORK = 100


class Loop(Protocol):
    """What is used of an event loop."""

    def create_future(self) -> Any:
        """See asyncio."""
        ...

    def call_soon(self, callback: Callable[[], None], /) -> Any:
        """See asyncio."""
        ...


class LoopShare:
    """The work that all clients of one event loop together may do in each of its rounds.

    A client reports its work with `spend`, then awaits `wait`, which returns at once while some
    of the round's share is left, else in one of the next rounds. Each round begins with one of the
    clients that wait, in the order of asking.
    """

    _of: ClassVar["weakref.WeakKeyDictionary[Loop, LoopShare]"] = weakref.WeakKeyDictionary()

    def __init__(self, loop: Loop) -> None:
        self._loop = weakref.ref(loop)  # else it would keep itself
        self._left = ROUND_WORK
        self._waiting: deque[Any] = deque()
        self._next_is_due = False

    @classmethod
    def of(cls, loop: Loop) -> "LoopShare":
        """Return the share of this loop, made at its first use."""
        if loop not in cls._of:
            cls._of[loop] = cls(loop)
        return cls._of[loop]

    def spend(self, work: int) -> None:
        """Take this much work from the share of the present round."""
        if work:
            self._left -= work
            self._expect_round()

    async def wait(self) -> None:
        """Wait until some of a round's share is left."""
        if self._left > 0:
            return
        loop = self._loop()
        assert loop is not None
        turn = loop.create_future()
        self._waiting.append(turn)
        self._expect_round()
        await turn

    def _expect_round(self) -> None:
        if not self._next_is_due and (loop := self._loop()) is not None:
            self._next_is_due = True
            loop.call_soon(self._round)

    def _round(self) -> None:
        self._next_is_due = False
        self._left = ROUND_WORK
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its task was cancelled
                turn.set_result(None)
                self._expect_round()
                break
