"""contrib/grafana: the dashboard asks only for what the program tells."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from maildirqmtp.daemon.metrics import collect
from maildirqmtp.daemon.snapshot import Snapshot
from maildirqmtp.forwarder.report import Counters
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir.shard import Shard
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.helpers import closed_port, make_maildir, probe, start, wait_until
from tests.test_contrib import call, tool

CONTRIB = Path(__file__).parent.parent / "contrib"
GRAFANA = CONTRIB / "grafana"
DASHBOARD = json.loads((GRAFANA / "maildirqmtp.json").read_text())
PICTURE = GRAFANA / "dashboard.svg"
XMLNS = "http://www.w3.org/2000/svg"
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
#: What is not a metric's name or a label's among the words of an expression.
_VARIABLES = {"$maildir": "x", "$server": "x", "$__rate_interval": "5m"}


def metrics() -> dict[str, set[str]]:
    """Return the labels of each metric, by its name."""
    route = Route(b"/M", TcpEndpoint("mx"), shard=Shard(0, 4))
    found = collect([Snapshot(route, "idle", Counters().as_dict())])
    return {name: {key for labels, _ in values for key in labels} for name, _, _, values in found}


def texts(value: Any) -> Iterator[str]:
    """Return every text of the dashboard, wherever it stands."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from texts(one)
    elif isinstance(value, str):
        yield value


def test_every_metric_exists() -> None:
    """A panel of one that does not is empty, and looks as if all were well."""
    asked = {
        name for text in texts(DASHBOARD) for name in re.findall(r"\bmaildirqmtp_[a-z_]+", text)
    }
    assert asked == set(metrics())


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_label_exists(expression: str) -> None:
    """Grouped by one that does not, all routes are one line."""
    labels = set.union(*metrics().values())
    groups = re.findall(r"\bby \(([^)]*)\)", expression)
    used = {label.strip() for group in groups for label in group.split(",")}
    used |= set(re.findall(r'[{,](\w+)=~?"', expression))
    assert used <= labels


def test_legends_show_labels_that_are_left() -> None:
    """One that the sum has dropped is shown as nothing."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            found = re.search(r"\bby \(([^)]*)\)", target["expr"])
            left = set(re.split(r",\s*", found[1])) if found else shown
            assert shown == left, panel["title"]


def test_the_panels_have_their_places() -> None:
    """Each with a number of its own, and none upon another."""
    seen: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & seen, panel["title"]
        seen |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_prometheus_understands_each_expression(tmp_path: Path) -> None:
    """As alerts, which promtool reads."""
    promtool = tool("promtool")
    rules = []
    for number, expression in enumerate(EXPRESSIONS):
        for name, value in _VARIABLES.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"test:{number}", "expr": expression})
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "x", "rules": rules}]}))
    call(promtool, "check", "rules", file)


def served(port: int, accept: str) -> set[str]:
    """Return the names of the samples that a daemon serves, as Prometheus asks for them."""
    url = f"http://127.0.0.1:{port}/metrics"
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read().decode()
    return set(re.findall(r"(?m)^(maildirqmtp_\w+)\{", text))


@pytest.mark.parametrize(
    "accept",
    ["text/plain;version=0.0.4", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"],
)
def test_a_daemon_serves_what_panels_and_alerts_ask_for(tmp_path: Path, accept: str) -> None:
    """In another form a counter could have another name, and an alert would never come."""
    port, server = closed_port(), closed_port()
    maildir = make_maildir(tmp_path / "M")
    file = tmp_path / "daemon.toml"
    file.write_text(f'[[route]]\nmaildir = "{maildir}"\nserver = "127.0.0.1:{server}"\n')
    with start("--config", file, "--metrics-listen", f"127.0.0.1:{port}"):
        wait_until(lambda: "maildirqmtp_stuck{" in probe(port, "/metrics")[1], "the metrics")
        names = served(port, accept)
    rules = (CONTRIB / "prometheus" / "maildirqmtp.rules.yml").read_text()
    for text in (json.dumps(DASHBOARD), rules):
        asked = set(re.findall(r"\bmaildirqmtp_[a-z_]+", text))
        assert asked
        assert asked <= names


# The picture


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """What imports a module of the picture's program by its name."""
    monkeypatch.syspath_prepend(GRAFANA)
    return importlib.import_module


def made_up(value: float) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
    """Return what Prometheus could answer: two routes, a minute long, and once nothing for 10 s."""
    return [
        (
            {"maildir": f"/{name}", "server": f"{name}:209"},
            [(s, value) for s in range(0, 61, 2) if not 20 < s < 30],
        )
        for name in ("a", "b")
    ]


def letters(svg: str) -> list[tuple[float, float, float, float, str]]:
    """Return left, top, right, bottom and words of each text, by the width of a usual font."""
    found = []
    for one in ElementTree.fromstring(svg).iter(f"{{{XMLNS}}}text"):
        words, kinds = "".join(one.itertext()), one.get("class", "").split()
        size = 34 if "big" in kinds else 20 if "name" in kinds else 12
        width = len(words) * size * 0.5
        x, y = float(one.get("x", "")), float(one.get("y", ""))
        left = x - {"": 0.0, "middle": width / 2, "end": width}[one.get("text-anchor", "")]
        found.append((left, y - size * 0.75, left + width, y, words))
    return found


def test_the_picture_has_every_panel() -> None:
    """Nobody sees what was added since; it is one file, shown as it is, and small."""
    svg = PICTURE.read_text()
    words = {text for *_, text in letters(svg)}
    assert {DASHBOARD["title"], *(panel["title"] for panel in DASHBOARD["panels"])} <= words
    assert len(svg) < 100_000
    assert not re.search(r"href|url\(|@import|@font-face|<script|/tmp", svg)


def test_the_picture_says_what_it_is() -> None:
    """Grafana draws it otherwise; and the document that shows it has the command."""
    assert "Drawn by make_picture.py, not by Grafana" in {
        text for *_, text in letters(PICTURE.read_text())
    }
    told = (GRAFANA / "README.md").read_text()
    assert "](dashboard.svg)" in told
    assert ".venv/bin/python contrib/grafana/make_picture.py" in told


def test_no_words_of_the_picture_are_on_others() -> None:
    """Figures on figures say nothing."""
    svg = PICTURE.read_text()
    width = float(ElementTree.fromstring(svg).get("width", ""))
    texts = letters(svg)
    for left, _, right, _, words in texts:
        assert left >= 0, words
        assert right <= width, words
    for one, other in itertools.combinations(texts, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one[4], other[4])


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours (WCAG 2.2)."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_picture_is_legible_in_the_light_and_in_the_dark(module: Callable[[str], Any]) -> None:
    """WCAG 2.2 AA: 4.5 for letters (1.4.3), 3 for what is drawn (1.4.11)."""
    drawing = module("drawing")
    for mode in (drawing.LIGHT, drawing.DARK):
        for ground in ("card", "paper"):
            assert contrast(mode["ink"], mode[ground]) >= 4.5
            assert contrast(mode["dim"], mode[ground]) >= 4.5
        for colour in (*drawing.LINES, drawing.ALERT):
            assert contrast(colour, mode["card"]) >= 3, colour
    for colour in drawing.NAMED.values():
        assert contrast("#ffffff", colour) >= 4.5, colour


def test_each_panel_is_drawn_as_its_type_says(module: Callable[[str], Any]) -> None:
    """One figure on its colour, lines with both axes, states as words."""
    drawing, queries = module("drawing"), module("queries")
    found = queries.ask_all(DASHBOARD, lambda text: made_up(1.0), "8s")
    marks = [queries.Mark(30.0, "MaildirqmtpStuck")]
    svg = drawing.picture(DASHBOARD, found, marks, drawing.Span(0.0, 60.0, 2), "a note")
    root = ElementTree.fromstring(svg)
    groups = root.findall(f"{{{XMLNS}}}g")
    for panel, group in zip(DASHBOARD["panels"], groups, strict=True):
        said = [one.text for one in group.iter(f"{{{XMLNS}}}text")]
        lines = [one for one in group if one.get("class") == "line"]
        assert said[0] == panel["title"]
        if panel["type"] == "stat":
            assert len(said) == 2
        elif panel["type"] == "timeseries":
            assert len(lines) == 2 * sum(map(len, found[panel["id"]].values()))
            assert {"Last *", "Max", "00:00", "00:01"} <= set(said)
        else:
            assert said.count("yes") == 2 * 2 + 1
            assert {"/a", "/b"} <= set(said)
    assert any("MaildirqmtpStuck 00:00:30" in text for *_, text in letters(svg))


def test_a_figure_has_the_colour_of_its_threshold(module: Callable[[str], Any]) -> None:
    """Orange is what somebody looks for."""
    drawing = module("drawing")
    (oldest,) = [panel for panel in DASHBOARD["panels"] if panel["title"] == "Oldest that waits"]
    steps = oldest["fieldConfig"]["defaults"]["thresholds"]["steps"]
    figures = (0, 14399, 14400, 604800)
    colours = [drawing.colour_of(figure, steps) for figure in figures]
    assert colours == ["green", "green", "orange", "red"]


def test_where_samples_are_missing_there_is_a_gap(module: Callable[[str], Any]) -> None:
    """A line over the time without a daemon would be made up."""
    points = [(0.0, 1.0), (2.0, 1.0), (8.0, 1.0), (10.0, 1.0)]
    assert module("drawing").runs(points, 2) == [points[:2], points[2:]]
    assert module("drawing").runs([], 2) == []


def test_a_level_line_is_written_by_its_ends(module: Callable[[str], Any]) -> None:
    """Idle hours cost nothing, and a step stays a step."""
    points = [(0.0, 5.0), (1.0, 5.0), (2.0, 5.0), (3.0, 9.0), (4.0, 9.0)]
    assert module("drawing").path(points) == "M0 5L2 5L3 9L4 9"


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "short", "0"),
        (999, "short", "999"),
        (1500, "short", "1.5 K"),
        (0, "s", "0 s"),
        (0.25, "s", "0.25 s"),
        (90, "s", "1.5 mins"),
        (14400, "s", "4 hours"),
        (12.34, "ops", "12.3 ops/s"),
        (100, "ops", "100 ops/s"),
        (20480, "Bps", "20.5 kB/s"),
    ],
)
def test_units(module: Callable[[str], Any], value: float, unit: str, expected: str) -> None:
    """As Grafana writes them."""
    assert module("units").shown(value, unit) == expected


@pytest.mark.parametrize(
    ("highest", "unit", "expected"),
    [
        (0, "short", [0, 1]),
        (5, "short", [0, 1, 2, 3, 4, 5]),
        (61, "short", [0, 20, 40, 60, 80]),
        (0.3, "ops", [0, 0.1, 0.2, 0.3]),
        (220, "s", [0, 60, 120, 180, 240]),
        (5 * 86400, "s", [0, 86400, 2 * 86400, 3 * 86400, 4 * 86400, 5 * 86400]),
    ],
)
def test_ticks(
    module: Callable[[str], Any], highest: float, unit: str, expected: list[float]
) -> None:
    """Round figures, and none above which a line would leave its panel."""
    assert module("units").ticks(highest, unit) == pytest.approx(expected)


def test_the_variables_of_grafana_are_replaced(module: Callable[[str], Any]) -> None:
    """Prometheus knows none of them; one that is not known here is an error."""
    queries = module("queries")
    text = 'rate(x{maildir=~"$maildir",server=~"$server"}[$__rate_interval])'
    expected = 'rate(x{maildir=~".*",server=~".*"}[8s])'
    assert queries.expression(text, DASHBOARD, queries.rate_interval(2, 2)) == expected
    assert queries.rate_interval(60, 15) == "75s"
    with pytest.raises(KeyError):
        queries.expression("x[$other]", DASHBOARD, "8s")


def test_what_shows_nothing_is_named(module: Callable[[str], Any]) -> None:
    """No line at all, no sample, or only zeros: a picture of that proves nothing."""
    queries = module("queries")

    def named(answer: object) -> set[str]:
        found = queries.ask_all(DASHBOARD, lambda text: answer, "8s")
        return {text.partition(": ")[0] for text in queries.empty(DASHBOARD, found)}

    every = {panel["title"] for panel in DASHBOARD["panels"]}
    assert named([]) == every
    assert named([({}, [])]) == every
    assert named(made_up(0.0)) == every
    assert named(made_up(0.5)) == set()


def test_without_prometheus_it_says_what_to_install(tmp_path: Path) -> None:
    """Not a traceback, and the picture stays as it is."""
    given = {"PATH": str(tmp_path)}
    target = tmp_path / "picture.svg"
    program = [sys.executable, str(GRAFANA / "make_picture.py"), str(target)]
    done = subprocess.run(program, env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "apt-get download prometheus" in done.stderr
    assert "Traceback" not in done.stderr
    assert not target.exists()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_panel_shows_something_of_a_real_run(tmp_path: Path) -> None:
    """A daemon, three servers and Prometheus for five minutes, with some trouble."""
    prometheus = Path(tool("prometheus"))
    environment = {**os.environ, "PATH": f"{prometheus.parent}:{os.environ['PATH']}"}
    target = tmp_path / "picture.svg"
    program = [sys.executable, str(GRAFANA / "make_picture.py"), str(target)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=500)
    assert (done.returncode, done.stderr) == (0, "")
    words = {text for *_, text in letters(target.read_text())}
    assert {panel["title"] for panel in DASHBOARD["panels"]} <= words
    assert any("MaildirqmtpStuck" in text and "MaildirqmtpMailFails" in text for text in words)
