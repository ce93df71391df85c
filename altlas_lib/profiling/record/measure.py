"""One target in this process: timed without a profiler and under cProfile, in turns, so that both see the same machine."""

import contextlib
import cProfile
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

from ..run.runnable import FunctionKey, ProfilingError, Runnable
from .folding import CallGraph, Time

_SHARE_OF_THE_LIMIT = 1 / 3  # for this tool; the others need the rest
_SHORT_S, _MOST_RUNS = 1.0, 10  # a target that takes milliseconds is repeated, up to a second
_CHILDREN_WORTH_A_NOTE = 0.1  # of the time that passed


class Recording(BaseModel):
    """A `CallGraph` in a form that travels."""

    keys: list[FunctionKey]
    functions: list[tuple[int, Time]]
    calls: list[tuple[int, int, Time]]  # caller, callee

    @classmethod
    def of(cls, graph: CallGraph) -> "Recording":
        number = {key: i for i, key in enumerate(graph.functions)}
        return cls(
            keys=list(number),
            functions=[(number[key], time) for key, time in graph.functions.items()],
            calls=[(number[caller], number[callee], time) for (caller, callee), time in graph.calls.items()],
        )

    def graph(self) -> CallGraph:
        graph = CallGraph()
        graph.functions.update((self.keys[i], time) for i, time in self.functions)
        graph.calls.update(((self.keys[i], self.keys[j]), time) for i, j, time in self.calls)
        return graph


class Measurement(BaseModel):
    root: FunctionKey
    first_s: float  # the first run, which warms up
    plain_s: dict[int, list[float]] = {}  # threads of the BLAS and OpenMP pools -> seconds of each run
    profiled_s: list[float] = []
    recordings: list[Recording] = []  # of each run under cProfile
    peak_bytes: list[int] = []  # of each run without a profiler, beyond what the process held before the first
    notes: list[str] = []

    @property
    def n_threads(self) -> int | None:
        """The thread count that suits the target best; None: no run beyond the first."""
        return min(self.plain_s, key=lambda n: min(self.plain_s[n]), default=None)

    @property
    def best_s(self) -> list[float]:
        """Runs with the best thread count."""
        return self.plain_s[self.n_threads] if self.plain_s else [self.first_s]


def measure(
    runnable: Runnable, n_repeats: int, time_limit_s: float, report: Callable[[Measurement], None] = lambda _: None
) -> Measurement:
    """Run the target once to warm up, then at least `n_repeats` times with each thread count and as often under cProfile.

    The counts are the program's own, and 1: contention between threads must not pass for the cost of the work. cProfile
    records under the count that was best until then, and sees the calling thread only.

    Args:
        report: gets what was measured until then, after each run.
    """
    _refuse_a_second_profiler()
    stop = (start := time.perf_counter()) + time_limit_s
    memory, children_s = _Memory(), _children_s()
    measurement = Measurement(root=runnable.root, first_s=runnable.timed())
    measurement.peak_bytes.append(memory.peak_bytes())
    if time.perf_counter() > stop:
        raise time_limit_error(runnable.name, time_limit_s)
    report(measurement)
    counts = blas_thread_counts()
    if len(counts) > 1 and measurement.first_s > time_limit_s / 10:
        measurement.notes.append(f"no sweep over BLAS threads: one run took {measurement.first_s:.3g} s; raise the time limit")
        counts = counts[:1]

    def plain_runs() -> None:
        for n in counts:
            memory.reset_peak()
            with blas_threads(n):
                measurement.plain_s.setdefault(n, []).append(runnable.timed())
            measurement.peak_bytes.append(memory.peak_bytes())
            report(measurement)

    for repeat in range(n_repeats):
        if repeat and time.perf_counter() - start > _SHARE_OF_THE_LIMIT * time_limit_s:
            measurement.notes.append(f"{repeat} of {n_repeats} repeats: a third of time_limit_s={time_limit_s:g} was over")
            break
        plain_runs()
        profiler = cProfile.Profile()
        with blas_threads(measurement.n_threads):
            measurement.profiled_s.append(runnable.timed(profiler.runcall))
        measurement.recordings.append(Recording.of(CallGraph.of(profiler.getstats())))
        report(measurement)
    while len(measurement.best_s) < _MOST_RUNS and sum(map(sum, measurement.plain_s.values())) < _SHORT_S:
        plain_runs()
    children_s = _children_s() - children_s
    if children_s > _CHILDREN_WORTH_A_NOTE * (time.perf_counter() - start):
        measurement.notes.append(
            f"{children_s:.3g} s of processor time went to processes that the target started; no tool looks into them"
        )
    return measurement


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _refuse_a_second_profiler() -> None:
    monitoring = getattr(sys, "monitoring", None)  # of Python 3.12; 3.11 would replace the other profiler without a word
    active = sys.getprofile() or (monitoring and monitoring.get_tool(monitoring.PROFILER_ID))
    if active:
        raise ProfilingError(
            f"another profiler is active ({active!r}); stop it (a profiler, coverage, a debugger), then try again"
        )


def blas_thread_counts() -> list[int]:
    """Threads to try: as many as the loaded BLAS and OpenMP libraries use by themselves, and 1. `[1]` where none is loaded."""
    own = max((pool["num_threads"] for pool in _threadpoolctl().threadpool_info()), default=1)
    return list(dict.fromkeys((own, 1)))


def blas_threads(n: int | None) -> contextlib.AbstractContextManager:
    """BLAS and OpenMP held to one thread where `n` is 1; else as the program has them."""
    return _threadpoolctl().threadpool_limits(1) if n == 1 else contextlib.nullcontext()


def _threadpoolctl() -> ModuleType:
    """Its import sets a variable of Intel's OpenMP, which the target, and what that starts, would see."""
    was_set = "KMP_DUPLICATE_LIB_OK" in os.environ
    import threadpoolctl

    if not was_set:
        os.environ.pop("KMP_DUPLICATE_LIB_OK", None)
    return threadpoolctl


class _Memory:
    """Peak of this process' resident memory, beyond what it held at first.

    Linux: VmHWM, which can be set back before each run. Elsewhere `ru_maxrss`, which cannot, and which counts the set-up too.
    (On Linux that figure starts from the memory of the process that started this one.)
    """

    def __init__(self):
        self.reset_peak()
        self._held = self._peak()

    def reset_peak(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        return max(self._peak() - self._held, 0)

    def _peak(self) -> int:
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def time_limit_error(name: str, time_limit_s: float) -> ProfilingError:
    return ProfilingError(
        f"target {name!r} did not finish within time_limit_s={time_limit_s:g}; give it a smaller input by its arguments, "
        "more time (time_limit_s, --time-limit), or start it by itself and profile it as pid:NUMBER"
    )
