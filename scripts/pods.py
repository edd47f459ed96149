"""One pod of rendered manifests, run by podman in the kubelet's order.

Start: sidecars, each waited for by its startup probe; then the containers; then readiness.
Stop: all preStop hooks at once; TERM to each container when its hook has returned, to sidecars
when the containers are gone, the last one first; KILL when the grace is over. A test aid, no
kubelet: one try per probe and period, no restarts.
"""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from containers import Engine
from environment import NotHere

Object = dict[str, Any]
NETWORK = "relay-pods"


class Pod:
    def __init__(
        self, engine: Engine, name: str, template: Object, objects: list[Object],
        hosts: dict[str, str], folder: Path,
    ) -> None:
        self.engine = engine
        self.name = name
        self.spec = template["spec"]
        self.hosts = hosts
        self.folder = folder / name
        self.data = {
            (o["kind"], o["metadata"]["name"]): content(o)
            for o in objects
            if o["kind"] in ("ConfigMap", "Secret")
        }
        started = self.spec.get("initContainers", [])
        self.sidecars = [c for c in started if c.get("restartPolicy") == "Always"]
        self.containers = self.spec["containers"]
        self.ip = ""
        self.events: list[str] = []
        self.exit_codes: dict[str, int] = {}
        self.began = time.monotonic()

    def note(self, what: str) -> None:
        self.events.append(what)
        print(f"  {self.name} +{time.monotonic() - self.began:4.1f}s  {what}", flush=True)

    def id(self, container: Object) -> str:
        return f"{self.name}-{container['name']}"

    # --- Up ---

    def up(self) -> None:
        self.began = time.monotonic()
        self.fill_volumes()
        hosts = [part for n, ip in self.hosts.items() for part in ("--add-host", f"{n}:{ip}")]
        self.engine.podman(
            "pod", "create", "--name", self.name, "--share", "net", "--network", NETWORK, *hosts
        )
        self.engine.podman("pod", "start", self.name)
        self.ip = self.address()
        for container in self.sidecars:
            self.start(container)
            self.wait_for(container, "startupProbe")
            self.note(f"{container['name']}: started")
        for container in self.containers:
            self.start(container)
            self.note(f"{container['name']}: started")
        for container in [*self.sidecars, *self.containers]:
            self.wait_for(container, "readinessProbe")
        self.note("ready")

    def address(self) -> str:
        pod = self.engine.podman("pod", "inspect", self.name)
        infra = json.loads(pod.stdout)["InfraContainerID"]
        (found,) = json.loads(self.engine.podman("inspect", infra).stdout)
        return found["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]

    def fill_volumes(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for volume in self.spec.get("volumes", []):
            place = self.folder / volume["name"]
            place.mkdir(parents=True)
            if "emptyDir" in volume:
                place.chmod(0o777)
                continue
            source = volume.get("configMap") or volume["secret"]
            kind = "ConfigMap" if "configMap" in volume else "Secret"
            data = self.data[kind, source.get("name") or source["secretName"]]
            items = source.get("items") or [{"key": key, "path": key} for key in data]
            for item in items:
                file = place / item["path"]
                file.write_bytes(data[item["key"]])
                file.chmod(source.get("defaultMode", 0o644))

    def start(self, container: Object) -> None:
        command = ["run", "--detach", "--pod", self.name, "--name", self.id(container)]
        # Kubernetes does not know an image's health check, and its timer wants systemd.
        command += ["--pull", "never", "--no-healthcheck"]
        command += security(container.get("securityContext", {}))
        for variable in container.get("env", []):
            command += ["--env", f"{variable['name']}={self.value(variable)}"]
        for mount in container.get("volumeMounts", []):
            mode = ":ro" if mount.get("readOnly") else ""
            command += ["--volume", f"{self.folder / mount['name']}:{mount['mountPath']}{mode}"]
        if memory := container.get("resources", {}).get("limits", {}).get("memory"):
            command += ["--memory", memory.replace("i", "").lower()]
        if container.get("command"):
            command += ["--entrypoint", json.dumps(container["command"])]
        self.engine.podman(*command, container["image"], *container.get("args", []))

    def value(self, variable: Object) -> str:
        if "value" in variable:
            return variable["value"]
        source = variable["valueFrom"]["secretKeyRef"]
        return self.data["Secret", source["name"]][source["key"]].decode()

    def wait_for(self, container: Object, kind: str) -> None:
        probe = container.get(kind)
        if probe is None:
            return
        period_s = probe.get("periodSeconds", 10)
        deadline = time.monotonic() + 60
        while not self.passes(container, probe):
            if time.monotonic() > deadline:
                log = self.engine.podman("logs", self.id(container), check=False)
                raise NotHere(f"{kind} of {self.id(container)} never passed:\n{log.stderr}")
            time.sleep(period_s / 5)

    def passes(self, container: Object, probe: Object) -> bool:
        asked = probe["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        port = ports.get(asked["port"], asked["port"])
        return self.status(port, asked["path"], probe.get("timeoutSeconds", 1)) == 200

    def status(self, port: int, path: str, timeout_s: float = 2) -> int | None:
        connection = http.client.HTTPConnection(self.ip, port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    # --- Down ---

    def down(self) -> None:
        self.began = time.monotonic()
        deadline = self.began + self.spec.get("terminationGracePeriodSeconds", 30)
        gone = {c["name"]: threading.Event() for c in [*self.containers, *self.sidecars]}
        threads = [
            threading.Thread(target=self.end, args=(c, [], gone, deadline))
            for c in self.containers
        ]
        for place, sidecar in enumerate(self.sidecars):
            before = [*self.containers, *self.sidecars[place + 1 :]]
            threads.append(
                threading.Thread(target=self.end, args=(sidecar, before, gone, deadline))
            )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def end(
        self, container: Object, before: list[Object],
        gone: dict[str, threading.Event], deadline: float,
    ) -> None:
        name = container["name"]
        try:
            if hook := container.get("lifecycle", {}).get("preStop", {}).get("exec"):
                done = self.engine.podman("exec", self.id(container), *hook["command"], check=False)
                self.note(f"{name}: preStop returned {done.returncode} {done.stdout.strip()}{done.stderr.strip()}")
            for other in before:
                gone[other["name"]].wait(max(0.0, deadline - time.monotonic()))
            self.note(f"{name}: TERM")
            left_s = max(2, int(deadline - time.monotonic()))
            self.engine.podman("stop", "--time", str(left_s), self.id(container), check=False)
            (found,) = json.loads(self.engine.podman("inspect", self.id(container)).stdout)
            self.exit_codes[name] = found["State"]["ExitCode"]
            self.note(f"{name}: exit {self.exit_codes[name]}")
        finally:
            gone[name].set()

    def logs(self, container: str) -> str:
        done = self.engine.podman("logs", f"{self.name}-{container}", check=False)
        return done.stdout + done.stderr

    def remove(self) -> None:
        self.engine.podman("pod", "rm", "--force", "--time", "0", self.name, check=False)


def content(found: Object) -> dict[str, bytes]:
    data = {key: text.encode() for key, text in found.get("stringData", {}).items()}
    for key, text in found.get("data", {}).items():
        data[key] = base64.b64decode(text) if found["kind"] == "Secret" else text.encode()
    return data


def security(context: Object) -> list[str]:
    options = []
    if context.get("readOnlyRootFilesystem"):
        options += ["--read-only", "--read-only-tmpfs=false"]
    if "runAsUser" in context:
        user = context["runAsUser"]
        options += ["--user", f"{user}:{context.get('runAsGroup', user)}"]
    for capability in context.get("capabilities", {}).get("drop", []):
        options += ["--cap-drop", capability]
    if context.get("allowPrivilegeEscalation") is False:
        options += ["--security-opt", "no-new-privileges"]
    return options
