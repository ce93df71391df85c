"""One target in this process: timed without a profiler, under cProfile, under line_profiler, and beside another function."""

import contextlib
import cProfile
import dataclasses
import functools
import linecache
import math
import operator
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter  # as it was before the target ran, which may put another clock there
from types import CellType, CodeType, FunctionType
from typing import Any

import psutil
from pydantic import BaseModel

from ..run.targets import FunctionKey, Runnable, call_user_code, code_replaced
from .folding import CallGraph

_MONITORING = getattr(sys, "monitoring", None)  # of Python 3.12
_SHARE_OF_THE_LIMIT = 1 / 2  # for this tool; the others need the rest
_PARALLEL = 0.1  # processor time of others than the calling thread over the time of a run, of a parallel target
_N_LINES, _LONGEST_SOURCE = 8, 200


class Run(BaseModel, ser_json_inf_nan="constants"):
    """One run of a function, and what it took.

    Attributes:
        tool: that it ran under: "warm-up", "none", "comparison", or a profiler.
        own_s, calling_s: processor time of all threads of this process, and of that the calling thread's.
        processes_s: processor time of the processes that it started.
        delayed_s: for which the calling thread was ready to run while others had the processors; NaN: not known.
        lines: the most expensive ones of each function, as `results.LineTime`.
        same_answer: of an alternative's first run, whether it agrees with the target's: see `compare_answers`.
    """

    tool: str
    wall_s: float
    own_s: float
    calling_s: float
    processes_s: float
    delayed_s: float
    recording: CallGraph | None = None
    lines: list[tuple[FunctionKey, list[dict[str, Any]]]] = []
    same_answer: bool | None = None

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


# Runs -----------------------------------------------------------------------------------------------------------------------


def timed_run(runnable: Runnable, tool: str, under: Callable[[Callable[[], Any]], Any] = operator.call) -> Run:
    """One run of the target; `under` calls it, in its own way. Raises as `Runnable.run`."""
    measured: dict[str, Any] = {}

    def between_clocks(call: Callable[[], Any]) -> None:
        before = {name: clock() for name, clock in reversed(_CLOCKS.items())}
        try:
            under(call)
        finally:  # also at `sys.exit(0)`
            measured.update({name: clock() - before[name] for name, clock in _CLOCKS.items()})

    runnable.run(between_clocks)
    return Run(tool=tool, **measured)


def _delayed_s() -> float:
    """For which this thread has been ready to run while others had the processors; NaN where the system does not tell."""
    try:  # time on a processor, time ready to run, in ns (https://docs.kernel.org/scheduler/sched-stats.html)
        return 1e-9 * int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except (OSError, IndexError):
        return math.nan


def _processes_s() -> float:
    """Processor time of the processes that this one started: of those that have ended, and of those that still run."""
    this, seconds = psutil.Process(), 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile; its parent's times hold what it took
            user, system, *of_ended_children = process.cpu_times()[:4]
            seconds += sum(of_ended_children) + (user + system if process != this else 0)
    return seconds


_CLOCKS = {  # the slow ones outside
    "wall_s": perf_counter,
    "calling_s": time.thread_time,
    "own_s": time.process_time,
    "delayed_s": _delayed_s,
    "processes_s": _processes_s,
}


# Without a profiler and under cProfile ----------------------------------------------------------------------------------


def measure(runnable: Runnable, latest_s: float, n_repeats: int, time_limit_s: float) -> Iterator[Run | str]:
    """Run a warm target `n_repeats` times, and once under cProfile, which sees the calling thread only; runs, and notes.

    No run begins that would not end within half of the time limit, going by the one before it.

    Args:
        latest_s: of the run that warmed up.
    """
    stop = perf_counter() + _SHARE_OF_THE_LIMIT * time_limit_s
    for repeat in range(n_repeats):
        if perf_counter() + latest_s > stop:
            yield f"{repeat} of {n_repeats} repeats: too little of the time limit was left for more"
            return
        run = timed_run(runnable, "none")
        yield run
        latest_s = run.wall_s
        if not repeat and perf_counter() + latest_s <= stop:
            yield _profiled_run(runnable, run.is_parallel)


def _profiled_run(runnable: Runnable, is_parallel: bool) -> Run:
    """A run under cProfile.

    From Python 3.12 on cProfile is told of all threads' calls, and takes them for the calling thread's: where others run, they
    are kept away from it, which takes time at each call.
    """
    profiler = cProfile.Profile()

    def under(call: Callable[[], Any]) -> None:
        with profiler:
            if is_parallel and _MONITORING:
                _hear_only_this_thread()
            call()

    run = timed_run(runnable, "cProfile", under)
    run.recording = CallGraph.of(profiler.getstats())
    return run


def _hear_only_this_thread() -> None:
    get_ident, this_thread = threading.get_ident, threading.get_ident()

    def of_this_thread(callback: Callable) -> Callable:
        return lambda *event: callback(*event) if get_ident() == this_thread else None

    register = functools.partial(_MONITORING.register_callback, _MONITORING.PROFILER_ID)
    for event in vars(_MONITORING.events).values():
        with contextlib.suppress(ValueError, TypeError):  # not one event
            if callback := register(event, None):
                register(event, of_this_thread(callback))


# Under line_profiler --------------------------------------------------------------------------------------------------------


def time_lines(runnable: Runnable, functions: Sequence[FunctionKey]) -> Run:
    """One run of the target under line_profiler, with the lines of those of `functions` that ran in it.

    line_profiler knows a function by its bytecode and marks the bytecode of those that it watches. Functions that are made
    anew in each run (nested ones, those of a script) get theirs from the code around them, so that is marked all the way out.
    """
    import line_profiler

    profiler, wanted = line_profiler.LineProfiler(), {(key.file, key.line): key for key in functions}
    files = {key.file for key in functions}

    def mark(code: CodeType) -> CodeType:
        if code.co_filename not in files:
            return code
        constants = tuple(mark(each) if isinstance(each, CodeType) else each for each in code.co_consts)
        if any(new is not old for new, old in zip(constants, code.co_consts, strict=True)):
            code = code.replace(co_consts=constants)
        if FunctionKey.of(code) in functions:
            watched = FunctionType(code, {}, closure=tuple(CellType() for _ in code.co_freevars))
            profiler.add_function(watched)
            code = watched.__code__
        return code

    with code_replaced(mark):
        run = timed_run(runnable, "line_profiler", under=profiler.runcall)
    timed = {wanted.get((file, line)): timings for (file, line, _), timings in profiler.get_stats().timings.items() if timings}
    run.lines = [(key, _most_expensive(key.file, timings)) for key, timings in timed.items() if key]
    return run


def _most_expensive(file: str, timings: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """Of lines, how often they ran, and their ticks."""
    total = sum(ticks for *_, ticks in timings) or 1
    return [
        {"line": line, "source": linecache.getline(file, line).strip()[:_LONGEST_SOURCE], "n_hits": n, "share": ticks / total}
        for line, n, ticks in sorted(timings, key=lambda timing: -timing[2])[:_N_LINES]
    ]


# Beside another function ----------------------------------------------------------------------------------------------------


def race(
    target: Runnable, alternative: Runnable, n_repeats: int, time_limit_s: float, same_answer: Callable | None = None
) -> Iterator[Run]:
    """The answers of their first runs compared, then runs in turns.

    Runs have the tool "comparison" or "alternative", the first ones with ", warm-up". Each function has an input of its own;
    of functions that return nothing the inputs are compared, as they left them. Repeats end when half of the time is over.
    `same_answer`, where it is given, says of both answers whether they agree.
    """
    start, answers = perf_counter(), []
    contestants = {"comparison": target, "alternative": alternative}
    for tool, runnable in contestants.items():
        run = timed_run(runnable, f"{tool}, warm-up", under=lambda call: answers.append(call()))
        if runnable is alternative:
            pair = [target.inputs, alternative.inputs] if answers == [None, None] else answers
            agree = call_user_code(functools.partial(same_answer or compare_answers, *pair), "same_answer")
            run.same_answer = agree if agree is None else bool(agree)
        yield run
    answers.clear()
    for repeat in range(n_repeats):
        if not repeat or perf_counter() - start < time_limit_s / 2:
            for tool, runnable in contestants.items():
                yield timed_run(runnable, tool)


def compare_answers(expected: Any, given: Any) -> bool | None:
    """Whether two answers agree.

    Floating-point numbers agree within half the digits of the coarser dtype, relative to the largest of their array; all else
    has to be equal, lists, tuples and arrays alike. None where a part cannot be compared: an iterator, an object without
    equality.
    """
    try:
        return _agree(expected, given)
    except Exception:  # of an object's own comparison, or too deep
        return None


def _agree(a: Any, b: Any) -> bool:
    a, b = _simplify(a), _simplify(b)
    if any(hasattr(each, "dtype") for each in (a, b)):
        return hasattr(a, "dtype") and hasattr(b, "dtype") and a.shape == b.shape and _agree_in_numbers(a, b)
    if all(isinstance(each, list | tuple) for each in (a, b)):
        return len(a) == len(b) and all(map(_agree, a, b))
    if all(isinstance(each, Mapping) for each in (a, b)):
        return a.keys() == b.keys() and all(_agree(a[key], b[key]) for key in a)
    if type(a).__eq__ is object.__eq__ and a is not b and None not in (a, b):
        raise TypeError("an object without equality")
    return bool(a == b)


def _simplify(value: Any) -> Any:
    """An array of numbers for numbers and lists of them, a list for any other array, a dictionary for a dataclass."""
    import numpy as np

    if dataclasses.is_dataclass(value):
        return vars(value)
    if hasattr(value, "tocoo"):  # sparse
        value = value.toarray()
    if not hasattr(value, "__array__") and not isinstance(value, int | float | complex | list | tuple):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        return value
    if array.dtype.kind in "biufc":
        return array
    return array.tolist() if hasattr(value, "__array__") else value


def _agree_in_numbers(a: Any, b: Any) -> bool:
    import numpy as np

    digits = max((np.finfo(each.dtype).eps for each in (a, b) if each.dtype.kind in "fc"), default=None)
    if digits is None:  # whole numbers
        return np.array_equal(a, b)
    wide_a, wide_b = (each.astype(np.result_type(a, b, np.float64)) for each in (a, b))
    largest = np.max(np.abs(wide_a), where=np.isfinite(wide_a), initial=0.0)
    return np.allclose(wide_a, wide_b, rtol=0, atol=digits**0.5 * largest + digits, equal_nan=True)
