"""Installed, upgraded, applied and uninstalled by the real helm and kubectl.

The API server is a stand-in that has no opinions: what is proven here is that the commands
work as they are written, not that Kubernetes takes the objects.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_server import ApiServer
from conftest import CHART, NAMESPACE, SIDECAR, Helm

API = {
    "metadata": {"name": "jobs-api"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "jobs-api"}},
        "template": {
            "metadata": {"labels": {"app": "jobs-api"}},
            "spec": {"containers": [{"name": "api", "image": "jobs-api:1"}]},
        },
    },
}


class Cluster:
    def __init__(self, server: ApiServer, helm: Helm, kubectl: Path, folder: Path) -> None:
        self.server = server
        self._helm = helm
        config = folder / "kubeconfig"
        config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server.url}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        }))
        programs = folder / "bin"
        programs.mkdir()
        (programs / "kubectl").symlink_to(kubectl)
        (programs / "helm").symlink_to(helm.program)
        self.environment = {
            "KUBECONFIG": str(config),
            "HOME": str(folder),
            "PATH": f"{programs}:{os.environ['PATH']}",
        }

    def helm(self, *arguments: str) -> str:
        done = self._helm.run(*arguments, "--namespace", NAMESPACE, **self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shell(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            capture_output=True, text=True, timeout=60, env=os.environ | self.environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def cluster(helm: Helm, kubectl: Path, tmp_path: Path) -> Iterator[Cluster]:
    with ApiServer() as server:
        yield Cluster(server, helm, kubectl, tmp_path)


def commands(notes: str) -> list[str]:
    found = re.findall(r"^  ((?:kubectl|helm) .+)$", notes, re.M)
    assert found, notes
    return found


def test_the_command_of_the_notes_adds_the_sidecar(cluster: Cluster) -> None:
    with cluster.server.lock:
        cluster.server.put("Deployment", "apps/v1", NAMESPACE, json.loads(json.dumps(API)))
    notes = cluster.helm("install", "r", str(CHART), "--values", str(SIDECAR), "--wait")
    (command,) = commands(notes)
    cluster.shell(command)
    pods = cluster.server.named("Deployment")["jobs-api"]["spec"]["template"]
    assert [c["name"] for c in pods["spec"]["containers"]] == ["api"]
    assert [c["name"] for c in pods["spec"]["initContainers"]] == ["relay"]
    assert "relay-sidecar" in cluster.server.managers

    # An upgrade with another config, and the same command again: new pods.
    before = pods["metadata"]["annotations"]["checksum/relay-config"]
    notes = cluster.helm(
        "upgrade", "r", str(CHART), "--values", str(SIDECAR), "--wait",
        "--set", "config.redis.pool_size=9",
    )
    cluster.shell(commands(notes)[0])
    pods = cluster.server.named("Deployment")["jobs-api"]["spec"]["template"]
    assert pods["metadata"]["annotations"]["checksum/relay-config"] != before

    cluster.helm("uninstall", "r", "--wait")
    assert set(cluster.server.named("Deployment")) == {"jobs-api"}
    assert not cluster.server.named("ConfigMap")


# Those with the most kinds of objects.
@pytest.mark.parametrize("name", ["autoscaling", "monitoring-deployment"])
def test_pods_of_its_own(cluster: Cluster, name: str) -> None:
    values = CHART / "ci" / f"{name}-values.yaml"
    notes = cluster.helm("install", "r", str(CHART), "--values", str(values), "--wait", "--timeout", "30s")
    assert set(cluster.server.named("Deployment")) == {"r-relay"}
    for command in commands(notes):
        cluster.shell(command)
    cluster.helm("upgrade", "r", str(CHART), "--values", str(values), "--wait", "--timeout", "30s")
    assert "deployed" in cluster.helm("history", "r")
    cluster.helm("uninstall", "r", "--wait")
    for kind in ("Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "Secret"):
        assert not cluster.server.named(kind), kind


def test_it_packages(helm: Helm, tmp_path: Path) -> None:
    done = helm.run("package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("relay-*.tgz")
    done = helm.run("template", "r", str(package), "--values", str(SIDECAR), "--kube-version", "1.33.0")
    assert done.returncode == 0, done.stderr
