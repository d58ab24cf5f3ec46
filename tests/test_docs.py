"""README and manual pages say what the program does, and nothing is left out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from maildirqmtp.settings import config, table
from maildirqmtp.settings.command_line import make_parser, parse
from tests.helpers import add_message, answer_all, closed_port, make_maildir, run, serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MANUALS = sorted((ROOT / "contrib" / "man").iterdir())
MANUAL_1 = (ROOT / "contrib" / "man" / "maildirqmtp.1").read_text().replace("\\-", "-")
MANUAL_5 = (ROOT / "contrib" / "man" / "maildirqmtp.toml.5").read_text().replace("\\-", "-")

FLAGS = sorted(
    flag
    for action in make_parser()._actions
    for flag in action.option_strings
    if flag.startswith("--") and flag not in ("--help", "--version")
)
ROUTE_KEYS = [setting.key for setting in (table.MAILDIR, table.PREFIX, table.SERVER)]
ROUTE_KEYS += [setting.key for setting in table.ROUTE]
KEYS = ROUTE_KEYS + [setting.key for setting in table.PROCESS]


def section(title: str) -> str:
    """Return what README says under a heading."""
    return README.split(f"\n### {title}\n", 1)[1].split("\n##", 1)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a section's tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_is_told(flag: str) -> None:
    """In README's table and in the manual."""
    short = {"--verbose": "`-v`", "--quiet": "`-q`"}
    assert short.get(flag, f"`{flag}") in section("Options")
    assert re.search(f"{flag}\\b", MANUAL_1)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_told(key: str) -> None:
    """In README's table and in the manual of the file."""
    keys = {key for row in rows(section("Configuration")) for key in re.findall("`(.*?)`", row[0])}
    assert key in keys
    assert re.search(f'(?m)^\\.B[IR] {key} " ?=', MANUAL_5)


def test_no_other_keys_are_told() -> None:
    """Who copies one that does not exist gets an error."""
    table = rows(section("Configuration"))
    assert {k for row in table for k in re.findall("`(.*?)`", row[0])} == set(KEYS)
    assert set(re.findall('(?m)^\\.B[IR] ([a-z-]+) " ?=', MANUAL_5)) == set(KEYS)


def test_the_examples_are_right(tmp_path: Path) -> None:
    """They are copied as they stand."""
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    example = MANUAL_5.split(".SH EXAMPLE\n.nf\n")[1].split(".fi")[0].replace("\\(ti", "~")
    for block in [*blocks, example]:
        file = tmp_path / "m.toml"
        file.write_text(block)
        made = config.read(str(file), parse(["--config", str(file)]))
        assert len(made.routes) == 2


@pytest.mark.parametrize("path", MANUALS, ids=lambda path: str(path.name))
def test_manuals_can_be_shown(path: Path) -> None:
    """Without a warning of groff's."""
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("NOT TESTED: there is no groff")
    done = subprocess.run(
        [groff, "-ww", "-man", "-Tascii", str(path)], capture_output=True, timeout=60, check=True
    )
    assert done.stderr == b""


def documented_events() -> dict[str, set[str]]:
    """Return the keys of each event, as README has them."""
    found: dict[str, set[str]] = {}
    for first, _, keys in [row for row in rows(section("Events of `--json`")) if len(row) == 3]:
        names = re.findall("`(.*?)`", first)
        told = {key for group in re.findall("`(.*?)`", keys) for key in group.split()}
        if keys.startswith("the same, and"):
            told |= found["accepted"]
        for name in names:
            found.setdefault(name, told)
    return found


def test_events_are_as_documented(tmp_path: Path) -> None:
    """Programs read them."""
    path = make_maildir(tmp_path / "M")
    for name, to in (("1.a", b"good@x"), ("2.a", b"later@x"), ("3.a", b"never@x")):
        add_message(path, name, recipient=to)
    add_message(path, "4.a", sender=None, recipient=None)
    answers = {b"good@x": b"Kok", b"later@x": b"Zno", b"never@x": b"Dno"}
    with serving(answer_all(lambda _, to: answers[to])) as server:
        lines = [run("--dry-run", "--json", path, "h").stdout]
        lines.append(run("--json", path, server.address).stdout)
    lines.append(run("--json", path, f"127.0.0.1:{closed_port()}").stdout)
    lines.append(run("--status", "--json", path).stdout)
    documented, seen = documented_events(), set()
    for event in map(json.loads, "".join(lines).splitlines()):
        name = event.pop("event")
        seen.add(name)
        assert set(event) == documented[name], name
    assert seen >= {"accepted", "deferred", "failed", "held", "connected", "summary", "trouble"}
    assert seen >= {"would-send", "status"}


def test_metrics_are_as_documented() -> None:
    """And the alerts ask for none that does not exist."""
    from maildirqmtp.daemon.metrics import collect

    names = {name for name, *_ in collect([])}
    table = rows(section("Metrics"))[2:]
    told = {f"maildirqmtp_{k}" for row in table for k in re.findall("`(.*?)`", row[0])}
    assert told == names
    rules = (ROOT / "contrib" / "prometheus" / "maildirqmtp.rules.yml").read_text()
    assert set(re.findall(r"\bmaildirqmtp_[a-z_]+", rules)) <= names


def test_links_lead_somewhere() -> None:
    """To headings and files."""
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"(?m)^#+ (.*)$", README)
    }
    for target in re.findall(r"\]\(([^):]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (ROOT / target).exists(), target
