"""A recorder for each function: what its lines ask of libraries, with times, counts, and bytes that go in and out."""

import functools
import inspect
import math
import operator
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from types import BuiltinFunctionType, CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from ..run.runnable import FunctionKey
from .calls import Call, HiddenTransfer, RecordedCall, RecordedFunction
from .describing import SCALARS, array_bytes, arrays_in, bound_to, describe_call, home_of, is_array_type, name_of, public_name
from .folding import Project
from .frameworks import framework_object, model_work

# Distinct calls of a function: of one name after so many only arrays count, not parameters such as a loop's index; and after so
# many in all, further ones share an entry for each name.
MOST_EXACT, MOST_CALLS = 20, 200
WORTH_AN_ENTRY_S = 50e-6  # of a call without arrays
MOST_IDLE = 10_000  # calls of a function in which no array is seen; after them it gets its own code back

_SIMPLE = SCALARS | set(map(id, np.sctypeDict.values()))  # neither a library's nor holding arrays
_PYTHONS_OWN = SCALARS | set(map(id, (list, tuple, dict, set, frozenset, FunctionType, bytearray, memoryview, array)))
_PLAIN = _PYTHONS_OWN | _SIMPLE
_ITERATING = frozenset(
    map(id, (list, tuple, set, frozenset, sorted, zip, enumerate, map, filter, sum, min, max, any, all, iter, reversed))
)
_TAKING_VALUES = frozenset(map(id, (int, float, complex, bool)))
_BUILTINS = _ITERATING | _TAKING_VALUES | set(map(id, (abs, pow, round, divmod)))
_LOOK_AT_CALLER = frozenset({"query", "eval", "sql", "sql_expr"})  # pandas, Polars, DuckDB: at its variables
# What of the standard library computes and does not ask who its caller is, as `logging` and `namedtuple` do.
_COMPUTES = {
    *("json", "re", "csv", "xml", "html", "zlib", "gzip", "bz2", "lzma", "hashlib", "pickle", "copy", "difflib", "statistics"),
    *("random", "heapq", "bisect", "itertools", "fractions", "decimal", "struct", "base64", "textwrap", "tokenize", "sqlite3"),
    "operator",
}
_UNRECORDED = {None, *sys.stdlib_module_names} - _COMPUTES - {f"_{name}" for name in _COMPUTES}
_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

project: Project | None = None  # of the program that is traced, one at a time; None elsewhere, as in another process
called: dict[int, "Recorder"] = {}  # recorders of functions that were called
standings: dict[str | int, tuple[str | None, Any]] = {}  # with the type, so that no other can have its id
simple = set(_SIMPLE)  # and types of the user's, by their ids


class _Thread(threading.local):
    recorded_s = 0.0  # that this thread has spent in recorded calls, and in the user's functions that they called
    # While a recorded call runs: None, or what it has called back: the frame's id, the time then, and `recorded_s` then.
    callback: tuple | None = ()


_thread = _Thread()


def _standing(home: str | type) -> str | None:
    """Of a type, or of a function's file or module: "array" or "library"; None if it is the user's or never recorded."""
    key = home if type(home) is str else id(home)
    if (found := standings.get(key)) is None:
        if project is None:  # also in a thread of a program that outlives its trace
            return None
        try:
            found = _find_standing(home), home
        except Exception:  # a metaclass that answers nothing
            found = None, home
        standings[key] = found
        if found[0] is None and type(home) is not str and not issubclass(home, (list, tuple, dict)):
            simple.add(key)
    return found[0]


def _find_standing(home: str | type) -> str | None:
    if type(home) is not str:
        # The class that says what shape an array has: if it is the user's, asking would run the user's code.
        definer = next((base for base in home.__mro__ if "shape" in vars(base)), home)
        if is_array_type(home) and _library(definer):
            return "array"
    return None if _library(home) in _UNRECORDED else "library"


def _library(home: str | type) -> str | None:
    """The package; None: it is the user's."""
    is_file = type(home) is str and home not in sys.modules
    name = home if type(home) is str else str(home.__module__)
    file = name if is_file else getattr(sys.modules.get(name), "__file__", None)
    folded = project.library(FunctionKey(file, 0, "")) if file else name
    return None if folded is None or name == "__main__" else folded if is_file else name.partition(".")[0]


def reset(of: Project | None) -> None:
    """Begin a trace of a project; None: end it."""
    global project, called, standings, simple
    for each in called.values():  # a script's code keeps them for the next run
        each.reset()
    project, called, standings, simple = of, {}, {}, set(_SIMPLE)


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

    Threads share it without losing counts: CPython switches threads where code jumps or calls, so no sum here has a call in it.
    """

    def __init__(self, key: FunctionKey):
        self.key = key
        self.originals: list[tuple[FunctionType, CodeType]] = []  # functions that ask this recorder, and their own code
        self.reset()

    def __reduce__(self) -> tuple:
        return Recorder, (self.key,)  # a function that is sent to another process takes an empty recorder along

    def reset(self) -> None:
        self.n_calls = self.n_element_accesses = self.n_failures = 0
        self.input_bytes = self.output_bytes = 0
        self.entries: dict[tuple, SimpleNamespace] = {}
        self._n_exact: Counter[str] = Counter()
        self.transfers: Counter[tuple[int, str]] = Counter()
        self._known: set[int] = set()  # ids of arrays that have come in, or were made here

    def function(self, mark: str) -> Any:
        """What takes the place of a mark; all of it can be sent to other processes."""
        return _FUNCTIONS.get(mark) or getattr(self, mark)

    # What stands in the user's code: the plain case first, and quickly.

    def enter(self, arguments: tuple) -> None:
        """A function begins. Its time is of interest where a library called it: the library's own time is without it."""
        if project is None:
            return
        called[id(self)] = self
        self.n_calls += 1
        n_bytes = self._passing_bytes(arguments, is_argument=True)
        self.input_bytes += n_bytes
        if self.n_calls == MOST_IDLE and not (self.entries or self.n_element_accesses or self.input_bytes or self.output_bytes):
            for function, code in self.originals:
                function.__code__ = code
        if _thread.callback is None and not (frame := sys._getframe(1)).f_code.co_flags & _SUSPENDS:
            _thread.callback = id(frame), perf_counter(), _thread.recorded_s

    def leave(self, value: Any) -> Any:
        """A function returns or yields."""
        if (callback := _thread.callback) and callback[0] == id(sys._getframe(1)):
            _thread.recorded_s = callback[2] + perf_counter() - callback[1]
            _thread.callback = None
        n_bytes = self._passing_bytes((value,))
        self.output_bytes += n_bytes
        return value

    def wrap_call(self, function: Any) -> Any:
        if type(function) is BuiltinFunctionType and id(type(function.__self__)) in _PYTHONS_OWN:
            return function  # a method of a text or a list
        if id(function) in _BUILTINS:
            return functools.partial(self.call_builtin, function)
        if _standing(home_of(function)) is None or name_of(function) in _LOOK_AT_CALLER:
            return function
        return functools.partial(self.call, function)

    def operate(self, function: Callable[..., Any], *operands: Any) -> Any:
        """An operator: a call where any operand is a library's."""
        for each in operands:
            if id(type(each)) not in simple and not _is_plain(each):
                return self.call(function, *operands)
        return function(*operands)

    def apply(self, function: Callable[..., Any], container: Any, *rest: Any) -> Any:
        """Indexing and iteration: a call where the container is a library's."""
        if type(container) is not np.ndarray and _is_plain(container):
            return function(container, *rest)
        return self.call(function, container, *rest)

    def assign(self, value: Any, container: Any, index: Any) -> None:
        self.apply(operator.setitem, container, index, value)

    def load(self, get: Callable[[Any, Any], Any], container: Any, key: Any) -> tuple[Any, Any, Any]:
        return container, key, self.apply(get, container, key)

    def store(self, put: Callable[..., None], operate: Callable, container: Any, key: Any, old: Any, value: Any) -> None:
        self.apply(put, container, key, self.operate(operate, old, value))

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
            own_s = seconds - (thread.recorded_s - before_s)  # without what was recorded inside
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
            n_bytes = array_bytes(owners[owner])
            self.input_bytes += n_bytes
        fresh = {id(_owner(each)) for each in results} - owners.keys()
        self._known |= owners.keys() | fresh
        name = public_name(function, [*operands, *args], _library)
        asked = framework_object(function, operands)
        is_view = bool(results) and not fresh
        key = name, is_view, id(asked), *describe_call(function, args, kwargs, result, _is_array)
        if key not in self.entries and self._n_exact[name] >= MOST_EXACT:
            key = (*key[:3], *describe_call(function, args, kwargs, result, _is_array, only_arrays=True))
        if key not in self.entries:
            self._n_exact[name] += 1
            if len(self.entries) >= MOST_CALLS:
                key, asked = (name, False, id(None), (), (), ()), None
            ask = None if asked is None else model_work(function, args, kwargs)
            # A framework's object is held, so that no other can have its id.
            self.entries.setdefault(key, SimpleNamespace(n_calls=0, time_s=0.0, asked=asked, ask=ask, work=None))
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
        self.n_element_accesses += n
        return is_all

    def _passing_bytes(self, values: tuple, *, is_argument: bool = False) -> int:
        """Of arrays that come as arguments or go out."""
        n_bytes = 0
        try:
            for each in arrays_in(values, _is_array, without=simple):
                n_bytes += array_bytes(each)
                if is_argument:
                    self._known.add(id(_owner(each)))
        except Exception:  # an array that does not say what it is
            self.n_failures += 1
        return n_bytes

    def recorded(self, *, check_port: bool) -> RecordedFunction:
        places = sorted(self.transfers.items()) if check_port else []
        calls = []
        for (name, is_view, _, args, kwargs, results), of in sorted(self.entries.items(), key=lambda each: -each[1].time_s):
            call = Call(name=name, args=args, kwargs=dict(kwargs), results=results, is_view=is_view, model_work=of.work)
            calls.append(RecordedCall(call=call, n_calls=of.n_calls, time_s=max(of.time_s, 0.0)))
        return RecordedFunction(
            function=self.key.name.replace(".<locals>", ""),
            file=project.relative(self.key.file),
            line=self.key.line,
            calls=calls,
            hidden_transfers=[HiddenTransfer(line=line, what=what, n_times=n) for (line, what), n in places],
            n_calls=self.n_calls,
            n_element_accesses=self.n_element_accesses,
            input_bytes=self.input_bytes,
            output_bytes=self.output_bytes,
        )


# What marks stand for, besides the recorder's methods.
_FUNCTIONS = {
    **{name: each for name, each in vars(operator).items() if name.startswith("__")},
    **{"slice": slice, "getattr": getattr, "setattr": setattr, "is_plain": _is_plain, "iter": iter},
}
