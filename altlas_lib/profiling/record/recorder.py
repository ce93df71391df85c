"""A recorder for each function: what its lines ask of libraries, with times, counts, and where its arrays came from."""

import contextlib
import functools
import math
import operator
import sys
import threading
import time
import weakref
from array import array
from collections import Counter
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import numpy as np

from ..run.runnable import FunctionKey
from .calls import Call, HiddenTransfer, RecordedCall, RecordedFunction
from .describing import (
    SCALARS,
    array_bytes,
    arrays_in,
    arrays_only,
    bound_to,
    describe_call,
    home_of,
    is_array_type,
    name_of,
    public_name,
)
from .folding import Project
from .frameworks import FRAMEWORKS, framework_object, model_work

# Distinct calls of a function: of one name after so many only arrays count, not parameters such as a loop's index; and after so
# many in all, further ones share an entry for each name.
MOST_EXACT, MOST_CALLS = 20, 200
WORTH_AN_ENTRY_S = 50e-6  # of a call without arrays

_BUFFERS = frozenset(map(id, (bytearray, memoryview, array)))
_PLAIN = SCALARS | _BUFFERS | set(map(id, (list, tuple, dict, set, frozenset, FunctionType)))
_NUMBERS = frozenset(map(id, np.sctypeDict.values()))
_ITERATING = frozenset(
    map(id, (list, tuple, set, frozenset, sorted, zip, enumerate, map, filter, sum, min, max, any, all, iter, reversed))
)
_TAKING_VALUES = frozenset(map(id, (int, float, complex, bool, str, repr, print, format)))  # wrapped to check a port only
_BUILTINS = _ITERATING | _TAKING_VALUES | set(map(id, (abs, pow, round, divmod)))
_LOOK_AT_CALLER = frozenset({"query", "eval", "sql", "sql_expr"})  # pandas, Polars, DuckDB: at its variables
# What of the standard library computes and does not ask who its caller is, as `logging` and `namedtuple` do.
_COMPUTES = {
    *("json", "re", "csv", "xml", "html", "zlib", "gzip", "bz2", "lzma", "hashlib", "pickle", "copy", "difflib", "statistics"),
    *("random", "heapq", "bisect", "itertools", "fractions", "decimal", "struct", "base64", "textwrap", "tokenize", "sqlite3"),
}
_UNRECORDED = frozenset({*sys.stdlib_module_names, "generated code", "altlas"}) - {"_operator"}


_MAY_BE_ON_GPU = FRAMEWORKS | {"numpy", "ndarray", "ufunc", "scipy", "cupy", "cupyx", "builtins"}


class Run:
    """What is known during one trace of a program."""

    def __init__(self, project: Project):
        self.project = project
        self.recorders: dict[int, Recorder] = {}  # of functions that were called
        self._standings: dict[str | int, tuple[str | None, Any]] = {}

    def standing(self, home: str | type) -> str | None:
        """Of a type, or of a function's file or module.

        "array"; "library"; "standard" where that is Python's own and may take long; None if it is the user's or never recorded.
        """
        key = home if type(home) is str else id(home)
        if key not in self._standings:
            try:
                found = self._find_standing(home)
            except Exception:  # a metaclass that answers nothing
                found = None
            self._standings[key] = found, home  # with the type, so that no other can have its id
        return self._standings[key][0]

    def _find_standing(self, home: str | type) -> str | None:
        if type(home) is str:
            library = self._library(home) if home in sys.modules else self.project.library(FunctionKey(home, 0, ""))
        else:
            # The class that says what shape an array has: if it is the user's, asking would run the user's code.
            definer = next((base for base in home.__mro__ if "shape" in vars(base)), home)
            if is_array_type(home) and not self.is_users(definer):
                return "array"
            library = self._library(str(home.__module__))
        if library is None or (root := library.partition(".")[0]) not in _UNRECORDED:
            return library and "library"
        return "standard" if root.strip("_") in _COMPUTES else None

    def is_users(self, kind: type) -> bool:
        return self._library(str(kind.__module__)) is None

    def _library(self, module: str) -> str | None:
        """The module itself; None: it is the user's."""
        file = getattr(sys.modules.get(module), "__file__", None)
        is_users = module == "__main__" or (file and self.project.library(FunctionKey(file, 0, "")) is None)
        return None if is_users else module


class _Thread(threading.local):
    recorded_s = 0.0  # that this thread has spent in recorded calls, and in the user's functions that they called
    nrunning = 0  # recorded calls that have not returned


run: Run | None = None  # one program at a time is traced; elsewhere, as in a process that a function was sent to, None
_thread = _Thread()


def _is_plain(value: Any) -> bool:
    """Whether operators on it are Python's business, or the user's."""
    kind = type(value)
    return id(kind) in _PLAIN or id(kind) in _NUMBERS or run is None or run.standing(kind) in (None, "standard")


def _is_array(kind: type) -> bool:
    return kind is np.ndarray or (id(kind) not in _PLAIN and run is not None and run.standing(kind) == "array")


def _owner(values: Any) -> Any:
    """What holds an array's data: a view has its owner's."""
    while isinstance(values, np.ndarray) and isinstance(values.base, np.ndarray):
        values = values.base
    return values


class _Origin(NamedTuple):
    """An array that a function knows, held weakly: once it is freed, its id may be another's."""

    array: weakref.ref
    is_own: bool = False  # made by one of the function's calls
    first_call: int | None = None  # of the function, that read it, neither an argument nor its own
    n_bytes: int = 0


class _Entry:
    """Calls with one description. A framework's object is held, so that no other can have its id."""

    def __init__(self, call: dict[str, Any], asked: Any = None, ask: Callable[[], Any] | None = None):
        self.call, self.asked, self.ask = call, asked, ask
        self.n_calls, self.time_s = 0, 0.0


class Recorder:
    """What one of the user's functions asks for. Its methods stand in the function's code.

    Threads share it without losing counts: CPython switches threads where code jumps or calls, so no sum here has a call in it.
    """

    def __init__(self, key: FunctionKey):
        self.key = key
        self.reset()

    def __reduce__(self) -> tuple:
        return Recorder, (self.key,)  # a function that is sent to another process takes an empty recorder along

    def reset(self) -> None:
        self.n_calls = self.n_element_accesses = self.n_failures = 0
        self.input_bytes = self.output_bytes = self.resident_bytes = 0
        self.entries: dict[tuple, _Entry] = {}
        self._n_exact: Counter[str] = Counter()
        self.transfers: Counter[tuple[int, str]] = Counter()
        self._origins: dict[int, _Origin] = {}

    def function(self, mark: str) -> Any:
        """What takes the place of a mark: bound methods and partial functions, which can be sent to other processes."""
        name, _, argument = mark.partition(" ")
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        method = getattr(self, name)
        return functools.partial(method, getattr(operator, argument, argument)) if argument else method

    # What stands in the user's code: the plain case first, and quickly.

    def enter(self, arguments: tuple) -> tuple[float, float] | None:
        """A function begins. Its time is of interest where a library called it: the library's own time is without it."""
        if (of := run) is None:
            return None
        of.recorders[id(self)] = self
        self.n_calls += 1
        for value in arguments:
            if id(type(value)) not in SCALARS:
                n_bytes = self._passing_bytes(arguments, is_argument=True)
                self.input_bytes += n_bytes
                break
        return (time.perf_counter(), _thread.recorded_s) if _thread.nrunning else None

    def leave(self, entered: tuple[float, float] | None, value: Any) -> Any:
        if entered is not None:
            start, before_s = entered
            _thread.recorded_s = before_s + time.perf_counter() - start
        return value if id(type(value)) in SCALARS else self.give(value)

    def give(self, value: Any) -> Any:
        """A function returns or yields."""
        n_bytes = self._passing_bytes((value,))
        self.output_bytes += n_bytes
        return value

    def wrap_call(self, function: Any) -> Any:
        kind = type(function)
        if (kind is BuiltinFunctionType and id(type(function.__self__)) in _PLAIN) or (of := run) is None:
            return function  # a method of a text or a list
        if id(function) in _BUILTINS:
            return functools.partial(self.call_builtin, function)
        if of.standing(home_of(function)) is None or name_of(function) in _LOOK_AT_CALLER:
            return function
        return functools.partial(self.call, function)

    def unary(self, operate: Callable[[Any], Any], operand: Any) -> Any:
        return operate(operand) if _is_plain(operand) else self.call(operate, operand)

    def binary(self, operate: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        if (id(type(left)) in _PLAIN or _is_plain(left)) and (id(type(right)) in _PLAIN or _is_plain(right)):
            return operate(left, right)
        return self.call(operate, left, right)

    def getitem(self, container: Any, index: Any) -> Any:
        if id(type(container)) in _PLAIN or _is_plain(container):
            return container[index]
        before_s, start = _thread.recorded_s, time.perf_counter()
        value = container[index]
        if type(container) is np.ndarray and issubclass(type(value), np.generic):
            self.n_element_accesses += 1
        else:
            self._try_to_record(operator.getitem, (container, index), {}, value, time.perf_counter() - start, before_s)
        return value

    def setitem(self, value: Any, container: Any, index: Any) -> None:
        before_s, start = _thread.recorded_s, time.perf_counter()
        container[index] = value
        if not _is_plain(container):
            self._try_to_record(operator.setitem, (container, index, value), {}, None, time.perf_counter() - start, before_s)
        elif id(type(container)) in _BUFFERS:
            self.take_value("write into a host array", value)

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
        if name_of(function) == "resize" and run:
            for recorder in [*run.recorders.values()]:
                recorder._origins.pop(id(bound_to(function)), None)
        thread = _thread
        before_s = thread.recorded_s
        thread.nrunning += 1
        start = time.perf_counter()
        try:
            result = function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - start
            thread.nrunning -= 1
        self._try_to_record(function, args, kwargs, result, seconds, before_s)
        return result

    def call_builtin(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """max, zip and their like, mostly of Python's own values."""
        for value in args:
            if id(type(value)) not in SCALARS:
                if id(function) in _TAKING_VALUES:
                    self.take_value(f"{function.__name__}(x)", value)
                elif arrays_in(args, _is_array):
                    return self.call(function, *args, **kwargs)
        return function(*args, **kwargs)

    def _try_to_record(self, *call: Any) -> None:
        try:
            if (of := run) is not None:
                self._record(of, *call)
        except Exception:  # an array of a kind that nobody foresaw must not stop the user's program
            self.n_failures += 1

    def _record(self, of: Run, function: Any, args: tuple, kwargs: dict, result: Any, seconds: float, before_s: float) -> None:
        if seconds < WORTH_AN_ENTRY_S and of.standing(home_of(function)) == "standard":
            return
        while type(function) is functools.partial:
            args, kwargs, function = (*function.args, *args), {**function.keywords, **kwargs}, function.func
        if _is_array(type(owner := bound_to(function))):
            args = (owner, *args)
        if self._is_element_by_element(function, args, result):
            return
        operands, results = arrays_in((*args, *kwargs.values()), _is_array), arrays_in((result,), _is_array)
        own_s = seconds - (_thread.recorded_s - before_s)  # without what was recorded inside
        if not operands and not results and own_s < WORTH_AN_ENTRY_S:
            return
        _thread.recorded_s = before_s + seconds
        is_view = self._note_origins(operands, results)
        name = public_name(function, [*operands, *args], of.is_users)
        if operands and name.partition(".")[0] not in _MAY_BE_ON_GPU:
            self.take_value(f"array for {name}", operands[0])
        entry = self._entry(name, function, args, kwargs, result, is_view, framework_object(name, function, operands))
        entry.n_calls += 1
        entry.time_s += own_s

    def _is_element_by_element(self, function: Any, args: tuple, result: Any) -> bool:
        """Count what goes through an array in Python: x[3], list(x), zip(x, y), x.tolist(); what is written to the caller's."""
        n, is_all = 0, True
        if getattr(function, "__module__", None) == "_operator":
            if (result is None or result is args[0]) and not self._is_own(args[0]):  # x[...] = y, x += y
                self.take_value("write into a host array", args[0])
            if function is operator.setitem:
                indices = args[1] if type(args[1]) is tuple else args[1:2]
                n = sum(issubclass(type(i), (int, np.integer)) for i in indices) == len(args[0].shape)
            elif function is operator.getitem:
                n = _is_array(type(args[0])) and not (_is_array(type(result)) and len(result.shape))
            is_all = bool(n)
        elif id(function) in _ITERATING:
            for each in arrays_in(args, _is_array):
                self.take_value("iteration over an array", each)
                n += len(each) if len(each.shape) == 1 else 0
            is_all = not arrays_in((result,), _is_array)
        elif type(function) is BuiltinFunctionType and function.__name__ in ("tolist", "item"):
            self.take_value(f"x.{function.__name__}()", function.__self__)
            n = math.prod(args[0].shape) if args else 0
        else:
            return False
        self.n_element_accesses += n
        return is_all

    def _entry(self, name: str, function: Any, args: tuple, kwargs: dict, result: Any, is_view: bool, asked: Any) -> _Entry:
        """The entry of all calls with the same description."""
        described, results = describe_call(function, (*args, *kwargs.values()), result, _is_array)
        rest = (tuple(kwargs), results, is_view, id(asked))
        if (name, described, *rest) not in self.entries and self._n_exact[name] >= MOST_EXACT:
            described = arrays_only(described)
        if (key := (name, described, *rest)) in self.entries:
            return self.entries[key]
        if len(self.entries) >= MOST_CALLS:
            return self.entries.setdefault((name,), _Entry({"name": name}))
        self._n_exact[name] += 1
        positional, named = described[: len(args)], dict(zip(kwargs, described[len(args) :], strict=True))
        call = {"name": name, "args": positional, "kwargs": named, "results": results, "is_view": is_view}
        ask = None if asked is None else model_work(function, args, kwargs)
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

    def _remember(self, owner: Any, **origin: Any) -> None:
        with contextlib.suppress(TypeError):  # of a type that nothing can refer to weakly
            self._origins[id(owner)] = _Origin(weakref.ref(owner), **origin)

    def _origin(self, owner: Any) -> _Origin | None:
        origin = self._origins.get(id(owner))
        return origin if origin and origin.array() is owner else None

    def _is_own(self, values: Any) -> bool:
        origin = self._origin(_owner(values))
        return bool(origin and origin.is_own)

    def _note_origins(self, operands: list, results: list) -> bool:
        """Count what came in otherwise than as an argument; whether the results lie in the operands' memory.

        What is read in several calls of the function is resident, as weights are; what is read in one is an input.
        """
        owners = {id(owner): (owner, each) for each in operands for owner in [_owner(each)]}
        for owner, each in owners.values():
            origin = self._origin(owner)
            if origin is None:
                n_bytes = array_bytes(each)
                self.input_bytes += n_bytes
                self._remember(owner, first_call=self.n_calls, n_bytes=n_bytes)
            elif origin.first_call not in (None, self.n_calls):
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
            for entry in sorted(self.entries.values(), key=lambda entry: -entry.time_s)
        ]
        places = sorted(self.transfers.items()) if check_port else []
        return RecordedFunction(
            function=self.key.name.replace(".<locals>", ""),
            file=project.relative(self.key.file),
            line=self.key.line,
            n_calls=self.n_calls,
            calls=calls,
            n_element_accesses=self.n_element_accesses,
            input_bytes=self.input_bytes,
            output_bytes=self.output_bytes,
            resident_bytes=self.resident_bytes,
            hidden_transfers=[HiddenTransfer(line=line, what=what, n_times=n) for (line, what), n in places],
        )


def clean(traceback: Any) -> None:
    """Take the recorder's own frames out, so that a traceback reads as without it."""
    while traceback:
        while (inner := traceback.tb_next) and inner.tb_frame.f_code.co_filename == __file__:
            traceback.tb_next = inner.tb_next
        traceback = inner


def _clean_handled() -> None:
    clean(sys.exception().__traceback__)


_CONSTANTS = {"id": id, "type": type, "slice": slice, "plain": _PLAIN, "clean": _clean_handled}  # that marks stand for
