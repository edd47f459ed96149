"""A stand-in for the Kubernetes API, in memory: what helm and kubectl need to install,
upgrade, apply and delete. It checks nothing; the schemas of test_render.py do.

Deployments are ready and Pods have succeeded as soon as they are written.
"""

from __future__ import annotations

import base64
import copy
import http.server
import itertools
import json
import threading
import time
import urllib.parse
import uuid
from typing import Any, Self

import yaml

Object = dict[str, Any]
# Group and version: kinds by their plural.
RESOURCES: dict[tuple[str, str], dict[str, str]] = {
    ("", "v1"): {
        "configmaps": "ConfigMap", "secrets": "Secret", "services": "Service",
        "serviceaccounts": "ServiceAccount", "pods": "Pod", "events": "Event",
    },
    ("apps", "v1"): {"deployments": "Deployment", "replicasets": "ReplicaSet"},
    ("policy", "v1"): {"poddisruptionbudgets": "PodDisruptionBudget"},
    ("autoscaling", "v2"): {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    ("networking.k8s.io", "v1"): {"ingresses": "Ingress", "networkpolicies": "NetworkPolicy"},
    ("gateway.networking.k8s.io", "v1"): {"httproutes": "HTTPRoute"},
    ("monitoring.coreos.com", "v1"): {
        "podmonitors": "PodMonitor", "servicemonitors": "ServiceMonitor",
        "prometheusrules": "PrometheusRule",
    },
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
LONGEST_WATCH_S = 30.0
LOOK_EVERY_S = 0.05


def merge(old: Any, new: Any) -> Any:
    """As apply does: tables by key, lists of named things by name, everything else anew."""
    if isinstance(old, dict) and isinstance(new, dict):
        merged = dict(old)
        for key, value in new.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(old.get(key), value)
        return merged
    both = [*old, *new] if isinstance(old, list) and isinstance(new, list) else []
    if both and all(isinstance(item, dict) and "name" in item for item in both):
        before = {item["name"]: item for item in old}
        mine = [merge(before.get(item["name"], {}), item) for item in new]
        names = {item["name"] for item in new}
        return mine + [item for item in old if item["name"] not in names]
    return new


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """Number and content of each field of a protobuf message that has a length."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        match tag & 7:
            case 0:
                varint()
            case 2:
                length = varint()
                found.append((tag >> 3, message[at : at + length]))
                at += length
            case kind:
                raise ValueError(f"wire type {kind}")
    return found


def secret_of(message: bytes) -> Object:
    """Helm 3 writes its releases as protobuf; here is as much of it as a release has."""
    metadata: Object = {"labels": {}, "annotations": {}}
    secret: Object = {"metadata": metadata, "data": {}}
    for number, value in fields(dict(fields(message[4:]))[2]):
        match number:
            case 1:
                for inner, content in fields(value):
                    if inner in (1, 3):
                        metadata["name" if inner == 1 else "namespace"] = content.decode()
                    elif inner in (11, 12):
                        pair = dict(fields(content))
                        labels = metadata["labels" if inner == 11 else "annotations"]
                        labels[pair[1].decode()] = pair.get(2, b"").decode()
            case 2:
                pair = dict(fields(value))
                secret["data"][pair[1].decode()] = base64.b64encode(pair.get(2, b"")).decode()
            case 3:
                secret["type"] = value.decode()
    return secret


def status_of(kind: str, found: Object) -> Object | None:
    generation = found["metadata"]["generation"]
    match kind:
        case "Pod":
            return {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "True"}]}
        case "Deployment":
            replicas = found["spec"].get("replicas", 1)
            counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
            return {
                "observedGeneration": generation,
                **dict.fromkeys(counts, replicas),
                "conditions": [
                    {"type": "Available", "status": "True"},
                    {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
                ],
            }
        case "ReplicaSet":
            replicas = found["spec"]["replicas"]
            counts = ("replicas", "readyReplicas", "availableReplicas")
            return {"observedGeneration": generation, **dict.fromkeys(counts, replicas)}
        case "HorizontalPodAutoscaler":
            kinds = ("AbleToScale", "ScalingActive")
            return {"conditions": [{"type": kind, "status": "True"} for kind in kinds]}
        case "PodDisruptionBudget":
            return {"observedGeneration": generation, "currentHealthy": 2, "desiredHealthy": 1}
        case _:
            return None


def replica_set(deployment: Object) -> Object:
    """What a Deployment's pods belong to: helm 3 asks it whether they are ready."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    owner = {
        "apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"],
        "uid": metadata["uid"], "controller": True,
    }
    return {
        "metadata": {
            "name": metadata["name"],
            "labels": spec["template"]["metadata"]["labels"],
            "ownerReferences": [owner],
        },
        "spec": {"replicas": spec["replicas"], "selector": spec["selector"], "template": spec["template"]},
    }


class ApiServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.lock = threading.Lock()
        self.versions = itertools.count(1)
        self.managers: list[str] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, kind: str) -> dict[str, Object]:
        with self.lock:
            return {n: o for (k, _, n), o in self.objects.items() if k == kind}

    def put(self, kind: str, api_version: str, namespace: str, found: Object) -> Object:
        metadata = found["metadata"]
        metadata["resourceVersion"] = str(next(self.versions))
        metadata["generation"] = metadata.get("generation", 0) + 1
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("namespace", namespace)
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        found |= {"kind": kind, "apiVersion": api_version}
        for key, text in found.pop("stringData", {}).items():
            found.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()
        if kind == "Deployment":
            found["spec"].setdefault("replicas", 1)
        if kind == "Service":
            found["spec"].setdefault("clusterIP", "10.0.0.1")
        if status := status_of(kind, found):
            found["status"] = status
        self.objects[kind, namespace, metadata["name"]] = found
        if kind == "Deployment":
            self.put("ReplicaSet", api_version, namespace, replica_set(found))
        return found


class Handler(http.server.BaseHTTPRequestHandler):
    server: ApiServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: Object) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def fail(self, code: int, reason: str, message: str) -> None:
        self.answer(code, {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        })

    def body(self) -> Object:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        if raw.startswith(b"k8s\0"):
            # Only releases are asked for in bytes; what deletes is of no interest.
            return secret_of(raw) if b"Secret" in raw[:40] else {}
        return yaml.safe_load(raw) or {} if raw else {}

    def do_GET(self) -> None:
        address = urllib.parse.urlparse(self.path)
        self.query = dict(urllib.parse.parse_qsl(address.query))
        body = self.body()
        match [part for part in address.path.split("/") if part]:
            case ["version"]:
                self.answer(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
            case ["api"]:
                self.answer(200, {"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                self.answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups()})
            case ["openapi", "v3"]:
                self.answer(200, {"paths": {
                    place: {"serverRelativeURL": f"/openapi/v3/{place}"}
                    for place in (place_of(group, version) for group, version in RESOURCES)
                }})
            case ["openapi", "v3", *place]:
                self.answer(200, field_validation("/".join(place)))
            case ["api", version, *rest]:
                self.resource("", version, rest, body)
            case ["apis", group, version, *rest]:
                self.resource(group, version, rest, body)
            case _:
                self.fail(404, "NotFound", self.path)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def resource(self, group: str, version: str, rest: list[str], body: Object) -> None:
        kinds = RESOURCES.get((group, version))
        if kinds is None:
            return self.fail(404, "NotFound", self.path)
        api_version = f"{group}/{version}".lstrip("/")
        if not rest:
            return self.answer(200, resource_list(api_version, kinds))
        if rest == ["namespaces"] or rest[0] == "namespaces" and len(rest) == 2:
            name = rest[1] if len(rest) == 2 else "jobs"
            return self.answer(200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
        namespace = ""
        if rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        kind = kinds.get(rest[0])
        if kind is None:
            return self.fail(404, "NotFound", self.path)
        name = rest[1] if len(rest) > 1 else ""
        if self.query.get("watch") in ("1", "true"):
            return self.watch(kind, api_version, namespace, name)
        with self.server.lock:
            self.verb(kind, api_version, namespace, name, body)

    def verb(self, kind: str, api_version: str, namespace: str, name: str, body: Object) -> None:
        server = self.server
        old = server.objects.get((kind, namespace, name))
        applied = "apply" in (self.headers.get("content-type") or "")
        if manager := self.query.get("fieldManager"):
            server.managers.append(manager)
        match self.command:
            case "GET" if not name:
                self.answer(200, {
                    "kind": f"{kind}List", "apiVersion": api_version,
                    "metadata": {"resourceVersion": str(next(server.versions))},
                    "items": list(self.matching(kind, namespace, "").values()),
                })
            case "POST":
                name = body["metadata"]["name"]
                if (kind, namespace, name) in server.objects:
                    return self.fail(409, "AlreadyExists", f"{kind} {name} already exists")
                self.answer(201, server.put(kind, api_version, namespace, body))
            case "PATCH" if applied and old is None:
                self.answer(201, server.put(kind, api_version, namespace, body))
            case _ if old is None:
                self.fail(404, "NotFound", f"{kind} {name} not found")
            case "GET":
                self.answer(200, old)
            case "PUT":
                body["metadata"].setdefault("uid", old["metadata"]["uid"])
                self.answer(200, server.put(kind, api_version, namespace, body))
            case "PATCH":
                merged = merge(copy.deepcopy(old), body)
                self.answer(200, server.put(kind, api_version, namespace, merged))
            case "DELETE":
                del server.objects[kind, namespace, name]
                if kind == "Deployment":
                    server.objects.pop(("ReplicaSet", namespace, name), None)
                self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def matching(self, kind: str, namespace: str, name: str) -> dict[str, Object]:
        terms = self.query.get("labelSelector", "").split(",")
        labels = [t.replace("==", "=").split("=", 1) for t in terms if "=" in t and "!=" not in t]
        terms = self.query.get("fieldSelector", "").split(",")
        name = name or next((t[14:] for t in terms if t.startswith("metadata.name=")), "")
        return {
            n: o
            for (k, ns, n), o in self.server.objects.items()
            if k == kind
            and namespace in ("", ns)
            and name in ("", n)
            and all(o["metadata"].get("labels", {}).get(key) == value for key, value in labels)
        }

    def watch(self, kind: str, api_version: str, namespace: str, name: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

        def tell(what: str, found: Object) -> None:
            self.wfile.write(json.dumps({"type": what, "object": found}).encode() + b"\n")
            self.wfile.flush()

        initial = self.query.get("sendInitialEvents") == "true"
        known = self.query.get("resourceVersion") not in (None, "", "0") and not initial
        with self.server.lock:
            now = self.matching(kind, namespace, name) if known else {}
        seen = {n: o["metadata"]["resourceVersion"] for n, o in now.items()}
        limit_s = min(float(self.query.get("timeoutSeconds", LONGEST_WATCH_S)), LONGEST_WATCH_S)
        deadline = time.monotonic() + limit_s
        try:
            while time.monotonic() < deadline:
                with self.server.lock:
                    now = copy.deepcopy(self.matching(kind, namespace, name))
                for n, found in now.items():
                    version = found["metadata"]["resourceVersion"]
                    if seen.get(n) != version:
                        tell("MODIFIED" if n in seen else "ADDED", found)
                        seen[n] = version
                for n in [n for n in seen if n not in now]:
                    del seen[n]
                    tell("DELETED", bare(kind, api_version, name=n, namespace=namespace))
                if initial:
                    initial = False
                    ended = bare(kind, api_version)
                    ended["metadata"]["annotations"] = {"k8s.io/initial-events-end": "true"}
                    tell("BOOKMARK", ended)
                time.sleep(LOOK_EVERY_S)
        except (BrokenPipeError, ConnectionResetError):
            pass


def bare(kind: str, api_version: str, **metadata: Any) -> Object:
    place = {"resourceVersion": "1", **metadata}
    return {"kind": kind, "apiVersion": api_version, "metadata": place}


def place_of(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def field_validation(place: str) -> Object:
    """That objects are validated here, so that kubectl does not ask for schemas to do it."""
    paths = {}
    for (group, version), kinds in RESOURCES.items():
        if place_of(group, version) != place:
            continue
        for plural, kind in kinds.items():
            paths[f"/{place}/namespaces/{{namespace}}/{plural}/{{name}}"] = {"patch": {
                "operationId": f"patch{kind}",
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
            }}
    return {"openapi": "3.0.0", "info": {"title": place, "version": "1"}, "paths": paths}


def groups() -> list[Object]:
    found = []
    for group, version in RESOURCES:
        if group:
            this = {"groupVersion": f"{group}/{version}", "version": version}
            found.append({"name": group, "versions": [this], "preferredVersion": this})
    return found


def resource_list(api_version: str, kinds: dict[str, str]) -> Object:
    return {
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version,
        "resources": [
            {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": VERBS}
            for plural, kind in kinds.items()
        ],
    }
