"""A small jobs API, as a team has it before relay comes.

It has its own database and its own tokens. What it does for live updates is
`publish`, and one endpoint, `job_state`, which relay asks where a client starts.

    JWT_SECRET=… REDIS_URL=… uvicorn app:app --app-dir examples/legacy-api
"""

import json
import logging
import os
import random
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import jwt
import redis
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field

JWT_SECRET = os.environ.get("JWT_SECRET", "")
REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
RELAY_PUBLIC_URL = os.environ.get("RELAY_PUBLIC_URL", "ws://127.0.0.1:8081")
DATA_DIR = Path(
    os.environ.get("DATA_DIR", Path(tempfile.gettempdir()) / "legacy-api-data")
)
DATABASE = DATA_DIR / "jobs.sqlite3"
PAGE = Path(__file__).parent / "static" / "index.html"

TOKEN_LIFETIME_S = 3600
STREAM_LIFETIME_S = 3600
STEP_S = 0.35
TITLES = ["Nightly export", "Resize images", "Rebuild index", "Send invoices"]

if len(JWT_SECRET.encode()) < 32:
    raise SystemExit("JWT_SECRET must have at least 32 bytes")

log = logging.getLogger("uvicorn.error")
streams = redis.Redis.from_url(REDIS_URL, decode_responses=True, socket_timeout=2)


# --- Publishing: all that relay needs from this API ---------------------------


def publish(job: sqlite3.Row) -> str:
    """Add the job's state to its stream; the id says up to where that state goes."""
    key = f"job:{job['id']}:updates"
    entry = {"data": json.dumps(state_of(job))}
    entry_id = streams.xadd(key, entry, maxlen=1000, approximate=True)
    if job["state"] == "done":
        streams.expire(key, STREAM_LIFETIME_S)
    return entry_id


def state_of(job: sqlite3.Row) -> dict[str, Any]:
    """One shape for entries and snapshots, so that a client needs one way to show it."""
    return {
        "seq": job["seq"],  # +1 each entry: lets the page prove that none is missing
        "progress": job["progress"],
        "state": job["state"],
    }


# --- The database -------------------------------------------------------------


@contextmanager
def transaction() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(DATABASE, timeout=5)
    db.row_factory = sqlite3.Row
    try:
        with db:  # commits, or rolls back on an error
            yield db
    finally:
        db.close()


def create_tables() -> None:
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    with transaction() as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(
            """CREATE TABLE IF NOT EXISTS jobs (
                 id TEXT PRIMARY KEY,
                 owner TEXT NOT NULL,
                 title TEXT NOT NULL,
                 progress INTEGER NOT NULL DEFAULT 0,
                 state TEXT NOT NULL DEFAULT 'running',
                 seq INTEGER NOT NULL DEFAULT 1,
                 cursor TEXT)"""
        )


def create_job(owner: str) -> str:
    job_id = uuid.uuid4().hex[:8]
    with transaction() as db:
        job = db.execute(
            "INSERT INTO jobs (id, owner, title) VALUES (?, ?, ?) RETURNING *",
            (job_id, owner, random.choice(TITLES)),
        ).fetchone()
        publish_and_note(db, job)
    return job_id


def advance(job_id: str) -> None:
    with transaction() as db:
        job = db.execute(
            """UPDATE jobs SET seq = seq + 1,
                 progress = min(100, progress + :step),
                 state = iif(progress + :step >= 100, 'done', 'running')
               WHERE id = :id RETURNING *""",
            {"id": job_id, "step": random.randint(1, 4)},
        ).fetchone()
        publish_and_note(db, job)


def publish_and_note(db: sqlite3.Connection, job: sqlite3.Row) -> None:
    # State and id are committed together: whoever reads the row gets a state and
    # the id of the very last entry in it, though the entry itself is out before.
    db.execute("UPDATE jobs SET cursor = ? WHERE id = ?", (publish(job), job["id"]))


# --- The worker ---------------------------------------------------------------


def work(stopping: threading.Event) -> None:
    """Advances every running job, those of an earlier run too."""
    while not stopping.wait(STEP_S):
        try:
            with transaction() as db:
                running = db.execute("SELECT id FROM jobs WHERE state = 'running'")
                ids = [row["id"] for row in running]
            for job_id in ids:
                advance(job_id)
        except (redis.RedisError, sqlite3.OperationalError) as error:
            # The step was rolled back; the next round tries it again.
            log.warning("jobs are waiting: %s", error)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    create_tables()
    stopping = threading.Event()
    worker = threading.Thread(target=work, args=(stopping,), name="worker", daemon=True)
    worker.start()
    yield
    stopping.set()
    worker.join(timeout=5)


app = FastAPI(title="Jobs", lifespan=lifespan)


# --- Who is asking ------------------------------------------------------------


def subject_of(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        raise HTTPException(401, "a bearer token is needed")
    try:
        claims = jwt.decode(
            token, JWT_SECRET, ["HS256"], options={"require": ["sub", "exp"]}
        )
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, "the token is not valid") from error
    return claims["sub"]


def caller(authorization: Annotated[str | None, Header()] = None) -> str:
    return subject_of(authorization)


def relayed_caller(
    request: Request,
    authorization: Annotated[str | None, Header()] = None,
    x_relay_subject: Annotated[str | None, Header()] = None,
) -> str:
    """Who it is that relay asks for.

    Relay forwards the client's `authorization` header. A browser can't send one
    with a WebSocket: its token comes as a subprotocol, relay verifies it and says
    whose it is in `x-relay-subject`. Anybody could write that header, so this
    endpoint answers to the pod alone: the API's ingress must not route /internal.
    """
    if request.client is None or not ip_address(request.client.host).is_loopback:
        raise HTTPException(404)
    if authorization is None and x_relay_subject:
        return x_relay_subject
    return subject_of(authorization)


Caller = Annotated[str, Depends(caller)]
RelayedCaller = Annotated[str, Depends(relayed_caller)]


# --- Endpoints ----------------------------------------------------------------


class Login(BaseModel):
    username: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")


@app.post("/login")
def login(body: Login) -> dict[str, str]:
    """No password: this is a demo."""
    now = int(time.time())
    claims = {"sub": body.username, "iat": now, "exp": now + TOKEN_LIFETIME_S}
    return {"token": jwt.encode(claims, JWT_SECRET, "HS256")}


@app.get("/jobs")
def list_jobs(owner: Caller) -> list[dict[str, Any]]:
    """The caller's newest jobs, newest first."""
    with transaction() as db:
        rows = db.execute(
            "SELECT * FROM jobs WHERE owner = ? ORDER BY rowid DESC LIMIT 50", (owner,)
        ).fetchall()
    return [{"id": row["id"], "title": row["title"]} | state_of(row) for row in rows]


@app.post("/jobs", status_code=201)
def start_job(owner: Caller) -> dict[str, str]:
    return {"id": create_job(owner)}


@app.get("/internal/jobs/{job_id}/state")
def job_state(job_id: str, subject: RelayedCaller) -> JSONResponse:
    """The snapshot. `relay-cursor`: the last entry that is in it already."""
    with transaction() as db:
        job = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if job is None:
        raise HTTPException(404, "no such job")
    if job["owner"] != subject:
        raise HTTPException(403, "somebody else's job")
    return JSONResponse(state_of(job), headers={"relay-cursor": job["cursor"]})


@app.get("/config")
def config() -> dict[str, str]:
    return {"relay": RELAY_PUBLIC_URL}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/")
def page() -> FileResponse:
    return FileResponse(PAGE)
