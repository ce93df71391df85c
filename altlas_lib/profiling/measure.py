"""One target in this process: timed without a profiler and under cProfile, in turns, so that both see the same machine."""

import cProfile
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from .folding import CallGraph, Project, fold
from .targets import FunctionKey, ProfilingError, call_user_code, target_key


class FunctionRow(BaseModel):
    """A user's function in one run under cProfile."""

    key: FunctionKey
    n_calls: int
    cumulative_s: float
    own_s_by_library: dict[str, float]


class Measurement(BaseModel):
    root: FunctionKey
    plain_s: list[float]
    profiled_s: list[float]
    functions: list[list[FunctionRow]]  # of each run under cProfile


def measure(call: Callable[[], Any], name: str, n_repeats: int, time_limit_s: float) -> Measurement:
    """Run `call` once to warm up, then `n_repeats` times in each way. cProfile sees the calling thread only.

    Raises:
        ProfilingError: `call` raised, another profiler is active, or `time_limit_s` had passed when a run ended.
    """
    _refuse_second_profiler()
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
        measurement.profiled_s.append(timed_run(functools.partial(profiler.runcall, call), name))
        measurement.functions.append(_rows(CallGraph.of(profiler.getstats()), project, root))
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


def _refuse_second_profiler() -> None:
    active = sys.getprofile()  # Python 3.11 would replace it without a word
    try:
        if active is None:
            probe = cProfile.Profile()
            probe.enable()
            probe.disable()
    except ValueError as error:  # Python 3.12 and later
        active = error
    if active is not None:
        raise ProfilingError(
            f"another profiler is active ({active!r}); stop it (a profiler, coverage, a debugger), then try again"
        )


def _rows(graph: CallGraph, project: Project, root: FunctionKey) -> list[FunctionRow]:
    own = fold(graph, project.library, root)
    return [
        FunctionRow(
            key=key,
            n_calls=graph.functions[key].n_calls if key in graph.functions else 1,
            cumulative_s=graph.functions[key].cumulative_s if key in graph.functions else sum(by_library.values()),
            own_s_by_library=by_library,
        )
        for key, by_library in own.items()
    ]
