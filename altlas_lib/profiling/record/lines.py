"""line_profiler on a few functions: how often each of their lines ran, and which share of the function's time it took."""

import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import CellType, CodeType, FunctionType

from pydantic import BaseModel

from ..run.runnable import FunctionKey, ProfilingError, Runnable, Script
from .measure import Run, timed_run


class FunctionLines(BaseModel):
    key: FunctionKey
    hits: dict[int, int]  # line -> times that it ran
    seconds: dict[int, float]


def time_lines(runnable: Runnable, functions: Sequence[FunctionKey]) -> tuple[Run, list[FunctionLines]]:
    """One run of the target under line_profiler, and the lines of those of `functions` that ran in it.

    line_profiler knows a function by its bytecode and marks the bytecode of those that it watches. Functions that are made
    anew in each run (nested ones, those of a script) get theirs from the code around them, so that is marked all the way out.
    Afterwards every function has its own code again.

    Raises:
        ProfilingError: the target raised, or another tracer is active.
    """
    import line_profiler

    if sys.gettrace():
        raise ProfilingError("another tracer is active (a debugger, coverage); stop it, then try again")
    profiler = line_profiler.LineProfiler()
    wanted = set(functions)

    def marked(code: CodeType) -> CodeType:
        constants = tuple(marked(each) if isinstance(each, CodeType) else each for each in code.co_consts)
        if any(new is not old for new, old in zip(constants, code.co_consts, strict=True)):
            code = code.replace(co_consts=constants)
        if FunctionKey.of(code) in wanted:
            watched = FunctionType(code, {}, closure=tuple(CellType() for _ in code.co_freevars))
            profiler.add_function(watched)
            code = watched.__code__
        return code

    originals, files = [], {key.file for key in wanted}
    try:
        for function in gc.get_objects():  # decorated, nested and bound ones too
            if type(function) is FunctionType and function.__code__.co_filename in files:
                originals.append((function, function.__code__))
                function.__code__ = marked(function.__code__)
        if isinstance(runnable.call, Script):
            runnable.call.code = marked(runnable.call.code)
        run = timed_run(runnable, "line_profiler", under=profiler.runcall)
    finally:
        for function, code in originals:
            function.__code__ = code
        profiler.functions.clear()  # the watched ones, else found as the user's by whoever looks for those
    return run, list(_lines(profiler, wanted))


def _lines(profiler, wanted: Iterable[FunctionKey]) -> Iterator[FunctionLines]:
    statistics = profiler.get_stats()
    by_place = {(key.file, key.line): key for key in wanted}
    for (file, line, _), timings in statistics.timings.items():
        if timings and (key := by_place.get((file, line))):
            yield FunctionLines(
                key=key,
                hits={line: n_hits for line, n_hits, _ in timings},
                seconds={line: ticks * statistics.unit for line, _, ticks in timings},
            )
