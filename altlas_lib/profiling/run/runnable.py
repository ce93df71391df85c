"""A target ready to run: as often as the tools ask, each time from the same state of the process."""

import contextlib
import functools
import operator
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    around: Callable[[], AbstractContextManager] = nullcontext  # entered for each run, not timed
    inputs: tuple = ()  # values and named arguments that `call` passes on
    notes: list[str] = field(default_factory=list)
    n_finished: int = 0
    starts_threads: bool = False  # as one of its runs has shown

    def run(self, under: Callable[[Callable[[], Any]], Any] = operator.call) -> None:
        """Run it once; `under` calls the target, in its own way.

        Raises:
            ProfilingError: the target raised or called `sys.exit`.
        """
        process = os.getpid()
        with self.around():
            try:
                call_user_code(functools.partial(under, self.call), f"target {self.name!r}", after=self.n_finished)
            finally:
                if os.getpid() != process:  # the target forked, and its child came to this point too: it ends here
                    _end_fork(sys.exception())
        self.n_finished += 1


def _end_fork(error: BaseException | None) -> None:
    """End this process with the status that Python would have given it."""
    status = getattr(error.__cause__, "code", 1) if error else 0
    with contextlib.suppress(ValueError, AttributeError):  # closed, or taken away
        sys.stdout.flush()
    os._exit(status if isinstance(status, int) else status is not None)


@dataclass
class Script:
    """A Python file that runs as `__main__`, each time in a module of its own."""

    path: str
    argv: Sequence[str]
    source: str
    code: CodeType

    def __call__(self) -> None:
        module = types.ModuleType("__main__")
        module.__dict__.update(__file__=self.path, __builtins__=__builtins__)
        sys.modules["__main__"] = module
        sys.argv = [self.path, *self.argv]
        sys.path[0] = os.path.dirname(self.path)
        try:
            exec(self.code, module.__dict__)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise


def call_user_code(function: Callable[[], Any], what: str, *, after: int = 0) -> Any:
    """What `function` returns; a `ProfilingError` if it raises or calls `sys.exit`. `after`: earlier runs that ended well."""
    when = f" in run {after + 1}" if after else ""
    what_next = "it must be safe to run repeatedly" if after else "make it run without the profiler first"
    try:
        return function()
    except ProfilingError:
        raise
    except SystemExit as end:
        raise ProfilingError(f"{what} ended{when} by sys.exit({end.code!r}): expected an end without a failure") from end
    except Exception as error:
        raise ProfilingError(f"{what} raised {describe(error)}{when}; {what_next}") from error


def describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    hint = " (its standard input is empty here)" if isinstance(error, EOFError) else ""
    return f"{type(error).__name__}: {str(error)[:500]}{place}{hint}"


def file_identity(descriptor: int) -> tuple[int, int] | None:
    """What a descriptor stands for; None: it is closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def process_state_restored() -> Iterator[None]:
    """The next run finds the folder, `sys.path`, arguments and environment that this one found, and open standard streams."""
    folder, path, argv, environment = os.getcwd(), [*sys.path], [*sys.argv], dict(os.environ)
    try:
        yield
    finally:
        for descriptor, (name, mode) in enumerate([("stdin", "r"), ("stdout", "w"), ("stderr", "w")]):
            if file_identity(descriptor) is None:
                os.open(os.devnull, os.O_RDWR)  # gets the least number that is free
            if (stream := getattr(sys, name)) is None or stream.closed:
                setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
        with contextlib.suppress(FileNotFoundError):
            os.chdir(folder)
        sys.path[:], sys.argv[:] = path, argv
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
