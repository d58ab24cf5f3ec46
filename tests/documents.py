"""The documents of the project, and what stands in them: sections by heading, tables, blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
#: All of them; README first.
DOCUMENTS = [
    README,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "contrib").rglob("*.md")),
]
_HEADING = re.compile(r"(#+) (.*)")


def short_name(path: Path) -> str:
    """Return a document's path, as messages and names of tests have it."""
    return str(path.relative_to(ROOT))


class Block(NamedTuple):
    """A fenced block; `language` is what stands behind the opening fence, or ""."""

    path: Path
    line: int
    language: str
    text: str


def place(block: Block) -> str:
    """Return where a block stands, as FILE:LINE."""
    return f"{short_name(block.path)}:{block.line}"


def _lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield number and text of each line, and whether it is in a block (fences are)."""
    inside = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = line.startswith("```")
        yield number, line, inside or fence
        inside ^= fence
    assert not inside, f"a block in {path} has no end"


def headings(path: Path) -> list[tuple[int, str]]:
    """Return level and title of each heading."""
    found = [_HEADING.fullmatch(line) for _, line, inside in _lines(path) if not inside]
    return [(len(match[1]), match[2]) for match in found if match]


def section(title: str) -> str:
    """Return what stands under a heading, up to the next one; only one document may have it."""
    found: list[list[str]] = []
    taken = False
    for path in DOCUMENTS:
        taken = False
        for _, line, inside in _lines(path):
            heading = None if inside else _HEADING.fullmatch(line)
            if heading:
                taken = heading[2] == title
                if taken:
                    found.append([])
            elif taken:
                found[-1].append(line)
    assert len(found) == 1, f"{len(found)} sections are called {title!r}"
    return "\n".join(found[0])


def rows(text: str) -> list[list[str]]:
    """Return the cells of a section's tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def blocks(*languages: str, path: Path | None = None) -> list[Block]:
    """Return the fenced blocks, of these languages or all, of one document or of all."""
    found: list[Block] = []
    for document in DOCUMENTS if path is None else [path]:
        start, language, lines = 0, "", list[str]()
        for number, line, inside in _lines(document):
            if line.startswith("```") and not start:
                start, language, lines = number, line.removeprefix("```").strip(), []
            elif line.startswith("```"):
                found.append(Block(document, start, language, "".join(f"{x}\n" for x in lines)))
                start = 0
            elif inside:
                lines.append(line)
    return [block for block in found if not languages or block.language in languages]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for _, title in headings(path)]
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in plain}


def outside_blocks(path: Path) -> str:
    """Return a document without its fenced blocks."""
    return "\n".join(line for _, line, inside in _lines(path) if not inside)


def links(path: Path) -> list[str]:
    """Return the targets of a document's links and pictures, without those of the web."""
    text = re.sub(r"`[^`\n]*`", "", outside_blocks(path))
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", t)]
