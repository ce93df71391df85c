"""The array tracer: what the user's own lines ask of libraries, described by names, shapes, dtypes and parameters, with times.

An array subclass would miss methods, indexing and what libraries do, and would change the program's types. So the user's
functions are rewritten (`instrumentation`) and every object stays what it is. The user's own functions and most of the standard
library are called as ever; any other call, and any operator on arrays, goes through a recorder, which times it. A library call
is one entry, whatever happens inside; of its time what it spends in the user's functions that it calls back is taken off. New
code takes the place of `function.__code__`, so that every reference to a function sees it.

Not seen: what processes do that the program starts; modules that are imported during the run; code without source; bodies of
classes; attributes (`x.T`), `in`, and the operation of `x[i] += y` and `x.a += y`. A warning from a library's C code names this
file. Where a framework returns before its work is done (JAX, a GPU), so does its entry. A traceback shows the recorder's
frames.
"""

import contextlib
import functools
import gc
import math
import operator
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Collection
from time import perf_counter
from types import BuiltinFunctionType, CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from ..run.targets import FunctionKey, code_replaced
from .calls import Call, RecordedCall, RecordedFunction
from .describing import array_bytes, arrays_in, bound_to, describe_call, home_of, is_array_type, name_of, public_name
from .folding import Project, compiled_by_numba
from .frameworks import framework_object, model_work
from .instrumentation import code_with_recorders

MOST_CALLS = 500  # distinct ones of a function; further ones share an entry for each name
_MOST_ASKED = 50  # calls of frameworks whose work is asked for: each takes a tenth of a second or so, and holds its arguments
WORTH_AN_ENTRY_S = 50e-6  # of a call without arrays

# Ids of types that are never freed, so that no other can have one of them; a look at them runs no metaclass' code.
_PYTHONS_OWN = (int, float, complex, bool, str, bytes, type(None), range, slice, list, tuple, dict, set, frozenset)
_PLAIN = frozenset(map(id, (*_PYTHONS_OWN, FunctionType, bytearray, memoryview, array, *np.sctypeDict.values())))
_ITERATING = frozenset(
    map(id, (list, tuple, set, frozenset, sorted, zip, enumerate, map, filter, sum, min, max, any, all, iter, reversed))
)
_TAKING_VALUES = frozenset(map(id, (int, float, complex, bool)))
_BUILTINS = _ITERATING | _TAKING_VALUES | set(map(id, (abs, pow, round, divmod)))
_LOOK_AT_CALLER = frozenset({"query", "eval", "sql", "sql_expr"})  # pandas, Polars, DuckDB: at its variables
_UNRECORDED = {None, *sys.stdlib_module_names}  # much of it asks who its caller is, as `logging` and `namedtuple` do

project: Project | None = None  # of the program that is traced, one at a time; None elsewhere, as in another process
standings: dict[str | int, tuple[str | None, Any]] = {}  # with the type, so that no other can have its id


class _Thread(threading.local):
    recorded_s = 0.0  # that this thread has spent in recorded calls, and in the user's functions that they called
    # While a recorded call runs: None, or what it has called back: the frame's id, the time then, and `recorded_s` then.
    callback: tuple | None = ()


_thread = _Thread()


def _standing(home: str | type) -> str | None:
    """Of a type, or of a function's module: "array" or "library"; None if it is the user's or never recorded."""
    key = home if type(home) is str else id(home)
    found = standings.get(key)
    if found is None and project:  # there is none in a thread of a program that outlives its trace
        found = None, home
        with contextlib.suppress(Exception):  # a metaclass that answers nothing
            found = _find_standing(home), home
        standings[key] = found
    return found and found[0]


def _find_standing(home: str | type) -> str | None:
    if type(home) is not str and is_array_type(home):
        # The class that says what shape an array has: if it is the user's, asking would run the user's code.
        definer = next((base for base in home.__mro__ if "shape" in vars(base)), home)
        return "array" if _library(definer) else None
    return None if _library(home) in _UNRECORDED else "library"


def _library(home: str | type) -> str | None:
    """The package; None: it is the user's."""
    name = home if type(home) is str else str(home.__module__)
    file = getattr(sys.modules.get(name), "__file__", None)
    is_users = name == "__main__" or (file and project.library(FunctionKey(file, 0, "")) is None)
    return None if is_users else name.partition(".")[0]


def _begin(of: Project | None) -> None:
    """A trace of a project; None: no more."""
    global project, standings
    project, standings = of, {}


def _is_plain(value: Any) -> bool:
    """Whether operators on it are Python's business, or the user's."""
    kind = type(value)
    return id(kind) in _PLAIN or _standing(kind) is None


def _is_array(kind: type) -> bool:
    return kind is np.ndarray or (id(kind) not in _PLAIN and _standing(kind) == "array")


def _owner(values: Any) -> Any:
    """What holds an array's data: a view has its owner's."""
    while isinstance(values, np.ndarray) and isinstance(values.base, np.ndarray):
        values = values.base
    return values


class Recorder:
    """What one of the user's functions asks for. Its methods stand in the function's code.

    Threads share it without losing counts: CPython switches threads where code jumps or calls, so sums take the old value last.
    """

    def __init__(self, key: FunctionKey):
        self.key, self.n_failures = key, 0
        self.counted = SimpleNamespace(n_calls=0, n_element_accesses=0, input_bytes=0, output_bytes=0)
        self.entries: dict[tuple, SimpleNamespace] = {}
        self.transfers: Counter[tuple[int, str]] = Counter()
        self._to_ask: list[tuple] = []  # calls of frameworks: entry, function, args, kwargs
        self._known: set[int] = set()  # ids of arrays that have come in, or were made here

    def __reduce__(self) -> tuple:
        return Recorder, (self.key,)  # a function that is sent to another process takes an empty recorder along

    def function(self, mark: str) -> Any:
        """What takes the place of a mark; all of it can be sent to other processes."""
        return _FUNCTIONS.get(mark) or getattr(self, mark)

    # What stands in the user's code: the plain case first, and quickly.

    def enter(self, arguments: tuple) -> None:
        """A function begins. Its time is of interest where a library called it: the library's own time is without it."""
        self.counted.n_calls += 1
        self.counted.input_bytes = self._passing_bytes(arguments, is_argument=True) + self.counted.input_bytes
        if _thread.callback is None:
            _thread.callback = id(sys._getframe(1)), perf_counter(), _thread.recorded_s

    def leave(self, value: Any) -> Any:
        """A function returns or yields."""
        if (callback := _thread.callback) and callback[0] == id(sys._getframe(1)):
            _thread.recorded_s = callback[2] + perf_counter() - callback[1]
            _thread.callback = None
        self.counted.output_bytes = self._passing_bytes((value,)) + self.counted.output_bytes
        return value

    def wrap_call(self, function: Any) -> Any:
        if id(function) in _BUILTINS:
            return functools.partial(self.call_builtin, function)
        if _standing(home_of(function)) is None or name_of(function) in _LOOK_AT_CALLER:
            return function
        return functools.partial(self.call, function)

    def operate(self, function: Callable[..., Any], *operands: Any) -> Any:
        """An operator: a call where any operand is a library's."""
        for each in operands:
            if not _is_plain(each):
                return self.call(function, *operands)
        return function(*operands)

    def index(self, container: Any) -> Any:
        """To be read or written at an index: a call where the container is a library's."""
        return container if _is_plain(container) else _Indexed(self, container)

    def call_builtin(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """max, zip and their like, mostly of Python's own values."""
        if id(function) in _TAKING_VALUES:
            for value in args:
                self.take_value(f"{function.__name__}(x)", value)
        elif arrays_in(args, _is_array):
            return self.call(function, *args, **kwargs)
        return function(*args, **kwargs)

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
        thread, outer = _thread, _thread.callback
        thread.callback, before_s, start = None, thread.recorded_s, perf_counter()
        try:
            result = function(*args, **kwargs)
        finally:
            seconds = perf_counter() - start
            thread.callback = outer
        try:
            own_s = max(seconds - (thread.recorded_s - before_s), 0.0)  # without what was recorded inside
            if project is not None and self._record(function, args, kwargs, result, own_s):
                thread.recorded_s = before_s + seconds
        except Exception:  # an array of a kind that nobody foresaw must not stop the user's program
            self.n_failures += 1
        return result

    def _record(self, function: Any, args: tuple, kwargs: dict, result: Any, own_s: float) -> bool:
        """Whether it has become an entry."""
        if self._is_element_by_element(function, args, result):
            return False
        while type(function) is functools.partial:
            args, kwargs, function = (*function.args, *args), {**function.keywords, **kwargs}, function.func
        if _is_array(type(owner := bound_to(function))):
            args = (owner, *args)
        operands, results = arrays_in((*args, *kwargs.values()), _is_array), arrays_in((result,), _is_array)
        if not operands and not results and own_s < WORTH_AN_ENTRY_S:
            return False
        owners = {id(owner): each for each in operands for owner in [_owner(each)]}
        for owner in owners.keys() - self._known:
            self.counted.input_bytes = array_bytes(owners[owner]) + self.counted.input_bytes
        fresh = {id(_owner(each)) for each in results} - owners.keys()
        self._known |= owners.keys() | fresh
        name = public_name(function, [*operands, *args], _library)
        asked = framework_object(function, operands)
        is_view = bool(results) and not fresh
        key = name, is_view, id(asked), *describe_call(function, args, kwargs, result, _is_array)
        if key not in self.entries:
            if len(self.entries) >= MOST_CALLS:
                key, asked = (name, False, id(None), (), (), ()), None
            name, is_view, _, args_, kwargs_, results_ = key
            call = Call(name=name, args=args_, kwargs=dict(kwargs_), results=results_, is_view=is_view)
            # It holds what was asked for, so that no other object can have its id.
            self.entries.setdefault(key, SimpleNamespace(call=call, n_calls=0, time_s=0.0, held=asked))
            if asked is not None and len(self._to_ask) < _MOST_ASKED:
                self._to_ask.append((self.entries[key], function, args, kwargs))
        self.entries[key].n_calls += 1
        self.entries[key].time_s += own_s
        return True

    def _is_element_by_element(self, function: Any, args: tuple, result: Any) -> bool:
        """Count what goes through an array in Python: x[3], list(x), zip(x, y), x.tolist()."""
        n, is_all = 0, True
        if function is operator.setitem:
            indices = args[1] if type(args[1]) is tuple else args[1:2]
            n = is_all = sum(issubclass(type(i), (int, np.integer)) for i in indices) == len(args[0].shape)
        elif function is operator.getitem:
            is_one = issubclass(type(result), np.generic) or not (_is_array(type(result)) and len(result.shape))
            n = is_all = is_one and _is_array(type(args[0]))
        elif id(function) in _ITERATING:
            for each in arrays_in(args, _is_array):
                self.take_value("iteration over an array", each)
                n += len(each) if len(each.shape) == 1 else 0
            is_all = not arrays_in((result,), _is_array)
        elif type(function) is BuiltinFunctionType and function.__name__ in ("tolist", "item"):
            self.take_value(f"x.{function.__name__}()", owner := function.__self__)
            n = math.prod(owner.shape) if _is_array(type(owner)) else 0
        else:
            return False
        self.counted.n_element_accesses += n
        return is_all

    def _passing_bytes(self, values: tuple, *, is_argument: bool = False) -> int:
        """Of arrays that come as arguments or go out."""
        n_bytes = 0
        try:
            for each in arrays_in(values, _is_array):
                n_bytes += array_bytes(each)
                if is_argument:
                    self._known.add(id(_owner(each)))
        except Exception:  # an array that does not say what it is
            self.n_failures += 1
        return n_bytes

    def recorded(self, *, check_port: bool) -> RecordedFunction:
        for entry, *of_call in self._to_ask:
            entry.call = entry.call.model_copy(update={"model_work": model_work(*of_call)})
        places = sorted(self.transfers.items()) if check_port else []
        entries = sorted(self.entries.values(), key=lambda entry: -entry.time_s)
        return RecordedFunction(
            function=self.key.name.replace(".<locals>", ""),
            file=project.relative(self.key.file),
            line=self.key.line,
            calls=[RecordedCall(**vars(entry)) for entry in entries],
            hidden_transfers=[{"line": line, "what": what, "n_times": n} for (line, what), n in places],
            **vars(self.counted),
        )


class _Indexed:
    """Stands for a container while it is indexed."""

    def __init__(self, recorder: Recorder, container: Any):
        self._recorder, self._container = recorder, container

    def __getitem__(self, index: Any) -> Any:
        return self._recorder.call(operator.getitem, self._container, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._recorder.call(operator.setitem, self._container, index, value)


# What marks stand for, besides the recorder's methods.
_FUNCTIONS = {name: each for name, each in vars(operator).items() if name.startswith("__")}
_FUNCTIONS |= {"iter": iter, "is_plain": _is_plain}


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
        Whatever `call` raises.
    """
    _begin(project)
    try:
        notes: list[str] = []
        files = {key.file for key in functions or ()}
        if functions is None:
            files = {each.__code__.co_filename for each in gc.get_objects() if type(each) is FunctionType}
        files = {file for file in files if project.library(FunctionKey(file, 0, "")) is None}
        recorders: dict[FunctionKey, Recorder] = {}
        twins = code_with_recorders(files, functions, check_port, lambda key: recorders.setdefault(key, Recorder(key)), notes)
        compiled = {each.__code__ for each in compiled_by_numba(gc.get_objects())}  # from its bytecode

        def with_recorder(code: CodeType) -> CodeType:
            is_asked = code.co_filename in files and code not in compiled  # a comparison of code takes longer than one of names
            return twins.get((code.co_filename, code), code) if is_asked else code

        with code_replaced(with_recorder):
            result = call()
        called = {key: each for key, each in recorders.items() if each.counted.n_calls}
        if missing := ({root} if functions is None else {*functions}) - called.keys():
            names = ", ".join(sorted(key.name for key in missing)[:3])
            reason = "not called in this run, or not what stands in its file (no Python source, edited since, made by a tool)"
            notes.append(f"what {names} calls was not seen: {reason}")
        recorded = [each.recorded(check_port=check_port) for each in called.values()]
        if n_failures := sum(each.n_failures for each in called.values()):
            notes.append(f"{n_failures} calls on arrays could not be described and are left out")
        return result, sorted(recorded, key=lambda each: -sum(call.time_s for call in each.calls)), notes
    finally:
        _begin(None)
