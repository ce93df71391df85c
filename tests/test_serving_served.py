"""What the workers compute, without a server: on a GPU's stand-in, on a Dask cluster, and the benchmark of it all."""

import json
import os
import queue
import subprocess
import sys

import gpu_stand_in
import numpy as np
import pytest
from serving_helpers import CORPUS, write_model

from altlas_lib import devices, inference, paths, served, similarity
from altlas_lib.serving import Settings
from altlas_lib.serving.batching import Dispatcher, Waiting


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request, monkeypatch):
    if request.param == "stand-in":
        monkeypatch.setattr(gpu_stand_in.StandInArray, "memory", gpu_stand_in.Memory(2**30))
        monkeypatch.setitem(sys.modules, "cupy", gpu_stand_in.stand_in_cupy(2**30))
    devices.has_gpu.cache_clear()
    yield
    devices.has_gpu.cache_clear()


def test_on_a_gpu_the_corpus_stays_there_and_answers_come_back(cupy, tmp_path):
    np.save(tmp_path / "corpus.npy", CORPUS)
    model = served.SimilarityModel(tmp_path / "corpus.npy", "gpu")
    found = model({"queries": CORPUS[:20]}, 3)
    expected = similarity.top_k(CORPUS[:20], 3, Y=CORPUS, device="cpu")
    assert all(isinstance(array, np.ndarray) for array in found.values())
    np.testing.assert_array_equal(found["indices"], expected.indices)
    np.testing.assert_allclose(found["scores"], expected.scores, rtol=0, atol=1e-6)


def test_a_job_on_a_cluster_gives_the_same_answer_and_tells_its_progress(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(os, "nice", lambda by: None)  # it is this process
    shares, np_file, result = [], tmp_path / "body.npy", tmp_path / "result.npz"
    np.save(np_file, CORPUS)
    asked = {"kind": "top_k", "k": 4, "threshold": 0.9, "device": "cpu", "method": "auto", "body": np_file, "result": result}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        _, compute = served.load("jobs", "cpu", {"corpus": None, "models": [], "dask": cluster.scheduler_address})
        compute(asked, shares.append)
        distributed.default_client().close()
    with np.load(result) as found:
        expected = similarity.top_k(CORPUS, 4)
        np.testing.assert_array_equal(found["indices"], expected.indices)
        np.testing.assert_array_equal(found["scores"], expected.scores)
    assert shares
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_benchmark_runs_and_its_record_says_what_it_measured(tmp_path):
    options = [
        "--rows",
        "200",
        "--dimensions",
        "16",
        "--rounds",
        "1",
        "--soak-minutes",
        "0.02",
        "--output",
        tmp_path / "record.json",
    ]
    command = [sys.executable, "-m", "benchmarks.serving", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.project_root(), timeout=250)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["soak_requests"] >= 200
    for name in ("batching_gain", "overhead", "binary_gain"):
        assert record[name]["value"] > 0
        assert record[name]["basis"] == "measured"


def test_a_model_for_a_gpu_is_not_computed_on_the_cpu_in_silence(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime computes on GPUs")
    file = write_model(tmp_path / "doubler.onnx")
    assert served.OnnxModel(file, "cpu").metadata["platform"] == "onnxruntime_cpu"
    with pytest.raises(inference.InferenceError, match="fell back to CPUExecutionProvider: pip install onnxruntime-gpu"):
        served.OnnxModel(file, "gpu")


def test_a_model_that_gives_a_single_number_is_answered(tmp_path):
    """An output without dimensions has no rows to share out."""

    class Worker:
        device, stop = "cpu", staticmethod(lambda: None)

        def ask(self, message, time_limit_s):
            return {"answer": {"sum": np.asarray(message[1]["x"].sum())}}

    (tmp_path / "model.onnx").touch()
    request = Waiting({"name": "sum", "batches": False}, {"x": np.ones((2, 3), np.float32)}, 2, 0)
    waiting = queue.SimpleQueue()
    waiting.put(request)
    dispatcher = Dispatcher(waiting, Worker(), Settings(models=[tmp_path / "model.onnx"]))
    dispatcher.start()
    outputs, _ = request.done.result(timeout=60)
    dispatcher.stopping.set()
    dispatcher.join()
    assert outputs["sum"].shape == ()
    assert outputs["sum"] == 6
