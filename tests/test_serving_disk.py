"""A full disk: what is refused, and what waits."""

import io
import os
import subprocess
import time

import httpx
import numpy as np
import pytest
from serving_helpers import CORPUS, as_npy, ended

from altlas_lib import similarity
from altlas_lib.serving import running_server


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk]).returncode:
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_refuses_and_accepts_nothing_by_half(full_disk, tmp_path):
    np.save(tmp_path / "corpus.npy", CORPUS)
    options = ("--corpus", tmp_path / "corpus.npy", "--store", full_disk / "store")
    with running_server(tmp_path / "log", *options) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        refused = client.post("/v1/jobs?kind=top_k", content=as_npy(np.ones((20_000, 64), np.float32)))
        assert refused.status_code == 507
        assert "No space left" in refused.json()["error"]
        assert not list((full_disk / "store/incoming").iterdir()) + list((full_disk / "store/files").iterdir())
        accepted = client.post("/v1/jobs?kind=top_k", content=as_npy(CORPUS[:50]))
        assert ended(client, accepted.json()["id"])["state"] == "done"
        states = [line for line in client.get("/metrics").text.splitlines() if line.startswith("altlas_jobs{")]
        assert sum(float(line.split()[-1]) for line in states) == 1


def test_a_result_that_finds_no_room_waits_for_it(full_disk, tmp_path):
    """The disk is no fault of the job's: it does not fail, nor lose a try."""
    np.save(tmp_path / "corpus.npy", CORPUS)
    options = ("--corpus", tmp_path / "corpus.npy", "--store", full_disk / "store")
    with running_server(tmp_path / "log", *options) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        job = client.post("/v1/jobs?kind=top_k&k=400", content=as_npy(CORPUS)).json()["id"]  # 2.4 MB of result
        assert ended(client, job)["state"] == "done"
        job = client.post("/v1/jobs?kind=top_k&k=400", content=as_npy(CORPUS)).json()["id"]
        while "No space left" not in server.log.read_text():
            time.sleep(0.05)
        assert client.get(f"/v1/jobs/{job}").json()["state"] in ("queued", "running")
        for file in (full_disk / "store/files").glob("*.npz"):
            file.unlink()
        known = ended(client, job)
        assert (known["state"], known["tries"]) == ("done", 1)
        with np.load(io.BytesIO(client.get(f"/v1/jobs/{job}/result").content)) as result:
            np.testing.assert_array_equal(result["indices"], similarity.top_k(CORPUS, 400).indices)
