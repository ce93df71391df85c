"""Whether two functions gave the same answer."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def compare_answers(expected: Any, given: Any) -> bool | None:
    """Whether two answers agree.

    Floating-point numbers agree within half the digits of the coarser dtype, relative to the largest of their array; all else
    has to be equal, lists, tuples and arrays alike. None where a part cannot be compared: an iterator, an object without
    equality.
    """
    try:
        return _agree(expected, given)
    except Exception:  # of an object's own comparison, or too deep
        return None


def _agree(a: Any, b: Any) -> bool:
    a, b = _simplify(a), _simplify(b)
    if any(hasattr(each, "dtype") for each in (a, b)):
        return hasattr(a, "dtype") and hasattr(b, "dtype") and a.shape == b.shape and _agree_in_numbers(a, b)
    if all(isinstance(each, list | tuple) for each in (a, b)):
        return len(a) == len(b) and all(map(_agree, a, b))
    if all(isinstance(each, Mapping) for each in (a, b)):
        return a.keys() == b.keys() and all(_agree(a[key], b[key]) for key in a)
    if type(a).__eq__ is object.__eq__ and a is not b and None not in (a, b):
        raise TypeError("an object without equality")
    return bool(a == b)


def _simplify(value: Any) -> Any:
    """An array of numbers for numbers and lists of them, a list for any other array, a dictionary for a dataclass."""
    import numpy as np

    if dataclasses.is_dataclass(value):
        return vars(value)
    if hasattr(value, "tocoo"):  # sparse
        value = value.toarray()
    if not hasattr(value, "__array__") and not isinstance(value, int | float | complex | list | tuple):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        return value
    if array.dtype.kind in "biufc":
        return array
    return array.tolist() if hasattr(value, "__array__") else value


def _agree_in_numbers(a: Any, b: Any) -> bool:
    import numpy as np

    digits = max((np.finfo(each.dtype).eps for each in (a, b) if each.dtype.kind in "fc"), default=None)
    if digits is None:  # whole numbers
        return np.array_equal(a, b)
    wide_a, wide_b = (each.astype(np.result_type(a, b, np.float64)) for each in (a, b))
    largest = np.max(np.abs(wide_a), where=np.isfinite(wide_a), initial=0.0)
    return np.allclose(wide_a, wide_b, rtol=0, atol=digits**0.5 * largest + digits, equal_nan=True)
