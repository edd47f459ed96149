"""A relay with its Redis and an API, all processes or threads of this test."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

HOST = "127.0.0.1"
DEADLINE_S = 20.0
KEYS = Path(__file__).resolve().parents[1] / "keys"
SECRET = "x" * 32
# By its suffix, what a Secret's key holds that is no HMAC secret.
PEM = {".pem": "rsa.pub.pem", ".crt": "p256.crt.pem", ".key": "p256.pem"}
# A Secret's name and key, where the chart mounts it.
MOUNTED = re.compile(r"/run/secrets/relay/([\w-]+)/([\w.-]+)")
CONFIG = """
[server]
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{admin}"
[redis]
url = "redis://127.0.0.1:{redis}/0"
[[auth.key]]
algorithms = ["HS256"]
secret = "an-hmac-secret-of-32-bytes-or-more"
[[auth.key]]
algorithms = ["ES256"]
jwks_url = "http://127.0.0.1:{api}/jwks.json"
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


def mounted(text: str, folder: Path) -> str:
    """A relay.toml of the chart, with Secrets in `folder`: they are not at /run on this machine."""
    for name, key in MOUNTED.findall(text):
        file = folder / name / key
        file.parent.mkdir(exist_ok=True)
        file.write_text((KEYS / PEM[file.suffix]).read_text() if file.suffix in PEM else SECRET)
    return MOUNTED.sub(rf"{folder}/\1/\2", text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def wait_for(what: str, ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S:.0f} s"
        time.sleep(0.02)


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def answers(port: int, path: str) -> bool:
    try:
        return get(port, path)[0] == 200
    except OSError:
        return False


@contextlib.contextmanager
def process(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        started = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            env=os.environ | environment,
        )
    try:
        yield started
    finally:
        # Asked twice, a relay does not drain.
        for _ in range(2):
            started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[redis.Redis]:
    port = free_port()
    command = [os.environ["REDIS_SERVER"], "--bind", HOST, "--port", str(port)]
    command += ["--save", "", "--dir", str(folder)]
    with process(command, folder / "redis.log"):
        client = redis.Redis(HOST, port)

        def pings() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        wait_for("redis", pings)
        yield client


class Api(http.server.ThreadingHTTPServer):
    """Answers every callback with a state, and a cursor that is none; publishes keys."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), Answer)
        self.port = self.server_address[1]

    @classmethod
    @contextlib.contextmanager
    def serving(cls) -> Iterator[Api]:
        api = cls()
        thread = threading.Thread(target=api.serve_forever, daemon=True)
        thread.start()
        try:
            yield api
        finally:
            api.shutdown()
            api.server_close()
            thread.join()


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = (KEYS / "jwks.json").read_bytes() if self.path == "/jwks.json" else b"{}"
        self.send_response(200)
        self.send_header("relay-cursor", "not-a-cursor")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def open_socket(url: str) -> ClientConnection:
    trusted = {"ssl": ssl.create_default_context(cafile=KEYS / PEM[".crt"])} if url.startswith("wss:") else {}
    return connect(url, subprotocols=["relay.v1"], open_timeout=10, **trusted)


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
