"""Folding: the time of library code is charged to the user's function that called it, directly or through other libraries.

cProfile knows for each pair of caller and callee the callee's own and cumulative time. A library function's own time goes
to its callers as measured. What its own library callees took goes on to its callers in proportion to cumulative minus own
time of each caller's calls. For library code that neither recurses nor calls back into the user's code this is exact; else
it is gprof's assumption (Graham, Kessler, McKusick 1982) that such calls cost every caller alike. No time is lost either way.
"""

import gc
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple, Self

from pydantic import BaseModel

from ..run.targets import FunctionKey

OWN_LINES = "own lines"  # in `own_by_library`: not in a library; `@` and NumPy's ufuncs are in here, cProfile does not see them
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")  # functions in Python 3.11, mere lines in 3.12
_LIBRARY_FILE = re.compile(rf"(?:.*?/(?:site|dist)-packages|{re.escape(os.path.dirname(os.__file__))})/(\w+)")
_PROFILER_FILES = str(Path(__file__).parents[1])  # its frames are between the target and its caller
# `numpy` of `<built-in method numpy.array>`, `re` of `<method 'sub' of 're.Pattern' objects>`
_LIBRARY_BUILTIN = re.compile(r"<(?:built-in method|method '\w+' of ')\s*_?(\w+)\.")


class Time(NamedTuple):
    """Of a function, or of its calls from one caller."""

    n_calls: int = 0
    own_s: float = 0.0
    cumulative_s: float = 0.0

    def __add__(self, other: "Time") -> "Time":
        return Time(*(a + b for a, b in zip(self, other, strict=True)))


def compiled_by_numba(objects: Iterable[Any]) -> list[FunctionType]:
    """The Python functions that Numba has compiled; types are compared by identity, for any of the user's may be hostile."""
    numba = sys.modules.get("numba.core.dispatcher")
    kinds = {id(kind) for kind in (numba.Dispatcher, *numba.Dispatcher.__subclasses__())} if numba else ()
    return [each.py_func for each in objects if id(type(each)) in kinds] if kinds else []


class CallGraph(BaseModel):
    """What cProfile recorded. A call from outside of the recording has no caller."""

    functions: list[tuple[FunctionKey, Time]]
    calls: list[tuple[FunctionKey, FunctionKey, Time]]  # caller, callee

    @classmethod
    def of(cls, entries: Iterable) -> Self:
        """From `cProfile.Profile.getstats()`. (`pstats` would drop all but one of the functions with equal keys.)

        A function that Numba has compiled is Numba's: only some Pythons show it, and py-spy sees its caller.
        """
        compiled = {function.__code__ for function in compiled_by_numba(gc.get_objects())}

        def key(code: CodeType | str) -> FunctionKey:
            return FunctionKey.of(f"<built-in method numba.{code.co_name}>" if code in compiled else code)

        functions, calls = defaultdict(Time), defaultdict(Time)
        for entry in entries:
            functions[key(entry.code)] += Time(entry.callcount, entry.inlinetime, entry.totaltime)
            for call in entry.calls or ():
                calls[key(entry.code), key(call.code)] += Time(call.callcount, call.inlinetime, call.totaltime)
        return cls(functions=list(functions.items()), calls=[(*pair, time) for pair, time in calls.items()])


class Project:
    """Which functions are the user's: those outside the standard library and site-packages, and the target's own package."""

    def __init__(self, target_file: str):
        self._top = Path(target_file)  # the target's module, or the outermost package around it
        for folder in self._top.parents:
            if not (folder / "__init__.py").is_file():
                break
            self._top = folder

    def library(self, function: FunctionKey) -> str | None:
        """The library that a function is folded as; `OWN_LINES` for a comprehension; None: it is the user's function."""
        file, _, name = function
        if file == "~":
            match = _LIBRARY_BUILTIN.match(name)
            return match[1] if match else "builtins"
        if file.startswith(_PROFILER_FILES):
            return "altlas"
        if not f"{file}/".startswith(f"{self._top}/"):
            if match := _LIBRARY_FILE.match(file):
                return match[1]
            if file.startswith("<"):  # `<frozen posixpath>`: modules of the standard library that the interpreter holds
                return file[len("<frozen ") : -1].partition(".")[0] if file.startswith("<frozen ") else "generated code"
        return OWN_LINES if name.endswith(_COMPREHENSIONS) else None

    def relative(self, file: str) -> str:
        """A source file as seen from the folder that holds the target's package; unchanged where it lies elsewhere."""
        return file.removeprefix(os.path.join(self._top.parent, ""))


def fold(
    graph: CallGraph, library: Callable[[FunctionKey], str | None], root: FunctionKey
) -> dict[FunctionKey, tuple[Time, dict[str, float]]]:
    """Times of each of the user's functions, and its own time in seconds by the library that it was spent in.

    Args:
        library: the name that a function's time is folded under, None for a user's function (`Project.library`).
        root: gets the time of library code that no user's function called.

    Returns:
        user's function -> its calls, {`OWN_LINES` or library: seconds}; all seconds together are all own time in `graph`.
    """
    import numpy as np
    from scipy import sparse
    from scipy.sparse.linalg import splu

    times = dict(graph.functions)
    # Without Python code it is a built-in, which cProfile has by another name, or an application.
    times.setdefault(root, Time(1, 0.0, sum(time.own_s for time in times.values())))
    folded = {function: library(function) if function != root else None for function in times}
    users = [function for function, name in folded.items() if name is None]
    row = {function: i for i, function in enumerate(folded)}
    column = {name: j for j, name in enumerate(dict.fromkeys([OWN_LINES, *filter(None, folded.values())]))}

    # received[i, j]: own time of library j in the functions that function i called; passed on to i's callers by their shares
    received, shares = np.zeros((len(row), len(column))), sparse.lil_array((len(row), len(row)))  # [caller, callee]
    for user in users:
        received[row[user], column[OWN_LINES]] = times[user].own_s
    for callee, calls in _calls_of(graph, times, folded.keys() - users, root).items():
        # A nanosecond per call, so that no call weighs nothing and every share adds up to one.
        weights = {caller: max(time.cumulative_s - time.own_s, 0) + 1e-9 * time.n_calls for caller, time in calls.items()}
        for caller, time in calls.items():
            received[row[caller], column[folded[callee]]] += time.own_s
            shares[row[caller], row[callee]] = weights[caller] / sum(weights.values())
    # What a function has and what passes through it, also in cycles: passed = received + shares @ passed
    passed = splu(sparse.csc_array(sparse.eye_array(len(row)) - shares)).solve(received)
    return {user: (times[user], dict(zip(column, passed[row[user]].tolist(), strict=True))) for user in users}


def _calls_of(
    graph: CallGraph, times: Mapping[FunctionKey, Time], folded: Iterable[FunctionKey], root: FunctionKey
) -> dict[FunctionKey, dict[FunctionKey, Time]]:
    """The calls of each folded function by caller; those from outside are the root's."""
    calls: dict[FunctionKey, dict[FunctionKey, Time]] = {function: {} for function in folded}
    for caller, callee, time in graph.calls:
        if callee in calls:
            calls[callee][caller] = time
    for callee, by_caller in calls.items():
        inside = sum(by_caller.values(), Time())
        n_calls, own_s, cumulative_s = (whole - part for whole, part in zip(times[callee], inside, strict=True))
        if n_calls > 0:
            by_caller[root] = by_caller.get(root, Time()) + Time(n_calls, own_s, max(own_s, cumulative_s))
    return calls
