"""One target in this process: timed without a profiler and under cProfile, in turns, so that both see the same machine."""

import cProfile
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from .folding import CallGraph, Project, Time, fold
from .targets import FunctionKey, ProfilingError, call_user_code, target_key


class FunctionRow(BaseModel):
    """A user's function in one run under cProfile; of one that was not called in it, the defaults."""

    key: FunctionKey
    time: Time = Time()
    own_s_by_library: dict[str, float] = {}


class Measurement(BaseModel):
    root: FunctionKey
    plain_s: list[float]
    profiled_s: list[float]
    functions: list[list[FunctionRow]]  # of each run under cProfile


def measure(call: Callable[[], Any], name: str, n_repeats: int, time_limit_s: float) -> Measurement:
    """Run `call` once to warm up, then `n_repeats` times in each way. cProfile sees the calling thread only."""
    monitoring = getattr(sys, "monitoring", None)  # of Python 3.12; 3.11 would replace the other profiler without a word
    active = sys.getprofile() or (monitoring and monitoring.get_tool(monitoring.PROFILER_ID))
    if active:
        raise ProfilingError(
            f"another profiler is active ({active!r}); stop it (a profiler, coverage, a debugger), then try again"
        )
    root = target_key(call)
    project = Project(root.file)
    stop = time.perf_counter() + time_limit_s
    timed_run(call, name)
    measurement = Measurement(root=root, plain_s=[], profiled_s=[], functions=[])
    for _ in range(n_repeats):
        if time.perf_counter() > stop:
            raise time_limit_error(name, time_limit_s)
        measurement.plain_s.append(timed_run(call, name))
        profiler = cProfile.Profile()
        profiled_s = timed_run(functools.partial(profiler.runcall, call), name)
        measurement.profiled_s.append(profiled_s)
        graph = CallGraph.of(profiler.getstats())
        own = fold(graph, project.library, root)
        graph.functions.setdefault(root, Time(1, 0.0, profiled_s))  # a built-in: cProfile has it by another name
        rows = [FunctionRow(key=key, time=graph.functions[key], own_s_by_library=own[key]) for key in own]
        measurement.functions.append(rows)
    return measurement


def timed_run(call: Callable[[], Any], name: str) -> float:
    """Seconds that one call took."""
    start = time.perf_counter()
    call_user_code(call, f"target {name!r}")
    return time.perf_counter() - start


def time_limit_error(name: str, time_limit_s: float) -> ProfilingError:
    return ProfilingError(
        f"target {name!r} did not finish within time_limit_s={time_limit_s:g}; "
        "give it a smaller input through arguments, fewer n_repeats, or a larger time_limit_s"
    )
