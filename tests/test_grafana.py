"""contrib/grafana: the dashboard asks only for what the program tells."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
