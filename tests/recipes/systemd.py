"""systemd/README.md: the units are installed as it says, and systemd understands them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.recipes.trial import CONTRIB, Trial, block, call, not_tried

RECIPE = "systemd/README.md"
UNIT_SUFFIXES = {".service", ".socket", ".timer"}
MAN = Path("/usr/local/share/man")


def main() -> None:
    """Tell the story; the rows go to standard output."""
    trial = Trial(RECIPE, "systemd")
    for page in (CONTRIB / "man").iterdir():
        folder = MAN / f"man{page.suffix[1:]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / page.name).write_bytes(page.read_bytes())
    lines = re.findall(r"(?m)^# (install .*)", block(RECIPE, "# install -m 644"))
    assert len(lines) == 2, lines
    with trial.checks("the units can be installed, and their users made"):
        for line in lines:
            subprocess.run(["sh", "-ec", line], cwd=CONTRIB / "systemd", check=True, timeout=90)
        call("id", "maildirqmtp")
        call("id", "qmtpmaildir")
    units = [path for path in (CONTRIB / "systemd").iterdir() if path.suffix in UNIT_SUFFIXES]
    assert units
    for unit in sorted(unit.name for unit in units):
        with trial.checks(f"systemd-analyze verify {unit}"):
            done = subprocess.run(
                ["systemd-analyze", "verify", f"/etc/systemd/system/{unit}"],
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            ours = [line for line in done.stderr.splitlines() if "maildir" in line]
            assert (done.returncode, ours) == (0, []), done.stderr
    not_tried(RECIPE, "systemd", "units that run", "there is no systemd as process 1 in the copy")


if __name__ == "__main__":
    main()
