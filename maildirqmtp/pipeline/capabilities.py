"""What a server has shown of itself, for all connections to it."""


class Capabilities:
    """What is known of one server; its connections share the object and add to it.

    `proven`: it has answered a package, so it speaks QMTP.
    `one_recipient`: it answers once per package, so each recipient gets a package
    of its own; a run may begin with what an option or an earlier run says of it.
    `has_spoken`: it has sent a byte, whatever that was.

    That it answers once per recipient is not here: that holds for one connection
    only, because a name may stand for several servers, and a server whose answers
    are counted wrongly loses mail. The opposite is kept: to find it out again
    costs duplicates.
    """

    __slots__ = ("_news", "has_spoken", "one_recipient", "proven")

    def __init__(self, *, proven: bool = False, one_recipient: bool = False) -> None:
        self.proven = proven
        self.one_recipient = one_recipient
        self.has_spoken = False
        self._news = False

    def find_one_recipient(self) -> None:
        """The server has been seen to answer once per package."""
        self._news = self._news or not self.one_recipient
        self.one_recipient = True

    def take_news(self) -> bool:
        """Say whether `one_recipient` was found out since the last call: to be remembered."""
        news, self._news = self._news, False
        return news
