"""How a server answers, as far as that has been seen on a connection."""


class Manners:
    """What has been seen of the server at the other end of a connection.

    `answers_once`: the first package was answered exactly once. `answers_each`:
    True, once per recipient; False, once per package; None, not known yet.
    """

    __slots__ = ("answers_each", "answers_once")

    def __init__(self, answers_once: bool = False, answers_each: bool | None = None) -> None:
        self.answers_once = answers_once
        self.answers_each = answers_each

    def heir(self) -> "Manners":
        """What is taken for granted on another connection: only what costs nothing if it is wrong.

        A name may stand for several servers, and a server's software may be replaced.
        """
        return Manners(answers_each=False if self.answers_each is False else None)
