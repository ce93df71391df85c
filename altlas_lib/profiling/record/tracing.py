"""The array tracer: what the user's own lines ask of libraries, described by names, shapes, dtypes and parameters, with times.

An array subclass would miss methods, indexing and what libraries do, and would change the program's types. So the user's
functions are rewritten (`instrumentation`) and every object stays what it is. The user's own functions and most of the standard
library are called as ever; any other call, and any operator on arrays, goes through a recorder, which times it. A library call
is one entry, whatever happens inside; of its time what it spends in recorded functions that it calls back is taken off. New
code takes the place of `function.__code__`, so that every reference to a function sees it.

Not seen: what processes do that the program starts; modules that are imported during the run; code without source; attributes
(`x.T`) and `in`. A warning from a library's C code names this file. Arrays are referred to weakly, and NumPy resizes none in
place that something refers to: a traced function's own `x.resize` works, one in a function that is not traced may raise. Where a
framework returns before its work is done (JAX, a GPU), so does its entry.
"""

import functools
import gc
import linecache
import math
import operator
import sys
import threading
import time
import weakref
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

import numpy as np

from ..run.runnable import FunctionKey, ProfilingError
from .calls import Call, HiddenTransfer, ModelWork, RecordedCall, RecordedFunction
from .describing import array_bytes, arrays_in, describe, describe_results, is_array_type, public_name, written_region
from .folding import Project
from .frameworks import framework_object, model_work
from .instrumentation import with_marks, with_recorders

MOST_CALLS = 200  # distinct ones of a function; further ones share an entry for each name
WORTH_AN_ENTRY_S = 50e-6  # of a call without arrays
_MOST_ASKED = 50  # calls of frameworks whose work is asked for, the longest: each takes a tenth of a second or so

# Ids of what is never freed, so that no other object can have one of them; a look at them runs no metaclass' code.
_SCALARS = frozenset(map(id, (int, float, complex, bool, str, bytes, type(None), range, slice)))
_PLAIN = _SCALARS | set(map(id, (list, tuple, dict, set, frozenset, bytearray, memoryview, array, FunctionType)))
_BUFFERS = frozenset(map(id, (bytearray, memoryview, array)))
_ITERATING = frozenset(
    map(id, (list, tuple, set, frozenset, sorted, zip, enumerate, map, filter, sum, min, max, any, all, iter, reversed))
)
_TAKING_VALUES = frozenset(map(id, (int, float, complex, bool, str, repr, print, format)))  # wrapped to check a port only
_BUILTINS = _ITERATING | _TAKING_VALUES | set(map(id, (abs, pow, round, divmod)))
_DESCRIPTORS = (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType, MethodWrapperType)
_LOOK_AT_CALLER = frozenset({"query", "eval", "sql", "sql_expr"})  # pandas, Polars, DuckDB: at its variables
# What of the standard library computes and does not ask who its caller is, as `logging` and `namedtuple` do.
_COMPUTES = frozenset(
    """re json csv xml html zlib gzip bz2 lzma base64 binascii hashlib hmac pickle marshal copy struct difflib statistics
    random heapq bisect fractions decimal itertools textwrap tokenize ast sqlite3 operator""".split()
)
_UNRECORDED = frozenset({*sys.stdlib_module_names, "generated code", "altlas"}) - _COMPUTES
# CuPy has counterparts to much of these, but not of SciPy's packages that follow.
_ON_GPU = {"numpy", "ndarray", "scipy", "cupy", "cupyx", "ufunc", "builtins", "tensorflow", "keras", "tf_keras", "torch", "jax"}
_ON_HOST = ("scipy.optimize.", "scipy.integrate.", "scipy.cluster.", "scipy.io.")


class _Run:
    """What is known during one trace of a program."""

    def __init__(self, project: Project):
        self.project = project
        self.recorders: dict[int, _Recorder] = {}  # of functions that were called
        self._standing: dict[str | int, tuple[Any, str | None]] = {}

    def standing(self, home: str | type) -> str | None:
        """Of a type, or of a function's file or module: "array", "library", or None if it is the user's or never recorded."""
        key = home if type(home) is str else id(home)
        if key not in self._standing:
            try:
                found = self._find_standing(home)
            except Exception:  # a metaclass that answers nothing
                found = None
            self._standing[key] = home, found  # held, so that no other type can have its id
        return self._standing[key][1]

    def _find_standing(self, home: str | type) -> str | None:
        if type(home) is str:
            library = home if home in sys.modules else self.project.library(FunctionKey(home, 0, ""))
        else:
            # The class that says what shape an array has: if it is the user's, asking would run the user's code.
            definer = next((base for base in home.__mro__ if "shape" in vars(base)), home)
            if is_array_type(home) and not self.is_users(definer):
                return "array"
            library = None if self.is_users(home) else str(home.__module__)
        return None if library is None or library.partition(".")[0].strip("_") in _UNRECORDED else "library"

    def is_users(self, kind: type) -> bool:
        module = str(kind.__module__)
        file = getattr(sys.modules.get(module), "__file__", None)
        return module == "__main__" or bool(file and self.project.library(FunctionKey(file, 0, "")) is None)


class _Thread(threading.local):
    recorded_s = 0.0  # that this thread has spent in recorded calls, and in the user's functions that they called
    n_running = 0  # recorded calls that have not returned


_run: _Run | None = None  # one program at a time is traced; elsewhere, as in a process that a function was sent to, None
_lock = threading.Lock()
_thread = _Thread()


def _is_plain(value: Any) -> bool:
    """Whether it is no array, nor of a library."""
    return id(type(value)) in _PLAIN or _run is None or _run.standing(type(value)) is None


def _is_array(kind: type) -> bool:
    return id(kind) not in _PLAIN and _run is not None and _run.standing(kind) == "array"


def _home(function: Any) -> str | type:
    """Whose a function is: its file, its module or its class."""
    kind = type(function)
    if kind is MethodType:
        return _home(function.__func__)
    if kind is functools.partial:
        return _home(function.func)
    if kind is FunctionType:
        return function.__code__.co_filename
    if kind is BuiltinFunctionType:
        owner = function.__self__
        return function.__module__ or (owner if issubclass(type(owner), type) else type(owner))
    if issubclass(kind, type):
        return function
    return function.__objclass__ if kind in _DESCRIPTORS else kind


def _owner(values: Any) -> Any:
    """What holds an array's data: a view has its owner's."""
    while isinstance(values, np.ndarray) and isinstance(values.base, np.ndarray):
        values = values.base
    return values


class _Origin(NamedTuple):
    """An array that a function knows, held weakly: once it is freed, its id may be another's."""

    array: weakref.ref
    is_own: bool = False  # made by one of the function's operations
    first_call: int | None = None  # of the function, that read it, neither an argument nor its own
    n_bytes: int = 0


class _Entry:
    """Calls with one description."""

    def __init__(self, call: dict[str, Any], asked: Any, ask: Callable[[], ModelWork | None] | None):
        self.call, self.asked, self.ask = call, asked, ask
        self.n_calls, self.time_s = 0, 0.0


class _Recorder:
    """What one of the user's functions asks for. Its methods stand in the function's code.

    Threads share it without losing counts: CPython switches threads where code jumps or calls, which no sum here does midway.
    """

    def __init__(self, key: FunctionKey):
        self.key = key
        self.reset()

    def __reduce__(self) -> tuple:
        return _Recorder, (self.key,)  # a function that is sent to another process takes an empty recorder along

    def reset(self) -> None:
        self.n_calls = self.n_element_accesses = self.n_failures = 0
        self.input_bytes = self.output_bytes = self.resident_bytes = 0
        self.entries: dict[tuple, _Entry] = {}
        self.transfers: Counter[tuple[int, str]] = Counter()
        self._origins: dict[int, _Origin] = {}

    def function(self, mark: str) -> Any:
        """What takes the place of a mark: bound methods and partial functions, which can be sent to other processes."""
        match mark.split():
            case [name] if name in _CONSTANTS:
                return _CONSTANTS[name]
            case ["neg" | "pos" | "invert" as name]:
                return functools.partial(self.unary, getattr(operator, name))
            case [name] if hasattr(self, name):
                return getattr(self, name)
            case ["take_value", *what]:
                return functools.partial(self.take_value, " ".join(what))
            case [name]:
                return functools.partial(self.binary, getattr(operator, name))
            case [store, name]:
                return functools.partial(getattr(self, store), getattr(operator, name))

    # What stands in the user's code: the plain case first, and quickly.

    def enter(self, arguments: tuple) -> tuple[float, float] | None:
        """A function begins. Its time is of interest where a library called it: the library's own time is without it."""
        if (run := _run) is None:
            return None
        run.recorders[id(self)] = self
        self.n_calls += 1
        for value in arguments:
            if id(type(value)) not in _SCALARS:
                self.input_bytes += self._passing_bytes(arguments, is_argument=True)
                break
        return (time.perf_counter(), _thread.recorded_s) if _thread.n_running else None

    def leave(self, entered: tuple[float, float] | None, value: Any) -> Any:
        if entered is not None:
            start, before_s = entered
            _thread.recorded_s = before_s + time.perf_counter() - start
        return value if id(type(value)) in _SCALARS else self.give(value)

    def give(self, value: Any) -> Any:
        """A function returns or yields."""
        self.output_bytes += self._passing_bytes((value,))
        return value

    def wrap_call(self, function: Any) -> Any:
        kind = type(function)
        if _run is None or (kind is BuiltinFunctionType and id(type(function.__self__)) in _PLAIN):
            return function  # a method of a text or a list
        if id(function) in _BUILTINS:
            return functools.partial(self.call_builtin, function)
        home = function.__code__.co_filename if kind is FunctionType else _home(function)
        if _run.standing(home) is None or getattr(function, "__name__", None) in _LOOK_AT_CALLER:
            return function
        return functools.partial(self.call, function)

    def unary(self, operate: Callable[[Any], Any], operand: Any) -> Any:
        return operate(operand) if _is_plain(operand) else self.call(operate, operand)

    def binary(self, operate: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        return operate(left, right) if _is_plain(left) and _is_plain(right) else self.call(operate, left, right)

    def getitem(self, container: Any, index: Any) -> Any:
        if _is_plain(container):
            return container[index]
        before_s, start = _thread.recorded_s, time.perf_counter()
        value = container[index]
        self._try_to_record(operator.getitem, (container, index), {}, value, time.perf_counter() - start, before_s)
        return value

    def setitem(self, value: Any, container: Any, index: Any) -> None:
        before_s, start = _thread.recorded_s, time.perf_counter()
        container[index] = value
        if id(type(container)) in _BUFFERS:
            self.take_value("write into a host array", value)
        elif not _is_plain(container):
            self._try_to_record(operator.setitem, (container, index, value), {}, None, time.perf_counter() - start, before_s)

    def load_attribute(self, container: Any, name: str) -> tuple[Any, str, Any]:
        return container, name, getattr(container, name)

    def load_item(self, container: Any, key: Any) -> tuple[Any, Any, Any]:
        return container, key, self.getitem(container, key)

    def store_attribute(self, operate: Callable[[Any, Any], Any], container: Any, name: str, old: Any, value: Any) -> None:
        setattr(container, name, self.binary(operate, old, value))

    def store_item(self, operate: Callable[[Any, Any], Any], container: Any, key: Any, old: Any, value: Any) -> None:
        self.setitem(self.binary(operate, old, value), container, key)

    def iterate(self, values: Any) -> Any:
        if not _is_plain(values):
            self._try_to_record(iter, (values,), {}, None, 0.0, _thread.recorded_s)
        return values

    def take_value(self, what: str, value: Any) -> Any:
        """Python asks for a value, not for an array: of one on a GPU it has to be fetched."""
        if issubclass(type(value), np.generic) or _is_array(type(value)):
            frame = sys._getframe(1)
            while frame.f_code.co_filename == __file__:
                frame = frame.f_back
            self.transfers[frame.f_lineno, what] += 1
        return value

    # Calls.

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if getattr(function, "__name__", None) == "resize" and _run:
            for recorder in [*_run.recorders.values()]:
                recorder._origins.pop(id(getattr(function, "__self__", None)), None)
        thread = _thread
        before_s = thread.recorded_s
        thread.n_running += 1
        start = time.perf_counter()
        try:
            result = function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - start
            thread.n_running -= 1
        self._try_to_record(function, args, kwargs, result, seconds, before_s)
        return result

    def call_builtin(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """max, zip and their like, mostly of Python's own values."""
        if id(function) in _TAKING_VALUES:
            for value in args:
                self.take_value(f"{function.__name__}(x)", value)
        elif any(id(type(value)) not in _SCALARS for value in args) and arrays_in(args, _is_array):
            return self.call(function, *args, **kwargs)
        return function(*args, **kwargs)

    def _try_to_record(self, *call: Any) -> None:
        try:
            if _run is not None:
                self._record(*call)
        except Exception:  # an array of a kind that nobody foresaw must not stop the user's program
            self.n_failures += 1

    def _record(self, function: Any, args: tuple, kwargs: dict, result: Any, seconds: float, before_s: float) -> None:
        while type(function) is functools.partial:
            args, kwargs, function = (*function.args, *args), {**function.keywords, **kwargs}, function.func
        if _is_array(type(owner := getattr(function, "__self__", None))):
            args = (owner, *args)
        if self._is_element_by_element(function, args, result):
            return
        operands, results = arrays_in((*args, *kwargs.values()), _is_array), arrays_in((result,), _is_array)
        own_s = seconds - (_thread.recorded_s - before_s)  # without what was recorded inside
        if not operands and not results and own_s < WORTH_AN_ENTRY_S:
            return
        _thread.recorded_s = before_s + seconds
        is_view = self._note_origins(operands, results)
        entry = self._entry(function, args, kwargs, result, operands, is_view)
        entry.n_calls += 1
        entry.time_s += own_s

    def _is_element_by_element(self, function: Any, args: tuple, result: Any) -> bool:
        """Count what goes through an array in Python: x[3], list(x), zip(x, y), x.tolist(); what is written to the caller's."""
        if getattr(function, "__module__", None) == "_operator":
            if (result is None or result is args[0]) and not self._is_own(args[0]):  # x[...] = y, x += y
                self.take_value("write into a host array", args[0])
            if function is operator.setitem:
                indices = args[1] if type(args[1]) is tuple else args[1:2]
                n = sum(issubclass(type(i), int | np.integer) for i in indices) == len(args[0].shape)
            else:
                is_scalar = issubclass(type(result), np.generic) or (_is_array(type(result)) and not len(result.shape))
                n = is_scalar and function is operator.getitem
            self.n_element_accesses += n
            return n
        if id(function) in _ITERATING:
            for each in arrays_in(args, _is_array):
                self.take_value("iteration over an array", each)
                self.n_element_accesses += len(each) if len(each.shape) == 1 else 0
            return not arrays_in((result,), _is_array)
        if type(function) is BuiltinFunctionType and function.__name__ in ("tolist", "item"):
            self.take_value(f"x.{function.__name__}()", function.__self__)
            self.n_element_accesses += math.prod(args[0].shape) if args else 0
            return True
        return False

    def _entry(self, function: Any, args: tuple, kwargs: dict, result: Any, operands: list, is_view: bool) -> _Entry:
        """The entry of all calls with the same description."""
        name = public_name(function, [*operands, *args], _run.is_users)
        if operands and (name.partition(".")[0] not in _ON_GPU or name.startswith(_ON_HOST)):
            self.take_value(f"{name} takes arrays on the host", operands[0])
        is_set = function is operator.setitem
        described = tuple(describe(each, _is_array, is_index=is_set) for each in args)
        named = {key: describe(each, _is_array) for key, each in kwargs.items()}
        results = describe_results(written_region(*args[:2]) if is_set else result, _is_array)
        asked = framework_object(function, operands)
        key = (name, described, *named.items(), results, is_view, id(asked))
        call, ask = {"name": name, "args": described, "kwargs": named, "results": results, "is_view": is_view}, None
        if key not in self.entries:
            if len(self.entries) >= MOST_CALLS:
                key, call = (name,), {"name": name}
            elif asked is not None:
                ask = model_work(function, args, kwargs)
        return self.entries.setdefault(key, _Entry(call, asked, ask))

    # Where arrays came from.

    def _passing_bytes(self, values: tuple, *, is_argument: bool = False) -> int:
        """Of arrays that come as arguments or go out."""
        n_bytes = 0
        try:
            for each in arrays_in(values, _is_array):
                n_bytes += array_bytes(each)
                if is_argument:
                    self._remember(_owner(each))
        except Exception:  # an array that does not say what it is
            self.n_failures += 1
        return n_bytes

    def _remember(self, owner: Any, **origin: Any) -> bool:
        try:
            self._origins[id(owner)] = _Origin(weakref.ref(owner), **origin)
        except TypeError:  # of a type that nothing can refer to weakly
            return False
        return True

    def _origin(self, owner: Any) -> _Origin | None:
        origin = self._origins.get(id(owner))
        return origin if origin and origin.array() is owner else None

    def _is_own(self, values: Any) -> bool:
        origin = self._origin(_owner(values))
        return bool(origin and origin.is_own)

    def _note_origins(self, operands: list, results: list) -> bool:
        """Count what came in otherwise than as an argument; whether the results lie in the operands' memory.

        What operations read in several calls of the function is resident, as weights are; what they read in one is an input.
        """
        owners = {id(owner): (owner, array_bytes(each)) for each in operands for owner in [_owner(each)]}
        for owner, n_bytes in owners.values():
            origin = self._origin(owner)
            if origin is None and self._remember(owner, first_call=self.n_calls, n_bytes=n_bytes):
                self.input_bytes += n_bytes
            elif origin and origin.first_call not in (None, self.n_calls):
                self.input_bytes -= origin.n_bytes
                self.resident_bytes += origin.n_bytes
                self._remember(owner)
        fresh = [owner for owner in map(_owner, results) if id(owner) not in owners]
        for owner in fresh:
            self._remember(owner, is_own=True)
        return bool(results) and not fresh

    def recorded(self, project: Project, *, check_port: bool) -> RecordedFunction:
        calls = [
            RecordedCall(call=Call(**entry.call), n_calls=entry.n_calls, time_s=max(entry.time_s, 0.0))
            for entry in self.entries.values()
        ]
        return RecordedFunction(
            function=self.key.name.replace(".<locals>", ""),
            file=project.relative(self.key.file),
            line=self.key.line,
            n_calls=self.n_calls,
            calls=sorted(calls, key=lambda each: -each.time_s),
            n_element_accesses=self.n_element_accesses,
            input_bytes=self.input_bytes,
            output_bytes=self.output_bytes,
            resident_bytes=self.resident_bytes,
            hidden_transfers=[
                HiddenTransfer(line=line, what=what, n_times=n)
                for (line, what), n in sorted(self.transfers.items())
                if check_port
            ],
        )


def _clean(traceback: Any) -> None:
    """Take the recorder's own frames out, so that a traceback reads as without it."""
    while traceback:
        while (inner := traceback.tb_next) and inner.tb_frame.f_code.co_filename == __file__:
            traceback.tb_next = inner.tb_next
        traceback = inner


def _clean_handled() -> None:
    _clean(sys.exception().__traceback__)


_CONSTANTS = {"id": id, "type": type, "slice": slice, "plain": _PLAIN, "clean": _clean_handled}  # that marks stand for


# A run ---------------------------------------------------------------------------------------------------------------------


def instrument_source(
    source: str, filename: str, functions: Collection[FunctionKey] | None = None, *, check_port: bool = False
) -> CodeType:
    """A script's code with recorders in it: run it inside of `trace`; elsewhere it records nothing.

    Args:
        functions, check_port: as in `trace`.

    Raises:
        SyntaxError: the source is no Python.
    """
    *_, (_, code) = _twins(source, filename, functions, check_port)
    return code


def _twins(
    source: str, file: str, functions: Collection[FunctionKey] | None, check_port: bool
) -> list[tuple[CodeType, CodeType]]:
    plain, marked = _compiled(source, file, check_port)
    return [*with_recorders(plain, marked, lambda key: _Recorder(key) if functions is None or key in functions else None)]


@functools.lru_cache(maxsize=256)
def _compiled(source: str, file: str, check_port: bool) -> tuple[CodeType, CodeType]:
    return compile(source, file, "exec", dont_inherit=True), with_marks(source, file, check_port=check_port)


def trace(
    call: Callable[[], Any],
    project: Project,
    root: FunctionKey,
    functions: Collection[FunctionKey] | None = None,
    *,
    check_port: bool = False,
) -> tuple[Any, list[RecordedFunction], list[str]]:
    """Run `call` once and record what functions of `project` ask of libraries; afterwards they are as they were.

    Args:
        root: the function that `call` begins with; a note says so if it should have been seen and was not.
        functions: those to record, the others run as they are; None: all of the project.
        check_port: note where the values of arrays are needed on the host (`RecordedFunction.hidden_transfers`).

    Returns:
        what `call` returned; a record of each function that ran, those with most time in recorded calls first; notes on what
        could not be seen.

    Raises:
        ProfilingError: another trace is running: it changes functions that all threads share.
        Whatever `call` raises.
    """
    global _run
    if not _lock.acquire(blocking=False):
        raise ProfilingError("an array trace is running in this process already; wait until it has ended")
    run = _run = _Run(project)
    try:
        notes: list[str] = []
        originals: dict[int, tuple[CodeType, CodeType]] = {}
        try:
            _instrument(project, functions, check_port, originals, notes)
            result = call()
        except BaseException as error:
            _clean(error.__traceback__)
            raise
        finally:
            _run = None
            _restore(originals)
        recorders = [*run.recorders.values()]
        asked = [entry for each in recorders for entry in each.entries.values() if entry.ask]
        for entry in sorted(asked, key=lambda entry: -entry.time_s)[:_MOST_ASKED]:
            entry.call["model_work"] = entry.ask()
        if all(each.key != root for each in recorders) and (functions is None or root in functions):
            notes.append(f"what {root.name} itself calls was not seen: it is no function of the user's in Python source")
        if n_failures := sum(each.n_failures for each in recorders):
            notes.append(f"{n_failures} calls on arrays could not be described and are left out")
        recorded = [each.recorded(project, check_port=check_port) for each in recorders]
        return result, sorted(recorded, key=lambda each: -sum(call.time_s for call in each.calls)), notes
    finally:
        for each in run.recorders.values():  # a script's code keeps them for the next run
            each.reset()
        _run = None
        _lock.release()


def _instrument(
    project: Project,
    functions: Collection[FunctionKey] | None,
    check_port: bool,
    originals: dict[int, tuple[CodeType, CodeType]],
    notes: list[str],
) -> None:
    """Change the code of every such function that exists; `originals` tells how to undo it."""
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
            elif functions is None or FunctionKey.of(function.__code__) in functions:
                left.add(function.__qualname__)
        if left:
            names = ", ".join(sorted(left)[:3])
            notes.append(
                f"calls in {len(left)} functions of {project.relative(file)} were not seen, such as {names}: "
                "they are not what stands in the file (no source, edited since, or made by a tool)"
            )


def _restore(originals: dict[int, tuple[CodeType, CodeType]]) -> None:
    """Also in functions that were made during the run."""
    for function in _all_functions():
        if found := originals.get(id(function.__code__)):
            function.__code__ = found[1]


def _all_functions() -> list[FunctionType]:
    """Every Python function of the process, wherever it is kept, but for those whose bytecode Numba compiles."""
    objects = gc.get_objects()
    numba = sys.modules.get("numba.core.dispatcher")
    compiled = {id(each.py_func) for each in objects if issubclass(type(each), numba.Dispatcher)} if numba else ()
    return [each for each in objects if type(each) is FunctionType and id(each) not in compiled]
