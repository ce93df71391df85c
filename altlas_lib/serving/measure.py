"""A server in a process of its own, and a load that does not wait for its answers."""

import asyncio
import contextlib
import json
import math
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..devices import describe_cpu
from ..results import Kill, LoadPoint, Quantity, format_value, sustained_per_s
from .settings import ServeError
from .wire import DATATYPES, DTYPES

_START_LIMIT_S = 300


@dataclass
class Server:
    """A server's address and process; its standard output and error go to the file `log`, it took `start_s` to be ready."""

    port: int
    process: subprocess.Popen
    log: Path
    start_s: float = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def running_server(log: Path, *options: Any, port: int | None = None) -> Iterator[Server]:
    """`altlas serve` with these options, ready; ended by SIGTERM afterwards, or by SIGKILL where that is not enough.

    Raises:
        ServeError: it ended, or was not ready in five minutes; with what it said.
    """
    if port is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    command = [sys.executable, "-m", "altlas_lib.cli", "serve", "--port", str(port), *map(str, options)]
    with open(log, "ab") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.DEVNULL)
    server, started = Server(port, process, log), time.monotonic()
    try:
        while not server.start_s:
            if process.poll() is not None or time.monotonic() > started + _START_LIMIT_S:
                raise ServeError(f"the server did not start (exit code {process.poll()}): {log.read_text()[-2000:]}")
            time.sleep(0.05)
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/v2/health/ready", timeout=10):
                server.start_s = time.monotonic() - started
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


def measure_load(
    server: Server, path: str, bodies: list[bytes], headers: dict[str, str], *, per_s: float, seconds: float,
    n_repeats: int = 1, seed: int = 0, batching: bool = True,
) -> LoadPoint:  # fmt: skip
    """Offer requests at the times of a Poisson process, whether or not the server keeps up, and say what they met.

    A latency counts from when a request was due. A closed loop, whose clients wait for an answer before they ask again, offers
    less to a slow server, and so hides that it is slow.

    Args:
        bodies: sent one after the other, again and again.
        per_s, seconds: the mean rate, and how long requests are due in each of `n_repeats` runs: `per_s * seconds` requests.
        batching: what the server was started with, for the record.

    Returns:
        percentiles of each run, with their median and spread over the runs; None where a run had no answer of status 200. Other
        statuses and broken connections are refused requests.
    """
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    requests = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    device, shares, n_refused = str(describe_cpu()), {"p50": 0.5, "p95": 0.95, "p99": 0.99}, 0
    rates, latencies = [], {name: [] for name in shares}
    for run in range(n_repeats):
        due = np.cumsum(np.random.default_rng(seed + run).exponential(1 / per_s, size=max(1, round(per_s * seconds))))
        with ThreadPoolExecutor(1) as pool:  # a notebook's thread has a loop that runs already
            statuses, answered = pool.submit(asyncio.run, _offer(server.port, requests, due)).result()
        good = statuses == 200
        n_refused += int((~good).sum())
        rates.append(good.sum() / answered[good].max() if good.any() else 0.0)
        for name, share in shares.items() if good.any() else ():
            latencies[name].append(np.quantile((answered - due)[good], share))
    met = {name: Quantity.measured(of_runs, "s", device) for name, of_runs in latencies.items() if len(of_runs) == n_repeats}
    answered_per_s = Quantity.measured(rates, "requests/s", device)
    return LoadPoint(batching=batching, offered_per_s=per_s, answered_per_s=answered_per_s, n_refused=n_refused, **met)


async def _offer(port: int, requests: list[bytes], due: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Status of each request, 0 without an answer, and when it was answered, in seconds from the start."""
    statuses, answered, idle = np.zeros(len(due), int), np.zeros(len(due)), []
    start = time.perf_counter()

    async def send(i: int) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
            writer.write(requests[i % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            statuses[i], answered[i] = int(head.split()[1]), time.perf_counter() - start
            idle.append((reader, writer))

    tasks = []
    for i, when in enumerate(due):
        await asyncio.sleep(when - (time.perf_counter() - start))
        tasks.append(asyncio.create_task(send(i)))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return statuses, answered


def infer_request(inputs: Mapping[str, np.ndarray], **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request for an answer at once, binary both ways.

    Args:
        inputs: name -> (n, ...), of a dtype of the protocol.
        parameters: such as `k=10` of the model `similarity`.
    """
    tensors = [
        {"name": name, "datatype": DATATYPES[rows.dtype], "shape": rows.shape, "parameters": {"binary_data_size": rows.nbytes}}
        for name, rows in inputs.items()
    ]
    text = json.dumps({"inputs": tensors, "parameters": parameters | {"binary_data_output": True}}).encode()
    raw = b"".join(rows.tobytes() for rows in inputs.values())
    return text + raw, {"Inference-Header-Content-Length": str(len(text))}


def ask(server: Server, model: str, inputs: Mapping[str, np.ndarray], **parameters: Any) -> dict[str, np.ndarray]:
    """A model's outputs, name -> array; arguments as of `infer_request`. Raises urllib.error.HTTPError."""
    request = urllib.request.Request(f"{server.url}/v2/models/{model}/infer", *infer_request(inputs, **parameters))
    with urllib.request.urlopen(request, timeout=60) as answer:
        return read_answer(answer.read(), answer.headers)


def read_answer(body: bytes, headers: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The outputs of an answer with binary tensors: name -> array."""
    length = int(headers["Inference-Header-Content-Length"])
    found, first = {}, length
    for output in json.loads(body[:length])["outputs"]:
        last = first + output["parameters"]["binary_data_size"]
        found[output["name"]] = np.frombuffer(body[first:last], DTYPES[output["datatype"]]).reshape(output["shape"])
        first = last
    return found


def summarize(loads: list[LoadPoint], kill: Kill, limit_s: float, wanted_per_s: float) -> str:
    """What was found, in a sentence."""
    best = {batching: sustained_per_s(loads, limit_s, batching=batching) or 0 for batching in (True, False)}
    found = f"On {loads[0].answered_per_s.device} one server holds "
    if best[True]:
        found += f"{best[True]:g} requests per second within {format_value(limit_s, 's')} (95 of 100), {best[False]:g} without "
        found += f"batching; {wanted_per_s:g} per second take {math.ceil(wanted_per_s / best[True])} of them"
    else:
        found += "not even the lowest rate that was offered"
    return f"{found}. A job whose server was killed {'was done all the same' if kill.survived else 'was lost'}."


def wait_for_job(server: Server, job: str, time_limit_s: float = 300) -> dict[str, Any]:
    """What is known of a job once it has ended, or after the time limit."""
    deadline = time.monotonic() + time_limit_s
    while True:
        with urllib.request.urlopen(f"{server.url}/v1/jobs/{job}", timeout=60) as answer:
            known = json.load(answer)
        if known["state"] not in ("queued", "running") or time.monotonic() > deadline:
            return known
        time.sleep(0.05)
