"""The relay.toml that the chart renders, checked by relay itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from conftest import CHART, ROOT, SIDECAR, VALUES, Helm, objects, relay_toml
from running import mounted


def check(relay: Path, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    config = folder / "relay.toml"
    config.write_text(mounted(text, folder))
    environment = os.environ | {"API_HOST": "api:8000", "OLD_HMAC": "y" * 64}
    return subprocess.run(
        [str(relay), "check", "--config", str(config)],
        capture_output=True, text=True, env=environment, timeout=30,
    )


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_relay_takes_it(helm: Helm, relay: Path, values: Path, tmp_path: Path) -> None:
    text = relay_toml(helm.objects("--values", str(values)))
    done = check(relay, text, tmp_path)
    assert done.returncode == 0, done.stderr + text


def test_relay_refuses_what_it_does_not_know(helm: Helm, relay: Path, tmp_path: Path) -> None:
    settings = ["--set", "config.server.max_connection=5"]
    text = relay_toml(helm.objects("--values", str(SIDECAR), *settings))
    done = check(relay, text, tmp_path)
    assert done.returncode == 2 and "max_connection" in done.stderr, done.stderr


def test_values_come_through_as_they_are(helm: Helm) -> None:
    """The TOML, read back, is the table of the values."""
    values = CHART / "ci" / "every-key-values.yaml"
    rendered = tomllib.loads(relay_toml(helm.objects("--values", str(values))))
    given = yaml.safe_load(values.read_text())["config"]
    own_key = rendered["auth"]["key"].pop(0)
    assert own_key["public_key"] == "${file:/run/secrets/relay/jwt/jwt.pem}"
    assert rendered["server"]["max_connections"] == 1_500_000
    for section, table in given.items():
        if isinstance(table, list):
            assert rendered[section] == table
        else:
            assert rendered[section] == rendered[section] | table


def test_the_whole_reference_comes_through(helm: Helm, tmp_path: Path) -> None:
    """relay.toml of the repository's root as values: every key there is."""
    reference = tomllib.loads((ROOT / "relay.toml").read_text())
    assert len(reference) > 6
    values = {
        "image": {"repository": "relay"},
        "sidecar": {"podLabels": {"app": "api"}},
        "config": reference,
    }
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps(values))
    rendered = relay_toml(helm.objects("--values", str(file)))
    assert tomllib.loads(rendered) == reference


def test_the_schema_knows_every_section() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    sections = set(schema["properties"]["config"]["properties"])
    assert sections == set(tomllib.loads((ROOT / "relay.toml").read_text()))


def test_ports_follow_the_config(helm: Helm) -> None:
    text = helm.template("--values", str(CHART / "ci" / "every-key-values.yaml"))
    found = {o["kind"]: o for o in objects(text)}
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert [port["containerPort"] for port in container["ports"]] == [8443, 9443]
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == 8443
    assert "127.0.0.1:9443" in container["lifecycle"]["preStop"]["exec"]["command"]


def test_no_secret_is_in_what_is_rendered(helm: Helm) -> None:
    for values in VALUES:
        found = helm.objects("--values", str(values))
        assert "Secret" not in {o["kind"] for o in found}
        for line in relay_toml(found).splitlines():
            if re.match(r"(secret|public_key|password) = ", line):
                assert '= "${' in line, line
