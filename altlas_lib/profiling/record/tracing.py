"""The array tracer: what the user's own lines ask of libraries, described by names, shapes, dtypes and parameters, with times.

An array subclass would miss methods, indexing and what libraries do, and would change the program's types. So the user's
functions are rewritten (`instrumentation`) and every object stays what it is. The user's own functions and most of the standard
library are called as ever; any other call, and any operator on arrays, goes through a recorder, which times it. A library call
is one entry, whatever happens inside; of its time what it spends in recorded functions that it calls back is taken off. New
code takes the place of `function.__code__`, so that every reference to a function sees it.

Not seen: what processes do that the program starts; modules that are imported during the run; code without source; attributes
(`x.T`) and `in`. A warning from a library's C code names this file. Arrays are referred to weakly, and NumPy resizes none in
place that something refers to: `x.resize` works in recorded functions, and may raise in others. Where a framework returns
before its work is done (JAX, a GPU), so does its entry.
"""

import contextlib
import functools
import gc
import linecache
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from types import CodeType, FunctionType
from typing import Any

from ..run.runnable import FunctionKey, ProfilingError
from . import recorder
from .calls import RecordedFunction
from .folding import Project
from .instrumentation import with_marks, with_recorders
from .recorder import Recorder, Run, clean

_MOST_ASKED = 50  # calls of frameworks whose work is asked for, the longest: each takes a tenth of a second or so
_lock = threading.Lock()


def instrument_source(
    source: str, filename: str, functions: Collection[FunctionKey] | None = None, *, check_port: bool = False
) -> CodeType:
    """A script's code with recorders in it: run it inside of `trace`; elsewhere it records nothing.

    Args:
        functions, check_port: as in `trace`.

    Raises:
        SyntaxError: the source is no Python.
    """
    return _twins(source, filename, functions, check_port)[-1][1]


def _twins(
    source: str, file: str, functions: Collection[FunctionKey] | None, check_port: bool
) -> list[tuple[CodeType, CodeType]]:
    plain, marked = _compiled(source, file, check_port)
    return [*with_recorders(plain, marked, lambda key: Recorder(key) if functions is None or key in functions else None)]


@functools.lru_cache(maxsize=256)
def _compiled(source: str, file: str, check_port: bool) -> tuple[CodeType, CodeType]:
    return compile(source, file, "exec", dont_inherit=True), with_marks(source, file, check_port=check_port)


def trace(
    call: Callable[[], Any],
    project: Project,
    root: FunctionKey,
    functions: Collection[FunctionKey] | None = None,
    check_port: bool = False,
) -> tuple[Any, list[RecordedFunction], list[str]]:
    """Run `call` once and record what functions of `project` ask of libraries; afterwards they are as they were.

    Args:
        root: the function that `call` begins with.
        functions: those to record, the others run as they are; None: all of the project. Notes say what of them, or whether the
            root, was not seen.
        check_port: note where the values of arrays are needed on the host (`RecordedFunction.hidden_transfers`).

    Returns:
        what `call` returned; a record of each function that ran, those with most time in recorded calls first; notes on what
        could not be seen.

    Raises:
        ProfilingError: another trace is running: it changes functions that all threads share.
        Whatever `call` raises.
    """
    if not _lock.acquire(blocking=False):
        raise ProfilingError("an array trace is running in this process already; wait until it has ended")
    run, notes = Run(project), []
    try:
        recorder.run = run
        with _instrumented(project, functions, check_port, notes):
            result = call()
        recorder.run = None
        recorders = [*run.recorders.values()]
        entries = [entry for each in recorders for entry in each.entries.values() if entry.ask]
        for entry in sorted(entries, key=lambda entry: -entry.time_s)[:_MOST_ASKED]:
            entry.call["model_work"] = entry.ask()
        if missing := ({root} if functions is None else {*functions}) - {each.key for each in recorders}:
            names = ", ".join(sorted(key.name for key in missing)[:3])
            notes.append(
                f"what {names} calls was not seen: not called in this run, or no function of the user's in Python source"
            )
        if n_failures := sum(each.n_failures for each in recorders):
            notes.append(f"{n_failures} calls on arrays could not be described and are left out")
        recorded = [each.recorded(project, check_port=check_port) for each in recorders]
        return result, sorted(recorded, key=lambda each: -sum(call.time_s for call in each.calls)), notes
    except BaseException as error:
        clean(error.__traceback__)
        raise
    finally:
        recorder.run = None
        for each in run.recorders.values():  # a script's code keeps them for the next run
            each.reset()
        _lock.release()


@contextlib.contextmanager
def _instrumented(
    project: Project, functions: Collection[FunctionKey] | None, check_port: bool, notes: list[str]
) -> Iterator[None]:
    """With other code in every such function that exists; `notes` gets what could not be changed."""
    originals: dict[int, tuple[CodeType, CodeType]] = {}
    by_file: dict[str, list[FunctionType]] = defaultdict(list)
    for function in _all_functions():
        by_file[function.__code__.co_filename].append(function)
    for file in by_file if functions is None else {key.file for key in functions} & by_file.keys():
        if project.library(FunctionKey(file, 0, "")) is not None:
            continue
        linecache.checkcache(file)
        try:
            twins = _twins("".join(linecache.getlines(file, by_file[file][0].__globals__)), file, functions, check_port)
        except Exception as error:  # no source, deeper than the parser goes: the function runs as it is
            notes.append(f"calls in {project.relative(file)} were not seen: {type(error).__name__}: {error}")
            continue
        twin_of, left = dict(twins), set()
        originals |= {id(twin): (twin, code) for code, twin in twins}
        for function in by_file[file]:
            if twin := twin_of.get(function.__code__):
                originals[id(twin)] = twin, function.__code__
                function.__code__ = twin
            elif (functions is None or FunctionKey.of(function.__code__) in functions) and not _is_recorded(function):
                left.add(function.__qualname__)
        if left:
            names = ", ".join(sorted(left)[:3])
            notes.append(
                f"calls in {len(left)} functions of {project.relative(file)} were not seen, such as {names}: "
                "they are not what stands in the file (no source, edited since, or made by a tool)"
            )
    try:
        yield
    finally:
        for function in _all_functions():  # also those that were made during the run
            if found := originals.get(id(function.__code__)):
                function.__code__ = found[1]


def _is_recorded(function: FunctionType) -> bool:
    """Already, as functions of a script are that an earlier run made."""
    return any(type(getattr(const, "__self__", None)) is Recorder for const in function.__code__.co_consts)


def _all_functions() -> list[FunctionType]:
    """Every Python function of the process, wherever it is kept, but for those whose bytecode Numba compiles."""
    objects = gc.get_objects()
    numba = sys.modules.get("numba.core.dispatcher")
    kinds = {id(kind) for kind in (numba.Dispatcher, *numba.Dispatcher.__subclasses__())} if numba else ()
    compiled = {id(each.py_func) for each in objects if id(type(each)) in kinds}
    return [each for each in objects if type(each) is FunctionType and id(each) not in compiled]
