"""From runs to tables: medians, ratios to the floor, and whether the goals are met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from loads import (
    CPU,
    FIGURES,
    FLAT,
    FLAT_ITSELF,
    GROWING_CLIENTS,
    GROWING_STREAMS,
    LOADS,
    P99,
    RATE,
    Figure,
    Goal,
    below,
)
from machine import QUIET_CORES

RELAY, FLOOR = "relay", "floor"


@dataclass(frozen=True)
class Row:
    load: str
    title: str
    relay: float | None
    floor: float | None
    goal: Goal | None
    is_noisy: bool

    @property
    def ratio(self) -> float | None:
        return (
            self.relay / self.floor if self.relay is not None and self.floor else None
        )

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        met = self.goal.is_met(self.relay, self.ratio)
        return {None: "?", True: "yes", False: "**no**"}[met]

    def cells(self) -> list[str]:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}×"
        load = f"{self.load} ~" if self.is_noisy else self.load
        cells = [load, self.title, shown(self.relay), shown(self.floor), ratio]
        return [*cells, self.goal.text, self.verdict] if self.goal else cells


class Runs:
    """What the generator reported, run by run."""

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self.runs = runs

    def median(self, load: str, server: str, path: str) -> float | None:
        found = [_at(run["report"], path) for run in self.of(load, server)]
        values = [value for value in found if value is not None]
        return median(values) if values else None

    def of(self, load: str, server: str) -> list[dict[str, Any]]:
        return [
            run for run in self.runs if (run["load"], run["server"]) == (load, server)
        ]

    def is_noisy(self, *loads: str) -> bool:
        """In a run of these, others used the machine too."""
        reports = [
            run["report"]
            for run in self.runs
            if run["load"] in loads and run["server"] in (RELAY, FLOOR)
        ]
        return any(
            (report["other_cores"] or 0) + (report["steal_cores"] or 0) > QUIET_CORES
            for report in reports
        )

    def servers(self) -> list[str]:
        return list(dict.fromkeys(run["server"] for run in self.runs))

    def wrong(self) -> list[str]:
        """What the relay or the floor did that nothing may do."""
        found = []
        for run in self.runs:
            if run["server"] in (RELAY, FLOOR):
                counts = {
                    what: count
                    for what, count in run["report"]["wrong"].items()
                    if count
                }
                if counts:
                    ends = run["report"]["ends"] or ""
                    found.append(
                        f"{run['load']}, {run['server']}, round {run['round']}: {counts} {ends}"
                    )
        return found

    def rows(self) -> list[Row]:
        """Those of which something was measured, the ones with a goal first."""
        rows = [self._measured(figure) for figure in FIGURES]
        rows += [self._redis_above(), *self._growth()]
        rows = [row for row in rows if row.relay is not None or row.floor is not None]
        return sorted(rows, key=lambda row: row.goal is None)

    def _measured(self, figure: Figure) -> Row:
        def of(server: str) -> float | None:
            return self.median(figure.load, server, figure.path)

        return self._row(figure.load, figure.title, figure.goal, of)

    def _row(
        self,
        load: str,
        title: str,
        goal: Goal | None,
        of: Callable[[str], float | None],
        *more: str,
    ) -> Row:
        return Row(load, title, of(RELAY), of(FLOOR), goal, self.is_noisy(load, *more))

    def _redis_above(self) -> Row:
        def above(server: str) -> float | None:
            watched = self.median("B50k", server, "redis_cores")
            return _minus(watched, self.median("B50k-unwatched", server, "redis_cores"))

        title = "Redis, cores above the same entries unwatched"
        return self._row("B50k", title, below(0.06, "core"), above, "B50k-unwatched")

    def _growth(self) -> list[Row]:
        few, _, many = (f"clients-{clients}" for clients, _ in GROWING_CLIENTS)
        one, all_streams = (
            f"streams-{streams}"
            for streams in (GROWING_STREAMS[0], GROWING_STREAMS[-1])
        )
        rss = "rss.connected"
        middle = f"clients-{GROWING_CLIENTS[1][0]}"
        further = GROWING_CLIENTS[-1][0] - GROWING_CLIENTS[1][0]

        def more_clients(server: str) -> float | None:
            return _over(self.median(many, server, CPU), self.median(few, server, CPU))

        def more_streams(server: str) -> float | None:
            return _over(
                self.median(all_streams, server, CPU), self.median(one, server, CPU)
            )

        def client_bytes(server: str) -> float | None:
            return _over(
                _minus(
                    self.median(many, server, rss), self.median(middle, server, rss)
                ),
                further,
            )

        def stream_bytes(server: str) -> float | None:
            return _over(
                _minus(
                    self.median(all_streams, server, rss),
                    self.median(many, server, rss),
                ),
                GROWING_STREAMS[-1],
            )

        return [
            self._row(
                "growth",
                "CPU per delivery, 10,000 clients over 100",
                FLAT,
                more_clients,
                few,
                many,
            ),
            self._row(
                "growth",
                "CPU per delivery, 10,000 streams over 1",
                FLAT_ITSELF,
                more_streams,
                one,
                all_streams,
            ),
            self._row(
                "growth", "RSS of one more client, bytes", None, client_bytes, many
            ),
            self._row(
                "growth",
                "RSS of one more stream, bytes",
                None,
                stream_bytes,
                all_streams,
            ),
        ]

    def growth_cells(self) -> list[list[str]]:
        """CPU per delivery, in microseconds, as it grows."""
        names = [
            load.name
            for load in LOADS
            if load.name.startswith(("clients-", "streams-"))
        ]
        cells = []
        for name in names:
            relay, floor = self.median(name, RELAY, CPU), self.median(name, FLOOR, CPU)
            if relay is not None:
                title = next(load.title for load in LOADS if load.name == name)
                cells.append([title, shown(relay), shown(floor)])
        return cells

    def baseline_cells(self) -> list[list[str]]:
        """Every server that ran what baselines run, as ratios to the floor."""
        loads = [load.name for load in LOADS if load.baseline is not None]
        return [
            [server, *(self._compared(load, server) for load in loads)]
            for server in self.servers()
            if server != FLOOR
        ]

    def _compared(self, load: str, server: str) -> str:
        """One cell: the figure that the load is about."""
        if not self.of(load, server):
            return "–"
        if load == "C":
            rss = self.median(load, server, "rss.per_client_connected")
            rate = _over(
                self.median(load, server, "connect.per_s"),
                self.median(load, FLOOR, "connect.per_s"),
            )
            return f"{shown(rss)} B, {times(rate)}"
        if load == "Amax":
            rate = _over(
                self.median(load, server, RATE), self.median(load, FLOOR, RATE)
            )
            return times(rate)
        cpu = times(
            _over(self.median(load, server, CPU), self.median(load, FLOOR, CPU))
        )
        if load == "D":
            return cpu + self._incomplete(load, server)
        return f"{cpu}, {shown(self.median(load, server, P99))} ms" + self._incomplete(
            load, server
        )

    def _incomplete(self, load: str, server: str) -> str:
        """It can't keep up, or loses entries."""
        counts = [run["report"]["wrong"] for run in self.of(load, server)]
        return " †" if any(any(count.values()) for count in counts) else ""


def _at(report: dict[str, Any], path: str) -> float | None:
    value: Any = report
    for name in path.split("."):
        value = value.get(name) if value else None
    return value


def _over(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def _minus(value: float | None, other: float | None) -> float | None:
    return value - other if value is not None and other is not None else None


def times(ratio: float | None) -> str:
    if ratio is None:
        return "?"
    if 0 < ratio < 0.1:
        return f"1/{1 / ratio:.0f}"
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def shown(value: float | None) -> str:
    """With three digits that mean something."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plain(head: list[str], rows: list[list[str]]) -> str:
    """For the terminal."""
    rows = [head, *rows]
    rows = [row + [""] * (len(head) - len(row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    )
