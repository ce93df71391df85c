"""Another function beside the target, on the same input: which is faster, and whether the answers agree."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter  # as it was before the target ran, which may put another clock there
from typing import Any

from pydantic import BaseModel

from ..run.runnable import Runnable, call_user_code
from ..run.targets import target_name
from .measure import Run, blas_thread_counts, blas_threads, timed_run

_NUMBERS = "biufc"  # kinds of NumPy's dtypes
_SWEPT = 1 / 10  # of the time limit: a longer run is not tried with another thread count


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
        answers = [runnable.inputs for runnable in contestants.values()]
    if same_answer:
        agree = call_user_code(lambda: bool(same_answer(*answers)), f"same_answer {target_name(same_answer)!r}")
        yield Comparison(same_answer=agree, largest_difference=None)
    else:
        agree, largest_difference = compare_answers(*answers)
        yield Comparison(same_answer=agree, largest_difference=largest_difference)
    answers.clear()
    for repeat in range(n_repeats):
        if repeat and perf_counter() - start > time_limit_s / 2:
            break
        for tool, runnable in contestants.items():
            for n in blas_thread_counts():
                with blas_threads(n):
                    yield (run := timed_run(runnable, tool, n))
                if run.wall_s > _SWEPT * time_limit_s:
                    break


def compare_answers(expected: Any, given: Any) -> tuple[bool | None, float | None]:
    """Whether two answers agree, and the largest absolute difference of two numbers that should be equal.

    Floating-point numbers agree within half the digits of the coarser dtype, relative to the largest of their array; all else
    has to be equal, lists and tuples alike. None where a part cannot be compared: an iterator, an object without equality.
    """
    try:
        found = list(_compare(expected, given))
    except Exception:  # of an object's own comparison, or too deep
        return None, None
    verdicts = {same for same, _ in found}
    same_answer = False if False in verdicts else None if None in verdicts else True
    return same_answer, max((difference for _, difference in found if difference is not None), default=None)


def _compare(a: Any, b: Any) -> Iterator[tuple[bool | None, float | None]]:
    """What `compare_answers` says of each part."""
    import numpy as np

    if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
        a, b = ({field.name: getattr(each, field.name) for field in dataclasses.fields(each)} for each in (a, b))
    if all(isinstance(each, Mapping) for each in (a, b)):
        yield a.keys() == b.keys(), None
        for key in a.keys() & b.keys():
            yield from _compare(a[key], b[key])
    elif all(hasattr(each, "tocoo") for each in (a, b)) and a.shape == b.shape:  # sparse
        difference = float(abs(a - b).max())
        yield difference <= _tolerance(float(abs(a).max()), a.dtype, b.dtype), difference
    elif any(hasattr(each, "shape") for each in (a, b)) or all(_array_of(each) is not None for each in (a, b)):
        arrays = [(each, _array_of(each)) for each in (a, b)]
        yield from _compare_arrays(*(np.asarray(each) if array is None else array for each, array in arrays))
    elif all(isinstance(each, list | tuple) for each in (a, b)):
        yield len(a) == len(b), None
        for each in zip(a, b, strict=False):
            yield from _compare(*each)
    else:
        is_opaque = type(a).__eq__ is object.__eq__ and a is not b and None not in (a, b)
        yield None if is_opaque else bool(a == b), None


def _array_of(value: Any) -> Any:
    """Of an array, of a number, of numbers in lists; else None."""
    import numpy as np

    if hasattr(value, "tocoo"):
        return value.toarray()
    if hasattr(value, "__array__"):
        return np.asarray(value)
    if isinstance(value, int | float | complex | list | tuple):
        with contextlib.suppress(ValueError):  # lists of unequal length
            array = np.asarray(value)
            return array if array.dtype.kind in _NUMBERS else None
    return None


def _compare_arrays(a: Any, b: Any) -> Iterator[tuple[bool | None, float | None]]:
    import numpy as np

    if a.shape != b.shape:
        yield False, None
    elif "O" in (a.dtype.kind, b.dtype.kind):
        for each in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            yield from _compare(*each)
    elif a.dtype.kind in _NUMBERS and b.dtype.kind in _NUMBERS:
        finite = np.isfinite(a) & np.isfinite(b)
        specials_agree = bool(np.array_equal(a[~finite], b[~finite], equal_nan=True))
        kind = complex if "c" in (a.dtype.kind, b.dtype.kind) else float
        difference = float(np.max(np.abs(a[finite].astype(kind) - b[finite].astype(kind)), initial=0.0))
        tolerance = _tolerance(float(np.max(np.abs(a[finite].astype(kind)), initial=0.0)), a.dtype, b.dtype)
        yield specials_agree and (difference <= tolerance if tolerance else bool(np.array_equal(a, b))), difference
    else:
        yield bool(np.array_equal(a, b)), None


def _tolerance(scale: float, *dtypes: Any) -> float:
    """0: whole numbers, which have to be equal."""
    import numpy as np

    epsilon = float(max((np.finfo(dtype).eps for dtype in dtypes if dtype.kind in "fc"), default=0.0))
    return epsilon**0.5 * scale + epsilon
