"""A real Prometheus on loopback, told what the operator would tell it in a cluster."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import tools
import yaml

from conftest import Object
from running import HOST, answers, free_port, get, process, wait_for

# So that a test does not wait long.
EVERY = "1s"


class Prometheus:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, **query: str) -> Object:
        status, text = get(self.port, f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
        answer = json.loads(text)
        assert (status, answer["status"]) == (200, "success"), (path, query, answer)
        # Say, that a part of the query made no sense.
        assert not answer.get("warnings"), answer
        return answer["data"]

    def query(self, expression: str) -> list[Object]:
        return self.ask("query", query=expression)["result"]

    def firing(self, alert: str) -> list[dict[str, str]]:
        """The labels of the alerts of this name that fire."""
        return [
            found["labels"]
            for found in self.ask("alerts")["alerts"]
            if found["labels"]["alertname"] == alert and found["state"] == "firing"
        ]


@contextlib.contextmanager
def serving(folder: Path, jobs: list[Object], rules: dict[str, Object]) -> Iterator[Prometheus]:
    """With these scrape jobs, and rule files by name."""
    for name, spec in rules.items():
        (folder / name).write_text(yaml.safe_dump(spec))
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump({
        "global": {"scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY},
        "rule_files": sorted(rules),
        "scrape_configs": jobs,
    }))
    port = free_port()
    command = [
        str(tools.prometheus()), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    log = folder / "prometheus.log"
    with process(command, log) as running:

        def ready() -> bool:
            assert running.poll() is None, log.read_text()
            return answers(port, "/-/ready")

        wait_for("prometheus", ready)
        yield Prometheus(port)


# --- What the operator makes of a monitor ---


def job_of_pods(monitor: Object, pods: list[Object]) -> Object:
    """The scrape job of a PodMonitor, with what the discovery of pods finds.

    Discovery itself is left to the reader: Debian's build has none for Kubernetes.
    """
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    name = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    return {
        "job_name": f"podMonitor/{name}/0",
        "metrics_path": endpoint["path"],
        "relabel_configs": [
            drop("__meta_kubernetes_pod_phase", "(Failed|Succeeded)"),
            *selected("pod", monitor),
            keep(["__meta_kubernetes_pod_container_port_name"], endpoint["port"]),
            copied("__meta_kubernetes_namespace", "namespace"),
            copied("__meta_kubernetes_pod_container_name", "container"),
            copied("__meta_kubernetes_pod_name", "pod"),
            {"target_label": "job", "replacement": name},
            {"target_label": "endpoint", "replacement": endpoint["port"]},
        ],
        "static_configs": [target for pod in pods for target in ports_of(pod)],
    }


def ports_of(pod: Object) -> Iterator[Object]:
    """A target for each port of each container; a sidecar is among the init containers."""
    spec = pod["spec"]
    for kind in ("containers", "initContainers"):
        for container in spec.get(kind, []):
            for port in container.get("ports", []):
                yield {
                    "targets": [f"{pod['status']['podIP']}:{port['containerPort']}"],
                    "labels": {
                        **meta("pod", pod["metadata"]),
                        "__meta_kubernetes_pod_phase": pod["status"]["phase"],
                        "__meta_kubernetes_pod_container_init": str(kind == "initContainers").lower(),
                        "__meta_kubernetes_pod_container_name": container["name"],
                        "__meta_kubernetes_pod_container_port_name": port["name"],
                    },
                }


def job_of_services(monitor: Object, services: list[Object], pod: Object) -> Object:
    """The scrape job of a ServiceMonitor, with the endpoints that `pod` gives these Services."""
    (endpoint,) = monitor["spec"]["endpoints"]
    name = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    return {
        "job_name": f"serviceMonitor/{name}/0",
        "metrics_path": endpoint["path"],
        "relabel_configs": [
            *selected("service", monitor),
            keep(["__meta_kubernetes_endpoint_port_name"], endpoint["port"]),
            copied("__meta_kubernetes_namespace", "namespace"),
            copied("__meta_kubernetes_service_name", "service"),
            copied("__meta_kubernetes_pod_name", "pod"),
            copied("__meta_kubernetes_service_name", "job"),
            {"target_label": "endpoint", "replacement": endpoint["port"]},
        ],
        "static_configs": [
            {
                "targets": [f"{pod['status']['podIP']}:{port['targetPort']}"],
                "labels": {
                    **meta("service", service["metadata"]),
                    "__meta_kubernetes_endpoint_port_name": port["name"],
                    "__meta_kubernetes_pod_name": pod["metadata"]["name"],
                },
            }
            for service in services
            if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
            for port in service["spec"]["ports"]
        ],
    }


def meta(kind: str, metadata: Object) -> dict[str, str]:
    labels = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        f"__meta_kubernetes_{kind}_name": metadata["name"],
    }
    for key, value in metadata["labels"].items():
        labels[f"__meta_kubernetes_{kind}_label_{plain(key)}"] = value
        labels[f"__meta_kubernetes_{kind}_labelpresent_{plain(key)}"] = "true"
    return labels


def selected(kind: str, monitor: Object) -> list[Object]:
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted, monitor
    found = f"__meta_kubernetes_{kind}_label"
    return [
        keep([f"{found}_{plain(key)}", f"{found}present_{plain(key)}"], f"({re.escape(value)});true")
        for key, value in wanted.items()
    ]


def plain(label: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)


def keep(labels: list[str], pattern: str) -> Object:
    return {"action": "keep", "source_labels": labels, "regex": pattern}


def drop(label: str, pattern: str) -> Object:
    return {"action": "drop", "source_labels": [label], "regex": pattern}


def copied(label: str, to: str) -> Object:
    return {"source_labels": [label], "target_label": to}
