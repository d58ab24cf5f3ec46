"""Writes the completions of all programs for bash, zsh and fish, from the tables of settings.

    python contrib/completions/make_completions.py [FOLDER]

FOLDER is the one that this file is in, unless it is given. The tests compare what is there with
what this writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import for_bash
import for_fish
import for_zsh
from programs import programs


def main() -> int:
    """Write the files; return the exit code."""
    top = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for shell in (for_bash, for_zsh, for_fish):
        folder = top / shell.FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for program in programs():
            name, text = shell.build(program)
            (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
