"""The generated part of docs/PERFORMANCE.md."""

from __future__ import annotations

from typing import Any

from environment import ROOT
from figures import FLOOR, RELAY, Runs, markdown
from loads import LOADS

PAPER = ROOT / "docs" / "PERFORMANCE.md"
CHART = ROOT / "docs" / "performance.svg"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
GOALS_HEAD = ["load", "figure", "relay", "floor", "ratio", "goal", "met"]
STATED_HEAD = GOALS_HEAD[:5]


def write(result: dict[str, Any], chart: str) -> None:
    text = PAPER.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAPER} has no markers {BEGIN} and {END}")
    PAPER.write_text(f"{before}{BEGIN}\n\n{generated(result)}\n{END}{after}")
    CHART.write_text(chart)


def generated(result: dict[str, Any]) -> str:
    runs = Runs(result["runs"])
    rows = runs.rows()
    with_goal = [row.cells() for row in rows if row.goal]
    stated = [row.cells() for row in rows if not row.goal]
    parts = [_made(result), "### Against the goals", markdown(GOALS_HEAD, with_goal)]
    if stated:
        parts += ["### Stated without a goal", markdown(STATED_HEAD, stated)]
    if growth := runs.growth_cells():
        head = ["as it grows", "relay, CPU µs per delivery", "floor"]
        parts += ["### Growth", markdown(head, growth)]
    if set(runs.servers()) - {RELAY, FLOOR}:
        head = ["", *(load.name for load in LOADS if load.baseline is not None)]
        parts += [
            "### What is in use today",
            BASELINES,
            markdown(head, runs.baseline_cells()),
            DAGGER,
        ]
    wrong = runs.wrong()
    parts += [
        "Gaps, repeated, reordered and missing entries, and lost connections, in all loads: "
        + _all_zero(wrong)
    ]
    return "\n\n".join(parts) + "\n"


BASELINES = (
    "Deliveries/s (Amax), or CPU per delivery, as ratios to the floor, and p99. "
    "C is RSS per client and connects/s over the floor's; baselines run it with 1,000 clients."
)
DAGGER = "† Not every entry was there ten seconds after the last was added, or connections were lost."


def _made(result: dict[str, Any]) -> str:
    made = result["made"]
    lines = [
        f"Commit {made['commit']}, {made['date']}. {made['cpu']}, Linux {made['kernel']}, {made['redis']}.",
        f"Rounds: {made['rounds']}, of {made['seconds']:g} s each; {made['pinned']}.",
        "A load marked ~ was disturbed: others used more than 0.15 of a core during it.",
    ]
    return "\n".join(lines)


def _all_zero(wrong: list[str]) -> str:
    return "0." if not wrong else "; ".join(wrong)
