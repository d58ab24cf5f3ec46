"""The wheel and the sdist: what is in them, and that nothing is missing to build them again."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from importlib.util import find_spec
from pathlib import Path

import pytest

from maildirqmtp import __version__
from tests.helpers import DEADLINE_S
from tests.test_contrib import CONTRIB

ROOT = CONTRIB.parent
NAME = f"maildirqmtp-{__version__}"
DATA = f"{NAME}.data/data/"


def build(source: Path, target: Path, kind: str) -> Path:
    """Build a wheel or an sdist, without the network; return its file."""
    if find_spec("hatchling") is None:
        pytest.skip("NOT TESTED: there is no hatchling; tests/run installs it")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)],
        cwd=source,
        text=True,
        capture_output=True,
        timeout=2 * DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = target.iterdir()
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, folder / "made", "sdist")) as file:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4
            file.extraction_filter = tarfile.data_filter
        file.extractall(folder / "source")
    return folder / "source" / NAME


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the sdist as distributions do."""
    return zipfile.ZipFile(build(sdist, tmp_path_factory.mktemp("wheel") / "made", "wheel"))


def metadata(wheel: zipfile.ZipFile) -> Message:
    """Return what the wheel says of itself."""
    return email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))


def test_the_sdist_has_all_that_the_tests_and_packages_need(sdist: Path) -> None:
    """A distribution builds, tests and packages from it, without the repository."""
    for name in ("tests/run", "contrib/completions/make_completions.py", "LICENSE", "CHANGELOG.md"):
        assert (sdist / name).is_file(), name
    assert (sdist / "tests/run").stat().st_mode & 0o111
    assert not list(sdist.rglob("__pycache__"))


def test_the_wheel_has_the_man_pages_completions_documents_and_units(
    wheel: zipfile.ZipFile,
) -> None:
    """Each file of these folders, where man, the shells and an administrator look for it."""
    expected = {
        f"share/man/man{page.suffix[1:]}/{page.name}" for page in (CONTRIB / "man").iterdir()
    }
    for folder, place in (
        ("completions/bash", "share/bash-completion/completions"),
        ("completions/zsh", "share/zsh/site-functions"),
        ("completions/fish", "share/fish/vendor_completions.d"),
        ("doc", "share/doc/maildirqmtp/doc"),
        ("systemd", "share/doc/maildirqmtp/systemd"),
        ("recipes", "share/doc/maildirqmtp/recipes"),
    ):
        expected |= {f"{place}/{file.name}" for file in (CONTRIB / folder).iterdir()}
    found = {name.removeprefix(DATA) for name in wheel.namelist() if name.startswith(DATA)}
    assert found == expected


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """No tests and no tools among the modules of other people's environments."""
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"maildirqmtp", f"{NAME}.data", f"{NAME}.dist-info"}
    modules = {name for name in wheel.namelist() if name.startswith("maildirqmtp/")}
    package = ROOT / "maildirqmtp"
    assert modules == {
        str(file.relative_to(ROOT))
        for file in package.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }


def test_the_metadata_are_true(wheel: zipfile.ZipFile) -> None:
    """This Python is among the classifiers; each command of the wheel has a man page."""
    found = metadata(wheel)
    assert (found["Name"], found["Version"]) == ("maildirqmtp", __version__)
    classifiers = found.get_all("Classifier") or []
    minor = f"Programming Language :: Python :: 3.{sys.version_info.minor}"
    assert minor in classifiers
    assert found["Requires-Python"] == ">=3.11"
    extras = set(found.get_all("Provides-Extra") or ())
    assert extras == {"progress", "metrics", "test"}
    points = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    commands = [line.partition(" = ")[0] for line in points.splitlines() if " = " in line]
    assert len(commands) == 6
    for command in commands:
        assert f"{DATA}share/man/man1/{command}.1" in wheel.namelist()


def test_the_debian_package_is_of_this_version_and_has_its_files() -> None:
    """It is built from the sdist of this version: tests/fresh/packages does so."""
    first = (CONTRIB / "debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"maildirqmtp ({__version__}-")
    assert (CONTRIB / "debian/rules").stat().st_mode & 0o111
    for name in ("control", "copyright", "README.Debian", "README.source", "source/format"):
        assert (CONTRIB / "debian" / name).read_text()
