"""A real Prometheus scrapes a running relay as the monitors of the chart say, answers what the
dashboard asks, and fires the chart's alerts."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import environment
import pytest
import tools
import yaml
from api_server import merge
from websockets.exceptions import InvalidHandshake

import prometheus
from conftest import CHART, NAMESPACE, Helm, Object, one, relay_toml
from monitoring import DEPLOYMENT, SIDECAR, alerts, dashboard_expressions, metrics_of, panel_queries
from running import (
    CONFIG,
    HOST,
    Api,
    answers,
    free_port,
    give_it_something_to_count,
    mounted,
    open_socket,
    process,
    redis_server,
    wait_for,
)

# What the relay of this test has not: clients that renew their tokens.
NOT_HERE = {"relay_token_renewals_total"}
TLS = CHART / "ci" / "tls-values.yaml"
# Instead of minutes: that the alerts wait is for promtool to say.
FOR = "2s"
API_PODS = {"metadata": {"labels": {"app": "jobs-api"}}, "spec": {"containers": [
    {"name": "api", "image": "jobs-api:1", "ports": [{"name": "http", "containerPort": 8000}]},
]}}


def test_prometheus_scrapes_it_answers_the_dashboard_and_fires(
    helm4: Helm, relay: Path, tmp_path: Path
) -> None:
    try:
        tools.prometheus()
    except environment.NotHere as reason:
        pytest.skip(f"relay was not scraped: {reason}")
    port, admin = free_port(), free_port()
    with redis_server(tmp_path) as streams, Api.serving() as api:
        values = tmp_path / "values.json"
        values.write_text(json.dumps(overlay(port, admin, api.port, streams)))
        sidecar = helm4.objects("--values", str(SIDECAR), "--values", str(values))
        own = helm4.objects("--values", str(DEPLOYMENT), "--values", str(values))
        config = tmp_path / "relay.toml"
        config.write_text(mounted(relay_toml(sidecar), tmp_path))
        pods = {
            "api-1": pod("api-1", merge(API_PODS, manifest(sidecar)["spec"]["template"])),
            "own-1": pod("own-1", one(own, "Deployment")["spec"]["template"]),
        }
        jobs = [
            prometheus.job_of_pods(one(sidecar, "PodMonitor"), list(pods.values())),
            prometheus.job_of_services(
                one(own, "ServiceMonitor"), [o for o in own if o["kind"] == "Service"], pods["own-1"]
            ),
        ]
        rules = {"sidecar.yaml": soon(sidecar), "own.yaml": soon(own)}
        with prometheus.serving(tmp_path, jobs, rules) as server:
            with process([str(relay), "run", "-c", str(config)], tmp_path / "relay.log"):
                wait_for("relay", lambda: answers(admin, "/readyz"))
                is_scraped(server, admin)
                give_it_something_to_count(streams, f"wss://{HOST}:{port}")
                speaks_only_tls(port)
                has_what_is_asked(server, helm4)
                rules_are_healthy(server, helm4)
                assert not server.firing("RelayRedisDown") and not server.firing("RelayDown")
                # Redis goes: one alert of each file fires, for the pod that has lost it.
                streams.shutdown(nosave=True)
                fires(server, "RelayRedisDown")
                assert not server.firing("RelayDown")
            # And relay itself.
            fires(server, "RelayDown")


def overlay(port: int, admin: int, api: int, streams) -> Object:
    """Over the chart's values for monitoring: TLS, ports of this machine, and what can be counted."""
    redis = streams.connection_pool.connection_kwargs["port"]
    config = tomllib.loads(CONFIG.format(port=port, admin=admin, api=api, redis=redis))
    # The HMAC key comes from the Secret's file, as the chart mounts it.
    del config["auth"]["key"][0]
    # TLS as in the chart's own values for it.
    tls = yaml.safe_load(TLS.read_text())
    config["server"] |= tls["config"]["server"]
    return {
        "redis": {"url": config.pop("redis")["url"]},
        "secretMounts": tls["secretMounts"],
        "config": config,
    }


def speaks_only_tls(port: int) -> None:
    with pytest.raises(InvalidHandshake):
        open_socket(f"ws://{HOST}:{port}/ws/news/a")


def manifest(rendered: list[Object]) -> Object:
    return yaml.safe_load(one(rendered, "ConfigMap", "r-relay-sidecar")["data"]["sidecar.yaml"])


def pod(name: str, template: Object) -> Object:
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
        "status": {"podIP": HOST, "phase": "Running"},
    }


def soon(rendered: list[Object]) -> Object:
    spec = one(rendered, "PrometheusRule")["spec"]
    for group in spec["groups"]:
        for rule in group["rules"]:
            rule["for"] = FOR
    return spec


def is_scraped(server: prometheus.Prometheus, admin: int) -> None:
    """By both jobs, on the admin port alone, under the names that the alerts ask for."""
    targets: list[Object] = []

    def up() -> bool:
        nonlocal targets
        targets = server.ask("targets", state="active")["activeTargets"]
        return bool(targets) and all(target["health"] == "up" for target in targets)

    try:
        wait_for("both targets", up)
    except AssertionError as late:
        raise AssertionError(f"{late}: {targets}") from None
    assert {target["scrapeUrl"] for target in targets} == {f"http://{HOST}:{admin}/metrics"}
    found = sorted((t["labels"]["job"], t["labels"]["namespace"], t["labels"]["pod"]) for t in targets)
    assert found == [("jobs/r-relay", NAMESPACE, "api-1"), ("r-relay-metrics", NAMESPACE, "own-1")]


def has_what_is_asked(server: prometheus.Prometheus, helm: Helm) -> None:
    """Each metric has a series for both jobs; each panel of such metrics has something to show."""
    asked = [alert["expr"] for values in (SIDECAR, DEPLOYMENT) for alert in alerts(helm, values)]
    metrics = set().union(*map(metrics_of, asked + dashboard_expressions())) - NOT_HERE
    assert len(metrics) > 30, metrics
    names = {f"{{__name__=~'{name}(_count)?'}}" for name in metrics}
    queries = {f"count by (job) ({name})": 2 for name in names}
    panels = panel_queries("1m")
    assert len(panels) > 30, panels
    # Those of other metrics too: they have nothing to show, but are no error.
    queries |= {panel: 0 if metrics_of(panel) & NOT_HERE else 1 for panel in panels}
    missing: list[str] = []

    def complete() -> bool:
        nonlocal missing
        missing = [query for query, least in queries.items() if len(server.query(query)) < least]
        return not missing

    try:
        wait_for("every series", complete)
    except AssertionError as late:
        raise AssertionError(f"{late}: nothing for {missing}") from None


def rules_are_healthy(server: prometheus.Prometheus, helm: Helm) -> None:
    expected = sorted(alert["alert"] for alert in alerts(helm, SIDECAR) + alerts(helm, DEPLOYMENT))
    found: list[Object] = []

    def evaluated() -> bool:
        nonlocal found
        groups = server.ask("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return all(rule["health"] != "unknown" for rule in found)

    wait_for("every rule", evaluated)
    assert sorted(rule["name"] for rule in found) == expected
    assert [rule for rule in found if rule["health"] != "ok" or rule.get("lastError")] == []


def fires(server: prometheus.Prometheus, alert: str) -> None:
    wait_for(f"{alert} of both jobs", lambda: len(server.firing(alert)) == 2)
    found = sorted((labels["job"], labels["pod"], labels["severity"]) for labels in server.firing(alert))
    assert found == [("jobs/r-relay", "api-1", "critical"), ("r-relay-metrics", "own-1", "critical")]
