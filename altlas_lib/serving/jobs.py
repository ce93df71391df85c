"""Jobs that survive every kill: files and a SQLite database in one folder, and a thread per device that has them computed.

A job is accepted in this order: its body is complete on the disk, then its row is. So there is no row without a body, and what
has been accepted is found again. The result takes the same way back. Only one server at a time may have the folder.
"""

import json
import os
import sqlite3
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ..paths import lock_exclusively
from .settings import ServeError, Settings
from .watch import JOB_SECONDS, JOBS, LOG, OLDEST_JOB, REFUSED
from .worker import Worker, WorkerDied

_TABLE = """CREATE TABLE IF NOT EXISTS jobs (number INTEGER PRIMARY KEY, id TEXT UNIQUE, key TEXT UNIQUE, digest TEXT,
    request TEXT, state TEXT DEFAULT 'queued', tries INTEGER DEFAULT 0, error TEXT, accepted_at REAL, changed_at REAL)"""
_INSERT = "INSERT INTO jobs (id, key, digest, request, accepted_at, changed_at) VALUES (?, ?, ?, ?, ?, ?)"
_FIRST = "SELECT id FROM jobs WHERE state = 'queued' ORDER BY number LIMIT 1"
_MOVE = "UPDATE jobs SET state = ?, tries = tries + ?, error = ?, changed_at = ? WHERE id = ? AND state IN (?, ?) RETURNING id"
_EXPIRE = "UPDATE jobs SET state = 'expired' WHERE state IN ('done', 'failed', 'cancelled') AND changed_at < ?"
_FORGET = "DELETE FROM jobs WHERE state = 'expired' AND changed_at < ?"
_FILE_OF = {"queued": ".npy", "running": ".npy", "done": ".npz"}  # of other states nothing is kept
_LOOK_S, _PAUSE_S, _TIDY_S = 0.1, 5, 60


class Job(BaseModel):
    """What is known of a job; times are seconds since 1970, `progress` a share of its work.

    `left_s` are the seconds that the rest takes at the rate so far; None where there is none yet.
    """

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "expired"]
    tries: int
    error: str | None
    progress: float
    left_s: float | None
    accepted_at: float
    changed_at: float
    request: dict[str, Any]


class Store:
    """The jobs on the disk. Every method may be called from any thread.

    Raises:
        ServeError: another server has the folder, or it cannot be written to.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._lock = settings, threading.RLock()
        self.incoming, self.files = settings.store / "incoming", settings.store / "files"
        self.progress: dict[str, float] = {}
        try:
            for folder in (self.incoming, self.files):
                folder.mkdir(parents=True, exist_ok=True)
            self._held = open(settings.store / "lock", "w")  # noqa: SIM115 (held as long as the server lives)
            lock_exclusively(self._held)
            self._database = sqlite3.connect(settings.store / "jobs.sqlite", check_same_thread=False, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", _TABLE):
                self._database.execute(statement)
            for part in self.incoming.iterdir():
                part.unlink()
        except BlockingIOError:
            raise ServeError(f"another server has {settings.store}; end it, or give this one its own --store") from None
        except (OSError, sqlite3.Error) as error:
            raise ServeError(f"--store {settings.store}: {error}; give a writable folder on a local disk") from None
        for row in self._execute("SELECT id FROM jobs WHERE state = 'running'"):
            self.try_again(row["id"], "the server was killed while it ran")
        self.tidy()

    def _execute(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def refuse_if_full(self) -> None:
        """Raises HTTPException 429 where `max_jobs` are queued."""
        (row,) = self._execute("SELECT count(*) FROM jobs WHERE state = 'queued'")
        if row[0] >= self._settings.max_jobs:
            REFUSED.labels("jobs").inc()
            raise HTTPException(429, f"{row[0]} jobs are queued; try again", {"Retry-After": "10"})

    def add(self, body: Path, digest: str, request: dict[str, Any], key: str | None) -> str:
        """Accept a job whose body lies in `incoming`; returns its id, that of an earlier job where `key` is the same.

        Raises:
            HTTPException: 422 if the key belongs to another request, 429 if the queue is full, 507 if the disk is.
        """
        job, described = uuid.uuid4().hex, json.dumps(request, sort_keys=True)
        with self._lock:
            for row in self._execute("SELECT id, digest, request FROM jobs WHERE key = ?", key):
                if (row["digest"], row["request"]) != (digest, described):
                    raise HTTPException(422, "this Idempotency-Key belongs to another request; use a new one for each job")
                return row["id"]
            self.refuse_if_full()
            place = self.files / f"{job}.npy"
            try:
                _move_durably(body, place)
                self._execute(_INSERT, job, key, digest, described, time.time(), time.time())
            except (OSError, sqlite3.Error) as error:
                place.unlink(missing_ok=True)
                raise HTTPException(507, f"the job cannot be stored: {error}") from None
        return job

    def find(self, job: str) -> Job:
        """Raises HTTPException 404."""
        for row in self._execute("SELECT * FROM jobs WHERE id = ?", job):
            share = 1 if row["state"] == "done" else self.progress.get(job, 0)
            left_s = (time.time() - row["changed_at"]) * (1 - share) / share if row["state"] == "running" and share else None
            return Job(**dict(row) | {"request": json.loads(row["request"]), "progress": share, "left_s": left_s})
        raise HTTPException(404, f"no job {job!r}")

    def result(self, job: str) -> Path:
        """The .npz file of a job's result. Raises HTTPException: 404, 409 if there is none, 410 if it has been removed."""
        known = self.find(job)
        if known.state != "done":
            why = f": {known.error}" if known.error else ""
            raise HTTPException(410 if known.state in ("cancelled", "expired") else 409, f"the job is {known.state}{why}")
        return self.files / f"{job}.npz"

    def move(self, job: str, state: str, error: str | None = None, *, before: str = "running", tries: int = 0) -> bool:
        """Bring a job that is `running`, or else in the state `before`, into another state; whether it was."""
        moved = self._execute(_MOVE, state, tries, error, time.time(), job, "running", before)
        self.tidy()
        return bool(moved)

    def cancel(self, job: str) -> Job:
        """Raises HTTPException: 404, 409 if it has ended."""
        if not self.move(job, "cancelled", before="queued"):
            raise HTTPException(409, f"the job is {self.find(job).state}")
        return self.find(job)

    def claim(self) -> Job | None:
        """The job that has waited longest, now running; None if none waits."""
        with self._lock:
            for row in self._execute(_FIRST):
                self._execute(_MOVE, "running", 1, None, time.time(), row["id"], "queued", "queued")
                return self.find(row["id"])
        return None

    def finish(self, job: str, part: Path) -> None:
        with self._lock:
            _move_durably(part, self.files / f"{job}.npz")
            self.move(job, "done")

    def try_again(self, job: str, error: str) -> None:
        """After the death of its worker or server: queue the job again, or let it fail after `max_tries`."""
        self.move(job, "queued" if self.find(job).tries < self._settings.max_tries else "failed", error)

    def tidy(self) -> None:
        """Let results expire, forget what is older still, and remove the files that no job needs."""
        with self._lock:
            oldest = time.time() - self._settings.keep_s
            self._execute(_EXPIRE, oldest)
            self._execute(_FORGET, oldest - 9 * self._settings.keep_s)
            needed = {row["id"] + _FILE_OF.get(row["state"], "") for row in self._execute("SELECT id, state FROM jobs")}
            for file in self.files.iterdir():
                if file.name not in needed:
                    file.unlink(missing_ok=True)

    def measure(self) -> None:
        """Set the metrics of jobs."""
        query = "SELECT state, count(*), min(changed_at) FROM jobs GROUP BY state"
        found = {state: (n, since) for state, n, since in self._execute(query)}
        for state in get_args(Job.model_fields["state"].annotation):
            n, since = found.get(state, (0, time.time()))
            JOBS.labels(state).set(n)
            if state in ("queued", "running"):
                OLDEST_JOB.labels(state).set(max(0, time.time() - since))


def _move_durably(source: Path, target: Path) -> None:
    """Rename a file so that, once this returns, no power cut undoes it."""
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Runner(threading.Thread):
    """Has the jobs computed by the worker of one device, one after the other."""

    def __init__(self, store: Store, worker: Worker, settings: Settings) -> None:
        super().__init__(name=f"jobs-{worker.device}", daemon=True)
        self._store, self._worker, self._time_limit_s = store, worker, settings.job_time_limit_s
        self.stopping = threading.Event()

    def run(self) -> None:
        held, tidied = None, time.monotonic()
        while not self.stopping.is_set():
            try:
                if held:
                    self._store.move(held.id, "queued", tries=-1)
                held = self._store.claim()
                if held:
                    self._compute(held)
                elif time.monotonic() - tidied > _TIDY_S:
                    self._store.tidy()
                    tidied = time.monotonic()
                else:
                    self.stopping.wait(_LOOK_S)
                held = None
            except Exception as error:  # the disk is full, say: what is held is done again, and that is no try
                LOG.error(f"the store of the jobs: {error}", exc_info=not isinstance(error, OSError | sqlite3.Error))
                self.stopping.wait(_PAUSE_S)
                self._worker.restart(self.stopping)
        self._worker.stop()

    def _compute(self, job: Job) -> None:
        """Bring a job to an end, or back to its queue. Raises OSError or sqlite3.Error where its result cannot be stored."""
        part, started = self._store.incoming / f"{job.id}.npz", time.monotonic()

        def report(share: float) -> bool:
            self._store.progress[job.id] = share
            return not self.stopping.is_set() and self._store.find(job.id).state == "running"

        try:
            message = job.request | {"body": self._store.files / f"{job.id}.npy", "result": part}
            found = self._worker.ask(message, self._time_limit_s, report)
            if found.get("disk_full"):
                raise OSError(found["error"])
            if "error" in found:
                self._store.move(job.id, "failed", found["error"])
            else:
                self._store.finish(job.id, part)
                JOB_SECONDS.labels(job.request["kind"]).observe(time.monotonic() - started)
        except WorkerDied as error:
            if self.stopping.is_set():
                self._store.move(job.id, "queued", tries=-1)
            else:
                self._store.try_again(job.id, f"its worker ended: {error}; a job may take {self._time_limit_s:g} s")
            self._worker.restart(self.stopping)
        finally:
            self._store.progress.pop(job.id, None)
