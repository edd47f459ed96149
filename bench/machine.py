"""The machine: which CPUs are used for what, how busy others are, what it is called."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from environment import ROOT

# Cores that others may use before figures count as disturbed.
QUIET_CORES = 0.15


@dataclass(frozen=True)
class Cpus:
    """The CPUs of the server under test, and those of everything else."""

    server: frozenset[int]
    others: frozenset[int]

    @classmethod
    def pinned(cls) -> Cpus:
        """One each, where there are two."""
        here = sorted(os.sched_getaffinity(0))
        if len(here) < 2:
            return cls.shared()
        return cls(frozenset(here[:1]), frozenset(here[1:2]))

    @classmethod
    def shared(cls) -> Cpus:
        """The first two, for all alike."""
        here = frozenset(sorted(os.sched_getaffinity(0))[:2])
        return cls(here, here)

    def __str__(self) -> str:
        if self.server == self.others:
            return f"nothing is pinned; all share CPU {_names(self.server)}"
        return f"the server is pinned to CPU {_names(self.server)}, Redis, publisher and clients to CPU {_names(self.others)}"


def _names(cpus: frozenset[int]) -> str:
    return " and ".join(str(cpu) for cpu in sorted(cpus))


def child_on(cpus: frozenset[int]) -> Callable[[], None]:
    """For `preexec_fn`: these CPUs, and as many open files as are allowed."""

    def prepare() -> None:
        os.sched_setaffinity(0, cpus)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    return prepare


def await_quiet(patience_s: float) -> None:
    """Until others leave the machine alone, or patience ends; runs tell how noisy they were."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        before, since = _busy_s(), time.monotonic()
        time.sleep(0.5)
        if (_busy_s() - before) / (time.monotonic() - since) < QUIET_CORES:
            return


def _busy_s() -> float:
    ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks[:8]
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK")


def description() -> dict[str, str]:
    return {
        "cpu": f"{os.cpu_count()} × {_cpu_model()}",
        "kernel": platform.release(),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "rustc": _output("rustc", "--version"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _output(*command: str) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()
