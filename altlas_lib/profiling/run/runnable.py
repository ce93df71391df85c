"""A target ready to run: as often as the tools ask, each time from the same state of the process."""

import contextlib
import functools
import gc
import operator
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NamedTuple


class ProfilingError(Exception):
    """A target that cannot be profiled: what was given, why not, and what to do."""


class FunctionKey(NamedTuple):
    """What cProfile and py-spy both call a function by: source file, line of its definition, qualified name."""

    file: str
    line: int
    name: str

    @classmethod
    def of(cls, code: CodeType | str) -> "FunctionKey":
        """Of a code object; or of a built-in function, which cProfile knows by its description only."""
        if isinstance(code, str):
            return cls("~", 0, code)
        return cls(code.co_filename, code.co_firstlineno, code.co_qualname)


@dataclass
class Runnable:
    """A target with all that it needs to be called."""

    name: str
    call: Callable[[], Any]
    root: FunctionKey  # gets the time of library code that no function of the user called
    inputs: tuple = ()  # values and named arguments that `call` passes on
    notes: list[str] = field(default_factory=list)
    n_finished: int = 0

    def run(self, under: Callable[[Callable[[], Any]], Any] = operator.call) -> None:
        """Run it once; `under` calls the target, in its own way.

        Raises:
            ProfilingError: the target raised, or called `sys.exit` with a status other than 0.
        """
        process = os.getpid()
        with contextlib.chdir(os.getcwd()):  # the next run begins where this one began
            try:
                call_user_code(functools.partial(under, self.call), f"target {self.name!r}", after=self.n_finished)
            finally:
                if os.getpid() != process:  # the target forked, and its child came to this point too: it ends here
                    _end_fork(sys.exception())
        self.n_finished += 1


def _end_fork(error: BaseException | None) -> None:
    """End this process with the status that Python would have given it."""
    status = getattr(error.__cause__, "code", 1) if error else 0
    os._exit(status if isinstance(status, int) else status is not None)


@dataclass
class Script:
    """A Python file that runs as `__main__`, each time in a module of its own."""

    path: str
    argv: Sequence[str]
    holder: types.FunctionType  # of its code, which is found and replaced like any other function's

    def __call__(self) -> None:
        module = types.ModuleType("__main__")
        module.__dict__.update(__file__=self.path, __builtins__=__builtins__)
        sys.modules["__main__"] = module
        sys.argv = [self.path, *self.argv]
        sys.path[0] = os.path.dirname(self.path)
        exec(self.holder.__code__, module.__dict__)


def call_user_code(function: Callable[[], Any], what: str, *, after: int = 0) -> Any:
    """What `function` returns; a `ProfilingError` if it fails. `after`: earlier runs that ended well."""
    when = f" in run {after + 1}" if after else ""
    what_next = (
        "it must be safe to run repeatedly"
        if after
        else "make it run without the profiler first, with arguments (--arg) or a set-up"
    )
    try:
        return function()
    except ProfilingError:
        raise
    except SystemExit as end:
        if end.code not in (None, 0):
            raise ProfilingError(f"{what} ended{when} by sys.exit({end.code!r}): expected an end without a failure") from end
    except Exception as error:
        raise ProfilingError(f"{what} raised {describe(error)}{when}; {what_next}") from error


def describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    hint = " (its standard input is empty here)" if isinstance(error, EOFError) else ""
    return f"{type(error).__name__}: {str(error)[:500]}{place}{hint}"


@contextlib.contextmanager
def code_replaced(replace: Callable[[CodeType], CodeType]) -> Iterator[None]:
    """With other code in every function of the process; afterwards each has its own again."""
    originals = []
    try:
        for function in gc.get_objects():
            if type(function) is types.FunctionType and (new := replace(code := function.__code__)) is not code:
                originals.append((function, code))
                function.__code__ = new
        yield
    finally:
        for function, code in originals:
            function.__code__ = code
