"""The example, running: a Redis, the jobs API and the relay, each a process of ours.

    with Stack(redis_server, relay, python) as stack:
        job = stack.create_job(stack.login())

Inside the block all three answer. After it none of them is left.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from environment import ROOT

HOST = "127.0.0.1"
EXAMPLE = ROOT / "examples" / "legacy-api"
START_DEADLINE_S = 30.0
PROBE_TIMEOUT_S = 1.0
PROBE_EVERY_S = 0.05
# A relay drains for many seconds when it is asked once, and cuts when asked twice.
PATIENCE_S = 1.0
KILL_AFTER_S = 5.0
LOG_LINES = 25


class Failed(Exception):
    """A part did not start, or died. The message has the end of its log."""


class Interrupted(Exception):
    """The caller's `stop` was set while a part was starting."""


@dataclass(frozen=True)
class Part:
    name: str
    process: subprocess.Popen[str]
    log: Path

    def failure(self, what: str) -> Failed:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        shown = "\n".join(f"    {line}" for line in lines) or "    (empty)"
        return Failed(f"{self.name} {what}. The end of its log:\n{shown}")


class Stack:
    def __init__(
        self,
        redis_server: Path,
        relay: Path,
        python: Path,
        stop: threading.Event | None = None,
    ) -> None:
        self.relay = relay
        self._redis_server = redis_server
        self._python = python
        self._stop = stop or threading.Event()
        self._parts: list[Part] = []
        self._directory = Path(tempfile.mkdtemp(prefix="relay-demo-"))
        # The well-known ports first: an address that stays the same is a kindness.
        self.api_port = free_port(8000)
        self.relay_port = free_port(8081)
        self.admin_port = free_port(9091)
        self.redis_port = free_port()
        self._environment = {
            **os.environ,
            "JWT_SECRET": secrets.token_hex(32),
            "REDIS_URL": f"redis://{HOST}:{self.redis_port}/0",
            "API_PORT": str(self.api_port),
            "RELAY_PORT": str(self.relay_port),
            "RELAY_ADMIN_PORT": str(self.admin_port),
            "RELAY_PUBLIC_URL": f"ws://{HOST}:{self.relay_port}",
            "DATA_DIR": str(self._directory),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def page(self) -> str:
        return f"http://{HOST}:{self.api_port}/"

    def job_url(self, job: str) -> str:
        return f"ws://{HOST}:{self.relay_port}/ws/jobs/{job}"

    def __enter__(self) -> Self:
        try:
            self._start_redis()
            self._start_api()
            self._start_relay()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the parts, the newest first, so that none sees the one below it vanish."""
        while self._parts:
            self.end(self._parts[-1])
        shutil.rmtree(self._directory, ignore_errors=True)

    def check(self) -> None:
        """Raises if a part has died."""
        for part in self._parts:
            if (code := part.process.poll()) is not None:
                raise part.failure(f"ended by itself ({ending(code)})")

    def crash_relay(self) -> None:
        """Kills the relay, so that it says no goodbye, and starts another."""
        part = next(part for part in self._parts if part.name == "relay")
        self._parts.remove(part)
        part.process.kill()
        part.process.wait()
        self._start_relay()

    # --- The API, as a client of it ---

    def login(self) -> str:
        return self._ask("POST", "/login", body={"username": "demo"})["token"]

    def create_job(self, token: str) -> str:
        return self._ask("POST", "/jobs", token=token)["id"]

    def _ask(
        self,
        method: str,
        path: str,
        token: str | None = None,
        body: dict[str, str] | None = None,
    ) -> Any:
        headers = {"content-type": "application/json"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        text = json.dumps(body) if body else None
        try:
            status, answer = request(self.api_port, method, path, text, headers)
        except (OSError, http.client.HTTPException) as error:
            self.check()
            raise Failed(f"the API did not answer {method} {path}: {error}") from error
        if status >= 400:
            raise Failed(f"the API answered {method} {path} with {status}")
        return json.loads(answer)

    # --- The parts ---

    def _start_redis(self) -> None:
        command = [
            *(str(self._redis_server), "--bind", HOST, "--port", str(self.redis_port)),
            *("--save", "", "--appendonly", "no", "--dir", str(self._directory)),
        ]
        part = self.start("redis", command)
        self._wait(part, lambda: pings(self.redis_port))

    def _start_api(self) -> None:
        command = [
            *(str(self._python), "-m", "uvicorn", "app:app"),
            *("--app-dir", str(EXAMPLE), "--host", HOST, "--port", str(self.api_port)),
            *("--timeout-graceful-shutdown", "2"),
        ]
        part = self.start("api", command)
        self._wait(part, lambda: says_ok(self.api_port, "/healthz"))

    def _start_relay(self) -> None:
        config = (EXAMPLE / "relay.toml").relative_to(ROOT)
        part = self.start("relay", [str(self.relay), "run", "--config", str(config)])
        self._wait(part, lambda: says_ok(self.admin_port, "/readyz"))

    def start(
        self, name: str, command: list[str], pipe: bool = False, **environment: str
    ) -> Part:
        """With `pipe`, the caller reads stdout; all else goes to the part's log."""
        path = self._directory / f"{name.replace(' ', '-')}.log"
        with path.open("w") as log:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=self._environment | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipe else log,
                    stderr=log,
                    text=True,
                    # Ctrl-C in the terminal is for us alone: we end the parts in order.
                    start_new_session=True,
                )
            except OSError as error:
                raise Failed(f"{name} could not be started: {error}") from error
        part = Part(name, process, path)
        self._parts.append(part)
        return part

    def _wait(self, part: Part, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not ready():
            if (code := part.process.poll()) is not None:
                raise part.failure(f"did not start ({ending(code)})")
            if time.monotonic() > deadline:
                raise part.failure(f"was not ready within {START_DEADLINE_S:.0f} s")
            if self._stop.wait(PROBE_EVERY_S):
                raise Interrupted
        # Another program may have taken the port and answered in its place.
        self.check()

    def end(self, part: Part) -> None:
        """Asks, asks again, then kills."""
        self._parts.remove(part)
        for wait_s in (PATIENCE_S, KILL_AFTER_S - PATIENCE_S):
            part.process.terminate()
            try:
                part.process.wait(wait_s)
                return
            except subprocess.TimeoutExpired:
                continue
        part.process.kill()
        part.process.wait()


# --- Questions to a port ---


def free_port(preferred: int = 0) -> int:
    if preferred and is_taken(preferred):
        preferred = 0
    with socket.socket() as probe:
        # A port whose last connections still linger is free all the same.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, preferred))
        except OSError:
            return free_port()
        return probe.getsockname()[1]


def is_taken(port: int) -> bool:
    # macOS lets us bind beside a listener on all addresses, so ask for an answer too.
    with socket.socket() as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        return probe.connect_ex((HOST, port)) == 0


def pings(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), PROBE_TIMEOUT_S) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def says_ok(port: int, path: str) -> bool:
    try:
        return request(port, "GET", path)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def request(
    port: int,
    method: str,
    path: str,
    body: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    # http.client, because urllib would ask a proxy from the environment.
    connection = http.client.HTTPConnection(HOST, port, timeout=PROBE_TIMEOUT_S * 5)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"
