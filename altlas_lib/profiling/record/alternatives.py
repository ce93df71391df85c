"""Another function beside the target, on the same input: which is faster, and whether the answers agree."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter  # as it was before the target ran, which may put another clock there
from typing import Any

from pydantic import BaseModel

from ..run.runnable import Runnable, call_user_code
from .measure import SWEPT, Run, blas_thread_counts, timed_run

_Verdict = tuple[bool | None, float | None]


class Comparison(BaseModel):
    """See `compare_answers`."""

    same_answer: bool | None
    largest_difference: float | None


def race(
    target: Runnable,
    alternative: Runnable,
    n_repeats: int,
    time_limit_s: float,
    same_answer: Callable[[Any, Any], Any] | None = None,
) -> Iterator[Run | Comparison]:
    """The answers of their first runs compared, then runs in turns, with each thread count.

    Runs have the tool "comparison" or "alternative", the first ones with ", warm-up". Each function has an input of its own;
    of functions that return nothing the inputs are compared, as they left them. Repeats end when half of the time is over.
    `same_answer`, where it is given, says of both answers whether they agree.
    """
    start, answers = perf_counter(), []
    contestants = {"comparison": target, "alternative": alternative}
    for tool, runnable in contestants.items():
        yield timed_run(runnable, f"{tool}, warm-up", under=lambda call: answers.append(call()))
    if answers == [None, None]:
        answers = [target.inputs, alternative.inputs]
    agree, difference = compare_answers(*answers)
    if same_answer:
        agree, difference = call_user_code(lambda: bool(same_answer(*answers)), "same_answer"), None
    yield Comparison(same_answer=agree, largest_difference=difference)
    answers.clear()
    for repeat in range(n_repeats):
        if repeat and perf_counter() - start > time_limit_s / 2:
            break
        for tool, runnable in contestants.items():
            for n in blas_thread_counts():
                yield (run := timed_run(runnable, tool, n))
                if run.wall_s > SWEPT * time_limit_s:
                    break


def compare_answers(expected: Any, given: Any) -> _Verdict:
    """Whether two answers agree, and the largest absolute difference of two numbers that should be equal.

    Floating-point numbers agree within half the digits of the coarser dtype, relative to the largest of their array; all else
    has to be equal, lists, tuples and arrays alike. None where a part cannot be compared: an iterator, an object without
    equality.
    """
    try:
        found = list(_compare(expected, given))
    except Exception:  # of an object's own comparison, or too deep
        return None, None
    verdicts = {same for same, _ in found}
    same_answer = False if False in verdicts else None if None in verdicts else True
    return same_answer, max((difference for _, difference in found if difference is not None), default=None)


def _compare(a: Any, b: Any) -> Iterator[_Verdict]:
    """What `compare_answers` says of each part."""
    if all(hasattr(each, "tocoo") for each in (a, b)) and a.shape == b.shape:  # sparse, and too large to be anything else
        difference = float(abs(a - b).max())
        yield difference <= _tolerance(float(abs(a).max()), a.dtype, b.dtype), difference
        return
    a, b = _simplify(a), _simplify(b)
    if all(hasattr(each, "dtype") for each in (a, b)):
        yield _compare_numbers(a, b) if a.shape == b.shape else (False, None)
    elif all(isinstance(each, list | tuple) for each in (a, b)):
        yield len(a) == len(b), None
        for each in zip(a, b, strict=False):
            yield from _compare(*each)
    elif all(isinstance(each, Mapping) for each in (a, b)):
        yield a.keys() == b.keys(), None
        for key in a.keys() & b.keys():
            yield from _compare(a[key], b[key])
    elif any(hasattr(each, "dtype") for each in (a, b)):
        yield False, None
    else:
        is_opaque = type(a).__eq__ is object.__eq__ and a is not b and None not in (a, b)
        yield None if is_opaque else bool(a == b), None


def _simplify(value: Any) -> Any:
    """An array of numbers for numbers and lists of them, a list for any other array, a dictionary for a dataclass."""
    import numpy as np

    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    array = value.toarray() if hasattr(value, "tocoo") else value
    if hasattr(array, "__array__") or isinstance(array, int | float | complex | list | tuple):
        with contextlib.suppress(ValueError):  # lists of unequal length
            array = np.asarray(array)
            if array.dtype.kind in "biufc":
                return array
    return array.tolist() if hasattr(value, "__array__") else value


def _compare_numbers(a: Any, b: Any) -> _Verdict:
    import numpy as np

    finite = np.isfinite(a) & np.isfinite(b)
    wide_a, wide_b = (each[finite].astype(np.result_type(a, b, np.float64)) for each in (a, b))
    difference = float(np.max(np.abs(wide_a - wide_b), initial=0.0))
    tolerance = _tolerance(float(np.max(np.abs(wide_a), initial=0.0)), a.dtype, b.dtype)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False, difference
    return difference <= tolerance if tolerance else bool(np.array_equal(a, b)), difference


def _tolerance(scale: float, *dtypes: Any) -> float:
    """0: whole numbers, which have to be equal."""
    import numpy as np

    epsilon = float(max((np.finfo(dtype).eps for dtype in dtypes if dtype.kind in "fc"), default=0.0))
    return epsilon**0.5 * scale + epsilon
