#!/usr/bin/env python3
"""Writes contrib/doc/demo.svg: what `maildirqmtp --demo` prints, as a picture of a terminal.

.venv/bin/python contrib/make_demo_svg.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import escape

SVG = Path(__file__).parent / "doc" / "demo.svg"
COMMAND = "$ maildirqmtp --demo"
#: Pixels: of a column and a line at this size of letters, and around all of them.
_COLUMN, _LINE, _SIZE, _MARGIN = 8.43, 19, 14, 16
_PAPER, _INK = "#16181d", "#d8dce4"
#: The first of these that is found in a line says its colour.
_COLOURS = {
    r"^ *\$ ": "#8ec7ff",
    r"  accepted$": "#8fd694",
    r"  deferred: ": "#f0c674",
    r"  failed: ": "#f28b82",
}


def picture(lines: list[str]) -> str:
    """Return the SVG of these lines; its words can be selected, searched and read aloud."""
    width = round(max(map(len, lines)) * _COLUMN) + 2 * _MARGIN
    height = len(lines) * _LINE + 2 * _MARGIN
    found = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="What maildirqmtp --demo prints">',
        f'<rect width="100%" height="100%" rx="8" fill="{_PAPER}"/>',
        f'<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{_SIZE}" '
        f'fill="{_INK}" style="white-space: pre">',
    ]
    for number, line in enumerate(lines, 1):
        colours = [colour for what, colour in _COLOURS.items() if re.search(what, line)]
        fill = f' fill="{colours[0]}"' if colours else ""
        y = _MARGIN + number * _LINE - 5
        found.append(
            f'<text x="{_MARGIN}" y="{y}"{fill} xml:space="preserve">{escape(line)}</text>'
        )
    return "\n".join([*found, "</g>", "</svg>", ""])


def demo() -> list[str]:
    """Run the demo of this installation; return its lines, with the command before them."""
    program = Path(sys.executable).with_name("maildirqmtp")
    done = subprocess.run([program, "--demo"], capture_output=True, text=True, check=True)
    return [COMMAND, *done.stdout.splitlines()]


if __name__ == "__main__":
    SVG.write_text(picture(demo()))
