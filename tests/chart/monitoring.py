"""Alerts and dashboard as they are written, and the metrics that relay has."""

from __future__ import annotations

import json
import re
from pathlib import Path

from conftest import CHART, ROOT, Helm, Object, one

SIDECAR = CHART / "ci" / "monitoring-sidecar-values.yaml"
DEPLOYMENT = CHART / "ci" / "monitoring-deployment-values.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"
SERIES = re.compile(r"\b(relay_[a-z_]+)(\{[^}]*\})?")
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def table() -> dict[str, list[str]]:
    """Every metric of src/metrics.rs with its labels."""
    source = (ROOT / "src" / "metrics.rs").read_text()
    rows = re.findall(r'= Kind::\w+(?:\(\w+\))?, "(relay_\w+)" \[([^\]]*)\]', source)
    assert len(rows) > 20
    return {name: re.findall(r'"(\w+)"', labels) for name, labels in rows}


def rules(helm: Helm, values: Path) -> Object:
    return one(helm.objects("--values", str(values)), "PrometheusRule")["spec"]


def alerts(helm: Helm, values: Path) -> list[Object]:
    return [rule for group in rules(helm, values)["groups"] for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    found = [t["expr"] for p in board["panels"] for t in p.get("targets", [])]
    found += [v["definition"] for v in board["templating"]["list"] if "definition" in v]
    assert len(found) > 20
    return found


def panel_queries(window: str) -> list[str]:
    """What the panels ask Prometheus when everything is chosen, rates over `window`."""
    return [
        e.replace("$__rate_interval", window).replace("$job", ".*").replace("$route", ".*")
        for e in dashboard_expressions()
        if not e.startswith("label_values")
    ]


def metrics_of(expression: str) -> set[str]:
    return {SUFFIX.sub("", name) for name, _ in SERIES.findall(expression)}
