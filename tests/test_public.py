"""What programs import: cheap, typed, and every name of it described."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import maildirqmtp
from tests.helpers import make_maildir

HERE = Path(__file__).parent

#: What the package itself may load of ours, and what it may not load of others'.
OURS = {"maildirqmtp"}
HEAVY = {
    "asyncio", "dataclasses", "email", "inspect", "logging", "selectors", "socket", "ssl",
    "subprocess", "tempfile", "watchdog",
}  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a statement loads, beyond those of a bare interpreter."""
    code = (
        "import sys; before = set(sys.modules); "
        f"{statement}; print(*sorted(set(sys.modules) - before))"
    )
    # -S: what the virtual environment's .pth files load is not ours.
    path = f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); "
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", path + code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Every program that may once send a mail pays for it, and so does the command line."""
    loaded = loaded_by("import maildirqmtp")
    assert {name for name in loaded if name.startswith("maildirqmtp")} == OURS
    assert not loaded & HEAVY


def test_a_run_on_an_empty_maildir_loads_little(tmp_path: Path) -> None:
    """Most runs of a cron job find an empty maildir, and should cost nothing."""
    box = make_maildir(tmp_path / "Maildir")
    loaded = loaded_by(
        f"from maildirqmtp.cli.main import main; assert main([{str(box)!r}, '-q', 'h']) == 0"
    )
    assert not {name for name in loaded if name.startswith("maildirqmtp.client")}
    assert not loaded & {"maildirqmtp.forwarder.forwarder", "maildirqmtp.results"}
    # From Python 3.14 on, argparse loads dataclasses, to colour what it prints.
    loaded -= loaded_by("import argparse; argparse.ArgumentParser().add_argument('x')")
    assert not loaded & {"asyncio", "dataclasses", "inspect", "heapq", "logging", "threading"}


def test_the_client_does_not_load_asyncio_or_tls() -> None:
    """Nor what only some messages need."""
    loaded = loaded_by("from maildirqmtp import QMTPClient, Package")
    loaded |= loaded_by("from maildirqmtp import Tls; Tls(pins=bytes(32))")
    loaded -= loaded_by("import logging")  # from Python 3.14 on, dataclasses with it
    assert not loaded & {
        "asyncio",
        "ssl",
        "tempfile",
        "email",
        "maildirqmtp.maildir.maildir",
    }


@pytest.mark.parametrize("name", maildirqmtp.__all__)
def test_every_name_is_there_and_described(name: str) -> None:
    """`help(maildirqmtp.X)` is the reference; a name in __all__ that is missing breaks `*`."""
    value = getattr(maildirqmtp, name)
    assert name in dir(maildirqmtp)
    if name == "__version__":
        return
    assert inspect.getdoc(value)
    if isinstance(value, types.ModuleType):
        members = {n: v for n, v in vars(value).items() if inspect.isfunction(v)}
    else:
        members = {n: v for c in value.__mro__[:-1] for n, v in vars(c).items() if _is_ours(c)}
    for member, what in members.items():
        if not member.startswith("_") and (callable(what) or isinstance(what, property)):
            assert inspect.getdoc(what), f"{name}.{member} has no docstring"


def _is_ours(owner: type) -> bool:
    return owner.__module__.startswith("maildirqmtp")


def test_other_names_are_not_there() -> None:
    """A typing error is an AttributeError, and no import of something else."""
    with pytest.raises(AttributeError, match="no attribute 'QMTPCleint'"):
        getattr(maildirqmtp, "QMTPCleint")  # noqa: B009 (mypy sees the other way)


def test_pyright_agrees_with_mypy() -> None:
    """Half of the users have it in their editor."""
    pyright = shutil.which("pyright") or shutil.which("pyright", path=Path(sys.executable).parent)
    if pyright is None:
        pytest.skip("PYRIGHT IS NOT INSTALLED, so the types are checked by mypy only")
    done = subprocess.run(
        [pyright, "--pythonpath", sys.executable, str(HERE / "typing_api.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent,
        timeout=100,
    )
    if "npm" in done.stderr and done.returncode > 1:
        pytest.skip(f"PYRIGHT DOES NOT START: {done.stderr[:200]}")
    assert done.returncode == 0, done.stdout
