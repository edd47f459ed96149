"""The chart of docs/PERFORMANCE.md: CPU per delivery as a ratio to the floor's."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from figures import FLOOR, RELAY, Runs, times
from loads import CPU, LOADS

WIDTH = 800
LEFT, RIGHT = 250, 40
TOP, ROW = 96, 34
BOTTOM = 40
# A color and a shape each, so that they can be told apart without color too.
MARKS = ["relay", "first", "second", "third"]
TICKS = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128]

STYLE = """
    .page { fill: #ffffff; }
    .grid { stroke: #d0d7de; stroke-width: 1; }
    .floor { stroke: #57606a; stroke-width: 2; }
    .relay { fill: #0b57b5; }
    .first { fill: #b45309; }
    .second { fill: #6d28d9; }
    .third { fill: #15803d; }
    text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 13px; fill: #1f2328; }
    .title { font-size: 15px; font-weight: 600; }
    .end { text-anchor: end; }
    .middle { text-anchor: middle; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; }
      .grid { stroke: #30363d; }
      .floor { stroke: #8b949e; }
      .relay { fill: #6ea8fe; }
      .first { fill: #f0a04b; }
      .second { fill: #b794f6; }
      .third { fill: #57c278; }
      text { fill: #e6edf3; }
    }
"""


def chart(result: dict[str, Any]) -> str:
    runs = Runs(result["runs"])
    servers = [
        RELAY,
        *(server for server in runs.servers() if server not in (RELAY, FLOOR)),
    ]
    rows = _rows(runs, servers)
    height = TOP + ROW * len(rows) + BOTTOM
    axis = _Axis([ratio for _, ratios in rows for ratio in ratios.values()])
    parts = [
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="10"/>',
        '<text class="title" x="20" y="30">Server CPU per delivery, as a ratio to the floor</text>',
        *_legend(servers),
        *_grid(axis, height),
    ]
    for index, (title, ratios) in enumerate(rows):
        y = TOP + ROW * index + ROW / 2
        parts.append(
            f'<text class="end" x="{LEFT - 16}" y="{y + 4:.0f}">{escape(title)}</text>'
        )
        # The relay last, so that nothing lies over it.
        for server, ratio in reversed(ratios.items()):
            mark = _mark(MARKS[servers.index(server) % len(MARKS)], axis.x(ratio), y)
            parts.append(
                f"<g><title>{escape(server)}: {times(ratio)}</title>{mark}</g>"
            )
    described = "; ".join(
        f"{title}: "
        + ", ".join(f"{server} {times(ratio)}" for server, ratio in ratios.items())
        for title, ratios in rows
    )
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title desc">\n'
        '  <title id="title">CPU per delivery as a ratio to the floor</title>\n'
        f'  <desc id="desc">{escape(described)}</desc>\n  <style>{STYLE}  </style>\n  {body}\n</svg>\n'
    )


def _rows(runs: Runs, servers: list[str]) -> list[tuple[str, dict[str, float]]]:
    rows = []
    for load in LOADS:
        floor = runs.median(load.name, FLOOR, CPU)
        ratios = {server: runs.median(load.name, server, CPU) for server in servers}
        found = {server: cpu / floor for server, cpu in ratios.items() if cpu and floor}
        # Growth has a table of its own.
        if found and not load.name.startswith("clients-"):
            rows.append((load.name, found))
    return rows


class _Axis:
    """Logarithmic: twice as much is as far everywhere."""

    def __init__(self, ratios: list[float]) -> None:
        lowest, highest = min([1.0, *ratios]), max([1.0, *ratios])
        self.first = max((tick for tick in TICKS if tick <= lowest), default=TICKS[0])
        self.last = min((tick for tick in TICKS if tick > highest), default=TICKS[-1])

    def x(self, ratio: float) -> float:
        share = math.log(ratio / self.first) / math.log(self.last / self.first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[float]:
        return [tick for tick in TICKS if self.first <= tick <= self.last]


def _grid(axis: _Axis, height: int) -> list[str]:
    bottom = height - BOTTOM + 4
    parts = []
    for tick in axis.ticks():
        x = axis.x(tick)
        name = "floor" if tick == 1 else "grid"
        label = f"{tick:g}×"
        parts.append(
            f'<line class="{name}" x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}"/>'
        )
        parts.append(
            f'<text class="middle" x="{x:.1f}" y="{bottom + 18}">{label}</text>'
        )
    return parts


def _legend(servers: list[str]) -> list[str]:
    parts, x = [], 26.0
    for index, server in enumerate(servers):
        parts.append(_mark(MARKS[index % len(MARKS)], x, 56))
        parts.append(f'<text x="{x + 12:.0f}" y="60">{escape(server)}</text>')
        x += 40 + 7 * len(server)
    return parts


def _mark(name: str, x: float, y: float) -> str:
    shapes = {
        "relay": f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="7"/>',
        "first": f'<rect class="{name}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>',
        "second": f'<path class="{name}" d="M{x:.1f} {y - 7:.1f} l7 12 h-14 z"/>',
        "third": f'<path class="{name}" d="M{x:.1f} {y - 7:.1f} l7 7 l-7 7 l-7 -7 z"/>',
    }
    return shapes[name]
