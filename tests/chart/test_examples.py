"""The other ways to add the container, rendered; each has the chart's own container."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from conftest import CHART, ROOT, SIDECAR, Helm, Object, objects, one

EXAMPLES = ROOT / "examples" / "kubernetes"
KUBERNETES = "1.33"
# A chart of somebody else that takes containers in its values.
FOREIGN = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: jobs-api
spec:
  selector: {matchLabels: {app: jobs-api}}
  template:
    metadata: {labels: {app: jobs-api}}
    spec:
      initContainers: {{- toYaml .Values.extraInitContainers | nindent 8 }}
      containers: [{name: api, image: "jobs-api:1"}]
      volumes: {{- toYaml .Values.extraVolumes | nindent 8 }}
"""


def pod(found: Object) -> Object:
    return found["spec"]["template"]["spec"]


@pytest.fixture
def charts_own(helm4: Helm) -> Object:
    found = helm4.objects("--values", str(SIDECAR), "--set", "fullnameOverride=relay")
    return pod(yaml.safe_load(one(found, "ConfigMap", "relay-sidecar")["data"]["sidecar.yaml"]))


def test_a_parent_chart(helm: Helm, charts_own: Object, tmp_path: Path) -> None:
    chart = tmp_path / "a" / "b" / "parent-chart"
    shutil.copytree(EXAMPLES / "parent-chart", chart)
    shutil.copytree(CHART, chart / "charts" / "relay")
    found = helm.objects(chart=chart)
    deployment = one(found, "Deployment")
    kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    assert pod(deployment)["initContainers"] == charts_own["initContainers"]
    assert "relay-sidecar" not in [o["metadata"]["name"] for o in found]
    assert "redis://r-redis:6379/0" in one(found, "ConfigMap")["data"]["relay.toml"]
    off = helm.objects("--set", "relay.enabled=false", chart=chart)
    assert [o["kind"] for o in off] == ["Deployment"] and "initContainers" not in pod(off[0])


def test_the_dependency_is_found(helm: Helm, tmp_path: Path) -> None:
    copy = tmp_path / "examples" / "kubernetes" / "parent-chart"
    shutil.copytree(EXAMPLES / "parent-chart", copy)
    shutil.copytree(CHART, tmp_path / "helm" / "relay")
    done = helm.run("dependency", "build", str(copy), HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [o for o in helm.objects(chart=copy) if o["kind"] == "Deployment"]


def test_another_charts_values(helm: Helm, charts_own: Object, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: foreign, version: 1.0.0}")
    (tmp_path / "templates" / "deployment.yaml").write_text(FOREIGN)
    values = EXAMPLES / "extra-init-containers" / "values.yaml"
    deployment = one(helm.objects("--values", str(values), chart=tmp_path), "Deployment")
    kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    assert pod(deployment)["initContainers"] == charts_own["initContainers"]
    assert pod(deployment)["volumes"] == charts_own["volumes"]


def test_kustomize(kubectl: Path, relay: Path, charts_own: Object, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(kubectl), "kustomize", str(EXAMPLES / "kustomize" / "overlay")],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    found = objects(done.stdout)
    for each in found:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
        assert each["metadata"]["namespace"] == "jobs"
    spec = pod(one(found, "Deployment"))
    assert spec["initContainers"] == charts_own["initContainers"]
    assert [c["name"] for c in spec["containers"]] == ["api"]
    config = one(found, "ConfigMap")
    assert spec["volumes"][0]["configMap"]["name"] == config["metadata"]["name"] != "relay"
    (tmp_path / "key").write_text("x" * 32)
    text = config["data"]["relay.toml"].replace("/run/secrets/relay/jwt/jwt-secret", str(tmp_path / "key"))
    (tmp_path / "relay.toml").write_text(text)
    checked = subprocess.run([str(relay), "check", "-c", str(tmp_path / "relay.toml")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_the_pods_manifests() -> None:
    folder = ROOT / "examples" / "legacy-api" / "kubernetes"
    found = [o for name in ("jobs-api", "redis") for o in objects((folder / f"{name}.yaml").read_text())]
    assert len(found) == 4
    for each in found:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
