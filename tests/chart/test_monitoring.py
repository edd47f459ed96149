"""Alerts and dashboard speak of metrics that a running relay has, and fire when they should."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import tools
import yaml

from conftest import ROOT, Helm, one
from monitoring import (
    DASHBOARD,
    DEPLOYMENT,
    SERIES,
    SIDECAR,
    SUFFIX,
    alerts,
    dashboard_expressions,
    metrics_of,
    panel_queries,
    rules,
    table,
)
from running import (
    CONFIG,
    HOST,
    Api,
    answers,
    free_port,
    get,
    give_it_something_to_count,
    process,
    redis_server,
    wait_for,
)

RULE_TESTS = ROOT / "tests" / "chart" / "rules.test.yaml"
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
# From Prometheus, the operator and histograms, not from relay.
FOREIGN_LABELS = {"job", "namespace", "pod", "instance", "le"}
# Of what this test's relay does not have: TLS, renewals, keys in files. That relay has them then
# is for tests/scenarios; here the table says that they are there.
NOT_HERE = re.compile("relay_(tls|key_file|token_renewals)_")


def wrong_series(expression: str, known: dict[str, list[str]]) -> list[str]:
    """Metrics that relay does not have, and labels that a metric does not have."""
    wrong = []
    found = SERIES.findall(expression)
    if not found and "up{" not in expression:
        wrong.append(f"no metric in {expression}")
    for name, matchers in found:
        base = SUFFIX.sub("", name)
        if base not in known:
            wrong.append(f"{name} in {expression}")
            continue
        used = set(LABEL.findall(matchers))
        for by in re.findall(r"by \(([^)]*)\)", expression):
            used |= {label.strip() for label in by.split(",")}
        wrong += [
            f"{label} of {name} in {expression}"
            for label in used - FOREIGN_LABELS - set(known[base])
        ]
    return wrong


def test_alerts_and_dashboard_use_what_is_there(helm4: Helm) -> None:
    known = table()
    expressions = dashboard_expressions()
    for values in (SIDECAR, DEPLOYMENT):
        expressions += [alert["expr"] for alert in alerts(helm4, values)]
    assert [w for e in expressions for w in wrong_series(e, known)] == []


def test_a_metric_that_is_not_there_is_seen() -> None:
    known = table()
    assert wrong_series('sum by (route) (rate(relay_resync_total{job="x"}[5m]))', known)
    assert wrong_series('sum by (reson) (rate(relay_resyncs_total{job="x"}[5m]))', known)
    assert wrong_series('relay_sessions{outcome="x"}', known)


def test_every_metric_is_on_the_dashboard() -> None:
    assert set().union(*map(metrics_of, dashboard_expressions())) == set(table())


def test_a_running_relay_has_every_metric_of_the_table(
    relay: Path, tmp_path: Path
) -> None:
    port, admin = free_port(), free_port()
    with redis_server(tmp_path) as streams, Api.serving() as api:
        text = CONFIG.format(
            port=port, admin=admin, api=api.port,
            redis=streams.connection_pool.connection_kwargs["port"],
        )
        config = tmp_path / "relay.toml"
        config.write_text(text)
        with process([str(relay), "run", "-c", str(config)], tmp_path / "relay.log"):
            wait_for("relay", lambda: answers(admin, "/readyz"))
            give_it_something_to_count(streams, f"ws://{HOST}:{port}")
            missing: set[str] = set()

            def complete() -> bool:
                nonlocal missing
                exposed = set(re.findall(r"^# TYPE (\w+) ", get(admin, "/metrics")[1], re.M))
                missing = {name for name in set(table()) - exposed if not NOT_HERE.match(name)}
                assert exposed <= set(table())
                return not missing

            try:
                wait_for("every metric", complete)
            except AssertionError:
                raise AssertionError(f"never exposed: {sorted(missing)}") from None
            exposed = get(admin, "/metrics")[1]
    checked = subprocess.run(
        [str(tools.promtool()), "check", "metrics"], input=exposed,
        capture_output=True, text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("values", [SIDECAR, DEPLOYMENT], ids=lambda path: path.stem)
def test_promtool_takes_the_rules(helm: Helm, values: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules(helm, values)))
    command = [str(tools.promtool()), "check", "rules", "--lint-fatal", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should(helm4: Helm, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules(helm4, SIDECAR)))
    cases = tmp_path / "rules.test.yaml"
    cases.write_text(RULE_TESTS.read_text())
    command = [str(tools.promtool()), "test", "rules", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_jwks_that_is_fetched_rarely_may_be_older(helm: Helm) -> None:
    def at(*arguments: str) -> str:
        spec = one(helm.objects("--values", str(SIDECAR), *arguments), "PrometheusRule")["spec"]
        (found,) = (r["expr"] for g in spec["groups"] for r in g["rules"] if r["alert"] == "RelayJwksStale")
        return found.split(" > ")[1]

    key = "config.auth.key[0]"
    settings = ["--set", f"{key}.jwks_url=https://issuer/jwks", "--set", f"{key}.algorithms[0]=ES256"]
    assert at(*settings) == at(*settings, "--set", f"{key}.refresh=10m") == "3600"
    assert at(*settings, "--set", f"{key}.refresh=2h") == "14400"


def test_every_alert_is_tested_both_ways(helm4: Helm) -> None:
    fires: dict[str, set[bool]] = {}
    for case in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for at in case["alert_rule_test"]:
            fires.setdefault(at["alertname"], set()).add(bool(at.get("exp_alerts")))
    assert fires == {a["alert"]: {True, False} for a in alerts(helm4, SIDECAR)}


def test_every_alert_says_how_bad_for_how_long_and_what_to_do(helm4: Helm) -> None:
    runbook = (ROOT / "docs" / "KUBERNETES.md").read_text()
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", runbook, re.M)
    }
    for values in (SIDECAR, DEPLOYMENT):
        for alert in alerts(helm4, values):
            assert alert["for"], alert
            assert alert["labels"]["severity"] in {"warning", "critical"}
            assert alert["annotations"]["summary"]
            address, anchor = alert["annotations"]["runbook_url"].split("#")
            assert address and anchor in anchors, alert["annotations"]


def test_the_dashboard_is_whole() -> None:
    board = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels:
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
    # No two panels are in the same place.
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_promql_of_the_dashboard_parses(tmp_path: Path) -> None:
    """As recording rules, with Grafana's variables filled in."""
    queries = enumerate(panel_queries("1m"))
    group = {
        "name": "dashboard",
        "rules": [{"record": f"panel:{n}", "expr": e} for n, e in queries],
    }
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [group]}))
    command = [str(tools.promtool()), "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
