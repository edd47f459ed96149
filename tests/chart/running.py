"""A relay with its Redis and an API, all processes or threads of this test."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

HOST = "127.0.0.1"
DEADLINE_S = 20.0


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
    """Answers every callback with a state, and a cursor that is none."""

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
        self.send_response(200)
        self.send_header("relay-cursor", "not-a-cursor")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass
