"""The array tracer: what the user's own lines ask of libraries, described by names, shapes, dtypes and parameters, with times.

An array subclass would miss methods, indexing and what libraries do, and would change the program's types. So the user's
functions are rewritten (`instrumentation`) and every object stays what it is. The user's own functions and most of the standard
library are called as ever; any other call, and any operator on arrays, goes through a recorder, which times it. A library call
is one entry, whatever happens inside; of its time what it spends in the user's functions that it calls back is taken off. New
code takes the place of `function.__code__`, so that every reference to a function sees it.

Not seen: arrays that a function meets only after 10,000 calls without any; what processes do that the program starts; modules
that are imported during the run; code without source; bodies of classes; attributes (`x.T`) and `in`. A warning from a
library's C code names this file. Where a framework returns before its work is done (JAX, a GPU), so does its entry. A traceback
shows the recorder's frames.
"""

import contextlib
import functools
import gc
import linecache
import threading
from collections.abc import Callable, Collection, Iterator
from types import CodeType, FunctionType
from typing import Any

from ..run.runnable import FunctionKey, ProfilingError
from . import recorder
from .calls import RecordedFunction
from .folding import Project, compiled_by_numba
from .instrumentation import with_recorders
from .recorder import Recorder

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
    return with_recorders(source, filename, functions, check_port, functools.cache(Recorder))


def trace(
    call: Callable, project: Project, root: FunctionKey, functions: Collection[FunctionKey] | None = None, check_port=False
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
    notes: list[str] = []
    try:
        recorder.reset(project)
        with _instrumented(project, functions, check_port, notes):
            result = call()
        recorders = [*recorder.called.values()]
        entries = [entry for each in recorders for entry in each.entries.values() if entry.ask]
        for entry in sorted(entries, key=lambda entry: -entry.time_s)[:_MOST_ASKED]:
            entry.work = entry.ask()
        if missing := ({root} if functions is None else {*functions}) - {each.key for each in recorders}:
            names = ", ".join(sorted(key.name for key in missing)[:3])
            reason = "not called in this run, or not what stands in its file (no Python source, edited since, made by a tool)"
            notes.append(f"what {names} calls was not seen: {reason}")
        if n_failures := sum(each.n_failures for each in recorders):
            notes.append(f"{n_failures} calls on arrays could not be described and are left out")
        recorded = [each.recorded(check_port=check_port) for each in recorders]
        return result, sorted(recorded, key=lambda each: -sum(call.time_s for call in each.calls)), notes
    finally:
        recorder.reset(None)
        _lock.release()


@contextlib.contextmanager
def _instrumented(
    project: Project, functions: Collection[FunctionKey] | None, check_port: bool, notes: list[str]
) -> Iterator[None]:
    """With other code in every such function that exists; `notes` gets the files that could not be rewritten."""
    recorder_for = functools.cache(Recorder)
    twins: dict[tuple[str, CodeType], CodeType] = {}  # equal code may stand in two files
    everything = _all_functions()
    files = {function.__code__.co_filename: function.__globals__ for function in everything}
    for file in files if functions is None else {key.file for key in functions} & files.keys():
        if project.library(FunctionKey(file, 0, "")) is None:
            linecache.checkcache(file)
            source = "".join(linecache.getlines(file, files[file]))
            try:
                marked = with_recorders(source, file, functions, check_port, recorder_for)
                plain = compile(source, file, "exec", dont_inherit=True)
                twins |= {(file, code): twin for code, twin in _pairs(plain, marked) if twin != code}
            except Exception as error:  # no source, deeper than the parser goes: the function runs as it is
                notes.append(f"calls in {project.relative(file)} were not seen: {type(error).__name__}: {error}")
    originals = {id(twin): code for (_, code), twin in twins.items()}
    for function in everything:
        code = function.__code__
        if twin := twins.get((code.co_filename, code)):
            recorder_for(FunctionKey.of(code)).originals.append((function, code))
            originals[id(twin)], function.__code__ = code, twin
    try:
        yield
    finally:
        for function in _all_functions():  # also those that were made during the run
            if code := originals.get(id(function.__code__)):
                function.__code__ = code


def _pairs(plain: CodeType, marked: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Every code object of a module and the one with recorders."""
    yield plain, marked
    inner = ([each for each in code.co_consts if isinstance(each, CodeType)] for code in (plain, marked))
    for pair in zip(*inner, strict=True):
        yield from _pairs(*pair)


def _all_functions() -> list[FunctionType]:
    """Every Python function of the process, wherever it is kept, but for those whose bytecode Numba compiles."""
    objects = gc.get_objects()
    compiled = set(map(id, compiled_by_numba(objects)))
    return [each for each in objects if type(each) is FunctionType and id(each) not in compiled]
