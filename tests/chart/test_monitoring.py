"""Alerts and dashboard speak of metrics that a running relay has, and fire when they should."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import tools
import yaml
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from conftest import CHART, ROOT, Helm, one
from running import HOST, Api, answers, free_port, get, process, redis_server, wait_for

SIDECAR = CHART / "ci" / "monitoring-sidecar-values.yaml"
DEPLOYMENT = CHART / "ci" / "monitoring-deployment-values.yaml"
RULE_TESTS = ROOT / "tests" / "chart" / "rules.test.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"
SERIES = re.compile(r"\b(relay_[a-z_]+)(\{[^}]*\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
SUFFIX = re.compile(r"_(bucket|sum|count)$")
# From Prometheus, the operator and histograms, not from relay.
FOREIGN_LABELS = {"job", "namespace", "pod", "instance", "le"}
# Of what this test's relay does not have: TLS, a JWKS, renewals, conflation, keys in files. That
# relay has them then is for tests/scenarios; here the table says that they are there.
NOT_HERE = re.compile("relay_(tls|jwks|key_file|token_renewals|entries_conflated)_")
CONFIG = """
[server]
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{admin}"
[redis]
url = "redis://127.0.0.1:{redis}/0"
[[auth.key]]
algorithms = ["HS256"]
secret = "an-hmac-secret-of-32-bytes-or-more"
[[route]]
name = "news"
path = "/ws/news/{{name}}"
streams = ["news:{{name}}"]
auth = "none"
[route.snapshot]
url = "http://127.0.0.1:{api}/state"
[route.message]
field = "data"
max_bytes = "64B"
[[route]]
name = "job"
path = "/ws/jobs/{{name}}"
streams = ["job:{{name}}"]
"""


def table() -> dict[str, list[str]]:
    """Every metric of src/metrics.rs with its labels."""
    source = (ROOT / "src" / "metrics.rs").read_text()
    rows = re.findall(r'= Kind::\w+(?:\(\w+\))?, "(relay_\w+)" \[([^\]]*)\]', source)
    assert len(rows) > 20
    return {name: re.findall(r'"(\w+)"', labels) for name, labels in rows}


def rules(helm: Helm, values: Path) -> dict:
    return one(helm.objects("--values", str(values)), "PrometheusRule")["spec"]


def alerts(helm: Helm, values: Path) -> list[dict]:
    return [rule for group in rules(helm, values)["groups"] for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    found = [t["expr"] for p in board["panels"] for t in p.get("targets", [])]
    found += [v["definition"] for v in board["templating"]["list"] if "definition" in v]
    assert len(found) > 20
    return found


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
    shown = {SUFFIX.sub("", n) for e in dashboard_expressions() for n, _ in SERIES.findall(e)}
    assert shown == set(table())


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


def open_socket(url: str) -> ClientConnection:
    return connect(url, subprotocols=["relay.v1"], open_timeout=10)


def until(socket: ClientConnection, kind: str) -> dict:
    for _ in range(100):
        frame = json.loads(socket.recv(timeout=10))
        if frame["type"] == kind:
            return frame
    raise AssertionError(f"no {kind}")


def give_it_something_to_count(streams, url: str) -> None:
    streams.xadd("news:a", {"data": "1"})
    with open_socket(f"{url}/ws/news/a?cursor=nonsense") as socket:
        until(socket, "live")
        socket.send("ping")
        until(socket, "pong")
        streams.xadd("news:a", {"data": "2"})
        until(socket, "event")
        streams.xadd("news:a", {"data": "x" * 100})
        until(socket, "event")
        # The reader comes back by itself.
        streams.client_kill_filter(_type="normal", skipme=True)
    # A stream that nobody has watched is in no ring, so that Redis is asked.
    lost = streams.xadd("news:b", {"data": "1"}).decode()
    streams.xadd("news:b", {"data": "2"})
    streams.xtrim("news:b", maxlen=1, approximate=False)
    with open_socket(f"{url}/ws/news/b?cursor={lost}") as socket:
        until(socket, "resync")
        until(socket, "snapshot")
    with pytest.raises(ConnectionClosed), open_socket(f"{url}/ws/jobs/a") as socket:
        socket.recv(timeout=10)


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
    filled = [
        e.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$route", ".*")
        for e in dashboard_expressions()
        if not e.startswith("label_values")
    ]
    group = {
        "name": "dashboard",
        "rules": [{"record": f"panel:{n}", "expr": e} for n, e in enumerate(filled)],
    }
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [group]}))
    command = [str(tools.promtool()), "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
