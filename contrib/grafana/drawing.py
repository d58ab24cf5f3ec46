"""The dashboard as an SVG: its grid of panels, each drawn as its type says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from xml.sax.saxutils import escape

from queries import Json, Mark, Series
from units import clock, shown, ticks, times

#: Pixels of a column and a row of Grafana's grid, between two panels, and above them all.
COLUMN, ROW, GAP, HEADER = 40, 38, 8, 64
WIDTH = 24 * COLUMN
#: Paper, panels, letters, those of less weight, lines of the grid: in the light and in the dark.
LIGHT = {
    "paper": "#f0f1f3",
    "card": "#ffffff",
    "ink": "#1f242b",
    "dim": "#59606b",
    "grid": "#dfe2e7",
}
DARK = {
    "paper": "#111217",
    "card": "#1a1d22",
    "ink": "#dfe2e7",
    "dim": "#a0a7b3",
    "grid": "#2e333b",
}
#: Of the lines of a panel, in turn; each can be told from the panel in the light and in the dark.
LINES = ("#2f9e4f", "#b9770e", "#3b82d6", "#d6455d", "#8f63d2")
#: What the dashboard's names of colours are here, as ground for white letters.
NAMED = {"green": "#1a7f45", "orange": "#b35309", "red": "#c4162a", "blue": "#1f60c4"}
#: The marks of alerts.
ALERT = "#e5484d"
_LETTER, _LEGEND_LINE = 6.6, 17

Found = dict[int, dict[str, list[Series]]]


@dataclass(frozen=True, slots=True)
class Box:
    """A place in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class Span:
    """The time that all panels show."""

    begin_s: float
    end_s: float
    step_s: int

    def x(self, at_s: float, box: Box) -> float:
        """Return where a time is in a plot."""
        return box.x + (at_s - self.begin_s) / (self.end_s - self.begin_s) * box.width


def place(panel: Json) -> Box:
    """Return where the grid has a panel."""
    grid = panel["gridPos"]
    return Box(
        grid["x"] * COLUMN + GAP / 2,
        HEADER + grid["y"] * ROW,
        grid["w"] * COLUMN - GAP,
        grid["h"] * ROW - GAP,
    )


def number(value: float) -> str:
    """Return a coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "") -> str:
    """Return words at a place; `kind` are classes, `anchor` says what of them is there."""
    more = f' class="{kind}"' if kind else ""
    more += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{number(x)}" y="{number(y)}"{more}>{escape(words)}</text>'


def rectangle(box: Box, fill: str = "", kind: str = "", radius: int = 0) -> str:
    """Return a rectangle, of a colour or of a class."""
    more = f' fill="{fill}"' if fill else f' class="{kind}"'
    more += f' rx="{radius}"' if radius else ""
    size = f'width="{number(box.width)}" height="{number(box.height)}"'
    return f'<rect x="{number(box.x)}" y="{number(box.y)}" {size}{more}/>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    return f'<path class="{kind}" d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}"/>'


def fitting(words: str, width: float) -> str:
    """Return words as far as they fit into so many pixels."""
    room = int(width / _LETTER)
    return words if len(words) <= room else words[: max(room - 1, 0)] + "…"


def colour_of(value: float, steps: list[Json]) -> str:
    """Return the colour of the last threshold that a value has reached."""
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return str(reached[-1])


def runs(points: list[tuple[float, float]], step_s: float) -> list[list[tuple[float, float]]]:
    """Return a line's points in pieces: where samples are missing there is a gap."""
    pieces: list[list[tuple[float, float]]] = [points[:1]] if points else []
    for before, point in pairwise(points):
        if point[0] - before[0] > 1.5 * step_s:
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def path(points: list[tuple[float, float]]) -> str:
    """Return the path through points; of those on one level only the ends are written."""
    kept = [
        point
        for i, point in enumerate(points)
        if not 0 < i < len(points) - 1 or not points[i - 1][1] == point[1] == points[i + 1][1]
    ]
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in kept)


def plot(lines: list[Series], span: Span, box: Box, highest: float) -> list[list[str]]:
    """Return the paths of each line; from 0 at the bottom of the box to the highest at its top."""

    def point(at_s: float, value: float) -> tuple[float, float]:
        return span.x(at_s, box), box.bottom - value / highest * box.height

    return [
        [path([point(*one) for one in piece]) for piece in runs(series.points, span.step_s)]
        for series in lines
    ]


def _card(panel: Json) -> list[str]:
    """Return the ground of a panel, with its title."""
    box = place(panel)
    title = text(box.x + 12, box.y + 22, panel["title"], "title")
    return [rectangle(box, kind="card", radius=4), title]


def _legend(lines: list[Series], unit: str, box: Box) -> list[str]:
    """Return the table below a plot: each line with its last value and its highest."""
    columns = {"Last *": box.right - 84, "Max": box.right}
    y = box.y + 12
    found = [text(x, y, name, "dim", "end") for name, x in columns.items()]
    for index, series in enumerate(lines):
        y += _LEGEND_LINE
        values = [value for _, value in series.points]
        found.append(rectangle(Box(box.x, y - 6, 14, 4), LINES[index % len(LINES)], radius=2))
        found.append(text(box.x + 20, y, fitting(series.name, columns["Last *"] - box.x - 90)))
        for x, value in zip(columns.values(), (values[-1], max(values)), strict=True):
            found.append(text(x, y, shown(value, unit), "", "end"))
    return found


def _time_axis(span: Span, box: Box) -> list[str]:
    """Return lines and clock below a plot."""
    found: list[str] = []
    for at_s in times(span.begin_s, span.end_s):
        x = span.x(at_s, box)
        found.append(line(x, box.y, x, box.bottom, "grid"))
        found.append(text(x, box.bottom + 16, clock(at_s), "dim", "middle"))
    return found


def _marks(marks: list[Mark], span: Span, box: Box) -> list[str]:
    """Return where alerts began, as Grafana marks them."""
    found: list[str] = []
    for mark in marks:
        x = span.x(mark.at_s, box)
        triangle = f"M{number(x - 4)} {number(box.bottom + 6)}h8l-4 -6z"
        found.append(line(x, box.y, x, box.bottom, "alert"))
        found.append(f'<path fill="{ALERT}" d="{triangle}"/>')
    return found


def stat(panel: Json, lines: list[Series], span: Span, marks: list[Mark]) -> list[str]:
    """Return the last figure, large, on the colour of its threshold, and how it came to that."""
    box, defaults = place(panel), panel["fieldConfig"]["defaults"]
    values = [value for _, value in lines[0].points]
    fill = NAMED[colour_of(values[-1], defaults["thresholds"]["steps"])]
    below = Box(box.x, box.bottom - 44, box.width, 40)
    title = text(box.x + 10, box.y + 20, panel["title"], "white title")
    found = [rectangle(box, fill, radius=4), title]
    for curve in plot(lines, span, below, max(values) or 1)[0]:
        area = f"{curve}V{number(box.bottom)}H{curve[1:].split()[0]}Z"
        found.append(f'<path fill="#fff" fill-opacity=".18" d="{area}"/>')
    figure = shown(values[-1], defaults["unit"])
    middle = box.x + box.width / 2
    return [*found, text(middle, box.y + 80, figure, "white big", "middle")]


def timeseries(panel: Json, lines: list[Series], span: Span, marks: list[Mark]) -> list[str]:
    """Return the lines over time, with both axes and the legend."""
    box, unit = place(panel), panel["fieldConfig"]["defaults"]["unit"]
    rows = 14 + _LEGEND_LINE * len(lines)
    inner = Box(box.x + 78, box.y + 36, box.width - 92, box.height - 36 - 26 - rows - 8)
    legend = Box(box.x + 12, inner.bottom + 26, box.width - 26, rows)
    levels = ticks(max(value for series in lines for _, value in series.points), unit)
    found = _card(panel)
    found += _time_axis(span, inner)
    for level in levels:
        y = inner.bottom - level / levels[-1] * inner.height
        found.append(line(inner.x, y, inner.right, y, "grid"))
        found.append(text(inner.x - 8, y + 4, shown(level, unit), "dim", "end"))
    for index, curves in enumerate(plot(lines, span, inner, levels[-1])):
        colour = LINES[index % len(LINES)]
        found += [f'<path class="line" stroke="{colour}" d="{curve}"/>' for curve in curves]
    return [*found, *_marks(marks, span, inner), *_legend(lines, unit, legend)]


def states_of(series: Series, span: Span) -> list[tuple[float, list[float]]]:
    """Return each state in turn, with the times at which it was seen; a gap ends one."""
    return [
        (value, [at for at, _ in piece])
        for one in runs(series.points, span.step_s)
        for value, piece in groupby(one, key=lambda point: point[1])
    ]


def state_timeline(panel: Json, lines: list[Series], span: Span, marks: list[Mark]) -> list[str]:
    """Return a bar for each line: its states, in the colours of their names."""
    box, mappings = place(panel), panel["fieldConfig"]["defaults"]["mappings"]
    states = {float(key): value for one in mappings for key, value in one["options"].items()}
    inner = Box(box.x + 78, box.y + 36, box.width - 92, box.height - 36 - 26 - 30)
    height = inner.height / len(lines)
    found = _card(panel)
    found += _time_axis(span, inner)
    for index, series in enumerate(lines):
        y = inner.y + index * height
        found.append(text(inner.x - 8, y + height / 2 + 4, fitting(series.name, 66), "dim", "end"))
        for value, times_s in states_of(series, span):
            first, last = times_s[0], times_s[-1]
            x, right = span.x(first, inner), span.x(min(last + span.step_s, span.end_s), inner)
            bar = Box(x, y + height * 0.1, right - x, height * 0.8)
            found.append(rectangle(bar, NAMED[states[value]["color"]]))
            word = states[value]["text"]
            if len(word) * _LETTER + 8 < bar.width:
                found.append(text(x + 6, y + height / 2 + 4, word, "white"))
    x = box.x + 12
    for state in states.values():
        found.append(rectangle(Box(x, box.bottom - 20, 14, 4), NAMED[state["color"]], radius=2))
        found.append(text(x + 20, box.bottom - 14, state["text"]))
        x += 34 + _LETTER * len(state["text"])
    return [*found, *_marks(marks, span, inner)]


#: What draws a panel, by its type.
DRAW: dict[str, Callable[[Json, list[Series], Span, list[Mark]], list[str]]] = {
    "stat": stat,
    "timeseries": timeseries,
    "state-timeline": state_timeline,
}


def style() -> str:
    """Return the rules: in the dark where the reader's screen is."""

    def colours(of: dict[str, str]) -> str:
        fills = "".join(f".{name}{{fill:{of[name]}}}" for name in ("paper", "card"))
        letters = f"text{{fill:{of['ink']}}}text.dim{{fill:{of['dim']}}}"
        return f"{fills}{letters}.grid{{stroke:{of['grid']}}}"

    return (
        f"<style>{colours(LIGHT)}@media (prefers-color-scheme:dark){{{colours(DARK)}}}"
        ".title{font-weight:600}.big{font-size:34px;font-weight:600}text.white{fill:#fff}"
        f".name{{font-size:20px;font-weight:600}}text.alerts{{fill:{ALERT}}}"
        ".line{fill:none;stroke-width:1.6;stroke-linejoin:round}"
        f".alert{{stroke:{ALERT};stroke-dasharray:3 3}}</style>"
    )


def header(dashboard: Json, marks: list[Mark], span: Span, note: str) -> list[str]:
    """Return what stands above all panels: the title, the time, the alerts that came, the note."""
    day = f"{clock(span.begin_s, True)} to {clock(span.end_s, True)} UTC"
    alerts = ", ".join(f"{mark.name} {clock(mark.at_s, True)}" for mark in marks)
    return [
        text(GAP, 26, dashboard["title"], "name"),
        text(WIDTH - GAP, 20, day, "dim", "end"),
        text(GAP, 52, f"▲ {alerts}", "alerts"),
        text(WIDTH - GAP, 52, note, "dim", "end"),
    ]


def picture(dashboard: Json, found: Found, marks: list[Mark], span: Span, note: str) -> str:
    """Return the SVG of a dashboard with what Prometheus has answered to its queries."""
    places = [place(panel) for panel in dashboard["panels"]]
    height = max(box.bottom for box in places) + GAP
    size = f'width="{WIDTH}" height="{number(height)}" viewBox="0 0 {WIDTH} {number(height)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
        f'aria-label="The dashboard {escape(dashboard["title"])}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" '
        'font-size="12">',
        style(),
        rectangle(Box(0, 0, WIDTH, height), kind="paper", radius=6),
        *header(dashboard, marks, span, note),
    ]
    for panel in dashboard["panels"]:
        lines = [one for series in found[panel["id"]].values() for one in series]
        parts += ["<g>", *DRAW[panel["type"]](panel, lines, span, marks), "</g>"]
    return "\n".join([*parts, "</svg>", ""])
