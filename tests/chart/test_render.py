"""Every file of values renders to what Kubernetes takes, with Helm 3 and 4."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import environment
import jsonschema
import kubernetes_validate
import pytest
import tools
import yaml

from conftest import (  # noqa: I001 - it puts scripts/ on the path
    CHART,
    DEPLOYMENT,
    NAMESPACE,
    ROOT,
    SIDECAR,
    VALUES,
    Helm,
    Object,
    one,
    objects,
    relay_toml,
)

TLS = CHART / "ci" / "tls-values.yaml"
OLDEST = (1, 29)
OF_CRDS = {"monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1"}


def kubernetes_versions() -> list[str]:
    """From the oldest that we promise to the newest that the validator knows."""
    known = {
        tuple(int(part) for part in path.name[1:].split(".")[:2])
        for path in Path(kubernetes_validate.__file__).parent.glob("kubernetes-json-schema/v*")
    }
    versions = sorted(version for version in known if version >= OLDEST)
    assert versions[0] == OLDEST and len(versions) > 5, versions
    return [".".join(str(part) for part in version) for version in versions]


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_lint(helm: Helm, values: Path) -> None:
    done = helm.run("lint", "--strict", str(CHART), "--values", str(values))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_both_helms_render_the_same(values: Path) -> None:
    rendered = [
        Helm(tools.helm(major)).objects("--values", str(values)) for major in ("3", "4")
    ]
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize("version", kubernetes_versions())
def test_kubernetes_takes_it(helm4: Helm, version: str) -> None:
    checked = 0
    for values in VALUES:
        for found in helm4.objects("--values", str(values), "--kube-version", f"{version}.0"):
            if found["apiVersion"] in OF_CRDS:
                continue
            kubernetes_validate.validate(found, version, strict=True)
            checked += 1
            for manifest in sidecars(found):
                kubernetes_validate.validate(merged(manifest), version, strict=True)
    assert checked > 40


def sidecars(found: Object) -> list[Object]:
    text = (found.get("data") or {}).get("sidecar.yaml")
    return objects(text) if text else []


def merged(manifest: Object) -> Object:
    """The manifest as it is once it is applied to an API's Deployment or StatefulSet."""
    spec = manifest["spec"]["template"]["spec"]
    api = {"name": "api", "image": "api:1"}
    whole = json.loads(json.dumps(manifest))
    whole["spec"]["selector"] = {"matchLabels": {"app": "jobs-api"}}
    whole["spec"]["template"]["metadata"]["labels"] = {"app": "jobs-api"}
    whole["spec"]["template"]["spec"]["containers"] = [api, *spec.get("containers", [])]
    if manifest["kind"] == "StatefulSet":
        whole["spec"]["serviceName"] = "jobs-api"
    return whole


def test_custom_resources_fit_their_schemas(helm4: Helm) -> None:
    found = [
        o
        for values in VALUES
        for o in helm4.objects("--values", str(values))
        if o["apiVersion"] in OF_CRDS
    ]
    assert {o["kind"] for o in found} == {
        "PodMonitor", "ServiceMonitor", "PrometheusRule", "HTTPRoute",
    }
    try:
        validator = tools.crd_validator()
    except environment.NotHere as reason:
        pytest.skip(str(reason))
    done = subprocess.run(
        validator, input=json.dumps(found), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_every_object_has_namespace_and_labels(helm4: Helm, values: Path) -> None:
    for found in helm4.objects("--values", str(values)):
        name = f"{found['kind']} {found['metadata']['name']}"
        assert found["metadata"]["namespace"] == NAMESPACE, name
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "r", name
        assert labels["app.kubernetes.io/managed-by"] == "Helm", name


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_services_select_relays_and_nothing_else(helm4: Helm, values: Path) -> None:
    found = helm4.objects("--values", str(values))
    services = [o for o in found if o["kind"] == "Service"]
    assert services
    for service in services:
        selector = service["spec"]["selector"].items()
        assert not selector <= one(found, "Pod")["metadata"]["labels"].items()
        for deployment in (o for o in found if o["kind"] == "Deployment"):
            assert selector <= deployment["spec"]["template"]["metadata"]["labels"].items()


def container(among: list[Object]) -> Object:
    for found in among:
        if found["kind"] == "Deployment":
            return found["spec"]["template"]["spec"]["containers"][0]
        for manifest in sidecars(found):
            spec = manifest["spec"]["template"]["spec"]
            return (spec.get("initContainers") or spec["containers"])[0]
    raise AssertionError("no container")


def test_one_container_for_both_modes(helm: Helm) -> None:
    sidecar = container(helm.objects("--values", str(SIDECAR)))
    own = container(helm.objects("--values", str(DEPLOYMENT)))
    # These two are all that differs.
    assert sidecar.pop("restartPolicy") == "Always"
    readiness = [c["readinessProbe"]["httpGet"].pop("path") for c in (sidecar, own)]
    assert readiness == ["/readyz?scope=self", "/readyz"]
    assert sidecar == own


def test_the_container_is_locked_down(helm: Helm) -> None:
    security = container(helm.objects("--values", str(SIDECAR)))["securityContext"]
    assert security == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_a_sidecar_brings_nothing_that_acts_on_the_apis_pods(helm: Helm) -> None:
    kinds = {o["kind"] for o in helm.objects("--values", str(SIDECAR))}
    assert kinds == {"ConfigMap", "Service", "Pod"}


def test_tls_is_for_clients_alone(helm: Helm) -> None:
    rendered = helm.objects("--values", str(TLS))
    server = tomllib.loads(relay_toml(rendered))["server"]
    own = container(rendered)
    # A whole folder, which the kubelet replaces when the certificate is renewed.
    (mount,) = (m for m in own["volumeMounts"] if m["name"] == "relay-secret-tls")
    assert mount == {"name": "relay-secret-tls", "mountPath": "/run/secrets/relay/tls", "readOnly": True}
    assert {str(Path(path).parent) for path in server["tls"].values()} == {mount["mountPath"]}
    for pod in (one(rendered, "Deployment")["spec"]["template"], one(rendered, "Pod")):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert volumes["relay-secret-tls"]["secret"] == {"secretName": "relay-tls", "defaultMode": 0o444}
    # Probes, drain and metrics ask the admin port, which stays plain.
    ports = {port["name"]: port["containerPort"] for port in own["ports"]}
    assert server["admin_listen"].endswith(f":{ports['relay-admin']}")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = own[probe]["httpGet"]
        assert asked["port"] == "relay-admin" and "scheme" not in asked
    plain = container(helm.objects("--values", str(DEPLOYMENT)))
    for key in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports"):
        assert own[key] == plain[key]


def test_the_service_says_what_is_spoken(helm: Helm) -> None:
    def said(values: Path, *arguments: str) -> str | None:
        (port,) = one(helm.objects("--values", str(values), *arguments), "Service")["spec"]["ports"]
        return port.get("appProtocol")

    assert said(DEPLOYMENT) == "kubernetes.io/ws"
    assert said(TLS) == "kubernetes.io/wss"
    assert said(TLS, "--set", "service.appProtocol=https") == "https"
    assert said(TLS, "--set", "service.appProtocol=") is None


def test_a_new_config_means_new_pods(helm: Helm) -> None:
    def checksum(*arguments: str) -> str:
        found = helm.objects("--values", str(DEPLOYMENT), *arguments)
        pods = one(found, "Deployment")["spec"]["template"]
        return pods["metadata"]["annotations"]["checksum/relay-config"]

    assert checksum() == checksum("--set", "deployment.replicas=5")
    assert checksum() != checksum("--set", "config.redis.pool_size=9")


def test_the_autoscaler_owns_the_replicas(helm: Helm) -> None:
    values = CHART / "ci" / "autoscaling-values.yaml"
    assert "replicas" not in one(helm.objects("--values", str(values)), "Deployment")["spec"]


def test_names_fit_whatever_the_release_is_called(helm: Helm) -> None:
    values = CHART / "ci" / "monitoring-deployment-values.yaml"
    for found in helm.objects("--values", str(values), release="r" * 53):
        assert len(found["metadata"]["name"]) <= 63


def test_the_papers_say_which_versions_of_kubernetes() -> None:
    versions = kubernetes_versions()
    said = f"Kubernetes {versions[0]} to {versions[-1]}"
    for paper in ("README.md", "docs/KUBERNETES.md"):
        assert said in (ROOT / paper).read_text(), f"{paper}: {said}"


def test_the_schema_is_one() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((CHART / "values.yaml").read_text()), schema)
