#!/usr/bin/env python3
"""Writes contrib/grafana/dashboard.svg: the dashboard, drawn from a run of five minutes.

.venv/bin/python contrib/grafana/make_picture.py [FILE]

A daemon with three routes, their servers, and Prometheus with the alerts: see `real_run`. Each
query of each panel is asked of that Prometheus; one that shows nothing, or only zeros, is an
error. It is drawn here, not by Grafana.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from drawing import Span, picture
from queries import Answer, ask_all, ask_prometheus, empty, marks, rate_interval
from real_run import SCRAPE_S, Finished, RunError, real_run

HERE = Path(__file__).parent
DASHBOARD = HERE / "maildirqmtp.json"
SVG = HERE / "dashboard.svg"
STEP_S = 2
NOTE = "Drawn by make_picture.py, not by Grafana"


def draw(run: Finished) -> str:
    """Return the picture of a run. Raises `RunError` if a panel has nothing to show."""
    dashboard = json.loads(DASHBOARD.read_text())
    answering = ask_prometheus(run.url, run.begin_s, run.end_s, STEP_S)

    def ask(text: str) -> Answer:
        """Ask, and leave the temporary folder out of the names of the maildirs."""
        return [
            ({key: value.removeprefix(str(run.folder)) for key, value in labels.items()}, points)
            for labels, points in answering(text)
        ]

    found = ask_all(dashboard, ask, rate_interval(STEP_S, SCRAPE_S))
    alerts = marks(dashboard, ask)
    nothing = [*empty(dashboard, found), *([] if alerts else ["no alert has come"])]
    if nothing:
        raise RunError("these show nothing, or only zeros:\n  " + "\n  ".join(nothing))
    return picture(dashboard, found, alerts, Span(run.begin_s, run.end_s, STEP_S), NOTE)


def main() -> int:
    """Write the picture, here or into the file that is named; return the exit code."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SVG
    try:
        with tempfile.TemporaryDirectory() as folder, real_run(Path(folder)) as run:
            svg = draw(run)
    except RunError as error:
        print(f"make_picture: {error}", file=sys.stderr)
        return 1
    target.write_text(svg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
