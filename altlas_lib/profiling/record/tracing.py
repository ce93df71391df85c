"""The array tracer: every operation on arrays that the user's own lines ask for, with shapes, dtypes, cost and time.

An array subclass would miss methods, indexing and what libraries do, and would change the program's types. So the user's
functions are rewritten (`instrumentation`) and every object stays what it is. Functions that compute nothing on arrays, the
user's own and the standard library's, are called as ever; any other call, and any operator on arrays, goes through a recorder,
which times it. A library call is one operation, whatever happens inside; of its time what it spends in the user's functions
that it calls back is taken off. New code takes the place of `function.__code__`, so that every reference to a function sees it.

Not seen: what processes do that the program starts; modules that are imported during the run; code without source; attributes
(`x.T`) and `in`. A warning from a library's C code names this file. Where a framework returns before its work is done (JAX, a
GPU), so does its operation.
"""

import functools
import gc
import linecache
import math
import operator
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np

from ...results import ArrayOperation, ArrayTrace
from ..project.frameworks import FRAMEWORKS, framework_cost
from ..project.operations import Cost, array_bytes, arrays_in, cost, describe, is_array_type
from ..run.runnable import FunctionKey, ProfilingError
from .folding import Project
from .instrumentation import rewritten, twins, with_recorders

MOST_OPERATIONS = 200  # distinct ones of a function; further ones share an entry for each name
_MOST_ASKED = 50  # calls of frameworks whose cost is asked for, the dearest: each takes a tenth of a second or so


def instrument_source(source: str, filename: str) -> CodeType:
    """A script's code with recorders in it: run it inside of `trace`; elsewhere it records nothing.

    Raises:
        SyntaxError: the source is no Python.
    """
    return with_recorders(rewritten(source, filename), _Recorder)


# Recording -----------------------------------------------------------------------------------------------------------------

_BUILTIN = frozenset(
    {int, float, complex, bool, str, bytes, bytearray, type(None), set, frozenset, range, slice, type, FunctionType}
)
_CONTAINERS = frozenset({list, tuple, dict})
_ITERATE = frozenset(
    {list, tuple, set, frozenset, sorted, zip, enumerate, map, filter, sum, min, max, any, all, iter, reversed}
)
_DESCRIPTORS = (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType, MethodWrapperType)
_UFUNC = {  # operator -> what NumPy calls it
    **{"sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide", "mod": "remainder"},
    **{"pow": "power", "lshift": "left_shift", "rshift": "right_shift", "neg": "negative", "pos": "positive"},
    **{"or_": "bitwise_or", "and_": "bitwise_and", "xor": "bitwise_xor", "lt": "less", "le": "less_equal", "eq": "equal"},
    **{"ne": "not_equal", "gt": "greater", "ge": "greater_equal", "getitem": "__getitem__", "setitem": "__setitem__"},
}


class _Types(set[type]):
    """A set that code objects hold; sent to another process with them, it is that process's own."""

    __hash__ = object.__hash__

    def __reduce__(self) -> str:
        return "_plain"


class _Clock(threading.local):
    recorded_s = 0.0  # that this thread has spent in operations, and in the user's functions that operations called


# One program at a time is traced: what is known of its types and functions stands here, where every call finds it at once.
_plain = _Types()  # types that are no arrays
_scalars: set[type] = set()  # of these, those that hold no arrays either
_arrays: set[type] = set()
_homes: dict[Any, bool] = {}  # file, module, class or built-in function -> it may compute on arrays
_produced: set[int] = set()  # buffers that operations made or functions returned in this run
_ran: "list[_Recorder]" = []  # of functions that were called
_clock = _Clock()
_lock = threading.Lock()
_project: Project | None = None
_n_running = 0  # recorded calls that have not returned yet, of all threads


def _forget(project: Project | None) -> None:
    """Begin anew, for `project`."""
    global _project
    _project = project
    for known, initial in ((_plain, _BUILTIN | _CONTAINERS), (_scalars, _BUILTIN), (_arrays, ()), (_produced, ())):
        known.clear()
        known.update(initial)
    _homes.clear()
    _homes.update(dict.fromkeys({abs, pow, round, divmod, *_ITERATE}, True))
    for recorder in _ran:
        recorder.reset()
    _ran.clear()


def _is_array(value: Any) -> bool:
    kind = type(value)
    if kind in _plain:
        return False
    if kind not in _arrays:
        (_arrays if is_array_type(kind) and not _is_users(_definer(kind)) else _plain).add(kind)
        if kind in _plain and not issubclass(kind, tuple(_CONTAINERS)):
            _scalars.add(kind)
    return kind in _arrays


def _definer(kind: type) -> type:
    """The class that says what shape arrays of `kind` have: if it is the user's, asking would run the user's code."""
    return next((base for base in kind.__mro__ if "shape" in vars(base)), kind)


def _is_users(kind: type) -> bool:
    module = str(kind.__module__)
    file = getattr(sys.modules.get(module), "__file__", None)
    return module == "__main__" or bool(file and _project and _project.library(FunctionKey(file, 0, "")) is None)


def _arrays_in(values: Iterable[Any]) -> list[Any]:
    for value in values:  # mostly nothing that could be or hold one
        if type(value) not in _scalars:
            return arrays_in(values, _is_array)
    return []


def _buffer(array: Any) -> int:
    """Identity of what holds an array's data: a view has its owner's."""
    while isinstance(base := getattr(array, "base", None), np.ndarray):
        array = base
    return id(array)


def _extent(arrays: list[Any]) -> tuple[int, set[int]]:
    """Bytes and buffers of arrays; nothing of one that will not say."""
    try:
        return sum(map(array_bytes, arrays)), set(map(_buffer, arrays))
    except Exception:
        return 0, set()


def _n_dimensions(array: Any) -> int:
    try:
        return len(array.shape)
    except Exception:
        return -1


def _home(function: Any, kind: type) -> Any:
    """What decides whether a function may compute on arrays: its file, its module, its class, or itself."""
    if kind is FunctionType:
        return function.__code__.co_filename
    if kind is BuiltinFunctionType:
        module = function.__module__  # None: of a bound method
        return type(function.__self__) if module is None else function if module == "builtins" else module
    if kind is MethodType:
        return _home(function.__func__, type(function.__func__))
    if kind is functools.partial:
        return _home(function.func, type(function.func))
    if issubclass(kind, type):
        return function
    return function.__objclass__ if kind in _DESCRIPTORS else kind


def _may_compute(home: Any) -> bool:
    """Whether it is neither the user's nor the standard library's."""
    if _project is None:
        return False
    if isinstance(home, type):
        if is_array_type(home):
            return True
        if _is_users(home):
            return False
        module = str(home.__module__)
    elif not isinstance(home, str):
        return False  # a built-in function
    elif home in sys.modules:
        module = home
    else:
        module = _project.library(FunctionKey(home, 0, "")) or "builtins"
    return module.partition(".")[0] not in {"builtins", "generated code", *sys.stdlib_module_names} or module == "_operator"


class _Entry:
    """Calls of one operation on arrays of one shape; or, `shared`, of one name on whatever came after too many others."""

    def __init__(self, name: str, operands: list[str], cost: Cost, later: Callable[[], Cost] | None, *, shared: bool):
        self.name, self.operands, self.cost, self.later, self.shared = name, operands, cost, later, shared
        self.n_calls, self.time_s = 0, 0.0

    def merge(self, other: Cost) -> None:
        def both(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None else a + b

        mine = self.cost
        self.cost = Cost(
            mine.kind if mine.kind == other.kind else "unknown",
            both(mine.flops, other.flops),
            both(mine.moved_bytes, other.moved_bytes),
            max(mine.working_set_bytes, other.working_set_bytes),
            max(mine.n_kernels, other.n_kernels),
            mine.dtype,
        )

    def operation(self) -> ArrayOperation:
        of_all, n = self.cost, 1 if self.shared else self.n_calls
        return ArrayOperation(
            name=self.name,
            kind=of_all.kind,
            operands=self.operands,
            dtype=of_all.dtype,
            n_calls=self.n_calls,
            time_s=max(self.time_s, 0.0),
            flops=None if of_all.flops is None else of_all.flops * n,
            moved_bytes=None if of_all.moved_bytes is None else of_all.moved_bytes * n,
            working_set_bytes=of_all.working_set_bytes,
            n_kernels=of_all.n_kernels,
        )


class _Recorder:
    """What one of the user's functions asks of arrays. Its methods stand in the function's code."""

    def __init__(self, key: FunctionKey):
        self.key = key
        self.reset()

    def __reduce__(self) -> tuple:
        return _Recorder, (self.key,)  # a function that is sent to another process takes an empty recorder along

    def reset(self) -> None:
        self.n_calls = self.n_element_accesses = self.n_failures = 0
        self.input_bytes = self.output_bytes = self.resident_bytes = 0
        self.entries: dict[tuple, _Entry] = {}
        self._known: set[int] = set()  # buffers that came as arguments, or that are counted as resident

    def function(self, mark: str) -> Any:
        """What takes the place of a mark."""
        constants = {"type": type, "slice": slice, "plain": _plain}
        match mark.split():
            case [name] if name in constants:
                return constants[name]
            case ["getitem" | "setitem" | "pick" | "iterate" | "enter" | "leave" | "give" as name]:
                return getattr(self, name)
            case ["clean"]:
                return _clean_handled
            case ["neg" | "pos" | "invert" as name]:
                return self._unary(getattr(operator, name))
            case ["load_attribute"]:
                return _load_attribute
            case ["load_item"]:
                return self._load_item
            case ["store_attribute", name]:
                return self._store(
                    lambda container, key, value: setattr(container, key, value), self._binary(getattr(operator, name))
                )
            case ["store_item", name]:
                return self._store(
                    lambda container, key, value: self.setitem(value, container, key), self._binary(getattr(operator, name))
                )
            case [name]:
                return self._binary(getattr(operator, name))
        raise AssertionError(f"no function for the mark {mark!r}")

    # What stands in the user's code: the plain case first, and quickly.

    def enter(self, arguments: tuple) -> tuple[float, float] | None:
        """A function begins. Its time is of interest where a library called it: the library's own time is without it."""
        if not self.n_calls:
            _ran.append(self)
        self.n_calls += 1
        if arrays := _arrays_in(arguments):
            n_bytes, buffers = _extent(arrays)
            self.input_bytes += n_bytes
            self._known |= buffers
        return (time.perf_counter(), _clock.recorded_s) if _n_running else None

    def leave(self, entered: tuple[float, float] | None, value: Any) -> Any:
        if entered is not None:
            start, before_s = entered
            _clock.recorded_s = before_s + time.perf_counter() - start
        return value if type(value) in _scalars else self.give(value)

    def give(self, value: Any) -> Any:
        """A function returns or yields."""
        if arrays := _arrays_in((value,)):
            n_bytes, buffers = _extent(arrays)
            self.output_bytes += n_bytes
            _produced.update(buffers)
        return value

    def pick(self, function: Any) -> Any:
        kind = type(function)
        inner = function.__func__ if kind is MethodType else function
        home = inner.__code__.co_filename if type(inner) is FunctionType else _home(inner, type(inner))
        may_compute = _homes.get(home)
        if may_compute is None:
            may_compute = _homes[home] = _may_compute(home)
        if not may_compute:
            return function
        return functools.partial(self.call_builtin if home is function else self.call, function)

    def _unary(self, operate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def unary(operand: Any) -> Any:
            return operate(operand) if type(operand) in _plain else self.call(operate, operand)

        return unary

    def _binary(self, operate: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def binary(left: Any, right: Any) -> Any:
            if type(left) in _plain and type(right) in _plain:
                return operate(left, right)
            return self.call(operate, left, right)

        return binary

    def getitem(self, container: Any, index: Any) -> Any:
        if type(container) in _plain or not _is_array(container):
            return container[index]
        before_s, start = _clock.recorded_s, time.perf_counter()
        value = container[index]
        seconds = time.perf_counter() - start
        if _is_element(value):
            self.n_element_accesses += 1
        else:
            self._record(operator.getitem, (container, index), {}, value, seconds, before_s)
        return value

    def setitem(self, value: Any, container: Any, index: Any) -> None:
        if type(container) in _plain or not _is_array(container):
            container[index] = value
            return
        before_s, start = _clock.recorded_s, time.perf_counter()
        container[index] = value
        seconds = time.perf_counter() - start
        indices = index if type(index) is tuple else (index,)
        if sum(issubclass(type(i), int | np.integer) for i in indices) == _n_dimensions(container):
            self.n_element_accesses += 1
        else:
            self._record(operator.setitem, (container, index, value), {}, None, seconds, before_s)

    def _load_item(self, container: Any, key: Any) -> tuple[Any, Any, Any]:
        return container, key, self.getitem(container, key)

    @staticmethod
    def _store(store: Callable[[Any, Any, Any], None], operate: Callable[[Any, Any], Any]) -> Callable[..., None]:
        return lambda container, key, old, value: store(container, key, operate(old, value))

    def iterate(self, values: Any) -> Any:
        if type(values) not in _plain and _is_array(values) and _n_dimensions(values) == 1:
            self.n_element_accesses += len(values)
        return values

    # Operations.

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        global _n_running
        before_s = _clock.recorded_s
        _n_running += 1
        start = time.perf_counter()
        try:
            result = function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - start
            _n_running -= 1
        self._record(function, args, kwargs, result, seconds, before_s)
        return result

    def call_builtin(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """max, zip and their like, mostly of Python's own values."""
        return self.call(function, *args, **kwargs) if _arrays_in(args) else function(*args, **kwargs)

    def _record(
        self, function: Callable, args: tuple, kwargs: dict[str, Any], result: Any, seconds: float, before_s: float
    ) -> None:
        try:
            while type(function) is functools.partial:
                args, kwargs, function = (*function.args, *args), {**function.keywords, **kwargs}, function.func
            owner = getattr(function, "__self__", None)
            if owner is not None and type(owner) not in _plain and _is_array(owner):
                args = (owner, *args)
            operands, results = _arrays_in((*args, *kwargs.values())), _arrays_in((result,))
            if (operands or results) and not self._only_elements(function, operands, results):
                own_s = seconds - (_clock.recorded_s - before_s)  # without what was recorded inside
                _clock.recorded_s = before_s + seconds
                shares = self._note_buffers(operands, results)
                entry = self._entry(function, args, kwargs, result, operands, results, shares)
                entry.n_calls += 1
                entry.time_s += own_s
        except Exception:  # an array of a kind that nobody foresaw must not stop the user's program
            self.n_failures += 1

    def _only_elements(self, function: Callable, operands: list, results: list) -> bool:
        """Count what goes through an array element by element in Python: list(x), zip(x, y), x.tolist()."""
        if type(function) in (type, BuiltinFunctionType):
            if getattr(function, "__name__", "") in ("tolist", "item"):
                self.n_element_accesses += sum(math.prod(array.shape) for array in operands)
                return True
            if function in _ITERATE:
                self.n_element_accesses += sum(len(array) for array in operands if len(array.shape) == 1)
                return not results
        return False

    def _note_buffers(self, operands: list, results: list) -> bool:
        """Count what is resident; whether the results lie in the operands' memory, as views do."""
        buffers = {_buffer(array): array for array in operands}
        for buffer, array in buffers.items():
            if buffer not in self._known and buffer not in _produced:
                self._known.add(buffer)
                self.resident_bytes += array_bytes(array)
        fresh = {_buffer(array) for array in results} - buffers.keys()
        _produced.update(fresh)
        return not fresh

    def _entry(
        self, function: Any, args: tuple, kwargs: dict, result: Any, operands: list, results: list, shares: bool
    ) -> _Entry:
        """The entry of a call; its cost is computed when the first of its kind comes."""
        owner = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        who = (type(owner) if _is_array(owner) else id(owner), name) if _is_bound(owner) else id(function)
        key = (who, shares, *((tuple(array.shape), getattr(array, "dtype", None)) for array in (*operands, *results)))
        if key in self.entries:
            return self.entries[key]
        name = _name(function, owner, operands)
        price = cost(name, args, kwargs, result)
        if len(self.entries) < MOST_OPERATIONS:
            later = framework_cost(function, args, kwargs)
            self.entries[key] = _Entry(name, [describe(array) for array in operands], price, later, shared=False)
        elif (key := (name, price.kind)) in self.entries:
            self.entries[key].merge(price)
        else:
            self.entries[key] = _Entry(name, ["various"], price, None, shared=True)
        return self.entries[key]

    def trace(self, project: Project) -> ArrayTrace:
        return ArrayTrace(
            function=self.key.name.replace(".<locals>", ""),
            file=project.relative(self.key.file),
            line=self.key.line,
            n_calls=self.n_calls,
            operations=sorted((entry.operation() for entry in self.entries.values()), key=lambda operation: -operation.time_s),
            n_element_accesses=self.n_element_accesses,
            input_bytes=self.input_bytes,
            output_bytes=self.output_bytes,
            resident_bytes=self.resident_bytes,
        )


def _is_element(value: Any) -> bool:
    """Whether what was taken out of an array is one of its elements."""
    if _is_array(value):
        return _n_dimensions(value) == 0
    return issubclass(type(value), np.generic | int | float | complex | str | bytes)


def _is_bound(owner: Any) -> bool:
    return owner is not None and not isinstance(owner, ModuleType)


def _load_attribute(container: Any, name: str) -> tuple[Any, str, Any]:
    return container, name, getattr(container, name)


def _name(function: Any, owner: Any, operands: list) -> str:
    """As the library calls it, without its private modules."""
    name = getattr(function, "__name__", "")
    if getattr(function, "__module__", None) == "_operator":
        owner, name = (
            operands[0],
            _UFUNC.get(name) or _UFUNC.get(name[1:]) or name.removeprefix("i" if name != "invert" else ""),
        )
        if isinstance(owner, np.ndarray) and not name.startswith("__"):
            return f"numpy.{name}"
    if isinstance(owner, np.ndarray):
        return f"ndarray.{name}"
    if isinstance(function, np.ufunc):
        return f"numpy.{name}" if getattr(np, name, None) is function else f"scipy.special.{name}"
    if isinstance(owner, np.ufunc):
        return f"numpy.{owner.__name__}.{name}"
    if _is_bound(owner):
        return f"{type(owner).__name__}.{name}"
    if not name or isinstance(name, property):  # an object that can be called, such as a model
        function, name = type(function), type(function).__name__
    root, *inner = str(function.__module__ or "builtins").split(".")
    public = [] if root in FRAMEWORKS else [part for part in inner if not part.startswith("_")]
    return ".".join([root.strip("_"), *public, name])


def _clean(traceback: Any) -> None:
    """Take the recorder's own frames out, so that a traceback reads as without it."""
    while traceback:
        while (inner := traceback.tb_next) and inner.tb_frame.f_code.co_filename == __file__:
            traceback.tb_next = inner.tb_next
        traceback = inner


def _clean_handled() -> None:
    _clean(sys.exception().__traceback__)


# A run ---------------------------------------------------------------------------------------------------------------------


def trace(call: Callable[[], Any], project: Project, root: FunctionKey) -> tuple[Any, list[ArrayTrace], list[str]]:
    """Run `call` once and record what the functions of `project` ask of arrays; afterwards they are as they were.

    Args:
        root: the function that `call` begins with; a note says so if it could not be seen.

    Returns:
        what `call` returned; a trace of each of the user's functions that ran, those with most time in operations first;
        notes on what could not be seen.

    Raises:
        ProfilingError: another trace is running: it changes functions that all threads share.
        Whatever `call` raises.
    """
    if not _lock.acquire(blocking=False):
        raise ProfilingError("an array trace is running in this process already; wait until it has ended")
    try:
        _forget(project)
        notes: list[str] = []
        originals: dict[int, tuple[CodeType, CodeType]] = {}
        try:
            _instrument(project, originals, notes)
            result = call()
        except BaseException as error:
            _clean(error.__traceback__)
            raise
        finally:
            _restore(originals)
        of_frameworks = [entry for recorder in _ran for entry in recorder.entries.values() if entry.later]
        for entry in sorted(of_frameworks, key=lambda entry: -entry.time_s)[:_MOST_ASKED]:
            entry.cost = entry.later() or entry.cost
        if all(recorder.key != root for recorder in _ran):
            notes.append(
                f"array operations of {root.name} itself were not seen: it is no function of the user's in Python source"
            )
        if n_failures := sum(recorder.n_failures for recorder in _ran):
            notes.append(f"{n_failures} array operations could not be described and are left out")
        traces = sorted((recorder.trace(project) for recorder in _ran), key=lambda trace: -trace.operations_s)
        return result, traces, notes
    finally:
        _forget(None)
        _lock.release()


def _instrument(project: Project, originals: dict[int, tuple[CodeType, CodeType]], notes: list[str]) -> None:
    """Change the code of every function of the project that exists; `originals` tells how to undo it."""
    unhashable = [each for each in gc.get_objects() if issubclass(type(each), type) and type(each).__hash__ is None]
    if unhashable:  # a look into a set of types would raise in the user's code
        notes.append(
            f"array operations were not seen: class {unhashable[0].__qualname__} cannot be hashed; give its metaclass a hash"
        )
        return
    functions: dict[str, list[FunctionType]] = defaultdict(list)
    for function in _all_functions():
        functions[function.__code__.co_filename].append(function)
    for file, those in functions.items():
        if project.library(FunctionKey(file, 0, "")) is not None:
            continue
        linecache.checkcache(file)
        source = "".join(linecache.getlines(file, those[0].__globals__))
        try:
            plain, marked = _compiled(source, file)
            traced = with_recorders(marked, _Recorder)
        except Exception as error:  # no source, deeper than the parser goes: the function runs as it is
            notes.append(f"array operations in {project.relative(file)} were not seen: {type(error).__name__}: {error}")
            continue
        twin_of = dict(twins(plain, traced))
        left = set()
        originals |= {id(twin): (twin, code) for code, twin in twin_of.items()}
        for function in those:
            if twin := twin_of.get(function.__code__):
                originals[id(twin)] = twin, function.__code__
                function.__code__ = twin
            elif not any(type(getattr(const, "__self__", None)) is _Recorder for const in function.__code__.co_consts):
                left.add(function.__qualname__)
        if left:
            names = ", ".join(sorted(left)[:3])
            notes.append(
                f"array operations in {len(left)} functions of {project.relative(file)} were not seen, such as {names}: "
                "they are not what stands in the file (no source, edited since, or made by a tool)"
            )


@functools.lru_cache(maxsize=256)
def _compiled(source: str, file: str) -> tuple[CodeType, CodeType]:
    return compile(source, file, "exec", dont_inherit=True), rewritten(source, file)


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
