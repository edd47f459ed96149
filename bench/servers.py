"""What is measured, and the Redis beside it: processes of ours, on free ports of 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import environment
from environment import ROOT, NotHere, say
from machine import Cpus, child_on

HOST = "127.0.0.1"
HERE = Path(__file__).resolve().parent
BASELINES = HERE / "baselines"
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "bench"
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 5.0
LOOK_EVERY_S = 0.02
CLIENTS_MOST = 10_000


class Failed(Exception):
    """A process did not start, or a load could not be run."""


@dataclass(frozen=True)
class Running:
    """A server, or Redis."""

    pid: int
    port: int


@dataclass(frozen=True)
class Setting:
    """What a load wants of the server."""

    redis_port: int
    cpus: Cpus
    directory: Path
    streams_per_client: int = 1
    hold: str | None = None
    tls: bool = False


@dataclass(frozen=True)
class Server:
    """Something that brings Redis Streams to WebSocket clients."""

    name: str
    start: Callable[[Setting, int], list[str]]
    """The command that serves on a port."""
    environment: Callable[[Setting, int], dict[str, str]] = lambda _setting, _port: {}
    live: str = "/{group}"
    history: str = "/{group}?history"
    is_baseline: bool = True
    """It shows what is in use today: it has to meet nothing."""

    @contextmanager
    def running(self, setting: Setting) -> Iterator[Running]:
        port = free_port()
        command = self.start(setting, port)
        variables = {**os.environ, **self.environment(setting, port)}
        with process(
            self.name, command, setting, setting.cpus.server, variables
        ) as pid:
            await_port(self.name, pid, port)
            yield Running(pid, port)

    def url(self, port: int, setting: Setting, history: bool) -> str:
        scheme = "wss" if setting.tls else "ws"
        return f"{scheme}://{HOST}:{port}{self.history if history else self.live}"


class Binaries:
    """Everything that is built, and in a directory the tokens and the certificate of this run."""

    def __init__(self, directory: Path) -> None:
        manifest = str(HERE / "Cargo.toml")
        build = ["cargo", "build", "--release", "--locked", "--manifest-path", manifest]
        environment.run(
            [*build, "--target-dir", str(TARGET)],
            "the load generator could not be built",
        )
        self.relay = environment.relay_binary()
        self.redis = environment.redis_server()
        self.load = TARGET / "release" / "load"
        self.floor = TARGET / "release" / "floor"
        self.secret = secrets.token_hex(32)
        self.tokens = directory / "tokens"
        self.certificate = directory / "cert.pem"
        self.key = directory / "key.pem"
        self.tokens.write_text(
            "".join(f"{self._token(n)}\n" for n in range(CLIENTS_MOST))
        )
        environment.run(
            [str(TARGET / "release" / "certificate"), str(directory)],
            "there is no certificate",
        )

    def servers(self) -> list[Server]:
        """The relay, the floor, and the baselines whose runtimes are here."""
        relay = Server(
            "relay",
            self._relay,
            live="/ws/{group}",
            history="/history/{group}",
            is_baseline=False,
        )
        floor = Server("floor", self._floor, is_baseline=False)
        return [relay, floor, *_fastapi(), *_node()]

    def _relay(self, setting: Setting, port: int) -> list[str]:
        config = setting.directory / "relay.toml"
        config.write_text(self._config(setting, port))
        return [str(self.relay), "run", "--config", str(config)]

    def _config(self, setting: Setting, port: int) -> str:
        """Defaults, but for what the load needs."""
        streams = json.dumps(
            [f"bench:{{group}}:{index}" for index in range(setting.streams_per_client)]
        )
        lines = [
            "[server]",
            f'listen = "{HOST}:{port}"',
            f'admin_listen = "{HOST}:{free_port()}"',
            "[redis]",
            f'url = "redis://{HOST}:{setting.redis_port}"',
            f'hold = "{setting.hold}"' if setting.hold else "",
            "[[auth.key]]",
            'algorithms = ["HS256"]',
            f'secret = "{self.secret}"',
        ]
        for name, path, history in [
            ("live", "/ws/{group}", "none"),
            ("history", "/history/{group}", "all"),
        ]:
            lines += [
                "[[route]]",
                f'name = "{name}"',
                f'path = "{path}"',
                f"streams = {streams}",
                f'history = "{history}"',
                "[route.message]",
                'field = "data"',
            ]
        if setting.tls:
            lines += [
                "[server.tls]",
                f'cert = "{self.certificate}"',
                f'key = "{self.key}"',
            ]
        return "\n".join(lines) + "\n"

    def _floor(self, setting: Setting, port: int) -> list[str]:
        threads = len(setting.cpus.server)
        return [
            *[
                str(self.floor),
                "--listen",
                f"{HOST}:{port}",
                "--redis",
                f"{HOST}:{setting.redis_port}",
            ],
            *[
                "--streams-per-client",
                str(setting.streams_per_client),
                "--threads",
                str(threads),
            ],
        ]

    @contextmanager
    def redis_running(self, cpus: Cpus, directory: Path) -> Iterator[Running]:
        port = free_port()
        command = [
            *[
                str(self.redis),
                "--port",
                str(port),
                "--bind",
                HOST,
                "--save",
                "",
                "--appendonly",
                "no",
            ],
            *["--maxclients", "15000", "--dir", str(directory)],
        ]
        setting = Setting(port, cpus, directory)
        with process("redis", command, setting, cpus.others, dict(os.environ)) as pid:
            await_port("redis", pid, port)
            yield Running(pid, port)

    def _token(self, number: int) -> str:
        """Each client has its own, as it would have elsewhere."""
        header = {"alg": "HS256", "typ": "JWT"}
        claims = {"sub": f"client-{number}", "exp": int(time.time()) + 24 * 3600}
        signed = ".".join(
            _base64url(json.dumps(part).encode()) for part in (header, claims)
        )
        signature = hmac.new(self.secret.encode(), signed.encode(), hashlib.sha256)
        return f"{signed}.{_base64url(signature.digest())}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _fastapi() -> list[Server]:
    try:
        python = environment.install(BASELINES / "requirements.txt")
    except NotHere as reason:
        say(f"skipped: FastAPI ({reason})")
        return []

    def start(_setting: Setting, port: int) -> list[str]:
        return [
            *[
                str(python),
                "-m",
                "uvicorn",
                "fastapi_streams:app",
                "--app-dir",
                str(BASELINES),
            ],
            *[
                "--host",
                HOST,
                "--port",
                str(port),
                "--backlog",
                "4096",
                "--log-level",
                "warning",
            ],
        ]

    def variables(readers: str) -> Callable[[Setting, int], dict[str, str]]:
        return lambda setting, _port: {
            "READERS": readers,
            "REDIS_URL": f"redis://{HOST}:{setting.redis_port}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    return [
        Server("fastapi-shared", start, variables("stream")),
        Server("fastapi-each", start, variables("connection")),
    ]


def _node() -> list[Server]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        say("skipped: Node (node and npm are not on PATH)")
        return []
    modules = TARGET / "node"
    modules.mkdir(parents=True, exist_ok=True)
    shutil.copy(BASELINES / "package.json", modules)
    try:
        install = [
            npm,
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--no-package-lock",
        ]
        install += ["--prefix", str(modules)]
        environment.run(install, "its packages could not be installed")
    except NotHere as reason:
        say(f"skipped: Node ({reason})")
        return []

    def start(_setting: Setting, _port: int) -> list[str]:
        return [node, str(BASELINES / "node_streams.js")]

    def variables(setting: Setting, port: int) -> dict[str, str]:
        return {
            "NODE_PATH": str(modules / "node_modules"),
            "PORT": str(port),
            "REDIS_PORT": str(setting.redis_port),
        }

    return [Server("node", start, variables)]


@contextmanager
def process(
    name: str,
    command: list[str],
    setting: Setting,
    cpus: frozenset[int],
    variables: dict[str, str],
) -> Iterator[int]:
    log_path = setting.directory / f"{name}.log"
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            command,
            cwd=setting.directory,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=child_on(cpus),
        )
    try:
        yield child.pid
        if child.poll() is not None:
            end = log_path.read_text(errors="replace")[-500:]
            raise Failed(
                f"{name} ended with status {child.returncode} while it was measured: {end}"
            )
    finally:
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    # A relay drains when it is asked once, and cuts when asked twice.
    for _ in range(2):
        child.terminate()
        time.sleep(LOOK_EVERY_S)
    try:
        child.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def await_port(name: str, pid: int, port: int) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, port), 1).close()
            return
        except OSError:
            time.sleep(LOOK_EVERY_S)
    raise Failed(f"{name} (process {pid}) does not listen on port {port}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
