"""What a server costs and what batching buys, as ratios of one run on one machine.

    python -m benchmarks.serving                      # five minutes
    python -m benchmarks.serving --soak-minutes 30    # and whether its memory grows

Batching compares CPU seconds, of server and workers together, of the same requests: one by one, and with 32 always waiting. The
overhead is the time of a request without other load, on a connection that stays, as clients keep it, beside
`similarity.Corpus.top_k` of the same queries in this process.
"""

import argparse
import http.client
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
from pydantic import Field

from altlas_lib import similarity
from altlas_lib.devices import OtherLoad, describe_cpu
from altlas_lib.paths import write_atomically
from altlas_lib.results import Model, Provenance, Quantity
from altlas_lib.serving import Server, infer_request, running_server
from benchmarks.serving_kills import as_npy

PATH = "/v2/models/similarity/infer"


class ServingRecord(Model):
    provenance: Provenance
    n: int
    d: int
    k: int
    cpu_s_per_row_alone: Quantity
    cpu_s_per_row_batched: Quantity
    batching_gain: Quantity = Field(description="CPU time one by one over that with 32 waiting, HTTP included; goal: 2")
    bare_s: Quantity
    request_s: Quantity
    overhead: Quantity = Field(description="a request of 48 rows over the bare call; goal: at most 1.3")
    json_s: Quantity = Field(description="to encode and decode 10,000 x 384 as JSON")
    binary_s: Quantity
    binary_gain: Quantity = Field(description="goal: 50")
    other_load: float | None
    soak_minutes: float = 0
    soak_rss_growth: float | None = Field(None, description="of all processes, from a tenth of the time to its end; goal: 0.02")
    soak_requests: int = 0


def cpu_s(server: Server) -> float:
    """CPU seconds of the server and its workers so far."""
    parent = psutil.Process(server.process.pid)
    return sum(sum(process.cpu_times()[:2]) for process in (parent, *parent.children()))


def rss_bytes(server: Server) -> int:
    parent = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (parent, *parent.children()))


def ask_all(server: Server, requests: list[tuple[bytes, dict[str, str]]], at_a_time: int) -> None:
    """Send the requests in rounds: one on each of so many connections, then all answers are read."""
    connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=120) for _ in range(at_a_time)]
    for first in range(0, len(requests), at_a_time):
        under_way = list(zip(connections, requests[first : first + at_a_time], strict=False))
        for connection, (body, headers) in under_way:
            connection.request("POST", PATH, body, headers)
        for connection, _ in under_way:
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status} with {at_a_time} requests under way; see the server's log")
    for connection in connections:
        connection.close()


def timed(call: Callable[[], object], n: int) -> list[float]:
    seconds = []
    for _ in range(n):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def ratio(above: list[float], below: list[float], device: str) -> Quantity:
    """Pair by pair: the rounds took turns."""
    return Quantity.measured([a / b for a, b in zip(above, below, strict=True)], "x", device)


def payloads(X: np.ndarray, n: int) -> tuple[list[float], list[float]]:
    """Seconds to encode and decode a matrix as JSON, and as JSON with a binary tensor, by what server and client use."""
    from altlas_lib.serving import wire

    tensors = {"inputs": [{"name": "queries", "datatype": "FP32", "shape": [-1, X.shape[1]]}], "outputs": []}
    model = {"name": "similarity", "batches": True, "max_k": 1} | tensors

    def as_json() -> None:
        tensor = {"name": "queries", "datatype": "FP32", "shape": X.shape, "data": X.ravel().tolist()}
        wire.decode(model, json.dumps({"inputs": [tensor], "parameters": {"k": 1}}).encode(), memoryview(b""))

    def as_bytes() -> None:
        body, headers = infer_request({"queries": X}, k=1)
        length = int(headers["Inference-Header-Content-Length"])
        wire.decode(model, body[:length], memoryview(body)[length:])

    return timed(as_json, n), timed(as_bytes, n)


def soak(server: Server, corpus: np.ndarray, k: int, minutes: float) -> tuple[float, int]:
    """Growth of the memory, a share, and the number of requests; every size of request, and a job now and then."""
    rng, n_requests, first, began = np.random.default_rng(1), 0, None, time.monotonic()
    while (gone := (time.monotonic() - began) / (60 * minutes)) < 1:
        sizes = rng.integers(1, 64, 200)
        ask_all(server, [infer_request({"queries": corpus[:size]}, k=k) for size in sizes], at_a_time=16)
        n_requests += len(sizes)
        body = as_npy(corpus[: int(rng.integers(10, 2000))])
        httpx.post(f"{server.url}/v1/jobs?kind=top_k&k={k}", content=body, timeout=120).raise_for_status()
        httpx.get(f"{server.url}/metrics")
        if gone > 0.1 and first is None:
            first = rss_bytes(server)
    return rss_bytes(server) / (first or rss_bytes(server)) - 1, n_requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak-minutes", type=float, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serving.json"))
    options = parser.parse_args()
    device, k = str(describe_cpu()), options.k
    X = np.random.default_rng(0).standard_normal((options.rows, options.dimensions), dtype=np.float32)
    singles = [infer_request({"queries": X[i : i + 1]}, k=k) for i in range(min(320, len(X)))]
    body, headers = infer_request({"queries": X[:48]}, k=k)
    corpus, found = similarity.Corpus(X), {"alone": [], "batched": [], "bare": [], "request": []}
    with tempfile.TemporaryDirectory() as name, OtherLoad() as other:
        folder = Path(name)
        np.save(folder / "corpus.npy", X)
        served = ("--corpus", folder / "corpus.npy", "--store", folder / "store", "--max-jobs", 10_000)
        with running_server(folder / "log.txt", *served) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)

            def ask() -> None:
                connection.request("POST", PATH, body, headers)
                connection.getresponse().read()

            for round_ in range(options.rounds + 1):
                for kind, at_a_time in (("alone", 1), ("batched", 32)):
                    before = cpu_s(server)
                    ask_all(server, singles, at_a_time)
                    found[kind].append((cpu_s(server) - before) / len(singles))
                found["bare"].append(min(timed(lambda: corpus.top_k(X[:48], k), 20)))
                found["request"].append(min(timed(ask, 20)))
                if round_ == 0:
                    found = {kind: [] for kind in found}  # what is compiled, or read from the disk, at first
            growth, n_requests = soak(server, X, k, options.soak_minutes) if options.soak_minutes else (None, 0)
    as_json, as_bytes = payloads(X[:10_000], 3)
    record = ServingRecord(
        provenance=Provenance.now({name: str(value) for name, value in vars(options).items()}),
        n=options.rows,
        d=options.dimensions,
        k=k,
        cpu_s_per_row_alone=Quantity.measured(found["alone"], "s", device),
        cpu_s_per_row_batched=Quantity.measured(found["batched"], "s", device),
        batching_gain=ratio(found["alone"], found["batched"], device),
        bare_s=Quantity.measured(found["bare"], "s", device),
        request_s=Quantity.measured(found["request"], "s", device),
        overhead=ratio(found["request"], found["bare"], device),
        json_s=Quantity.measured(as_json, "s", device),
        binary_s=Quantity.measured(as_bytes, "s", device),
        binary_gain=ratio(as_json, as_bytes, device),
        other_load=other.share,
        soak_minutes=options.soak_minutes,
        soak_rss_growth=growth,
        soak_requests=n_requests,
    )
    write_atomically(options.output, record.model_dump_json(indent=1) + "\n")
    for name in ("batching_gain", "overhead", "binary_gain"):
        print(f"{name}: {getattr(record, name)}")
    print(f"other load: {record.other_load}, growth of memory in {options.soak_minutes:g} minutes: {growth}")


if __name__ == "__main__":
    main()
