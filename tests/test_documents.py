"""What stands in the documents can be copied: shell, TOML, links; README stays short."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from maildirqmtp.mail import sidecar
from maildirqmtp.settings import config, submission
from maildirqmtp.settings.command_line import parse
from maildirqmtp.settings.config_file import ConfigFile
from tests.documents import (
    DOCUMENTS,
    README,
    ROOT,
    Block,
    anchors,
    blocks,
    links,
    outside_blocks,
    place,
    rows,
    section,
    short_name,
)
from tests.stand_in import OTHERS, OURS

XMLNS = "http://www.w3.org/2000/svg"
SHELL = blocks("console", "sh")


def test_nothing_is_in_a_language_that_is_not_run() -> None:
    """A block that no test runs is wrong one day."""
    known = {"", "console", "sh", "toml", "python", "json"}
    assert {block.language for block in blocks()} <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=short_name)
def test_no_command_stands_where_it_is_not_run(path: Path) -> None:
    """An indented block has no language."""
    first = "|".join(map(re.escape, ["$", "#", *OTHERS, *OURS]))
    assert not re.findall(rf"(?m)^ {{4}}(?:{first}) .*", outside_blocks(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=short_name)
def test_links_lead_somewhere(path: Path) -> None:
    """To headings and files."""
    for link in links(path):
        target, _, anchor = link.partition("#")
        found = path.parent / target if target else path
        assert found.exists(), link
        if anchor:
            assert anchor in anchors(found), link


@pytest.mark.parametrize("block", blocks("toml"), ids=place)
def test_configurations_are_right(block: Block, tmp_path: Path) -> None:
    """They are copied as they stand."""
    file = tmp_path / "m.toml"
    file.write_text(block.text)
    tables = tomllib.loads(block.text)
    assert tables
    if "submission" in tables:
        assert submission.from_file(ConfigFile(str(file)))
    if set(tables) != {"submission"}:
        assert config.read(str(file), parse(["--config", str(file)])).routes


@pytest.mark.parametrize("block", blocks("json"), ids=place)
def test_sidecars_are_right(block: Block) -> None:
    """One that is copied and is wrong holds its message."""
    assert sidecar.decode(block.text.encode()).recipients


def script(block: Block) -> str:
    """Return the commands of a block: behind prompts, if it has any, else all of its lines."""
    prompted = re.findall(r"(?m)^[$#] ((?:.*\\\n)*.*)$", block.text)
    text = "\n".join(prompted) if re.search(r"(?m)^\$ ", block.text) or prompted else block.text
    text = text.replace("/opt/", "opt/")
    # What would be written stays in here, and other users' homes are.
    text = re.sub(r"(>>? ?)/", r"\1root/", text)
    return re.sub(r"~(\w+)/", r"~/\1/", text)


@pytest.mark.parametrize("block", SHELL, ids=place)
def test_commands_are_understood(block: Block, tmp_path: Path) -> None:
    """Each by the program's own parser; none does anything, and a program must be known."""
    programs, wrong = tmp_path / "bin", tmp_path / "wrong"
    stand_in = f"#!{sys.executable}\nfrom tests.stand_in import main\nmain({str(wrong)!r})\n"
    here = tmp_path / "here"
    for folder in (programs, here / ".venv/bin", here / "opt/maildirqmtp/bin", here / "tests"):
        folder.mkdir(parents=True)
        for name in (*OTHERS, *OURS):
            (folder / name).write_text(stand_in)
            (folder / name).chmod(0o755)
    (here / "message").touch()
    (here / "names").touch()
    text = script(block)
    for target in re.findall(r">>? ?([\w./~-]+)/[^/\s]*(?=\s|$)", text):
        (here / target.replace("~", str(here))).mkdir(parents=True, exist_ok=True)
    (here / "Maildir").mkdir()
    unknown = f'command_not_found_handle() {{ echo "unknown: $*" >>{shlex.quote(str(wrong))}; }}'
    done = subprocess.run(
        ["/bin/bash", "-ec", f"enable -n kill\n{unknown}\n{text}\nwait"],
        cwd=here,
        env={"PATH": str(programs), "HOME": str(here), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert not wrong.exists(), wrong.read_text()
    assert (done.returncode, done.stderr) == (0, ""), text


def test_the_picture_of_the_demo_is_of_this_version() -> None:
    """It shows what a newcomer is about to run; only names and ports are others each time."""
    path = ROOT / "contrib" / "make_demo_svg.py"
    spec = importlib.util.spec_from_file_location("make_demo_svg", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert words(made.picture(made.demo())) == words(made.SVG.read_text())


def words(svg: str) -> list[str]:
    """Return the lines of a picture, without what varies from run to run."""
    lines = [line.text or "" for line in ElementTree.fromstring(svg).iter(f"{{{XMLNS}}}text")]
    assert len(lines) > 10
    return [re.sub(r"maildirqmtp-demo-\w+|:\d+", "X", line) for line in lines]


def test_readme_is_short() -> None:
    """Who reads it decides in two minutes whether to go on."""
    assert len(README.read_text().splitlines()) <= 200
    assert os.path.getsize(README) < 20_000


#: What the system and OpenSSL say, in their own words.
OF_OTHERS = {
    "Connection refused",
    "No route to host",
    "unable to get local issuer certificate",
    "certificate is not valid for",
    "rcpthosts",
}
TROUBLE = ["Held", "In doubt", "Refused", "The server cannot be reached", "The maildir"]


@pytest.mark.parametrize("title", TROUBLE)
def test_troubleshooting_quotes_what_is_said(title: str) -> None:
    """A text that nobody sees any more is looked for in vain; a new one is looked for here."""
    source = "".join(path.read_text() for path in sorted((ROOT / "maildirqmtp").rglob("*.py")))
    source = re.sub(r'"\s*f?"', "", source)  # texts of several lines
    quoted = [text for row in rows(section(title))[2:] for text in re.findall("`(.*?)`", row[0])]
    parts = [part for text in quoted for part in re.split(r"\.\.\.|\b[A-Z]+\b|[():;]|\d+", text)]
    said = {part.strip(" ,") for part in parts} - OF_OTHERS
    assert [text for text in sorted(said) if text not in source] == []
    assert said or title == "Refused"
