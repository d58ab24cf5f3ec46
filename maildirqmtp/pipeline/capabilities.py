"""What a server has shown of itself, for all connections to it."""


class Capabilities:
    """What is known of one server; its connections share the object and add to it.

    `proven`: it has answered a package, so it speaks QMTP.
    `one_recipient`: it answers once per package, so each recipient gets a package
    of its own; at the start of a run, an option or an earlier run may have set it.
    `has_spoken`: it has sent a byte, whatever that was.

    That a server answers once per recipient is not recorded here: it holds for one
    connection only, because a name may stand for several servers, and answers that
    are counted wrongly lose mail. `one_recipient` is kept, because finding it out
    again costs duplicates.
    """

    __slots__ = ("_news", "has_spoken", "one_recipient", "proven")

    def __init__(self, *, proven: bool = False, one_recipient: bool = False) -> None:
        self.proven = proven
        self.one_recipient = one_recipient
        self.has_spoken = False
        self._news = False

    def find_one_recipient(self) -> None:
        """Note that the server was seen to answer once per package."""
        self._news = self._news or not self.one_recipient
        self.one_recipient = True

    def take_news(self) -> bool:
        """Return whether `one_recipient` was found out since the last call, and must be saved."""
        news, self._news = self._news, False
        return news
