"""recipes/qmail.md and autoturn.md: Debian has no qmail, so that they cannot be tried here."""

from __future__ import annotations

from tests.recipes.trial import not_tried


def main() -> None:
    """Say so."""
    reason = "Debian has no package of qmail"
    not_tried("recipes/qmail.md", "qmail", "all of it", reason)
    not_tried("recipes/autoturn.md", "qmail, tcpserver", "all of it", reason)


if __name__ == "__main__":
    main()
