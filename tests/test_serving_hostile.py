"""Whatever a client sends, it gets an answer that the OpenAPI document declares, and the server goes on."""

import http.client
import json
import os
import socket
import struct
import time
import tracemalloc

import httpx
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from serving_helpers import CORPUS, LIMIT_S, D, as_npy, binary, serve, tensor
from starlette.exceptions import HTTPException

from altlas_lib.serving.wire import check_npy

INFER, JOBS = "/v2/models/similarity/infer", "/v1/jobs?kind=top_k"
LIMITS = {"--max-body-bytes": 2**20, "--max-json-bytes": 2**19, "--max-job-bytes": 2**20, "--read-time-limit-s": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    limits = [part for limit in LIMITS.items() for part in limit]
    with serve(tmp_path_factory.mktemp("server"), *limits, "--max-held-bytes", 3 * 2**20) as server:
        yield server


@pytest.fixture
def client(server):
    """Afterwards the server still answers, and has let go of what it held."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
        good = client.post(INFER, json={"inputs": [tensor(CORPUS[:2])]})
        assert good.status_code == 200
        assert metric(client, "altlas_held_bytes") == 0


def metric(client, name) -> float:
    (line,) = (line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[-1])


def document(**changes):
    return {"inputs": [tensor(CORPUS[:2]) | changes]}


NESTED = b'{"inputs": ' + b"[" * 100_000
BAD_REQUESTS = {
    "no JSON": (400, b"queries"),
    "nothing": (400, b""),
    "no UTF-8": (400, b'{"inputs": "\xff\xfe"}'),
    "deep": (400, NESTED),
    "a number of 100,000 digits": (400, b'{"inputs": ' + b"9" * 100_000 + b"}"),
    "NaN": (422, json.dumps(document(data=[float("nan")] * 2 * D)).encode()),
    "1e999": (422, json.dumps(document(data=[0] * (2 * D - 1) + ["X"])).replace('"X"', "1e999").encode()),
    "beyond float32": (422, json.dumps(document(data=[1e300] * 2 * D)).encode()),
    "ragged": (422, json.dumps(document(data=[[1.0] * D, [1.0] * (D - 1)])).encode()),
    "texts": (422, json.dumps(document(data=["1.5"] * 2 * D)).encode()),
    "objects": (422, json.dumps(document(data=[{}] * 2 * D)).encode()),
    "no data": (422, json.dumps(document(data=None)).encode()),
    "too few": (422, json.dumps(document(data=[1.0])).encode()),
    "another datatype": (422, json.dumps(document(datatype="FP64")).encode()),
    "an unknown datatype": (422, json.dumps(document(datatype="BYTES")).encode()),
    "another dimension": (422, json.dumps({"inputs": [tensor(CORPUS[:2, :-1])]}).encode()),
    "a vector": (422, json.dumps({"inputs": [tensor(CORPUS[0])]}).encode()),
    "no rows": (422, json.dumps({"inputs": [tensor(CORPUS[:0])]}).encode()),
    "a negative shape": (422, json.dumps(document(shape=[-2, D])).encode()),
    "a shape of 2**70": (422, json.dumps(document(shape=[2**70, D])).encode()),
    "a shape of 0 x 2**70": (422, json.dumps(document(shape=[0, 2**70], data=[])).encode()),
    "100 dimensions": (422, json.dumps(document(shape=[1] * 100, data=[1.0])).encode()),
    "another name": (422, json.dumps(document(name="x")).encode()),
    "twice": (422, json.dumps({"inputs": [tensor(CORPUS[:2])] * 2}).encode()),
    "no inputs": (422, b'{"inputs": []}'),
    "k = 0": (422, json.dumps(document() | {"parameters": {"k": 0}}).encode()),
    "k = true": (422, json.dumps(document() | {"parameters": {"k": True}}).encode()),
    "k = 1e9": (422, json.dumps(document() | {"parameters": {"k": 10**9}}).encode()),
    "k = text": (422, json.dumps(document() | {"parameters": {"k": "5"}}).encode()),
    "an unknown output": (422, json.dumps(document() | {"outputs": [{"name": "x"}]}).encode()),
    "too much JSON": (413, b" " * (2**19 + 1)),
    "too much": (413, b" " * (2**20 + 1)),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_told_what_is_wrong(client, name):
    status, body = BAD_REQUESTS[name]
    reply = client.post(INFER, content=body)
    assert reply.status_code == status, reply.text[:500]
    assert reply.json()["error"]


@pytest.mark.parametrize(
    ("status", "change", "length"),
    [
        (400, {}, 10**6),  # JSON beyond the body
        (422, {}, -1),
        (422, {}, "ten"),
        (422, {"parameters": {"binary_data_size": 2 * D * 4 + 4}}, None),  # more than is there
        (422, {"parameters": {"binary_data_size": 10**18}, "shape": [10**18 // (4 * D), D]}, None),
        (422, {"parameters": {"binary_data_size": -4}}, None),
        (422, {"parameters": {"binary_data_size": True}, "shape": [0, D]}, None),
        (400, {"shape": [1, D], "parameters": {"binary_data_size": D * 4}}, None),  # less
    ],
)
def test_announced_lengths_are_compared_with_what_came(client, status, change, length):
    tensor = {"name": "queries", "datatype": "FP32", "shape": [2, D], "parameters": {"binary_data_size": 8 * D}} | change
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text) if length is None else length)}
    reply = client.post(INFER, content=text + CORPUS[:2].tobytes(), headers=headers)
    assert reply.status_code == status, reply.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bytes_that_are_no_number_are_refused(client, value):
    queries = CORPUS[:3].copy()
    queries[1, 1] = value
    body, headers = binary({"queries": queries})
    assert client.post(INFER, content=body, headers=headers).status_code == 422


def header_of(shape, descr="<f4", version=(1, 0), fortran=False):
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode() + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text


BAD_JOBS = {
    "nothing": b"",
    "text": b"1,2,3\n" * 10,
    "an archive": b"PK\x03\x04" + b"\0" * 100,
    "140 TiB": header_of((10**12, 38)) + b"\0" * 64,
    "0 x 2**80": header_of((0, 2**80)),
    "2**80 values": header_of((2**80, 1)) + b"\0" * 64,
    "negative": header_of((-1, -16)) + b"\0" * 64,
    "cut off": as_npy(CORPUS)[:-1],
    "one byte more": as_npy(CORPUS) + b"\0",
    "objects": header_of((2, 2), "|O") + b"\0" * 32,
    "pickled": as_npy(np.array([{"a": 1}, None])),
    "texts": as_npy(np.array([["a", "b"]])),
    "complex": as_npy(np.ones((2, 2), complex)),
    "big-endian": as_npy(np.ones((2, 2), ">f4")),
    "records": as_npy(np.zeros((2, 2), [("x", "f4")])),
    "a vector": as_npy(np.ones(4, np.float32)),
    "no rows": as_npy(np.ones((0, 4), np.float32)),
    "version 9": header_of((2, 2), version=(9, 0)) + b"\0" * 16,
    "code as a header": header_of("__import__('os').abort()"),
    "a deep header": header_of("(" * 5000),
    "a header of 2 GB": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31 - 1) + b"{",
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_a_bad_job_is_not_accepted(client, server, name):
    reply = client.post(JOBS, content=BAD_JOBS[name])
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]
    store = server.log.parent / "store"
    assert not list((store / "incoming").iterdir()) + list((store / "files").iterdir())


def test_a_header_as_long_as_the_body_is_not_read_into_memory(tmp_path):
    file, size = tmp_path / "body.npy", 2**30
    file.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", size - 12) + b"{")
    os.truncate(file, size)
    tracemalloc.start()
    with pytest.raises(HTTPException, match=r"not a \.npy file"):
        check_npy(file)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize(
    "query",
    ["", "kind=other", "kind=top_k&k=0", "kind=top_k&k=x", "kind=pairs_above&threshold=2", "kind=pairs_above&threshold=nan"],
)
def test_bad_arguments_of_a_job_are_named(client, query):
    assert client.post(f"/v1/jobs?{query}", content=as_npy(CORPUS)).status_code == 422


@pytest.mark.parametrize("path", [INFER, JOBS])
def test_a_compressed_body_is_refused_unread(client, path):
    reply = client.post(path, content=b"\x1f\x8b" + b"\0" * 1000, headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 415


@pytest.mark.parametrize("path", [INFER, JOBS])
def test_a_body_without_a_length_is_counted(client, path):
    reply = client.post(path, content=(b"\0" * 65536 for _ in range(1000)))
    assert reply.status_code == 413


@pytest.mark.parametrize("path", [INFER, JOBS])
def test_a_body_that_comes_too_slowly_is_given_up(server, client, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", "100000")
    connection.endheaders()
    connection.send(b"{")
    assert connection.getresponse().status == 408
    connection.close()


def test_a_million_headers_are_cut_off_with_bounded_memory(server, client):
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(10**6)))
            answer = connection.recv(1000)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert process.memory_info().rss < before + 64 * 2**20


def test_clients_that_leave_in_the_middle_leave_nothing(server, client):
    for path in (INFER, JOBS):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n".encode() + b"0" * 5000)
    deadline = time.monotonic() + LIMIT_S
    while list((server.log.parent / "store/incoming").iterdir()) or metric(client, "altlas_held_bytes"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_more_than_may_be_held_is_refused_for_now(server, client):
    """Three bodies that do not end take the room of the fourth."""
    held = []
    for _ in range(3):
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**20}\r\n\r\n".encode() + b"0" * (2**20 - 1))
        held.append(connection)
    deadline = time.monotonic() + LIMIT_S
    while metric(client, "altlas_held_bytes") < 3 * (2**20 - 1):
        assert time.monotonic() < deadline
    refused = client.post(INFER, content=b" " * 2**18)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    for connection in held:
        connection.close()
    deadline = time.monotonic() + LIMIT_S
    while metric(client, "altlas_held_bytes"):  # the server learns a moment later that they are gone
        assert time.monotonic() < deadline


def test_schemathesis_finds_no_answer_that_is_not_declared(server):
    """Random requests made from the OpenAPI document."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance  # a document cannot say what a .npy file is

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for operation in schema.get_all_operations():
        case_of = operation.ok().as_strategy()

        @settings(
            max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
        )
        @given(case=case_of)
        def ask(case):
            case.call_and_validate(base_url=server.url, excluded_checks=[positive_data_acceptance])

        ask()
