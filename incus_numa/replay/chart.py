"""Draws the load of every node over time as SVG: one heat map per policy, nodes as rows, time as columns.

The same input gives the same text. Colours are shared by all maps: white is idle, dark blue a load of 1 (one vCPU per
CPU), orange to red more than that. Called by the command `simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

from incus_numa.replay.history import LoadHistory

WIDTH, LEFT, RIGHT = 960, 64, 24
PLOT = WIDTH - LEFT - RIGHT
TOP, PANEL_TOP, PANEL_BOTTOM = 84, 40, 30
LABEL_APART = 13

_STEPS_BELOW, _STEPS_ABOVE = 20, 10
_IDLE, _FULL, _ABOVE, _MOST = (0xF4, 0xF7, 0xFB), (0x08, 0x3D, 0x7F), (0xFD, 0xAE, 0x61), (0xA5, 0x00, 0x26)
_UNITS = (("s", 1), ("min", 60), ("h", 3600), ("d", 86400))
_TICKS = {"s": (1, 2, 5, 10, 20, 30), "min": (1, 2, 5, 10, 20, 30), "h": (1, 2, 3, 6, 12), "d": (1, 2, 5)}
_STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:11px;fill:#333}"
    ".t{font-size:16px;font-weight:600}.p{font-size:13px;font-weight:600}.e{text-anchor:end}.m{text-anchor:middle}"
    ".a{fill:none;stroke:#999}.h{stroke-width:0;shape-rendering:crispEdges}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One policy's map: its name, a line of figures, and the loads."""

    name: str
    caption: str
    history: LoadHistory


def render_chart(title: str, nodes: Sequence[int], panels: Sequence[Panel]) -> str:
    """The chart as an SVG document; `nodes` are the ids of the rows of every panel."""
    row = _row_height(len(nodes))
    height = PANEL_TOP + row * len(nodes) + PANEL_BOTTOM
    most = max((load for panel in panels for loads in panel.history.rows() for load in loads), default=0.0)
    scale = _Scale(most)
    total = TOP + height * len(panels) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{total}" viewBox="0 0 {WIDTH} {total}" '
        'role="img" aria-labelledby="title">',
        f'<title id="title">{_text(title)}</title>',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{total}" fill="#fff"/>',
        f'<text class="t" x="{LEFT}" y="28">{_text(title)}</text>',
        *_legend(scale),
    ]
    for place, panel in enumerate(panels):
        lines += _panel(panel, nodes, scale, TOP + place * height, row)
    return "\n".join([*lines, "</svg>", ""])


class _Scale:
    """Loads to one of few colours."""

    def __init__(self, most: float) -> None:
        # What is shown at the end of the scale is a round number, so that the legend can be read.
        self.most = max(1.0, math.ceil(round(most, 6) * 2) / 2)

    def step(self, load: float) -> int:
        """0 is idle, _STEPS_BELOW a load of 1, and what is above it is more."""
        load = max(0.0, round(load, 6))
        if load <= 1:
            return math.ceil(load * _STEPS_BELOW)
        return _STEPS_BELOW + max(1, math.ceil((load - 1) / max(self.most - 1, 1e-9) * _STEPS_ABOVE))

    def colour(self, step: int) -> str:
        """As `#rrggbb`."""
        if step <= _STEPS_BELOW:
            return _mix(_IDLE, _FULL, step / _STEPS_BELOW)
        return _mix(_ABOVE, _MOST, (step - _STEPS_BELOW - 1) / (_STEPS_ABOVE - 1))

    @property
    def steps(self) -> int:
        """The last step that can occur."""
        return _STEPS_BELOW + (_STEPS_ABOVE if self.most > 1 else 0)


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], part: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(low, high, strict=True))


def _legend(scale: _Scale) -> Iterator[str]:
    wide = 8
    for step in range(scale.steps + 1):
        x = LEFT + step * wide
        yield f'<rect class="h" x="{x}" y="42" width="{wide}" height="10" fill="{scale.colour(step)}"/>'
    yield f'<rect class="a" x="{LEFT}" y="42" width="{wide * (scale.steps + 1)}" height="10"/>'
    yield f'<text class="m" x="{LEFT + wide // 2}" y="65">0</text>'
    yield f'<text class="m" x="{LEFT + wide * _STEPS_BELOW + wide // 2}" y="65">1</text>'
    if scale.most > 1:
        yield f'<text class="m" x="{LEFT + wide * scale.steps + wide // 2}" y="65">{scale.most:g}</text>'
    x = LEFT + wide * (scale.steps + 1) + 12
    yield f'<text x="{x}" y="51">load of a node: committed vCPUs over usable CPUs; 1 is one vCPU per CPU</text>'


def _panel(panel: Panel, nodes: Sequence[int], scale: _Scale, top: int, row: int) -> Iterator[str]:
    high = row * len(nodes)
    y = top + PANEL_TOP
    yield f'<g><text class="p" x="{LEFT}" y="{top + 18}">{_text(panel.name)}</text>'
    yield f'<text x="{LEFT}" y="{top + 33}">{_text(panel.caption)}</text>'
    rows = panel.history.rows()
    for step, path in _paths(rows, scale, y, row):
        yield f'<path class="h" fill="{scale.colour(step)}" d="{path}"/>'
    yield f'<rect class="a" x="{LEFT}" y="{y}" width="{PLOT}" height="{high}"/>'
    every = math.ceil(LABEL_APART / row)
    for place in range(0, len(nodes), every):
        yield f'<text class="e" x="{LEFT - 5}" y="{y + place * row + row / 2 + 4:g}">{nodes[place]}</text>'
    yield f'<text class="m" transform="translate(14 {y + high / 2:g}) rotate(-90)">node</text>'
    span = panel.history.end_s - panel.history.begin_s
    for at_s, label in _ticks(span):
        x = LEFT + (at_s / span * PLOT if span else 0)
        yield f'<path class="a" d="M{x:.1f} {y + high}v4"/>'
        yield f'<text class="m" x="{x:.1f}" y="{y + high + 16}">{label}</text>'
    axis = "time since the first arrival \N{RIGHTWARDS ARROW}"
    yield f'<text class="e" x="{WIDTH - RIGHT}" y="{top + 33}">{axis}</text></g>'


def _paths(rows: Sequence[Sequence[float]], scale: _Scale, top: int, row: int) -> Iterator[tuple[int, str]]:
    """One path of rectangles per colour; neighbours of one colour are one rectangle."""
    found: dict[int, list[str]] = {}
    for place, loads in enumerate(rows):
        wide, column = PLOT / len(loads), 0
        for step, run in groupby(loads, key=scale.step):
            count = len(list(run))
            left, right = round(column * wide, 1), round((column + count) * wide, 1)
            found.setdefault(step, []).append(
                f"M{LEFT + left:g} {top + place * row}h{right - left:.4g}v{row}H{LEFT + left:g}z"
            )
            column += count
    for step in sorted(found):
        yield step, "".join(found[step])


def _row_height(nodes: int) -> int:
    return max(4, min(18, 288 // nodes))


def _ticks(span_s: float) -> list[tuple[float, str]]:
    """At most nine times from 0 to the span, in one unit, with their labels."""
    for unit, seconds in _UNITS:
        for count in _TICKS[unit]:
            if span_s <= count * seconds * 8:
                return _every(span_s, count, unit, seconds)
    unit, seconds = _UNITS[-1]
    return _every(span_s, 10 ** math.ceil(math.log10(span_s / seconds / 8)), unit, seconds)


def _every(span_s: float, count: int, unit: str, seconds: int) -> list[tuple[float, str]]:
    times = range(0, int(span_s / seconds) + 1, count)
    return [(float(one * seconds), f"{one} {unit}") for one in times]


def _text(text: str) -> str:
    """Text for XML, which has no place for control characters and halves of characters."""
    return escape("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text))
