"""How a server answers, as far as that has been seen on a connection."""


class Capabilities:
    """What has been seen of the server at the other end of a connection.

    `answers_once`: the first package was answered exactly once. `answers_each`:
    True, once per recipient; False, once per package; None, not known yet.
    """

    __slots__ = ("answers_each", "answers_once")

    def __init__(self, answers_once: bool = False, answers_each: bool | None = None) -> None:
        self.answers_once = answers_once
        self.answers_each = answers_each

    def for_next_connection(self) -> "Capabilities":
        """What is taken for granted on another connection.

        Not that there is an answer for each recipient: a name may stand for several
        servers, and one whose answers are counted wrongly loses mail. That there is only
        one is kept: to find it out again costs duplicates.
        """
        return Capabilities(self.answers_once, False if self.answers_each is False else None)
