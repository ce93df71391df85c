"""Values and functions as a `Call` holds them: shapes, dtypes, parameters and public names. No values of arrays, no costs."""

import functools
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from .calls import DTYPE, Array

MOST_ELEMENTS, MOST_CHARACTERS = 32, 200  # of a list and of a text, what is kept
_PROBED = 8  # elements of a container, for arrays
_CONTAINERS = (list, tuple, dict)
_DEPTH = 2  # lists in lists, as in an index of lists
_OPERATORS = {  # of the module `operator` -> what NumPy calls it
    **{"add": "add", "sub": "subtract", "mul": "multiply", "matmul": "matmul", "truediv": "true_divide", "mod": "remainder"},
    **{"floordiv": "floor_divide", "pow": "power", "lshift": "left_shift", "rshift": "right_shift", "neg": "negative"},
    **{"pos": "positive", "invert": "invert", "or": "bitwise_or", "and": "bitwise_and", "xor": "bitwise_xor", "lt": "less"},
    **{"le": "less_equal", "eq": "equal", "ne": "not_equal", "gt": "greater", "ge": "greater_equal"},
}
_PRIVATE = frozenset({"src", "python", "core"})  # packages of Keras, TensorFlow and others that nobody is meant to import


# Arrays --------------------------------------------------------------------------------------------------------------------


def is_array_type(kind: type) -> bool:
    """Whether values of a type are arrays: they have a shape and a dtype, values, and are no NumPy scalars."""
    if issubclass(kind, np.ndarray | np.generic):
        return not issubclass(kind, np.generic)
    if re.search("Symbolic|Tracer|KerasTensor|TensorSpec|ShapeDtype", kind.__name__):
        return False
    attributes = {name for base in kind.__mro__ for name in vars(base)}  # `hasattr` could run somebody's code
    sparse = "sparse" in str(kind.__module__) and "tocsr" in attributes
    return sparse or ("shape" in attributes and bool(attributes & {"dtype", "dtypes"}))


def arrays_in(values: Iterable[Any], is_array: Callable[[type], bool] = is_array_type, *, depth: int = 1) -> list[Any]:
    """The arrays among `values` and, one level down, in lists, tuples and dictionaries.

    A container without an array among its first elements is taken to hold none.
    """
    found = []
    for value in values:
        kind = type(value)  # `isinstance` would ask the value for its class
        if is_array(kind):
            found.append(value)
        elif depth and issubclass(kind, _CONTAINERS) and arrays_in(islice(_elements(value), _PROBED), is_array, depth=0):
            found += arrays_in(_elements(value), is_array, depth=0)
    return found


def _elements(container: Any) -> Iterator[Any]:
    """Without a subclass' own code."""
    base = next(base for base in _CONTAINERS if issubclass(type(container), base))
    return iter(dict.values(container)) if base is dict else base.__iter__(container)


def shape(array: Any) -> tuple[int, ...]:
    return tuple(map(int, array.shape))


def dtype_name(array: Any) -> str:
    """'float32', also of TensorFlow's and PyTorch's types; 'mixed' for a table; 'object' where the name says nothing."""
    dtype = getattr(array, "dtype", "mixed")
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.").lower()
    return name if DTYPE.fullmatch(name) else "object"


def array_bytes(array: Any) -> int:
    """Bytes of its elements; of a sparse matrix those of its values and indices; of a table as it states them."""
    if isinstance(n_bytes := getattr(array, "nbytes", None), (int, np.integer)):
        return int(n_bytes)
    if hasattr(array, "nnz"):
        return sum(part.nbytes for part in vars(array).values() if isinstance(part, np.ndarray))
    if hasattr(array, "estimated_size"):  # Polars
        return int(array.estimated_size())
    if hasattr(array, "memory_usage"):  # pandas
        return int(array.memory_usage(index=False).sum())
    itemsize = getattr(array.dtype, "size", 8)  # TensorFlow
    return math.prod(shape(array)) * (itemsize if isinstance(itemsize, int) else 8)


def describe_array(array: Any, *, is_index: bool = False) -> Array:
    """`is_index`: of a boolean mask, count how many elements it takes."""
    dtype, sizes = dtype_name(array), shape(array)
    if not isinstance(array, np.ndarray) and hasattr(array, "nnz"):
        return Array(dtype, sizes, array_bytes(array), int(array.nnz))
    if is_index and dtype == "bool":
        return Array(dtype, sizes, n_stored=int(np.count_nonzero(array)))
    return Array(dtype, sizes, array_bytes(array) if dtype in ("mixed", "object", "string", "category") else None)


# Other values ----------------------------------------------------------------------------------------------------------------


def describe(
    value: Any, is_array: Callable[[type], bool] = is_array_type, *, is_index: bool = False, depth: int = _DEPTH
) -> Any:
    """A value as `Call.args` has it, hashable: an `Array`, a JSON scalar, a tuple of them for a container; None for the rest.

    An infinity is written 'inf'. Of a text the first `MOST_CHARACTERS` are kept, of a container the first `MOST_ELEMENTS`.
    """
    kind = type(value)
    if is_array(kind):
        return describe_array(value, is_index=is_index)
    if issubclass(kind, np.generic) and type(item := value.item()) is not kind:  # a long double's is itself
        value, kind = item, type(item)
    if value is None or kind is bool or (kind is int and value.bit_length() <= 64):
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is str:
        return value[:MOST_CHARACTERS]
    if not depth or not issubclass(kind, _CONTAINERS):
        return None
    kept = islice(_elements(value), MOST_ELEMENTS)
    return tuple(describe(each, is_array, is_index=is_index, depth=depth - 1) for each in kept)


def describe_call(
    function: Any, args: tuple, kwargs: dict[str, Any], result: Any, is_array: Callable[[type], bool]
) -> tuple[tuple, tuple, tuple[Array, ...]]:
    """Arguments, those with names, and the arrays that came out; of `array[index] = value` what was written to, if a view."""
    is_set = function is operator.setitem
    if is_set or function is operator.getitem:  # which element it is costs nothing, and changes in a loop
        index = args[1] if type(args[1]) is tuple else args[1:2]
        parts = tuple(each if hasattr(each, "__len__") else None for each in index)
        if is_set and isinstance(args[0], np.ndarray) and all(part is None for part in parts):
            result = np.ndarray.__getitem__(*args[:2])
        args = (args[0], parts, *args[2:])
    described = tuple(describe(each, is_array, is_index=is_set) for each in args)
    named = tuple((name, describe(each, is_array)) for name, each in kwargs.items())
    if issubclass(type(result), np.generic):
        return described, named, (Array(dtype_name(result), ()),)
    found = describe(result, is_array)
    results = tuple(each for each in (found if type(found) is tuple else [found]) if isinstance(each, Array))
    return described, named, results


# Names -----------------------------------------------------------------------------------------------------------------------


def public_name(function: Any, args: list[Any], library: Callable[[type], str | None]) -> str:
    """The shortest name under which a library offers a function: 'numpy.linalg.svd', 'ndarray.sort', 'networkx.pagerank'.

    An operator on ndarrays has NumPy's name, 'numpy.add'; a method that of its class, or of the first base that is not the
    user's: 'sklearn.cluster.KMeans.fit'; an object that is called is its class' '__call__'; 'numba:<function>' was compiled.

    Args:
        args: what the function was called with; an operator is that of the first.
        library: that a class belongs to, None if it is the user's.
    """
    name, owner = name_of(function), bound_to(function)
    if getattr(function, "__module__", None) == "_operator":
        owner, name = args[0], name.strip("_")
        name = f"__{name}__" if name.endswith("item") else name if name in _OPERATORS else name.removeprefix("i")
        if isinstance(owner, np.ndarray) and name in _OPERATORS:
            return f"numpy.{_OPERATORS[name]}"
    if str(type(function).__module__).startswith("numba."):
        return f"numba:{name}"
    if isinstance(function, np.ufunc):
        homes = ("numpy", "scipy.special")
        return f"{next((home for home in homes if getattr(sys.modules.get(home), name, 0) is function), 'ufunc')}.{name}"
    if isinstance(owner, np.ufunc):
        return f"{public_name(owner, [], library)}.{name}"
    if owner is None or isinstance(owner, ModuleType):
        if name:
            return _path(function, name)
        owner, name = function, "__call__"
    kind = owner if isinstance(owner, type) else type(owner)
    if issubclass(kind, np.ndarray):
        return f"ndarray.{name}"
    paths = [_path(base, base.__name__) for base in kind.__mro__[:-1] if library(base)]
    return f"{next((path for path in paths if '._' not in path), paths[0])}.{name}"


def bound_to(function: Any) -> Any:
    """What a method is bound to; other objects are not asked, for some make an attribute of any name."""
    return function.__self__ if isinstance(function, (MethodType, BuiltinFunctionType)) else None


def home_of(function: Any) -> str | type:
    """Whose a function is: its module or its class."""
    kind = type(function)
    if kind is functools.partial:
        return home_of(function.func)
    if kind is FunctionType or kind is MethodType or kind is BuiltinFunctionType:  # `in` would ask a metaclass
        return function.__module__ or type(getattr(function, "__self__", None))
    return function if issubclass(kind, type) else kind


def name_of(function: Any) -> str:
    """Empty where it has none."""
    try:
        name = getattr(function, "__name__", "")
    except Exception:  # a proxy of nothing
        return ""
    return name if type(name) is str else ""


def _path(thing: Any, name: str) -> str:
    """With the outermost module that holds it by its name; else with the one that defines it, without its private parts."""
    root, *inner = str(getattr(thing, "__module__", None) or "builtins").split(".")
    public = [part for part in inner if not part.startswith("_") and part not in _PRIVATE]
    for n in range(len(inner) + 1):
        module = sys.modules.get(path := ".".join([root, *inner[:n]]))
        if inner[:n] == public[:n] and getattr(module, "__dict__", {}).get(name) is thing:
            return f"{path}.{name}"
    return ".".join([root.strip("_"), *public, name])
