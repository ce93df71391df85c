"""A process for each contestant: peak memory, thread pools and BLAS settings are its own. Both ends of the pipe are here."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np

from .peers import CONTESTANTS, Contestant, Run

_FIRST_ROWS = 256  # of the first call, which compiles, starts threads and makes a CUDA context
_LEAST_SAMPLE_S = 0.2  # a sample of less is the mean of several calls
# Threads and kernels are this benchmark's to choose, whatever the shell says.
_SETTINGS = ("BLIS_", "GOTO_", "KMP_", "MKL_", "NUMBA_NUM_THREADS", "OMP_", "OPENBLAS_", "VECLIB_")


class WorkerError(Exception):
    """The contestant failed, died or gave no answer in time."""


@dataclass(frozen=True)
class WarmUp:
    """What the first calls of a process tell.

    Attributes:
        first_call_s: wall time of the first call, on 256 rows, imports left out.
        wall_s: of the first call on all rows.
        peak_bytes: most resident memory during that call, beyond what was resident before it; None where the kernel does
            not tell. The scaled rows and the answer count, libraries and their threads do not.
        peak_gpu_bytes: what the contestant's memory pool has taken on the GPU.
        indices, scores: (r, k), the answer for the rows that were asked for; None of a bound.
        blas: the libraries that are loaded, with the kernels that they chose.
    """

    first_call_s: float
    wall_s: float
    peak_bytes: int | None
    peak_gpu_bytes: int | None
    indices: np.ndarray | None
    scores: np.ndarray | None
    blas: list[str]


@dataclass(frozen=True)
class Sample:
    """Seconds of one call; the mean of several that follow each other, where one takes less than 0.2 s."""

    cpu_s: float  # user and system, of all threads
    wall_s: float


# In the worker -------------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Read the task, warm up, then send a `Sample` for each message until the other end closes. Failures are sent in words."""
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        try:
            name, path, k, rows, n_threads = connection.recv()
            contestant, X = CONTESTANTS[name], np.load(path)
            run = contestant.prepare(n_threads)
            connection.send(_warm_up(contestant, run, X, k, rows))
            while True:
                connection.recv()
                connection.send(_sample(run, X, k))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # of any package
            connection.send(WorkerError(f"{type(error).__name__}: {error}"))


def _warm_up(contestant: Contestant, run: Run, X: np.ndarray, k: int, rows: np.ndarray) -> WarmUp:
    first_call_s = _wall_s(run, X[: max(_FIRST_ROWS, 2 * k)], k)[0]
    resident = _resident_bytes(reset_peak=True)
    wall_s, found = _wall_s(run, X, k)
    peak = _resident_bytes(peak=True)
    indices, scores = (None, None) if contestant.answer is None else contestant.answer(found, k)
    return WarmUp(
        first_call_s=first_call_s,
        wall_s=wall_s,
        peak_bytes=None if resident is None or peak is None else peak - resident,
        peak_gpu_bytes=contestant.peak_gpu_bytes() if contestant.peak_gpu_bytes else None,
        indices=None if indices is None else np.asarray(indices)[rows],
        scores=None if scores is None else np.asarray(scores)[rows],
        blas=_loaded_blas(),
    )


def _wall_s(run: Run, X: np.ndarray, k: int) -> tuple[float, Any]:
    began = time.perf_counter()
    found = run(X, k)
    return time.perf_counter() - began, found


def _sample(run: Run, X: np.ndarray, k: int) -> Sample:
    n_calls, cpu_began, began = 0, time.process_time(), time.perf_counter()
    while n_calls == 0 or time.perf_counter() - began < _LEAST_SAMPLE_S:
        run(X, k)
        n_calls += 1
    return Sample((time.process_time() - cpu_began) / n_calls, (time.perf_counter() - began) / n_calls)


def _resident_bytes(*, peak: bool = False, reset_peak: bool = False) -> int | None:
    """Resident memory of this process, now or at its peak since the last reset; None where Linux does not tell."""
    try:
        if reset_peak:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return 1024 * int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0])


def _loaded_blas() -> list[str]:
    from threadpoolctl import threadpool_info

    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return [
        " ".join(str(library[key]) for key in ("prefix", "version", "architecture") if library.get(key))
        for library in libraries
    ]


# In the parent -------------------------------------------------------------------------------------------------------


class Worker:
    """A contestant's process, to be closed: `with Worker(...) as worker`.

    Args:
        path: `.npy` file of the (n, d) float32 rows.
        rows: whose neighbours are sent back, to be checked.
        environment: variables beside the numbers of threads, which are set for all alike.
        timeout_s: for each answer; then the process is ended.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        k: int,
        rows: np.ndarray,
        *,
        n_threads: int,
        environment: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        self._connection, theirs = multiprocessing.Pipe()
        # A plain child: multiprocessing's own would import the script that started it, and with it what the peers must not see.
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from benchmarks.worker import serve; serve({theirs.fileno()})"],
            cwd=Path(__file__).parent.parent,
            env=worker_environment(n_threads, environment),
            pass_fds=[theirs.fileno()],
        )
        theirs.close()  # so that the death of the process is seen at this end
        self._connection.send((name, path.resolve(), k, rows, n_threads))

    def warm_up(self) -> WarmUp:
        return self._receive()

    def sample(self) -> Sample:
        with contextlib.suppress(BrokenPipeError):  # what it said before it died, or that it died, is received
            self._connection.send("run")
        return self._receive()

    def _receive(self) -> Any:
        try:
            if not self._connection.poll(self._timeout_s):
                self.close()
                raise WorkerError(f"no answer after {self._timeout_s:.0f} s")
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerError(f"the process ended with code {self._process.wait()}") from None
        if isinstance(answer, WorkerError):
            raise answer
        return answer

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def inherited_settings() -> dict[str, str]:
    """What the shell says of threads and kernels, none of which reaches a worker."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)}


def worker_environment(n_threads: int, settings: Mapping[str, str]) -> dict[str, str]:
    """The shell's variables, with `n_threads` for every library and `settings` in place of the inherited ones."""
    inherited = inherited_settings()
    kept = {name: value for name, value in os.environ.items() if name not in inherited}
    pools = ("MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**kept, **dict.fromkeys(pools, str(n_threads)), **settings}
