"""What the chart refuses, and the sentence with the fix in it."""

from __future__ import annotations

import re

import pytest

from conftest import CHART, DEPLOYMENT, SIDECAR, Helm

S, D = str(SIDECAR), str(DEPLOYMENT)
# Values, what is changed, and the whole sentence.
SENTENCES: list[tuple[str, list[str], str]] = [
    (S, ["image.repository="],
     "image.repository is empty: build the image with `make image`, push it to your registry, and set image.repository to it"),
    (S, ["sidecar.podLabels=null"],
     "mode is sidecar, but which pods get it is not known: set sidecar.podLabels to the labels that your API's Service selects, or set mode to deployment"),
    (S, ["redis.url="],
     "no Redis: set redis.url, for example to redis://redis:6379/0"),
    (S, ["redis.url=redis://relay:hunter2@redis:6379/0"],
     "redis.url has a password in it, and values are no place for one: put it into a Secret, and set redis.existingSecret and redis.passwordKey"),
    (S, ["redis.url=redis://:hunter2@redis:6379/0"],
     "redis.url has a password in it, and values are no place for one: put it into a Secret, and set redis.existingSecret and redis.passwordKey"),
    (S, ["config.redis.password=hunter2"],
     "config.redis.password is written out, and values are no place for it: put it into a Secret, and set redis.existingSecret and redis.passwordKey"),
    (S, ["jwt.existingSecret=", "config.auth.key[0].algorithms[0]=HS256", "config.auth.key[0].secret=hunter2"],
     "config.auth.key has a secret written out, and values are no place for it: put it into a Secret, and set jwt.existingSecret and jwt.key"),
    (S, ["jwt.existingSecret="],
     "no key to verify tokens with: set jwt.existingSecret to a Secret that has one under jwt.key, or set config.auth.key; if every route is public, set config.auth.mode to none"),
    (S, ["config.route=[]"],
     "no route: set config.route to a list with at least one, as [[route]] in relay.toml"),
    (S, ["terminationGracePeriodSeconds=24"],
     "terminationGracePeriodSeconds is 24, but the drain takes up to 20 s: set it to at least 25, or shorten config.drain"),
    (D, ["config.drain.window=2m"],
     "terminationGracePeriodSeconds is 30, but the drain takes up to 128 s: set it to at least 133, or shorten config.drain"),
    (S, ["metrics.podMonitor.enabled=true", "metrics.serviceMonitor.enabled=true"],
     "both monitors would scrape each pod twice: set metrics.podMonitor.enabled or metrics.serviceMonitor.enabled to false"),
    (S, ["metrics.rules.enabled=true"],
     'the alerts don\'t know their series: enable metrics.podMonitor or metrics.serviceMonitor, or set metrics.rules.selector to matchers such as job="relay"'),
    (S, ["httpRoute.enabled=true"],
     "httpRoute has no gateway: set httpRoute.parentRefs"),
    (S, ["ingress.enabled=true"],
     "ingress has no host: set ingress.hosts to a list of {host, paths}"),
    (S, ["deployment.replicas=3"],
     "deployment.replicas is set, but in sidecar mode the pods are your API's: set it there, or set mode to deployment"),
    (S, ["deployment.autoscaling.enabled=true"],
     "deployment.autoscaling is set, but in sidecar mode the pods are your API's: set it there, or set mode to deployment"),
    (S, ["deployment.networkPolicy.enabled=true"],
     "deployment.networkPolicy is set, but in sidecar mode the pods are your API's: set it there, or set mode to deployment"),
    (S, ["deployment.podDisruptionBudget.maxUnavailable=2"],
     "deployment.podDisruptionBudget is set, but in sidecar mode the pods are your API's: set it there, or set mode to deployment"),
]
# What the schema refuses: the key that its message must name.
BY_SCHEMA: list[tuple[list[str], str]] = [
    (["mode=daemonset"], "mode"),
    (["replicas=2"], "replicas"),
    (["image.tag=latest"], "tag"),
    (["image.digest=sha256:abc"], "digest"),
    (["config.server.listen=8081"], "listen"),
    (["config.sever.listen=x"], "sever"),
    (["config.drain.window=12"], "window"),
    (["jwt.algorithms[0]=none"], "algorithms"),
    (["redis.url=http://redis"], "url"),
    (["service.port=70000"], "port"),
    (["sidecar.workload.kind=DaemonSet"], "kind"),
    (["metrics.rules.thresholds.snapshotErrorRatio=-1"], "snapshotErrorRatio"),
    (["secretMounts[0].name=jwt", "secretMounts[0].existingSecret=x"], "secretMounts"),
]


def flag(change: str) -> tuple[str, str]:
    return ("--set-json" if change.endswith("=[]") else "--set", change)


def refused(helm: Helm, values: str, changes: list[str]) -> str:
    settings = [part for change in changes for part in flag(change)]
    done = helm.attempt("--values", values, *settings)
    assert done.returncode != 0, done.stdout
    return done.stderr


@pytest.mark.parametrize("values, changes, sentence", SENTENCES, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_the_fix_is_in_the_sentence(
    helm: Helm, values: str, changes: list[str], sentence: str
) -> None:
    assert sentence in refused(helm, values, changes)


def test_old_kubernetes_has_no_native_sidecars(helm: Helm) -> None:
    done = helm.attempt("--values", S, "--kube-version", "1.28.0")
    assert "Kubernetes v1.28.0 has no native sidecars: set sidecar.native to false" in done.stderr
    settings = ["--values", S, "--kube-version", "1.28.0", "--set", "sidecar.native=false"]
    assert helm.attempt(*settings).returncode == 0


def test_every_sentence_is_tested() -> None:
    template = (CHART / "templates" / "_validate.tpl").read_text()
    calls = re.findall(r'\bfail \(?(?:printf )?"((?:[^"\\]|\\.)*)"', template)
    assert len(calls) == template.count("fail "), "a call that the pattern does not see"
    tested = [sentence for _, _, sentence in SENTENCES]
    tested.append("Kubernetes v1.28.0 has no native sidecars: set sidecar.native to false")
    for call in calls:
        written = call.replace('\\"', '"')
        pattern = re.sub(r"%[sd]", ".+", re.escape(written).replace("%s", "%s"))
        assert any(re.fullmatch(pattern, sentence) for sentence in tested), written


@pytest.mark.parametrize("changes, key", BY_SCHEMA, ids=lambda v: v[0] if isinstance(v, list) else v)
def test_the_schema_names_what_is_wrong(helm: Helm, changes: list[str], key: str) -> None:
    said = refused(helm, S, changes)
    assert "values don't meet the specifications of the schema" in said
    assert key in said
