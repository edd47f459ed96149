"""What the tests of the chart share: the tools, and rendering."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import tools  # noqa: E402

CHART = ROOT / "helm" / "relay"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
assert len(VALUES) > 10, VALUES
SIDECAR = CHART / "ci" / "sidecar-values.yaml"
DEPLOYMENT = CHART / "ci" / "deployment-values.yaml"
NAMESPACE = "jobs"

Object = dict[str, Any]


class Helm:
    def __init__(self, program: Path) -> None:
        self.program = program

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | environment,
        )

    def template(
        self, *arguments: str, chart: Path = CHART, release: str = "r"
    ) -> str:
        done = self.attempt(*arguments, chart=chart, release=release)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def attempt(
        self, *arguments: str, chart: Path = CHART, release: str = "r"
    ) -> subprocess.CompletedProcess[str]:
        place = ["template", release, str(chart), "--namespace", NAMESPACE]
        # Without a cluster helm takes its own version of Kubernetes; ours is said.
        version = [] if "--kube-version" in arguments else ["--kube-version", "1.33.0"]
        return self.run(*place, *version, *arguments)

    def objects(
        self, *arguments: str, chart: Path = CHART, release: str = "r"
    ) -> list[Object]:
        return objects(self.template(*arguments, chart=chart, release=release))


def objects(text: str) -> list[Object]:
    found = [document for document in yaml.safe_load_all(text) if document]
    assert found
    return found


def one(among: list[Object], kind: str, name: str | None = None) -> Object:
    (found,) = (
        o
        for o in among
        if o["kind"] == kind and (name is None or o["metadata"]["name"] == name)
    )
    return found


def relay_toml(among: list[Object]) -> str:
    (text,) = (
        o["data"]["relay.toml"]
        for o in among
        if o["kind"] == "ConfigMap" and "relay.toml" in o["data"]
    )
    return text


@pytest.fixture(scope="session", params=["3", "4"], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Helm:
    return Helm(tools.helm(request.param))


@pytest.fixture(scope="session")
def helm4() -> Helm:
    return Helm(tools.helm("4"))


@pytest.fixture(scope="session")
def kubectl() -> Path:
    return tools.kubectl()


@pytest.fixture(scope="session")
def relay() -> Path:
    """RELAY_BIN, as `scripts/chart-test` sets it."""
    return Path(os.environ["RELAY_BIN"])
