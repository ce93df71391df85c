"""What is profiled: a callable or "module:function", found, checked and made ready to be called without arguments."""

import functools
import importlib
import inspect
import operator
import re
import reprlib
import traceback
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, NamedTuple

from ..names import nearest

Target = Callable[..., Any] | str


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


def target_name(target: Target) -> str:
    if isinstance(target, str):
        return target
    function = _unwrap(target)
    return f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', repr(target))}"


def target_key(target: Callable[..., Any]) -> FunctionKey:
    """Key of the innermost Python function of a callable; the name of one without Python code, such as a built-in."""
    function = _unwrap(target)
    if inspect.isclass(function):
        function = function.__init__
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return FunctionKey.of(code or target_name(target))


def _unwrap(target: Callable[..., Any]) -> Callable[..., Any]:
    """The function below `partial` and decorators."""
    while isinstance(target, functools.partial):
        target = target.func
    return inspect.unwrap(target)


def prepare(target: Target, setup: Target | None, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """The target with its arguments bound: `target(**arguments)`, or `target(setup(**arguments))`; `setup` runs here, once."""
    function = _resolve(target)  # before the set-up, which may take long
    if setup is None:
        return _bind(function, target, (), arguments)
    value = call_user_code(_bind(_resolve(setup), setup, (), arguments), f"setup {target_name(setup)!r}")
    return _bind(function, target, (value,), {})


def call_user_code(function: Callable[[], Any], what: str) -> Any:
    """What `function` returns; a `ProfilingError` if it raises or calls `sys.exit`."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise ProfilingError(f"{what} raised {_describe(error)}; make it run without the profiler first") from error


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:500]}{place}"


def _resolve(target: Target) -> Callable[..., Any]:
    name = target_name(target)
    function = _import(name) if isinstance(target, str) else target
    if not callable(function):
        raise ProfilingError(f"target {name!r} is {type(function).__name__}, not callable; name a function")
    inner = _unwrap(function)
    if inspect.iscoroutinefunction(inner) or inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ProfilingError(
            f"target {name!r} is a coroutine or a generator, whose call does nothing yet; "
            "name a function that runs it (asyncio.run(...), list(...))"
        )
    return function


def _import(name: str) -> Any:
    match = re.fullmatch(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)", name)
    if not match:
        raise ProfilingError(f"target {name!r}: expected 'module:function', as in 'package.module:main'")
    module_name, attribute = match.groups()
    try:
        module = importlib.import_module(module_name)
    except SyntaxError as error:
        raise ProfilingError(
            f"target {name!r}: {error.msg} in {error.filename}, line {error.lineno}; correct it, then profile again"
        ) from error
    except ModuleNotFoundError as error:
        raise ProfilingError(
            f"target {name!r}: no module named {error.name!r}; "
            "install it, or start in the folder that holds it (the current folder is searched)"
        ) from error
    except (Exception, SystemExit) as error:
        raise ProfilingError(
            f"target {name!r}: importing {module_name} raised {_describe(error)}; make `import {module_name}` work first"
        ) from error
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError as error:
        hint = nearest(attribute, dir(module), n=3) or "; name a function that it defines"
        raise ProfilingError(f"target {name!r}: {module_name} has no {attribute!r}{hint}") from error


def _bind(function: Callable, target: Target, values: tuple, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    try:
        signature = inspect.signature(function)
        signature.bind(*values, **arguments)
    except ValueError:  # some built-ins have no signature
        pass
    except TypeError as error:
        given = f"what setup returned ({type(values[0]).__name__})" if values else f"arguments {reprlib.repr(dict(arguments))}"
        raise ProfilingError(
            f"{target_name(target)!r} takes {signature} and got {given}: {error}; give what it needs by name in arguments"
        ) from error
    return functools.partial(function, *values, **arguments)
