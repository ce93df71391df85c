"""What is profiled, found and checked: a function or a script; `asgi` knows of applications."""

import asyncio
import functools
import importlib.util
import inspect
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, NoReturn

from ...names import nearest
from .runnable import FunctionKey, ProfilingError, Runnable, Script, call_user_code, describe

Target = Callable[..., Any] | str | os.PathLike

_NAME = re.compile(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)(\(\))?")


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


def _read_script(path: str, argv: Sequence[str]) -> Script:
    path = os.path.abspath(path)
    try:
        code = compile(importlib.util.decode_source(Path(path).read_bytes()), path, "exec", dont_inherit=True)
        return Script(path, argv, FunctionType(code, {}))
    except (OSError, SyntaxError, ValueError) as error:  # also a folder, NUL bytes, or no text in its encoding
        _fail(path, f" is no Python source ({error}); correct it, or name another file")


def prepare(
    target: Target, setup: Target | None = None, arguments: Mapping[str, Any] | None = None, argv: Sequence[str] = ()
) -> Runnable:
    """The target with its arguments bound: `target(**arguments)`, or `target(setup(**arguments))`; `setup` runs here, once.

    A coroutine that the target returns is run by `asyncio.run`.
    """
    name, values, named = target_name(target), (), dict(arguments or {})
    if target_kind(target) == "script":
        script = _read_script(name, argv)
        return Runnable(name, script, FunctionKey.of(script.holder.__code__))
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
    except ModuleNotFoundError as error:
        what_next = "install it, or start in the folder that holds it (the current folder is searched)"
        _fail(name, f": no module named {error.name!r}; {what_next}")
    except (Exception, SystemExit) as error:
        _fail(name, f": importing {module_name} raised {describe(error)}; make `import {module_name}` work first")
    try:
        value = operator.attrgetter(attribute)(module)
    except AttributeError:
        hint = nearest(attribute, dir(module), n=3) or "; name a function that it defines"
        _fail(name, f": {module_name} has no {attribute!r}{hint}")
    return call_user_code(value, f"factory {name!r}") if is_factory else value
