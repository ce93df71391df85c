"""Answers over HTTP are the library's own, bit by bit; by real server processes."""

import concurrent.futures
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from serving_helpers import CORPUS, LIMIT_S, D, as_npy, binary, ended, log_lines, outputs_of, serve, tensor, write_model

from altlas_lib import paths, similarity
from altlas_lib.serving import ServeError, Settings, measure_load, running_server

INFER = "/v2/models/similarity/infer"
TOKEN = "a token of 32 characters or more"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    models = write_model(folder / "doubler.onnx"), write_model(folder / "fixed.onnx", 2)
    (folder / "token").write_text(TOKEN + "\n")
    options = ("--token-file", folder / "token", "--model", models[0], "--model", models[1])
    with serve(folder, *options) as server:
        yield server


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=60, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


@pytest.fixture
def queries():
    return np.random.default_rng(1).standard_normal((7, D), dtype=np.float32)


# The protocol ----------------------------------------------------------------------------------------------------------


def test_json_and_bytes_give_the_librarys_own_answer(client, queries):
    expected = similarity.top_k(queries, 4, Y=CORPUS)
    by_json = client.post(INFER, json={"id": "7", "inputs": [tensor(queries)], "parameters": {"k": 4}})
    body, headers = binary({"queries": queries}, parameters={"k": 4, "binary_data_output": True})
    by_bytes = client.post(INFER, content=body, headers=headers)
    assert by_json.json()["id"] == "7"
    assert by_json.json()["model_name"] == "similarity"
    assert by_bytes.headers["content-type"] == "application/octet-stream"
    for reply in (by_json, by_bytes):
        assert reply.status_code == 200
        found = outputs_of(reply)
        np.testing.assert_array_equal(found["indices"], expected.indices)
        np.testing.assert_array_equal(found["scores"], expected.scores)


def test_nested_lists_and_chosen_outputs_of_both_kinds(client, queries):
    nested = tensor(queries) | {"data": queries.tolist()}
    wanted = [{"name": "scores", "parameters": {"binary_data": True}}]
    reply = client.post(INFER, json={"inputs": [nested], "outputs": wanted})
    assert list(outputs_of(reply)) == ["scores"]
    np.testing.assert_array_equal(outputs_of(reply)["scores"], similarity.top_k(queries, 10, Y=CORPUS).scores)
    wanted.append({"name": "indices"})
    both = outputs_of(client.post(INFER, json={"inputs": [nested], "outputs": wanted}))
    np.testing.assert_array_equal(both["indices"], similarity.top_k(queries, 10, Y=CORPUS).indices)


def test_more_neighbours_than_rows_give_all_rows(client, queries):
    found = outputs_of(client.post(INFER, json={"inputs": [tensor(queries)], "parameters": {"k": 1000}}))
    assert found["indices"].shape == (7, len(CORPUS))


@pytest.mark.parametrize("model", ["doubler", "fixed"])
def test_an_onnx_model_is_served_with_its_own_names(client, model):
    x, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 0.5, np.float32)
    body, headers = binary({"x": x, "b": b})
    found = outputs_of(client.post(f"/v2/models/{model}/infer", content=body, headers=headers))
    np.testing.assert_array_equal(found["y"], 2 * x)
    np.testing.assert_array_equal(found["z"], x + b)
    described = client.get(f"/v2/models/{model}").json()
    assert [each["name"] for each in described["inputs"]] == ["x", "b"]
    assert described["inputs"][0]["datatype"] == "FP32"


def test_what_json_cannot_hold_is_refused_and_comes_as_bytes(client):
    huge = np.full((2, 3), 3e38, np.float32)
    body, headers = binary({"x": huge, "b": huge})
    assert np.isinf(outputs_of(client.post("/v2/models/doubler/infer", content=body, headers=headers))["y"]).all()
    by_json = client.post("/v2/models/doubler/infer", json={"inputs": [tensor(huge, "x"), tensor(huge, "b")]})
    assert by_json.status_code == 422
    assert "binary_data_output" in by_json.json()["error"]


def test_states_and_metadata(client):
    assert client.get("/health").json() == {"status": "ok", "service": "altlas"}
    assert client.get("/v2/health/ready").status_code == client.get("/v2/health/live").status_code == 200
    assert client.get("/v2").json()["models"] == ["similarity", "doubler", "fixed"]
    assert client.get("/v2/models/similarity").json()["inputs"] == [{"name": "queries", "datatype": "FP32", "shape": [-1, D]}]
    missing = client.get("/v2/models/nobody")
    assert missing.status_code == 404
    assert "similarity" in missing.json()["error"]
    assert client.post("/v2/models/nobody/infer", json={}).status_code == 404


# Batching --------------------------------------------------------------------------------------------------------------


def test_requests_that_wait_are_computed_together_with_the_same_answers(server, client):
    """Some with another k; what a request gets does not depend on its company."""
    rng = np.random.default_rng(2)
    asked = [(rng.standard_normal((int(n), D), dtype=np.float32), int(k)) for n, k in rng.integers(1, 9, (200, 2))]

    def ask(queries, k):
        body, headers = binary({"queries": queries}, parameters={"k": k, "binary_data_output": True})
        return outputs_of(client.post(INFER, content=body, headers=headers))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, *zip(*asked, strict=True)))
    for (queries, k), answer in zip(asked, found, strict=True):
        expected = similarity.top_k(queries, k, Y=CORPUS)
        np.testing.assert_array_equal(answer["indices"], expected.indices)
        np.testing.assert_array_equal(answer["scores"], expected.scores)
    assert any(line.get("batch", 1) > 1 for line in log_lines(server))


# Who asks, and what is said of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "Bearer wrong", TOKEN, "Bearer", f"Basic {TOKEN}"])
def test_without_the_token_nothing_is_computed_or_told(server, header):
    with httpx.Client(base_url=server.url, headers={"Authorization": header}) as stranger:
        replies = [
            stranger.post(INFER, json={}),
            stranger.post("/v1/jobs?kind=top_k", content=as_npy(CORPUS)),
            stranger.get("/v1/jobs/x"),
            stranger.get("/v1/jobs/x/result"),
            stranger.delete("/v1/jobs/x"),
        ]
        assert [reply.status_code for reply in replies] == [401] * 5
        assert replies[0].headers["www-authenticate"] == "Bearer"
        assert stranger.get("/health").status_code == stranger.get("/metrics").status_code == 200


def test_a_request_is_logged_with_its_id_device_batch_and_times(server, client, queries):
    reply = client.post(INFER, json={"inputs": [tensor(queries)]}, headers={"X-Request-ID": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1"
    deadline = time.monotonic() + LIMIT_S  # it is written after the answer
    while not (found := [line for line in log_lines(server) if line.get("request_id") == "mine-1"]):
        assert time.monotonic() < deadline
    (line,) = found
    assert line["status"] == 200
    assert line["device"] == "cpu"
    assert line["batch"] == 1
    assert 0 < line["compute_s"] <= line["seconds"]
    forged = client.get("/health", headers={"X-Request-ID": '", "status": 500'})
    assert len(forged.headers["x-request-id"]) == 32


def test_metrics_count_what_happened(client, queries):
    def value(name):
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    name = f'altlas_request_seconds_count{{route="{INFER.replace("similarity", "{model}")}",status="200"}}'
    computed = 'altlas_compute_seconds_count{device="cpu",model="similarity"}'
    before = value(name), value(computed)
    client.post(INFER, json={"inputs": [tensor(queries)]})
    assert (value(name), value(computed)) == (
        before[0] + 1,
        before[1] + 1,
    )
    assert value("altlas_held_bytes") == value("altlas_waiting_requests") == 0
    assert value('altlas_worker_resident_bytes{device="cpu",role="infer"}') > 2**20


def test_an_measure_load_counts_latency_from_when_a_request_was_due(server):
    body, headers = binary({"queries": CORPUS[:1]})
    headers["Authorization"] = f"Bearer {TOKEN}"
    load = measure_load(server, INFER, [body], headers, per_s=20, seconds=1, n_repeats=2)
    assert load.n_refused == 0
    assert 0 < load.p50.value <= load.p95.value <= load.p99.value
    assert load.p95.n_runs == 2
    assert load.answered_per_s.value > 0
    refused = measure_load(server, INFER, [body], {}, per_s=20, seconds=0.5)
    assert refused.n_refused == 10
    assert refused.p95 is None


# Jobs through HTTP -----------------------------------------------------------------------------------------------------


def test_a_job_gives_the_librarys_own_answer(client):
    X = np.random.default_rng(3).standard_normal((300, 12)).astype(np.float64)
    accepted = client.post("/v1/jobs", params={"kind": "top_k", "k": 3, "method": "float32"}, content=as_npy(X))
    assert accepted.status_code == 202
    job = accepted.json()["id"]
    assert accepted.headers["location"] == f"/v1/jobs/{job}"
    known = ended(client, job)
    assert (known["state"], known["tries"], known["error"], known["progress"]) == ("done", 1, None, 1)
    with np.load(io.BytesIO(client.get(f"/v1/jobs/{job}/result").content)) as result:
        expected = similarity.top_k(X, 3)
        np.testing.assert_array_equal(result["indices"], expected.indices)
        np.testing.assert_array_equal(result["scores"], expected.scores)


def test_pairs_above_a_threshold(client):
    X = CORPUS[np.random.default_rng(4).integers(0, len(CORPUS), 700)]
    job = client.post("/v1/jobs?kind=pairs_above&threshold=0.9", content=as_npy(X)).json()["id"]
    ended(client, job)
    with np.load(io.BytesIO(client.get(f"/v1/jobs/{job}/result").content)) as result:
        expected = similarity.pairs_above(X, 0.9)
        assert len(expected) > 100
        for name in ("first", "second", "scores"):
            np.testing.assert_array_equal(result[name], getattr(expected, name))


def test_a_job_of_bad_rows_fails_with_the_reason_at_once(client):
    X = CORPUS.copy()
    X[3, 2] = np.nan
    job = client.post("/v1/jobs?kind=top_k", content=as_npy(X)).json()["id"]
    known = ended(client, job)
    assert (known["state"], known["tries"]) == ("failed", 1)
    assert "NaN or infinity in 1 of 500 rows" in known["error"]
    result = client.get(f"/v1/jobs/{job}/result")
    assert result.status_code == 409
    assert "NaN" in result.json()["error"]
    assert client.delete(f"/v1/jobs/{job}").status_code == 409


# What does not start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to serve"),
        ({"corpus": "missing.npy"}, "missing.npy: no such file"),
        ({"corpus": "here", "host": "0.0.0.0"}, "without a token"),
        ({"corpus": "here", "host": "gateway.internal"}, "without a token"),
        ({"corpus": "here", "token_file": "empty"}, "token is empty"),
        ({"corpus": "here", "token_file": "missing"}, "give a file that can be read"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_start(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for name in ("here", "empty"):
        Path(name).touch()
    paths = {name: Path(value) if name != "host" else value for name, value in options.items()}
    with pytest.raises(ServeError, match=message):
        Settings(**paths)


def test_a_damaged_corpus_and_a_damaged_model_are_messages(tmp_path):
    (tmp_path / "corpus.npy").write_bytes(as_npy(CORPUS)[:-100])
    (tmp_path / "model.onnx").write_bytes(b"no model")
    for option, file in (("--corpus", "corpus.npy"), ("--model", "model.onnx")):
        with pytest.raises(ServeError, match="could not start"), running_server(tmp_path / "log", option, tmp_path / file):
            pass


def test_help_names_every_setting():
    command = [sys.executable, "-m", "altlas_lib.cli", "serve", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    for name in Settings.__dataclass_fields__:
        assert f"--{'model' if name == 'models' else name.replace('_', '-')}" in said.stdout


def test_the_pages_own_python_gets_answers_and_has_jobs_accepted(server):
    page = (paths.project_root() / "docs/serving.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)[:2]  # a third is run by test_training_textfile.py
    names = {"token": TOKEN, "time": time}
    assert "http://altlas-serve:8000" in blocks[0]
    for block in blocks:
        exec(block.replace("http://altlas-serve:8000", server.url), names)
    found, expected = names["nearest"](CORPUS[:3], 4), similarity.top_k(CORPUS[:3], 4, Y=CORPUS)
    np.testing.assert_array_equal(found["indices"], expected.indices)
    np.testing.assert_array_equal(found["scores"], expected.scores)
    first, second = (names["accept"](as_npy(CORPUS), "nightly") for _ in range(2))
    assert first == second
    assert ended(names["client"], first.removeprefix("/v1/jobs/"))["state"] == "done"
    names["client"].close()
