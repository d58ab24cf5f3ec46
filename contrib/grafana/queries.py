"""What the panels of the dashboard ask, and what Prometheus answers."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

#: A panel, or one of its queries, as the dashboard has it.
Json = dict[str, Any]
#: Labels and samples (seconds since the epoch, value) of each line that Prometheus answers.
Answer = list[tuple[dict[str, str], list[tuple[float, float]]]]


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a panel: its name in the legend, seconds since the epoch and values."""

    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Mark:
    """An alert that began to fire within the time shown."""

    at_s: float
    name: str


def rate_interval(step_s: int, scrape_s: int) -> str:
    """Return Grafana's $__rate_interval: at least four scrapes, and one more than a step."""
    return f"{max(step_s + scrape_s, 4 * scrape_s)}s"


def expression(text: str, dashboard: Json, interval: str) -> str:
    """Return a query with Grafana's variables replaced, as where "All" is chosen."""
    values = {
        variable["name"]: variable["allValue"]
        for variable in dashboard["templating"]["list"]
        if variable.get("includeAll")
    }
    values["__rate_interval"] = interval
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], text)


def legend(form: str, labels: dict[str, str]) -> str:
    """Return the name of a line: a legend's form with the labels that it names."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), form).strip()


def parse(answer: Json) -> Answer:
    """Return what `/api/v1/query_range` has answered."""
    return [
        (one["metric"], [(float(at), float(value)) for at, value in one["values"]])
        for one in answer["data"]["result"]
    ]


def ask_prometheus(url: str, begin_s: float, end_s: float, step_s: int) -> Callable[[str], Answer]:
    """Return what asks the Prometheus at `url` for an expression in this time."""
    # At the same times for all of them.
    begin_s, end_s = begin_s // step_s * step_s, end_s // step_s * step_s

    def ask(text: str) -> Answer:
        given = {"query": text, "start": begin_s, "end": end_s, "step": step_s}
        form = urllib.parse.urlencode(given).encode()
        with urllib.request.urlopen(f"{url}/api/v1/query_range", form, timeout=60) as response:
            return parse(json.load(response))

    return ask


def targets(dashboard: Json) -> Iterator[tuple[Json, Json]]:
    """Yield each query with its panel."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel, target


def ask_all(
    dashboard: Json, ask: Callable[[str], Answer], interval: str
) -> dict[int, dict[str, list[Series]]]:
    """Ask for all; return the lines of each query, by the panel's id and the query's refId."""
    found: dict[int, dict[str, list[Series]]] = {}
    for panel, target in targets(dashboard):
        answer = ask(expression(target["expr"], dashboard, interval))
        lines = [Series(legend(target["legendFormat"], labels), p) for labels, p in answer]
        lines.sort(key=lambda line: line.name)
        found.setdefault(panel["id"], {})[target["refId"]] = lines
    return found


def empty(dashboard: Json, found: dict[int, dict[str, list[Series]]]) -> list[str]:
    """Return the panels, each with the query, that show nothing, or nothing but zeros."""
    return [
        f"{panel['title']}: {target['expr']}"
        for panel, target in targets(dashboard)
        if not any(
            value for line in found[panel["id"]][target["refId"]] for _, value in line.points
        )
    ]


def marks(dashboard: Json, ask: Callable[[str], Answer]) -> list[Mark]:
    """Return the alerts that the dashboard marks in time, the first first."""
    found = [
        Mark(points[0][0], legend(annotation["titleFormat"], labels))
        for annotation in dashboard["annotations"]["list"]
        for labels, points in ask(annotation["expr"])
    ]
    return sorted(found, key=lambda mark: mark.at_s)
