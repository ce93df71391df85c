"""A server in a process of its own, and a load that does not wait for its answers."""

import asyncio
import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .settings import ServeError

_START_LIMIT_S = 300


@dataclass
class Server:
    """A server's address and process; its standard output and error go to the file `log`."""

    port: int
    process: subprocess.Popen
    log: Path

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
    command = [sys.executable, "-m", "altlas_lib.serving", "--port", str(port), *map(str, options)]
    with open(log, "ab") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.DEVNULL)
    server, deadline = Server(port, process, log), time.monotonic() + _START_LIMIT_S
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServeError(f"the server did not start (exit code {process.poll()}): {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@dataclass(frozen=True)
class Load:
    """What requests at random times met.

    Attributes:
        offered_per_s: the rate at which they were due.
        answered_per_s: answers of status 200 in the seconds from the first due time to the last answer.
        latencies_s: of these answers, from the time at which a request was due, float64, ascending.
        n_refused: answers of another status, and broken connections.
    """

    offered_per_s: float
    answered_per_s: float
    latencies_s: np.ndarray
    n_refused: int

    def percentile_s(self, share: float) -> float:
        """NaN without an answer."""
        return float(np.quantile(self.latencies_s, share)) if len(self.latencies_s) else float("nan")


def open_loop(
    port: int, path: str, bodies: list[bytes], headers: dict[str, str], *, per_s: float, seconds: float, seed: int = 0
) -> Load:
    """Offer requests at the times of a Poisson process, whether or not the server keeps up, and say what they met.

    A closed loop, whose clients wait for an answer before they ask again, offers a slow server less, and so hides that it is
    slow.

    Args:
        bodies: sent one after the other, again and again.
        per_s, seconds: the mean rate, and how long requests are due; about `per_s * seconds` are sent.
    """
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    requests = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / per_s, size=max(1, round(per_s * seconds))))
    with ThreadPoolExecutor(1) as pool:  # a notebook's thread has a loop that runs already
        statuses, answered = pool.submit(asyncio.run, _offer(port, requests, due)).result()
    good = statuses == 200
    last = answered[good].max(initial=0)
    return Load(per_s, good.sum() / last if last else 0.0, np.sort((answered - due)[good]), int((~good).sum()))


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
