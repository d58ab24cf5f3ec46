"""What a server has shown of itself, for all connections to it."""


class Capabilities:
    """What is known of one server; its connections share the object and add to it.

    `proven`: it has answered a first package exactly once, so it speaks QMTP.
    `one_recipient`: it answers once per package, so each recipient gets a package
    of its own. `has_spoken`: it has sent a byte, whatever that was.

    That it answers once per recipient is not here: that holds for one connection
    only, because a name may stand for several servers, and a server whose answers
    are counted wrongly loses mail. The opposite is kept: to find it out again
    costs duplicates.

    A run may begin with what an earlier run or an option says of `one_recipient`.
    `found_one_recipient` is true where this run has found it out: that is what is
    worth remembering beyond the run.
    """

    __slots__ = ("found_one_recipient", "has_spoken", "one_recipient", "proven")

    def __init__(self, *, proven: bool = False, one_recipient: bool = False) -> None:
        self.proven = proven
        self.one_recipient = one_recipient
        self.found_one_recipient = False
        self.has_spoken = False

    def find_one_recipient(self) -> None:
        """From here on each recipient gets a package of its own."""
        self.found_one_recipient = self.found_one_recipient or not self.one_recipient
        self.one_recipient = True
