"""What is often built with FastAPI and redis-py.

READERS=connection: each WebSocket connection has its own XREAD BLOCK.
READERS=stream: the connections of a stream share one, and each entry is encoded once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio as redis
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

SHARED = os.environ["READERS"] == "stream"
BLOCK_MS = 5000
# Each blocked XREAD holds a connection, and must not time out before BLOCK does.
client = redis.from_url(
    os.environ["REDIS_URL"], max_connections=20_000, socket_timeout=30
)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
    await client.aclose()


app = FastAPI(lifespan=lifespan)


def message(entry_id: bytes, fields: dict[bytes, bytes]) -> str:
    return f'{{"id":"{entry_id.decode()}","data":{fields[b"data"].decode()}}}'


async def entries(key: str, after: bytes) -> AsyncIterator[tuple[bytes, str]]:
    while True:
        reply = await client.xread({key: after}, count=100, block=BLOCK_MS)
        for _, added in reply or []:
            for after, fields in added:
                yield after, message(after, fields)


async def tail(key: str) -> bytes:
    newest = await client.xrevrange(key, count=1)
    return newest[0][0] if newest else b"0-0"


class Stream:
    """One stream and its connections."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.sockets: set[WebSocket] = set()
        self.reader = asyncio.create_task(self.read())

    async def read(self) -> None:
        async for _, text in entries(self.key, await tail(self.key)):
            for socket in list(self.sockets):
                try:
                    await socket.send_text(text)
                except (WebSocketDisconnect, RuntimeError):
                    self.sockets.discard(socket)


streams: dict[str, Stream] = {}


@app.websocket("/{group}")
async def connect(socket: WebSocket, group: str, history: str | None = None) -> None:
    await socket.accept()
    key = f"bench:{group}:0"
    # A history has to be cut from what is live, so its connection reads for itself.
    if SHARED and history is None:
        await share(socket, key)
    else:
        await read_alone(
            socket, key, b"0-0" if history is not None else await tail(key)
        )


async def share(socket: WebSocket, key: str) -> None:
    stream = streams.get(key) or streams.setdefault(key, Stream(key))
    stream.sockets.add(socket)
    await gone(socket)
    stream.sockets.discard(socket)
    if not stream.sockets and streams.get(key) is stream:
        del streams[key]
        stream.reader.cancel()


async def read_alone(socket: WebSocket, key: str, after: bytes) -> None:
    async def send() -> None:
        async for _, text in entries(key, after):
            await socket.send_text(text)

    sending = asyncio.create_task(send())
    await gone(socket)
    sending.cancel()


async def gone(socket: WebSocket) -> None:
    try:
        while True:
            await socket.receive_text()
    except (WebSocketDisconnect, RuntimeError, KeyError):
        return
