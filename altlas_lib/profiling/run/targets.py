"""What is profiled, found, checked and ready to run: a function or a script; `asgi` knows of applications.

A runnable runs as often as the tools ask, each time from the same state of the process.
"""

import asyncio
import contextlib
import functools
import gc
import importlib.util
import inspect
import operator
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Literal, NamedTuple, NoReturn

from ...names import nearest

Target = Callable[..., Any] | str | os.PathLike

_NAME = re.compile(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)(\(\))?")


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

    def run(self, under: Callable[[Callable[[], Any]], Any] = operator.call) -> None:
        """Run it once; `under` calls the target, in its own way.

        Raises:
            ProfilingError: the target raised, or called `sys.exit` with a status other than 0.
        """
        process = os.getpid()
        with contextlib.chdir(os.getcwd()):  # the next run begins where this one began
            try:
                call_user_code(functools.partial(under, self.call), f"target {self.name!r}")
            finally:
                if os.getpid() != process:  # the target forked, and its child came to this point too: it ends here
                    os._exit(sys.exception() is not None)


def call_user_code(function: Callable[[], Any], what: str) -> Any:
    """What `function` returns; a `ProfilingError` if it fails."""
    try:
        return function()
    except ProfilingError:
        raise
    except SystemExit as end:
        if end.code not in (None, 0):
            raise ProfilingError(f"{what} ended by sys.exit({end.code!r}): expected an end without a failure") from end
    except Exception as error:
        what_next = "make it run without the profiler first, again and again, with arguments (--arg) or a set-up"
        raise ProfilingError(f"{what} raised {describe(error)}; {what_next}") from error


def describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    hint = " (its standard input is empty here)" if isinstance(error, EOFError) else ""
    # Half a character cannot be sent.
    return f"{type(error).__name__}: {str(error)[:500]}{place}{hint}".encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def code_replaced(replace: Callable[[CodeType], CodeType]) -> Iterator[None]:
    """With other code in every function of the process; afterwards each has its own again."""
    originals = []
    try:
        for function in gc.get_objects():
            if type(function) is FunctionType and (new := replace(code := function.__code__)) is not code:
                originals.append((function, code))
                function.__code__ = new
        yield
    finally:
        for function, code in originals:
            function.__code__ = code


# Found by its name, or as it is ----------------------------------------------------------------------------------------------


def target_name(target: Target) -> str:
    if isinstance(target, str | os.PathLike):
        return os.fspath(target)
    function = unwrap(target)
    return f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', repr(target))}"


def target_key(target: Callable[..., Any]) -> FunctionKey:
    """Key of the innermost Python function of a callable; the name of one without Python code, such as a built-in."""
    function = unwrap(target)
    if inspect.isclass(function):
        function = function.__init__
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return FunctionKey.of(code or target_name(target))


def unwrap(target: Callable[..., Any]) -> Callable[..., Any]:
    """The function below `partial` and decorators."""
    while isinstance(target, functools.partial):
        target = target.func
    return inspect.unwrap(target)


def _fail(name: str, what: str) -> NoReturn:
    raise ProfilingError(f"target {name!r}{what}")


def target_kind(target: Target) -> Literal["function", "script"]:
    """What a target is: a callable, `module:function`, or `path/to/script.py`.

    Raises:
        ProfilingError: none of them, or no such file.
    """
    name, path = target_name(target), Path(target_name(target))
    if callable(target) or _NAME.fullmatch(name):
        return "function"
    if name and path.exists():
        return "script"
    if name.endswith(".py"):
        hint = nearest(path.name, (file.name for file in path.parent.glob("*.py")))
        _fail(name, f": no such file{hint or f'; the current folder is {os.getcwd()!r}'}")
    _fail(name, ": expected 'module:function', as in 'package.module:main', or 'path/to/script.py'")


def _prepare_script(name: str, argv: Sequence[str]) -> Runnable:
    """It runs as `__main__`, each time in a module of its own."""
    path = os.path.abspath(name)
    try:
        code = compile(importlib.util.decode_source(Path(path).read_bytes()), path, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:  # also a folder, NUL bytes, or no text in its encoding
        _fail(path, f" is no Python source ({error}); correct it, or name another file")
    holder = FunctionType(code, {})  # of the code, which is found and replaced like any other function's

    def run_as_main() -> None:
        module = ModuleType("__main__")
        module.__dict__.update(__file__=path, __builtins__=__builtins__)
        sys.modules["__main__"] = module
        sys.argv = [path, *argv]
        sys.path[0] = os.path.dirname(path)
        exec(holder.__code__, module.__dict__)

    return Runnable(name, run_as_main, FunctionKey.of(code))


def prepare(
    target: Target, setup: Target | None = None, arguments: Mapping[str, Any] | None = None, argv: Sequence[str] = ()
) -> Runnable:
    """The target with its arguments bound: `target(**arguments)`, or `target(setup(**arguments))`; `setup` runs here, once.

    A coroutine that the target returns is run by `asyncio.run`.
    """
    name, values, named = target_name(target), (), dict(arguments or {})
    if target_kind(target) == "script":
        return _prepare_script(name, argv)
    function = resolve(target)  # before the set-up, which may take long
    inner = unwrap(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        _fail(name, " is a generator, whose call does nothing yet; name a function that runs through it (list(...))")
    if setup is not None:
        values = (call_user_code(functools.partial(resolve(setup), **named), f"setup {target_name(setup)!r}"),)
        named = {}
    call = bound = functools.partial(function, *values, **named)
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None)):  # noqa: B004
        call = lambda: asyncio.run(bound())  # noqa: E731
    return Runnable(name, call, target_key(function), inputs=(*values, *named.values()))


def resolve(target: Target) -> Callable[..., Any]:
    """The callable that a target names; of `module:factory()` what the factory returns."""
    name = target_name(target)
    function = _import(name) if isinstance(target, str) else target
    if not callable(function):
        _fail(name, f" is {type(function).__name__}, not callable; name a function")
    return function


def _import(name: str) -> Any:
    match = _NAME.fullmatch(name)
    if not match:
        _fail(name, ": expected 'module:function', as in 'package.module:main'")
    module_name, attribute, is_factory = match.groups()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        what_next = f"make `import {module_name}` work first, in this folder or installed"
        _fail(name, f": importing {module_name} raised {describe(error)}; {what_next}")
    try:
        value = operator.attrgetter(attribute)(module)
    except AttributeError:
        hint = nearest(attribute, dir(module), n=3) or "; name a function that it defines"
        _fail(name, f": {module_name} has no {attribute!r}{hint}")
    return call_user_code(value, f"factory {name!r}") if is_factory else value
