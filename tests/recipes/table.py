"""The table of `tests/recipes/run`: aligned columns, then what failed and what was not tried."""

from __future__ import annotations

import sys
from pathlib import Path

HEADINGS = ("recipe", "program", "checked", "result")


def main() -> int:
    """Print the rows of the file that the argument names; 1 if one failed or there is none."""
    rows = [line.split("\t") for line in Path(sys.argv[1]).read_text().splitlines()]
    shown = [HEADINGS, *(row[:4] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(HEADINGS))]
    for row in shown:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    for result in ("FAILED", "NOT TRIED"):
        for recipe, program, checked, _, reason in (row for row in rows if row[3] == result):
            print(f"{result}: {recipe} ({program}), {checked}: {reason}")
    return int(not rows or any(row[3] == "FAILED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
