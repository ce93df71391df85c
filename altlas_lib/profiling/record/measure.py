"""One target in this process: timed without a profiler and under cProfile, in turns, so that both see the same machine."""

import contextlib
import cProfile
import functools
import math
import operator
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter  # as it was before the target ran, which may put another clock there
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from ..run.runnable import ProfilingError, Runnable
from .folding import CallGraph

_MONITORING = getattr(sys, "monitoring", None)  # of Python 3.12
_SHARE_OF_THE_LIMIT = 1 / 2  # for this tool; the others need the rest
SWEPT = 1 / 10  # of the limit: a longer run is not tried with another thread count
_SHORT_S, _MOST_RUNS = 1.0, 10  # a target that takes milliseconds is repeated, up to a second
_PARALLEL = 0.1  # processor time of others than the calling thread over the time of a run, of a parallel target


class Run(BaseModel, ser_json_inf_nan="constants"):
    """One run of a function, and what it took.

    Attributes:
        tool: that it ran under: "warm-up", "none", "comparison", or a profiler.
        n_threads: of the BLAS and OpenMP pools.
        own_s, calling_s: processor time of all threads of this process, and of that the calling thread's.
        processes_s: processor time of the processes that it started.
        delayed_s: for which the calling thread was ready to run while others had the processors; NaN: not known.
        held_bytes, peak_bytes: resident memory of the process before the run, and the most during it.
    """

    tool: str
    n_threads: int | None = None
    wall_s: float
    own_s: float
    calling_s: float
    processes_s: float
    delayed_s: float
    held_bytes: int
    peak_bytes: int
    recording: CallGraph | None = None

    @property
    def cpu_s(self) -> float:
        return self.own_s + self.processes_s

    @property
    def quiet_s(self) -> float | None:
        """What the run would take if nobody else wanted a processor: see `WorkloadProfile.quiet`. None: not known."""
        waiting_s = max(self.wall_s - self.calling_s - self.delayed_s, 0.0)
        return None if math.isnan(self.delayed_s) else min(self.wall_s, self.cpu_s + waiting_s)

    @property
    def is_parallel(self) -> bool:
        return self.cpu_s - self.calling_s > _PARALLEL * (self.quiet_s or self.wall_s)


def timed_run(
    runnable: Runnable, tool: str, n_threads: int | None = None, under: Callable[[Callable[[], Any]], Any] = operator.call
) -> Run:
    """One run of the target; `under` calls it, in its own way. Raises as `Runnable.run`."""
    measured: dict[str, Any] = {}

    def between_clocks(call: Callable[[], Any]) -> None:
        measured["held_bytes"] = _peak_bytes(begin_anew=True)
        before = {name: clock() for name, clock in reversed(_CLOCKS.items())}
        try:
            under(call)
        finally:
            measured.update({name: clock() - before[name] for name, clock in _CLOCKS.items()})
            measured["peak_bytes"] = _peak_bytes()

    with blas_threads(n_threads):
        runnable.run(between_clocks)
    return Run(tool=tool, n_threads=n_threads, **measured)


def _delayed_s() -> float:
    """For which this thread has been ready to run while others had the processors; NaN where the system does not tell."""
    try:  # time on a processor, time ready to run, in ns (https://docs.kernel.org/scheduler/sched-stats.html)
        return 1e-9 * int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except (OSError, IndexError):
        return math.nan


def _processes_s() -> float:
    """Processor time of the processes that this one started: of those that have ended and, on Linux, those that still run."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks, parents = 0, [os.getpid()]
    while parents:
        for children in Path("/proc", str(parents.pop()), "task").glob("*/children"):
            with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
                for child in children.read_text().split():
                    ticks += sum(map(int, Path("/proc", child, "stat").read_text().rpartition(") ")[2].split()[11:15]))
                    parents.append(int(child))
    return usage.ru_utime + usage.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


_CLOCKS = {  # the slow ones outside
    "wall_s": perf_counter,
    "calling_s": time.thread_time,
    "own_s": time.process_time,
    "delayed_s": _delayed_s,
    "processes_s": _processes_s,
}


def measure(runnable: Runnable, first_s: float, n_repeats: int, time_limit_s: float) -> Iterator[Run | str]:
    """Run a warm target at least `n_repeats` times with each thread count and as often under cProfile; runs, and notes.

    The counts are the program's own, and 1: contention between threads must not pass for the cost of the work. cProfile
    records under the count that was best until then, and sees the calling thread only.

    A long run is not repeated needlessly. No run begins that would not end within half of the time limit, going by the one
    before it. Another thread count is tried if a run takes less than a tenth.

    Args:
        first_s: of the run that warmed up.
    """
    _refuse_a_second_profiler()
    start, counts, plain = perf_counter(), blas_thread_counts(), []

    def has_time() -> bool:
        latest_s = plain[-1].wall_s if plain else first_s
        return perf_counter() - start + latest_s <= _SHARE_OF_THE_LIMIT * time_limit_s

    def plain_runs() -> Iterator[Run]:
        for n in counts:
            plain.append(timed_run(runnable, "none", n))
            yield plain[-1]
            if plain[-1].wall_s > SWEPT * time_limit_s:
                del counts[1:]

    for repeat in range(n_repeats):
        if not has_time():
            yield f"{repeat} of {n_repeats} repeats: too little of the time limit was left for more"
            break
        yield from plain_runs()
        if has_time():
            yield _profiled_run(runnable, min(plain, key=lambda run: run.wall_s).n_threads)
    while has_time() and 0 < len(plain) < _MOST_RUNS * len(counts) and sum(run.wall_s for run in plain) < _SHORT_S:
        yield from plain_runs()


def _profiled_run(runnable: Runnable, n_threads: int) -> Run:
    """A run under cProfile.

    From Python 3.12 on cProfile is told of all threads' calls, and takes them for the calling thread's. Where others run, a
    second run keeps theirs away from it.
    """
    profiler = cProfile.Profile()
    runnable.starts_threads |= len(sys._current_frames()) > 1

    def under(call: Callable[[], Any]) -> None:
        with profiler:
            if runnable.starts_threads and _MONITORING:
                _hear_only_this_thread()
            call()

    run = timed_run(runnable, "cProfile", n_threads, under)
    run.recording = CallGraph.of(profiler.getstats())
    has_others = any(key.name == "Thread._bootstrap" for key, _ in run.recording.functions)
    if not _MONITORING or runnable.starts_threads or not has_others:
        return run
    runnable.starts_threads = True
    return _profiled_run(runnable, n_threads)


def _hear_only_this_thread() -> None:
    get_ident, this_thread = threading.get_ident, threading.get_ident()

    def of_this_thread(callback: Callable) -> Callable:
        return lambda *event: callback(*event) if get_ident() == this_thread else None

    register = functools.partial(_MONITORING.register_callback, _MONITORING.PROFILER_ID)
    for event in vars(_MONITORING.events).values():
        with contextlib.suppress(ValueError, TypeError):  # not one event
            if callback := register(event, None):
                register(event, of_this_thread(callback))


def _refuse_a_second_profiler() -> None:
    # 3.11 would replace the other profiler without a word
    if active := sys.getprofile() or (_MONITORING and _MONITORING.get_tool(_MONITORING.PROFILER_ID)):
        raise ProfilingError(f"another profiler is active ({active!r}); stop it (a profiler, coverage), then try again")


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


def _peak_bytes(*, begin_anew: bool = False) -> int:
    """The most resident memory that this process has had, since the last time that it began anew.

    Linux: VmHWM. Elsewhere `ru_maxrss`, which cannot begin anew, and which counts the set-up too. (On Linux that figure starts
    from the memory of the process that started this one.)
    """
    try:
        if begin_anew:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
