"""The loads, and what they have to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """One way to use a server. The arguments are those of the load generator."""

    name: str
    title: str
    arguments: Mapping[str, float]
    has_floor: bool = True
    hold: str | None = None
    """Of the relay; its default otherwise."""
    tls: bool = False
    """At the relay; the floor has none."""
    is_pinned: bool = True
    baseline: Mapping[str, float] | None = None
    """Baselines run it too, with these arguments changed."""

    @property
    def streams_per_client(self) -> int:
        return int(self.arguments.get("streams-per-group", 1))


@dataclass(frozen=True)
class Goal:
    """A bound of a figure of the relay, or of its ratio to the floor's."""

    text: str
    least: float = float("-inf")
    most: float = float("inf")
    is_ratio: bool = True

    def is_met(self, value: float | None, ratio: float | None) -> bool | None:
        judged = ratio if self.is_ratio else value
        return None if judged is None else self.least <= judged <= self.most


@dataclass(frozen=True)
class Figure:
    """A row of the table: a figure of a load, by its path in the generator's report."""

    load: str
    title: str
    path: str
    goal: Goal | None = None


def ratio_at_most(most: float) -> Goal:
    return Goal(f"≤ {most:g}×", most=most)


def ratio_at_least(least: float) -> Goal:
    return Goal(f"≥ {least:g}×", least=least)


def below(most: float, unit: str) -> Goal:
    return Goal(f"< {most:g} {unit}", most=most, is_ratio=False)


FLAT = Goal("flat, ±15 %", least=0.85, most=1.15)
FLAT_ITSELF = Goal("flat, ±15 %", least=0.85, most=1.15, is_ratio=False)

CPU = "server_cpu_s_per_million"
RATE = "deliveries_per_s"
P50 = "latency_ms.p50"
P99 = "latency_ms.p99"

SATURATED = {"clients": 1000, "window": 32}
GROWING_CLIENTS = [(100, 200), (1000, 20), (10_000, 2)]
GROWING_STREAMS = [1, 100, 1000, 10_000]
WATCHED = {"clients": 3125, "groups": 3125, "streams-per-group": 16, "rate": 2000}


LOADS = [
    Load(
        "Amax",
        "1 stream, 1,000 clients, as fast as they are served",
        SATURATED,
        baseline={},
    ),
    Load(
        "A20",
        "1 stream, 1,000 clients, 20 entries/s",
        {"clients": 1000, "rate": 20},
        baseline={},
    ),
    Load(
        "A100",
        "1 stream, 1,000 clients, 100 entries/s",
        {"clients": 1000, "rate": 100},
        baseline={},
    ),
    Load(
        "middle",
        "1 stream, 50 clients, 2,000 entries/s",
        {"clients": 50, "rate": 2000},
        baseline={},
    ),
    Load(
        "middle0",
        'the same with `hold = "0ms"`',
        {"clients": 50, "rate": 2000},
        hold="0ms",
    ),
    Load(
        "B",
        "2,000 streams with 1 client each, 5,000 entries/s in all",
        {"clients": 2000, "groups": 2000, "rate": 5000},
        baseline={},
    ),
    Load(
        "B50k",
        "50,000 streams, 16 for each of 3,125 clients, 2,000 entries/s in all",
        WATCHED,
        has_floor=False,
    ),
    Load(
        "B50k-unwatched",
        "the same entries, and no client",
        {**WATCHED, "clients": 0},
        has_floor=False,
    ),
    Load(
        "C",
        "10,000 clients, no entries",
        {"clients": 10_000, "connecting": 256, "warmup": 0, "duration": 3},
        baseline={"clients": 1000},
    ),
    Load(
        "D",
        "100 clients join at once, and get a history of 1,000 entries",
        {"clients": 100, "connecting": 100, "history": 1000},
        baseline={},
    ),
    *[
        Load(
            f"clients-{clients}",
            f"1 stream, {clients:,} clients, {rate} entries/s",
            {"clients": clients, "rate": rate, "connecting": 256},
        )
        for clients, rate in GROWING_CLIENTS
    ],
    *[
        Load(
            f"streams-{streams}",
            f'{streams:,} × 1 stream with 1 client, 2,000 entries/s in all, `hold = "0ms"`',
            {"clients": streams, "groups": streams, "rate": 2000, "connecting": 256},
            has_floor=False,
            hold="0ms",
        )
        for streams in GROWING_STREAMS
    ],
    Load("2KiB", "Amax with payloads of 2 KiB", {**SATURATED, "payload": 2048}),
    Load(
        "64KiB",
        "1 stream, 100 clients, payloads of 64 KiB, as fast as they are served",
        {"clients": 100, "window": 8, "payload": 65_536},
    ),
    Load(
        "three",
        "Amax with 3 streams for each client, whose cursors differ",
        {**SATURATED, "streams-per-group": 3},
    ),
    Load(
        "TLS",
        "A20 with TLS at the relay's listener",
        {"clients": 1000, "rate": 20},
        tls=True,
    ),
    Load("two-cores", "Amax with nothing pinned", SATURATED, is_pinned=False),
]

FIGURES = [
    Figure("Amax", "deliveries/s", RATE, ratio_at_least(0.9)),
    Figure("Amax", "CPU s per million", CPU, ratio_at_most(1.1)),
    Figure("A20", "CPU s per million", CPU, ratio_at_most(1.2)),
    Figure("A20", "p99 ms", P99, ratio_at_most(1.3)),
    Figure("A100", "CPU s per million", CPU, ratio_at_most(1.2)),
    Figure("A100", "p99 ms", P99, ratio_at_most(1.3)),
    Figure("middle", "CPU s per million", CPU, ratio_at_most(0.5)),
    Figure("middle", "p50 ms", P50, below(3, "ms")),
    Figure("middle0", "CPU s per million", CPU, ratio_at_most(1.2)),
    Figure("middle0", "p50 ms", P50, below(1, "ms")),
    Figure("B", "CPU s per million", CPU, ratio_at_most(0.8)),
    Figure("B", "p99 ms", P99, below(3, "ms")),
    Figure("B", "Redis, cores", "redis_cores", below(0.35, "core")),
    Figure("B50k", "p99 ms", P99, below(3, "ms")),
    Figure("C", "RSS per client, bytes", "rss.per_client_connected", below(3000, "B")),
    Figure("C", "connects/s, HS256", "connect.per_s", ratio_at_least(0.5)),
    Figure(
        "Amax",
        "RSS per client after it, bytes",
        "rss.per_client_after",
        below(4000, "B"),
    ),
    Figure("D", "CPU s per million", CPU, ratio_at_most(0.5)),
    Figure("D", "until all have it, s", "seconds"),
    Figure("2KiB", "deliveries/s", RATE),
    Figure("2KiB", "CPU s per million", CPU),
    Figure("64KiB", "deliveries/s", RATE),
    Figure("64KiB", "CPU s per million", CPU),
    Figure("three", "deliveries/s", RATE),
    Figure("three", "CPU s per million", CPU),
    Figure("TLS", "CPU s per million", CPU),
    Figure("TLS", "p99 ms", P99),
    Figure("TLS", "RSS per client, bytes", "rss.per_client_connected"),
    Figure("TLS", "connects/s", "connect.per_s"),
    Figure("two-cores", "deliveries/s", RATE),
    Figure("two-cores", "CPU s per million", CPU),
]
