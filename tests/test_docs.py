"""Documents and manual pages say what the program does, and nothing is left out."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from maildirqmtp.cli import qmtp_sendmail, qmtpq
from maildirqmtp.settings import config, flags_and_keys, submission
from maildirqmtp.settings.command_line import make_parser, parse
from maildirqmtp.settings.config_file import ConfigFile
from tests.documents import ROOT, rows, section
from tests.helpers import add_message, answer_all, closed_port, make_maildir, run, serving

MANUALS = sorted((ROOT / "contrib" / "man").iterdir())
MANUAL_1 = (ROOT / "contrib" / "man" / "maildirqmtp.1").read_text().replace("\\-", "-")
MANUAL_5 = (ROOT / "contrib" / "man" / "maildirqmtp.toml.5").read_text().replace("\\-", "-")

FLAGS = sorted(
    flag
    for action in make_parser()._actions
    for flag in action.option_strings
    if flag.startswith("--") and flag not in ("--help", "--version")
)
ROUTE_KEYS = [
    setting.key
    for setting in (flags_and_keys.MAILDIR, flags_and_keys.PREFIX, flags_and_keys.SERVER)
]
ROUTE_KEYS += [setting.key for setting in flags_and_keys.ROUTE]
KEYS = ROUTE_KEYS + [setting.key for setting in flags_and_keys.PROCESS]


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_is_told(flag: str) -> None:
    """In the documents' table and in the manual."""
    short = {"--verbose": "`-v`", "--quiet": "`-q`"}
    assert short.get(flag, f"`{flag}") in section("Options")
    assert re.search(f"{flag}\\b", MANUAL_1)


def man_paragraph(text: str, name: str) -> str:
    """Return what a manual says below a flag or a key, to the next one."""
    found = re.search(f'(?ms)^\\.B[IR]* "?{name}\\b.*?(?=^\\.TP|^\\.SH|\\Z)', text)
    assert found is not None, name
    return found[0]


@pytest.mark.parametrize("key", [s.key for s in flags_and_keys.ROUTE if "{default}" in s.help])
def test_defaults_are_told_as_they_are(key: str) -> None:
    """In the table and both manuals; a wrong one is believed until mail is late."""
    setting = flags_and_keys.by_key(flags_and_keys.ROUTE)[key]
    assert setting.default is not None
    default = setting.type.to_text(setting.default)
    told = [row for row in rows(section("Options")) if f"`{setting.flag}" in row[0]]
    assert default in told[0][2]
    assert default in man_paragraph(MANUAL_1, setting.flag)
    assert default in man_paragraph(MANUAL_5, key)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_told(key: str) -> None:
    """In the documents' table and in the manual of the file."""
    keys = {key for row in rows(section("Configuration")) for key in re.findall("`(.*?)`", row[0])}
    assert key in keys
    assert re.search(f'(?m)^\\.B[IR] {key} " ?=', MANUAL_5)


def test_nothing_is_told_twice() -> None:
    """Of two descriptions one is older, and somebody believes it."""
    told = [flag for row in rows(section("Options")) for flag in re.findall("`(--[a-z-]+)", row[0])]
    keys = [key for row in rows(section("Configuration")) for key in re.findall("`(.*?)`", row[0])]
    options = MANUAL_1.split(".SH OPTIONS")[1].split("\n.SH ")[0]
    heads = re.findall(r"(?m)^\.TP\n\.B[IR]* (.*)$", options)
    flags = [flag for head in heads for flag in re.findall("--[a-z-]+", head)]
    in_file = re.findall('(?m)^\\.B[IR] ([a-z-]+) " ?=', MANUAL_5)
    for found in (told, keys, flags, in_file):
        assert len(found) > 10
        assert sorted(found) == sorted(set(found))


def test_no_other_keys_are_told() -> None:
    """Who copies one that does not exist gets an error."""
    table = rows(section("Configuration"))
    assert {k for row in table for k in re.findall("`(.*?)`", row[0])} == set(KEYS)
    assert set(re.findall('(?m)^\\.B[IR] ([a-z-]+) " ?=', MANUAL_5)) == set(KEYS)


def test_the_example_of_the_manual_is_right(tmp_path: Path) -> None:
    """It is copied as it stands; those of the documents are tried in test_documents.py."""
    example = MANUAL_5.split(".SH EXAMPLE\n.nf\n")[1].split(".fi")[0].replace("\\(ti", "~")
    file = tmp_path / "m.toml"
    file.write_text(example)
    assert len(config.read(str(file), parse(["--config", str(file)])).routes) == 2


def test_the_settings_of_qmtp_sendmail_are_told(tmp_path: Path) -> None:
    """In its section and its manual, with examples that are right."""
    about = section("sendmail's command line, `qmtp-sendmail`")
    manual = (ROOT / "contrib" / "man" / "qmtp-sendmail.1").read_text()
    assert [row[0].strip("`") for row in rows(about)[2:]] == list(submission.KEYS)
    assert re.findall('(?m)^\\.BI ([a-z]+) " =', manual) == list(submission.KEYS)
    for default in (submission.SOCKET, submission.QUEUE):
        assert default.decode() in about
        assert default.decode() in manual
    for action in qmtp_sendmail.make_parser()._actions:
        for flag in action.option_strings:
            assert flag.startswith("--") or flag.replace("-", "\\-") in manual
    for path in (submission.SYSTEM_FILE, submission.USER_FILE):
        assert path in about
        assert path in manual.replace("\\(ti", "~")
    examples = (
        about.split("```toml\n")[1].split("```")[0],
        manual.split("\n.nf\n")[1].split(".fi")[0].replace("\\(ti", "~"),
    )
    for example in examples:
        file = tmp_path / "m.toml"
        file.write_text(example[example.index("[submission]") :])
        assert len(submission.from_file(ConfigFile(str(file)))["aliases"]) == 2


def test_all_that_qmtpq_takes_is_told() -> None:
    """Each command and option, in its manual; and the documents' examples are taken."""
    manual = (ROOT / "contrib" / "man" / "qmtpq.1").read_text().replace("\\-", "-")
    for action in qmtpq.make_parser()._actions:
        for word in [flag for flag in action.option_strings if flag != "-h"]:
            assert re.search(f"{word}\\b", manual), word
        for word in action.choices or ():
            assert re.search(f"(?m)^\\.B[IR]? .*\\b{word}\\b", manual), word
    examples = re.findall(r"(?m)^(?:\$ )?qmtpq (.*)", section("The queue tool, `qmtpq`"))
    examples += re.findall(r"(?m)^qmtpq (.*)", manual.split(".SH EXAMPLES")[1])
    assert len(examples) > 9
    for example in examples:
        qmtpq.read_command_line(shlex.split(example, comments=True))


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
    """Return the keys of each event, as json.md has them."""
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


# For developers

PACKAGE = ROOT / "maildirqmtp"
ARCHITECTURE = (ROOT / "contrib" / "doc" / "architecture.md").read_text()
TESTS_RUN = (ROOT / "tests" / "run").read_text()
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text()


def defined_names() -> set[str]:
    """Return the classes and functions of the package, methods also as `Class.method`."""
    found: set[str] = set()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (*functions, ast.ClassDef)):
                found |= {node.name, f"{path.stem}.{node.name}"}
            if isinstance(node, ast.ClassDef):
                methods = {n.name for n in node.body if isinstance(n, functions)}
                found |= {f"{node.name}.{name}" for name in methods}
    return found


def quoted(text: str) -> list[str]:
    """Return what stands in backticks, each once."""
    return sorted(set(re.findall("`([^`\n]+)`", text)))


#: A class, a method, or a function with its module; a file; a file of a maildir.
NAME = r"(?:\w+\.)?\w*[A-Z]\w*[a-z]\w*(?:\.\w+)*|\w+\.(?!(?:py|md|json|toml)$)\w+"
FILE = r"[\w./]*/[\w./]*|\w+\.(?:py|md)"
OF_A_MAILDIR = r"(?:\.Failed/)?(?:new|cur|tmp|envelope)/(?:NAME\.json)?"


def test_the_architecture_names_what_exists() -> None:
    """A map with streets that are gone misleads whoever is new."""
    known = defined_names()
    named = quoted(ARCHITECTURE)
    assert not [name for name in named if re.fullmatch(NAME, name) and name not in known]
    files = [n for n in named if re.fullmatch(FILE, n) and not re.fullmatch(OF_A_MAILDIR, n)]
    places = (ROOT, PACKAGE)
    assert not [name for name in files if not any((place / name).exists() for place in places)]
    assert len(files) > 15
    assert len([name for name in named if name in known]) > 50


def test_every_room_is_in_the_architecture() -> None:
    """A room without its rule is where anything is put."""
    rows_of_rooms = [row[0].strip("`/") for row in rows(ARCHITECTURE.split("## ")[1])[2:]]
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert set(rows_of_rooms) == rooms | {"top level"}


def test_each_word_stands_in_the_glossary_once() -> None:
    """Two meanings of one word are what a glossary is against."""
    words = [row[0] for row in rows(ARCHITECTURE.split("## Glossary")[1])[2:]]
    assert words == sorted(set(words), key=str.lower)


def test_contributing_names_what_exists() -> None:
    """The first command that a newcomer copies must not fail."""
    for command in quoted(CONTRIBUTING):
        for word in command.split():
            if re.fullmatch(r"(tests|contrib|\.github|maildirqmtp)/[\w./-]+", word):
                assert word.isupper() or "ROOM" in word or (ROOT / word).exists(), word
    assert len(CONTRIBUTING.splitlines()) < 80, "one page"


def test_what_is_tested_on_each_push_is_what_is_promised() -> None:
    """A Python that is promised and not tested is found out by users."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    tested = re.findall(r'"(3\.\d+)"', workflow)
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert project["requires-python"] == f">={tested[0]}"
    assert set(classifiers) <= set(tested)
    assert "run: tests/run" in workflow


def test_each_commit_is_checked_as_tests_run_does() -> None:
    """Else a commit passes here and fails there."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    checks = re.findall(r'(?m)^"\$venv/bin/(ruff|mypy)"( check| format)?', TESTS_RUN)
    assert len(checks) == 3
    for program, what in checks:
        assert f"entry: .venv/bin/{program}{what}" in hooks
