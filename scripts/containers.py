"""Images and containers without an engine: buildah builds, podman with runc runs.

What can't be pulled here is stood in for: the Dockerfile is built as it is, on base images
that are made of Debian's packages and of this machine's Rust toolchain.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

from environment import ROOT, NotHere, say

TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
WORK = TARGET / "containers"
STORAGE = WORK / "storage"
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
IMAGE = f"localhost/relay:{VERSION}"
BUILD_BASE = "localhost/relay-stand-in/build:1"
RUNTIME_BASE = "localhost/relay-stand-in/runtime:1"
API_BASE = "localhost/relay-stand-in/python:1"
API_IMAGE = "localhost/legacy-api:1"
SUITE = "bookworm"
# What gcr.io/distroless/cc has: no shell, no package manager.
RUNTIME_PACKAGES = ["base-files", "ca-certificates", "libc6", "libgcc-s1", "netbase"]
NONROOT = 65532
PROGRAMS = ["buildah", "debootstrap", "podman", "runc", "netavark", "iptables", "catatonit"]
# Debian keeps some programs where not every PATH leads: found there, they are also run from there.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/lib/podman", "/usr/sbin"])


def missing() -> list[str]:
    """What keeps this machine from building and running images, in words."""
    reasons = []
    if sys.platform != "linux" or platform.machine() != "x86_64":
        reasons.append("this is no x86-64 Linux")
    elif os.geteuid() != 0:
        reasons.append("containers are run as root here, and this is not root")
    reasons += [f"no {name}" for name in PROGRAMS if not shutil.which(name)]
    if not reasons and (reason := runs_nothing()):
        reasons.append(reason)
    return reasons


def runs_nothing() -> str | None:
    """Why no container can be started at all, if that is so."""
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "true"],
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        return f"namespaces can't be made: {probe.stderr.strip()}"
    return None


def limits() -> str:
    """No more than this machine's own: to raise them is not every root's right."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # podman lowers its own to this when it starts.
    processes = min(resource.getrlimit(resource.RLIMIT_NPROC)[1], 32768)
    return f'["nofile={files}:{files}", "nproc={processes}:{processes}"]'


class Engine:
    """buildah and podman with a storage of their own: nobody else's images are touched."""

    def __init__(self) -> None:
        STORAGE.mkdir(parents=True, exist_ok=True)
        # The storage remembers it: another one is refused.
        self.place = ["--root", str(STORAGE), "--runroot", str(WORK / "run")]
        settings = WORK / "containers.conf"
        settings.write_text(f"[containers]\ndefault_ulimits = {limits()}\n")
        self.environment = os.environ | {"CONTAINERS_CONF": str(settings)}

    def podman(
        self, *arguments: str, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        engine = ["--cgroup-manager", "cgroupfs", "--runtime", "runc"]
        command = ["podman", *self.place, *engine, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=self.environment
        )
        if check and done.returncode:
            raise NotHere(f"podman {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def has(self, image: str) -> bool:
        return self.podman("image", "exists", image, check=False).returncode == 0

    def build(
        self,
        tag: str,
        context: Path,
        *arguments: str,
        dockerfile: str = "Dockerfile",
        timeout_s: float = 3600,
    ) -> None:
        command = ["buildah", *self.place, "bud", "--isolation", "chroot"]
        # Of the two formats only Docker's has health checks.
        command += ["--platform", "linux/amd64", "--format", "docker", "--layers"]
        command += ["--pull-never", "--tag", tag, *arguments]
        command += ["--file", str(context / dockerfile), str(context)]
        subprocess.run(command, check=True, stdout=sys.stderr, timeout=timeout_s)

    def build_from_tree(self, tag: str, tree: Path, *lines: str) -> None:
        """An image of one layer. It is made anew only if its recipe changes."""
        with tempfile.TemporaryDirectory(dir=WORK) as folder:
            context = Path(folder)
            with tarfile.open(context / "tree.tar", "w") as archive:
                archive.add(tree, arcname=".")
            text = "\n".join(["FROM scratch", "ADD tree.tar /", *lines, ""])
            (context / "Dockerfile").write_text(text)
            self.build(tag, context)


def stamp(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def toolchain() -> Path:
    try:
        asked = subprocess.run(
            ["rustc", "--print", "sysroot"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotHere(f"no Rust toolchain to stand in for the builder's: {error}") from error
    return Path(asked.stdout.strip())


def certificates() -> bytes:
    """Those that this machine trusts: the builder goes to the same registry."""
    for path in (os.environ.get("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt"):
        if path and Path(path).is_file():
            return Path(path).read_bytes()
    raise NotHere("no certificates of authorities: install ca-certificates")


def debootstrap(tree: Path, *packages: str) -> None:
    include = [f"--include={','.join(packages)}"] if packages else []
    command = ["debootstrap", "--variant=minbase", *include, SUITE, str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-5:])
        raise NotHere(f"debootstrap failed: {tail}\n{done.stderr}")
    shutil.rmtree(tree / "var/cache/apt", ignore_errors=True)
    shutil.rmtree(tree / "var/lib/apt/lists", ignore_errors=True)


def stand_in(
    engine: Engine, tag: str, name: str, packages: list[str], fill: Callable[[Path], None], *lines: str
) -> None:
    """An image of what `fill` puts into a tree, and of this machine's certificates. It is made
    anew if it is not there, or was made by another recipe."""
    digest = stamp(name, packages, SUITE)
    note = WORK / f"{tag.replace('/', '_').replace(':', '_')}.made"
    if engine.has(tag) and note.exists() and note.read_text() == digest:
        return
    note.unlink(missing_ok=True)
    say(f"making the stand-in for {name}")
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        tree = Path(folder) / "tree"
        fill(tree)
        bundle = tree / "etc/ssl/certs/ca-certificates.crt"
        bundle.parent.mkdir(parents=True, exist_ok=True)
        bundle.write_bytes(certificates())
        engine.build_from_tree(tag, tree, *lines, "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt")
    note.write_text(digest)


def build_base(engine: Engine) -> None:
    """Stands in for rust:slim: Debian with gcc. The toolchain is mounted when it is used."""
    packages = ["ca-certificates", "gcc", "libc6-dev"]

    def fill(tree: Path) -> None:
        debootstrap(tree, *packages)
        (tree / "usr/local/rust").mkdir()

    stand_in(
        engine, BUILD_BASE, "the builder", packages, fill,
        "ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV CARGO_HOME=/usr/local/cargo CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt",
    )


def unpack(tree: Path, packages: list[str]) -> None:
    """Debian's packages without their scripts, as distroless images are made."""
    tree.mkdir()
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        # The unprivileged user that apt downloads with has no way in here.
        command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *packages]
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr, timeout=600)
        for package in sorted(Path(folder).glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(tree)], check=True)


def runtime_base(engine: Engine) -> None:
    def fill(tree: Path) -> None:
        unpack(tree, RUNTIME_PACKAGES)
        (tree / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/sbin/nologin\n"
            f"nonroot:x:{NONROOT}:{NONROOT}:nonroot:/home/nonroot:/sbin/nologin\n"
        )
        (tree / "etc/group").write_text(f"root:x:0:\nnonroot:x:{NONROOT}:\n")
        (tree / "tmp").mkdir(exist_ok=True)
        (tree / "tmp").chmod(0o1777)

    stand_in(
        engine, RUNTIME_BASE, "the runtime", RUNTIME_PACKAGES, fill,
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        f"USER {NONROOT}", "WORKDIR /home/nonroot",
    )


def build_relay(engine: Engine) -> None:
    """The Dockerfile as it is, on the stand-ins."""
    build_base(engine)
    runtime_base(engine)
    say("building the image (a release build: minutes when it is the first)")
    engine.build(
        IMAGE, ROOT,
        "--build-arg", f"BUILD_IMAGE={BUILD_BASE}",
        "--build-arg", f"RUNTIME_IMAGE={RUNTIME_BASE}",
        "--build-arg", f"VERSION={VERSION}",
        "--volume", f"{toolchain()}:/usr/local/rust:ro",
    )


def python_base(engine: Engine) -> None:
    """Stands in for python:slim and for redis: Debian with both."""
    packages = ["ca-certificates", "python3", "python3-pip", "python-is-python3", "redis-server"]
    stand_in(
        engine, API_BASE, "Python and Redis", packages, lambda tree: debootstrap(tree, *packages),
        # As in python:slim, pip may install for everybody.
        "ENV PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONDONTWRITEBYTECODE=1",
        "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt",
    )


def build_api(engine: Engine) -> None:
    python_base(engine)
    say("building the example API's image")
    context = ROOT / "examples" / "legacy-api"
    engine.build(API_IMAGE, context, "--build-arg", f"PYTHON_IMAGE={API_BASE}")
