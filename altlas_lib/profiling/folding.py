"""Folding: the time of library code is charged to the user's function that called it, directly or through other libraries.

cProfile knows for each pair of caller and callee the callee's own and cumulative time. A library function's own time goes
to its callers as measured. What its own library callees took goes on to its callers in proportion to cumulative minus own
time of each caller's calls. For library code that neither recurses nor calls back into the user's code this is exact; else
it is gprof's assumption (Graham, Kessler, McKusick 1982) that such calls cost every caller alike. No time is lost either way.
"""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .targets import FunctionKey

OWN_LINES = "own lines"  # in `own_by_library`: not in a library; `@` and NumPy's ufuncs are in here, cProfile does not see them
_STANDARD_LIBRARY = str(Path(os.__file__).parent) + os.sep
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")  # functions in Python 3.11, mere lines in 3.12


class Time(NamedTuple):
    """Of a function, or of its calls from one caller."""

    n_calls: int
    own_s: float
    cumulative_s: float

    def __add__(self, other: "Time") -> "Time":
        return Time(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass
class CallGraph:
    """What cProfile recorded. A call from outside of the recording has no caller."""

    functions: dict[FunctionKey, Time] = field(default_factory=dict)
    calls: dict[tuple[FunctionKey, FunctionKey], Time] = field(default_factory=dict)  # (caller, callee)

    @classmethod
    def of(cls, entries: Iterable) -> "CallGraph":
        """From `cProfile.Profile.getstats()`. (`pstats` would drop all but one of the functions with equal keys.)"""
        graph = cls()
        for entry in entries:
            caller = FunctionKey.of(entry.code)
            graph._add(graph.functions, caller, entry)
            for call in entry.calls or ():
                graph._add(graph.calls, (caller, FunctionKey.of(call.code)), call)
        return graph

    @staticmethod
    def _add(times: dict, key: tuple, entry) -> None:
        time = Time(entry.callcount, entry.inlinetime, entry.totaltime)
        times[key] = times[key] + time if key in times else time


@dataclass(frozen=True)
class Project:
    """Which functions are the user's: those outside the standard library and site-packages, and the target's own package."""

    target_file: str

    @functools.cached_property
    def _target_package(self) -> str:
        path = Path(self.target_file)
        if not (path.parent / "__init__.py").is_file():
            return str(path)
        return str(next(parent for parent in path.parents if not (parent.parent / "__init__.py").is_file())) + os.sep

    def library(self, function: FunctionKey) -> str | None:
        """The library that a function is folded as; `OWN_LINES` for a comprehension; None: it is the user's function."""
        file, _, name = function
        if file == "~":
            return _library_of_builtin(name)
        library = None if file.startswith(self._target_package) else _library_of_file(file)
        return OWN_LINES if library is None and name.endswith(_COMPREHENSIONS) else library

    def relative(self, file: str) -> str:
        """A source file as seen from the folder that holds the target's package; unchanged where it lies elsewhere."""
        return file.removeprefix(os.path.join(os.path.dirname(self._target_package.rstrip(os.sep)), ""))


def _library_of_builtin(description: str) -> str:
    """`numpy` of `<built-in method numpy.array>`, `re` of `<method 'sub' of 're.Pattern' objects>`, else `builtins`."""
    match = re.match(r"<(?:built-in method|method '\w+' of ')\s*_?(\w+)\.", description)
    return match[1] if match else "builtins"


@functools.cache
def _library_of_file(file: str) -> str | None:
    parts = Path(file).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts[:-1]:
            return parts[parts.index(folder) + 1].removesuffix(".py")
    if file.startswith(_STANDARD_LIBRARY):
        return Path(file[len(_STANDARD_LIBRARY) :]).parts[0].removesuffix(".py")
    return "generated code" if file.startswith("<") else None


def fold(graph: CallGraph, library: Callable[[FunctionKey], str | None], root: FunctionKey) -> Mapping[FunctionKey, Mapping]:
    """Own time of each of the user's functions in seconds, by the library that it was spent in.

    Args:
        library: the name that a function's time is folded under, None for a user's function (`Project.library`).
        root: gets the time of library code that no user's function called.

    Returns:
        user's function -> {`OWN_LINES` or library: seconds}; all seconds together are all own time in `graph`.
    """
    from scipy import sparse
    from scipy.sparse.linalg import splu

    folded = {function: name for function in graph.functions if (name := library(function)) is not None}
    row = {function: i for i, function in enumerate(folded)}
    column = {name: i for i, name in enumerate(sorted(set(folded.values())))}
    own: dict[FunctionKey, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for function, time in graph.functions.items():
        if function not in folded:
            own[function][OWN_LINES] += time.own_s

    # received[i, j]: own time of library j in the library functions that function i called; passed on by the shares below
    received = np.zeros((len(row), len(column)))
    shares = sparse.lil_array((len(row), len(row)))  # [caller, callee]
    to_user: list[tuple[FunctionKey, int, float]] = []  # user's function, callee, share
    for callee, calls in _calls_of(graph, folded, root).items():
        # A nanosecond per call, so that no call weighs nothing and every share adds up to one.
        weights = {caller: max(time.cumulative_s - time.own_s, 0) + 1e-9 * time.n_calls for caller, time in calls.items()}
        for caller, time in calls.items():
            share = weights[caller] / sum(weights.values())
            if caller in folded:
                received[row[caller], column[folded[callee]]] += time.own_s
                shares[row[caller], row[callee]] = share
            else:
                own[caller][folded[callee]] += time.own_s
                to_user.append((caller, row[callee], share))
    if folded:  # what passes through each library function, also in cycles: passed = received + shares @ passed
        passed = splu(sparse.csc_array(sparse.eye_array(len(row)) - shares)).solve(received)
        for function, i, share in to_user:
            for name, j in column.items():
                own[function][name] += share * passed[i, j]
    return own


def _calls_of(graph: CallGraph, folded: Iterable[FunctionKey], root: FunctionKey) -> dict[FunctionKey, dict[FunctionKey, Time]]:
    """The calls of each folded function by caller; those from outside are the root's."""
    calls: dict[FunctionKey, dict[FunctionKey, Time]] = {function: {} for function in folded}
    for (caller, callee), time in graph.calls.items():
        if callee in calls:
            calls[callee][caller] = time
    for callee, by_caller in calls.items():
        n_calls, own_s, cumulative_s = (
            whole - sum(part) for whole, *part in zip(graph.functions[callee], *by_caller.values(), strict=True)
        )
        if n_calls > 0:
            outside = Time(n_calls, own_s, max(own_s, cumulative_s))
            by_caller[root] = by_caller[root] + outside if root in by_caller else outside
    return calls
