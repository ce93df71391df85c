"""Nothing that was answered 202 is lost: kills, clocks and clients that ask twice."""

import hashlib
import os
import signal
import time

import httpx
import numpy as np
import psutil
import pytest
from serving_helpers import CORPUS, LIMIT_S, as_npy, ended, serve
from starlette.exceptions import HTTPException

from altlas_lib.serving import ServeError, Settings
from altlas_lib.serving.jobs import Store

SMALL = CORPUS[:50]
LONG = np.random.default_rng(5).standard_normal((60_000, 96), dtype=np.float32)  # some seconds of computing


def settings(folder, **options) -> Settings:
    folder.mkdir(exist_ok=True)
    (folder / "corpus.npy").touch()
    return Settings(corpus=folder / "corpus.npy", store=folder / "store", **options)


def add(store, content=b"body", key=None, request=None) -> str:
    body = store.incoming / os.urandom(8).hex()
    body.write_bytes(content)
    return store.add(body, hashlib.sha256(content).hexdigest(), request or {"kind": "top_k"}, key)


def release(store):
    """What the kernel does when a server is killed."""
    store._database.close()
    store._held.close()


def start_long_job(client) -> str:
    job = client.post("/v1/jobs?kind=top_k&k=64&method=float32", content=as_npy(LONG)).json()["id"]
    ended(client, job, ("running",))
    return job


def jobs_worker(server) -> psutil.Process:
    """The worker that is nice to the other one."""
    return max(psutil.Process(server.process.pid).children(), key=lambda child: child.nice())


# Kills -----------------------------------------------------------------------------------------------------------------


def test_a_job_that_kills_its_worker_fails_after_three_tries_and_the_others_go_on(tmp_path):
    with serve(tmp_path, "--max-tries", 3) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        deadly = start_long_job(client)
        other = client.post("/v1/jobs?kind=top_k", content=as_npy(SMALL)).json()["id"]
        for tries in (1, 2, 3):
            while (known := client.get(f"/v1/jobs/{deadly}").json())["tries"] < tries or known["state"] == "queued":
                time.sleep(0.02)
            jobs_worker(server).kill()
        known = ended(client, deadly)
        assert (known["state"], known["tries"]) == ("failed", 3)
        assert "SIGKILL" in known["error"]
        assert ended(client, other)["state"] == "done"
        assert 'role="jobs"} 3.0' in client.get("/metrics").text


def test_a_cancelled_job_stops_and_leaves_nothing(tmp_path):
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        running, queued = start_long_job(client), client.post("/v1/jobs?kind=top_k", content=as_npy(SMALL)).json()["id"]
        worker = jobs_worker(server)
        for job in (queued, running):
            assert client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
            assert client.get(f"/v1/jobs/{job}/result").status_code == 410
            assert client.delete(f"/v1/jobs/{job}").status_code == 409
        worker.wait(LIMIT_S)
        assert ended(client, client.post("/v1/jobs?kind=top_k", content=as_npy(CORPUS)).json()["id"])["tries"] == 1
        assert len(list((tmp_path / "store/files").iterdir())) == 1


def test_sigterm_gives_the_running_job_back_and_leaves_no_process(tmp_path):
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        job, processes = start_long_job(client), psutil.Process(server.process.pid).children()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(LIMIT_S)
    assert not psutil.wait_procs(processes, timeout=LIMIT_S)[1]
    store = Store(settings(tmp_path))
    assert (store.find(job).state, store.find(job).tries) == ("queued", 0)


def test_a_request_under_way_is_answered_before_the_server_ends(tmp_path):
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        body = as_npy(SMALL)

        def slowly():
            yield body[:100]
            server.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            yield body[100:]

        job = client.post("/v1/jobs?kind=top_k", content=slowly()).json()["id"]
        server.process.wait(LIMIT_S)
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert ended(client, job)["state"] == "done"


def test_two_servers_on_one_store_are_refused(tmp_path):
    with (
        serve(tmp_path) as server,
        pytest.raises(ServeError, match=r"another server has .*store; end it, or give this one its own --store"),
        serve(tmp_path),
    ):
        pass
    assert server.process.returncode is not None


# The store, without a server -------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_job_and_another_request_is_refused(tmp_path):
    store = Store(settings(tmp_path))
    job = add(store, key="a")
    assert add(store, key="a") == job
    assert add(store, key="b") != job
    assert add(store) != add(store)
    for different in ({"content": b"other"}, {"request": {"kind": "pairs_above"}}):
        with pytest.raises(HTTPException, match="another request") as refused:
            add(store, key="a", **different)
        assert refused.value.status_code == 422
    release(store)
    assert add(Store(settings(tmp_path)), key="a") == job


def test_a_running_job_tells_the_time_left_at_the_rate_so_far(tmp_path):
    store = Store(settings(tmp_path))
    job = add(store)
    assert store.find(job).left_s is None
    store.claim()
    assert store.find(job).left_s is None
    store._execute("UPDATE jobs SET changed_at = changed_at - 30")
    store.progress[job] = 0.75
    assert store.find(job).left_s == pytest.approx(10, abs=1)
    store.move(job, "failed", "gone")
    assert store.find(job).left_s is None
    release(store)


def test_a_bounded_queue_says_when_to_come_again(tmp_path):
    store = Store(settings(tmp_path, max_jobs=2))
    add(store)
    job = add(store, key="known")
    with pytest.raises(HTTPException) as refused:
        add(store)
    assert refused.value.status_code == 429
    assert int(refused.value.headers["Retry-After"]) > 0
    assert add(store, key="known") == job
    store.claim()
    add(store)


def test_what_a_kill_left_behind_is_cleared_away(tmp_path):
    store = Store(settings(tmp_path))
    queued, running = add(store), add(store)
    for name in ("incoming/half", "files/without-a-row.npy", f"files/{queued}.npz"):
        (tmp_path / "store" / name).touch()
    store.claim()
    release(store)
    store = Store(settings(tmp_path))
    files = sorted(path.relative_to(tmp_path / "store").as_posix() for path in (tmp_path / "store").glob("*/*"))
    assert files == sorted(f"files/{job}.npy" for job in (queued, running))
    assert [store.find(job).state for job in (queued, running)] == ["queued", "queued"]
    assert [store.find(job).tries for job in (queued, running)] == [1, 0]


def test_a_job_that_takes_its_server_along_fails_after_max_tries(tmp_path):
    store = Store(settings(tmp_path, max_tries=2))
    job = add(store)
    for state in ("queued", "failed"):
        assert store.claim().id == job
        release(store)
        store = Store(settings(tmp_path, max_tries=2))
        assert store.find(job).state == state
    assert "killed" in store.find(job).error
    assert store.claim() is None


def test_results_expire_and_then_their_jobs(tmp_path, monkeypatch):
    store, now = Store(settings(tmp_path, keep_s=100)), time.time()
    job, waits = add(store), add(store)
    store.claim()
    part = store.incoming / "part.npz"
    part.write_bytes(b"result")
    store.finish(job, part)
    assert store.result(job).read_bytes() == b"result"
    monkeypatch.setattr(time, "time", lambda: now + 200)
    store.tidy()
    assert [path.name for path in store.files.iterdir()] == [f"{waits}.npy"]
    with pytest.raises(HTTPException) as gone:
        store.result(job)
    assert gone.value.status_code == 410
    monkeypatch.setattr(time, "time", lambda: now + 2000)
    store.tidy()
    with pytest.raises(HTTPException) as unknown:
        store.find(job)
    assert unknown.value.status_code == 404
    assert store.find(waits).state == "queued"


def test_a_clock_set_back_changes_neither_order_nor_life(tmp_path, monkeypatch):
    store, now = Store(settings(tmp_path, keep_s=100)), time.time()
    first = add(store)
    monkeypatch.setattr(time, "time", lambda: now - 10**6)
    second = add(store)
    assert [store.claim().id, store.claim().id] == [first, second]
    for job in (first, second):
        part = store.incoming / "part.npz"
        part.touch()
        store.finish(job, part)
    store.measure()
    monkeypatch.setattr(time, "time", lambda: now - 2 * 10**6)
    store.tidy()
    assert [store.find(job).state for job in (first, second)] == ["done", "done"]


def test_a_store_that_cannot_be_written_to_is_a_message(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ServeError, match="give a writable folder on a local disk"):
        Store(settings(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/store").mkdir()
    (tmp_path / "other/store/jobs.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ServeError, match="not a database"):
        Store(settings(tmp_path / "other"))
