"""What is written down twice is the same, and what other tools read is fit for them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from conftest import CHART, ROOT  # noqa: I001 - it puts scripts/ on the path

import environment
import tools

VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
ANCHOR = re.compile(r"\]\(([\w./-]*)(?:#([\w-]+))?\)")


def test_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_the_readme_follows_the_values() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "chart-readme"), "--check"])
    assert done.returncode == 0, "run scripts/chart-readme"


def leaves(values: dict, path: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and value:
            found += leaves(value, f"{name}.")
        else:
            found.append(name)
    return found


def test_every_value_is_described() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    described = re.findall(r"^\| `([\w.]+)` \|", (CHART / "README.md").read_text(), re.M)
    missing = [
        leaf
        for leaf in leaves(values)
        if not any(leaf == name or leaf.startswith(f"{name}.") for name in described)
    ]
    assert not missing, missing


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("paper", ["docs/KUBERNETES.md", "docs/OPERATIONS.md", "helm/relay/README.md"])
def test_links_lead_somewhere(paper: str) -> None:
    path = ROOT / paper
    links = ANCHOR.findall(path.read_text())
    assert links
    for target, anchor in links:
        there = path.parent / target if target else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), f"{target}#{anchor}"


def test_hadolint() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program
    for file in ("Dockerfile", "examples/legacy-api/Dockerfile"):
        done = subprocess.run([program, "--failure-threshold", "info", str(ROOT / file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_base_images_are_arguments() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", text, re.M) == ["${BUILD_IMAGE}", "${RUNTIME_IMAGE}"]
    assert not re.search(r"^ARG \w+=\S+:latest$", text, re.M)


def test_the_build_context_has_what_the_dockerfile_copies() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M)
        for source in line.split()[:-1]
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}


def test_shellcheck() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck on PATH")
    scripts = [p for p in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"] if p.is_file()]
    shell = [p for p in scripts if p.read_bytes().startswith(b"#!/usr/bin/env bash")]
    assert len(shell) > 2
    done = subprocess.run([program, *map(str, shell)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose(relay: Path) -> None:
    try:
        schema = tools.compose_schema()
    except environment.NotHere as reason:
        pytest.skip(str(reason))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(compose)
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        if isinstance(service.get("build"), str):
            assert (ROOT / service["build"] / "Dockerfile").exists()
    started = services["relay"]
    source = started["volumes"][0].split(":")[0]
    variables = {k: v for k, v in started["environment"].items() if not v.startswith("${")}
    checked = subprocess.run(
        [str(relay), "check", "--config", str(ROOT / source)],
        capture_output=True, text=True, env={"JWT_SECRET": "x" * 32, **variables},
    )
    assert checked.returncode == 0, checked.stderr


def test_the_workflow_does_what_ci_does() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    runs = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    for command in ("make lint", "make test", "make torture", "make chart-test", "make pod-test", "cargo deny check"):
        assert any(command in run for run in runs), command
    local = (ROOT / ".ci" / "run").read_text()
    for command in ("make lint", "scripts/test torture", "make chart-test", "make pod-test"):
        assert command in local, command
    version = re.search(r"cargo-deny --version (\S+)", local)
    assert version and any(version[1] in run for run in runs)
