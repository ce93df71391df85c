"""Values and functions as a `Call` holds them: shapes, dtypes, parameters and public names. No values of arrays, no costs."""

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import MethodDescriptorType, ModuleType
from typing import Any

import numpy as np

from .calls import DTYPE, Array

MOST_ELEMENTS, MOST_CHARACTERS = 16, 200  # of a list and of a text, what is kept
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


def arrays_in(values: Iterable[Any], is_array: Callable[[type], bool] = is_array_type) -> list[Any]:
    """The arrays among `values` and, one level down, in lists, tuples and dictionaries.

    A container without an array among its first elements is taken to hold none.
    """
    found = []
    for value in values:
        if is_array(type(value)):
            found.append(value)
        elif (elements := _elements(value)) is not None:
            first = list(islice(elements, MOST_ELEMENTS))
            if any(is_array(type(each)) for each in first):
                found += [each for each in (*first, *elements) if is_array(type(each))]
    return found


def _elements(value: Any) -> Iterator[Any] | None:
    """Of a list, a tuple or a dictionary, without a subclass' own code; None of anything else."""
    kind = type(value)  # `isinstance` would ask the value for its class
    for base, elements in ((list, list.__iter__), (tuple, tuple.__iter__), (dict, lambda value: iter(dict.values(value)))):
        if issubclass(kind, base):
            return elements(value)
    return None


def shape(array: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in array.shape)


def dtype_name(array: Any) -> str:
    """'float32', also of TensorFlow's and PyTorch's types; 'mixed' for a table; 'object' where the name says nothing."""
    dtype = getattr(array, "dtype", "mixed")
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.").lower()
    return name if DTYPE.fullmatch(name) else "object"


def array_bytes(array: Any) -> int:
    """Bytes of its elements; of a sparse matrix those of its values and indices; of a table as it states them."""
    if isinstance(n_bytes := getattr(array, "nbytes", None), int | np.integer):
        return int(n_bytes)
    if hasattr(array, "nnz"):
        return sum(part.nbytes for part in vars(array).values() if isinstance(part, np.ndarray))
    if hasattr(array, "estimated_size"):  # Polars
        return int(array.estimated_size())
    if hasattr(array, "memory_usage"):  # pandas
        return int(array.memory_usage(index=False).sum())
    dtype = getattr(array, "dtype", None)
    itemsize = getattr(dtype, "itemsize", None) or getattr(dtype, "size", 8)
    return math.prod(shape(array)) * (itemsize if isinstance(itemsize, int) else 8)


def describe_array(array: Any, *, is_index: bool = False) -> Array:
    """`is_index`: of a boolean mask, count how many elements it takes."""
    dtype, sizes = dtype_name(array), shape(array)
    if hasattr(array, "nnz"):
        return Array(dtype, sizes, array_bytes(array), int(array.nnz))
    if is_index and dtype == "bool":
        return Array(dtype, sizes, n_stored=int(np.count_nonzero(array)))
    return Array(dtype, sizes, array_bytes(array) if dtype in ("mixed", "object", "string", "category") else None)


# Other values ----------------------------------------------------------------------------------------------------------------


def describe(
    value: Any, is_array: Callable[[type], bool] = is_array_type, *, is_index: bool = False, depth: int = _DEPTH
) -> Any:
    """A value as `Call.args` has it, hashable: an `Array`, a JSON scalar, a tuple of them for a container; None for the rest.

    A slice is written '1:10:2', an ellipsis '...', an infinity 'inf'. Texts are cut. Of a container the first `MOST_ELEMENTS`
    are kept, and one array stands for all arrays after them: their dtype ('mixed' if they differ), number of elements, bytes.
    """
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if value.bit_length() <= 64 else None
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is str:
        return value[:MOST_CHARACTERS]
    if kind is slice:
        parts = (describe(part, is_array) for part in (value.start, value.stop, value.step))
        start, stop, step = ("" if part is None else str(part) for part in parts)
        return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
    if value is ...:
        return "..."
    if is_array(kind):
        return describe_array(value, is_index=is_index)
    if issubclass(kind, np.generic):
        return describe(value.item(), is_array, depth=depth - 1) if depth >= 0 else None  # a long double's item is itself
    elements = _elements(value)
    if elements is None or depth <= 0:
        return None
    described = [describe(each, is_array, is_index=is_index, depth=depth - 1) for each in islice(elements, MOST_ELEMENTS)]
    if any(isinstance(each, Array) for each in described):
        rest = [describe_array(each) for each in elements if is_array(type(each))]
        dtypes = {each.dtype for each in rest}
        if rest:
            n_bytes = sum(array_bytes(each) for each in islice(_elements(value), MOST_ELEMENTS, None) if is_array(type(each)))
            described.append(Array(dtypes.pop() if len(dtypes) == 1 else "mixed", (sum(each.n for each in rest),), n_bytes))
    return tuple(described)


def describe_results(result: Any, is_array: Callable[[type], bool] = is_array_type) -> tuple[Array, ...]:
    """The arrays that a call returned; a NumPy scalar is one of no dimension."""
    if issubclass(type(result), np.generic):
        return (Array(dtype_name(result), ()),)
    described = describe(result, is_array)
    return tuple(each for each in (described if type(described) is tuple else [described]) if isinstance(each, Array))


def written_region(array: Any, index: Any) -> Any:
    """What `array[index] = value` writes to, where that is a view; else None."""
    parts = index if type(index) is tuple else (index,)
    basic = all(part is None or part is ... or issubclass(type(part), int | np.integer | slice) for part in parts)
    return np.ndarray.__getitem__(array, index) if basic and issubclass(type(array), np.ndarray) else None


# Names -----------------------------------------------------------------------------------------------------------------------


def public_name(function: Any, args: list[Any], is_users: Callable[[type], bool]) -> str:
    """The shortest name under which a library offers a function: 'numpy.linalg.svd', 'ndarray.sort', 'networkx.pagerank'.

    An operator on ndarrays has NumPy's name, 'numpy.add'; a method that of its class, or of the first base that is not the
    user's: 'sklearn.cluster.KMeans.fit'; an object that is called is its class' '__call__'; 'numba:<function>' was compiled.

    Args:
        args: what the function was called with; an operator is that of the first.
    """
    name, owner = getattr(function, "__name__", None), getattr(function, "__self__", None)
    if getattr(function, "__module__", None) == "_operator":
        owner, name = args[0], name.strip("_")
        name = f"__{name}__" if name.endswith("item") else name if name in _OPERATORS else name.removeprefix("i")
        if isinstance(owner, np.ndarray) and name in _OPERATORS:
            return f"numpy.{_OPERATORS[name]}"
    if str(type(function).__module__).startswith("numba."):
        return f"numba:{name}"
    if isinstance(function, np.ufunc):
        homes = (("numpy", np), ("scipy.special", sys.modules.get("scipy.special")))
        return next((f"{home}.{name}" for home, module in homes if getattr(module, name, None) is function), f"ufunc.{name}")
    if isinstance(owner, np.ufunc):
        return f"{public_name(owner, [], is_users)}.{name}"
    if isinstance(function, MethodDescriptorType):
        owner = function.__objclass__
    if owner is None or isinstance(owner, ModuleType):
        if isinstance(name, str):
            return _path(function, name)
        owner, name = function, "__call__"
    kind = owner if isinstance(owner, type) else type(owner)
    if issubclass(kind, np.ndarray):
        return f"ndarray.{name}"
    bases = [base for base in kind.__mro__[:-1] if not is_users(base)] or [kind]
    public = (path for base in bases if "._" not in (path := _path(base, base.__name__)))
    return f"{next(public, _path(bases[0], bases[0].__name__))}.{name}"


def _path(thing: Any, name: str) -> str:
    """With the outermost module that holds it by its name; else with the one that defines it, without its private parts."""
    root, *inner = str(getattr(thing, "__module__", None) or "builtins").split(".")
    for n in range(len(inner) + 1):
        module = sys.modules.get(path := ".".join([root, *inner[:n]]))
        if getattr(module, "__dict__", {}).get(name) is thing and not any(_is_private(part) for part in inner[:n]):
            return f"{path}.{name}"
    return ".".join([root.strip("_"), *(part for part in inner if not _is_private(part)), name])


def _is_private(part: str) -> bool:
    return part.startswith("_") or part in _PRIVATE
