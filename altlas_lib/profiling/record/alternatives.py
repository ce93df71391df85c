"""Another function beside the target, on the same input: which is faster, and whether the answers agree."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ..run.runnable import Runnable, call_user_code
from ..run.targets import target_name
from .measure import Run, blas_thread_counts, blas_threads, timed_run

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
    start, answers = time.perf_counter(), []
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
        if repeat and time.perf_counter() - start > time_limit_s / 2:
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
    sparse = sys.modules.get("scipy.sparse")
    is_sparse = [bool(sparse and sparse.issparse(each)) for each in (a, b)]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        yield a.keys() == b.keys(), None
        for key in a.keys() & b.keys():
            yield from _compare(a[key], b[key])
    elif all(is_sparse):
        if a.shape != b.shape:
            yield False, None
        else:
            difference = float(abs(a - b).max()) if a.size + b.size else 0.0
            yield difference <= _tolerance(float(abs(a).max()) if a.size else 0.0, a.dtype, b.dtype), difference
    elif any(is_sparse) or any(map(_is_numeric, (a, b))):
        yield from _compare_arrays(
            *(np.asarray(each.toarray() if one else each) for each, one in zip((a, b), is_sparse, strict=True))
        )
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        yield len(a) == len(b), None
        for each in zip(a, b, strict=False):
            yield from _compare(*each)
    else:
        yield None if type(a).__eq__ is object.__eq__ and a is not b else bool(a == b), None


def _is_numeric(value: Any) -> bool:
    """An array, a number, or numbers in lists."""
    if isinstance(value, list | tuple):
        return bool(value) and not hasattr(value[0], "shape") and _is_numeric(value[0])
    return hasattr(value, "__array__") or isinstance(value, int | float | complex)


def _compare_arrays(a: Any, b: Any) -> Iterator[tuple[bool | None, float | None]]:
    import numpy as np

    if a.shape != b.shape:
        yield False, None
    elif "O" in (a.dtype.kind, b.dtype.kind):
        for each in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            yield from _compare(*each) if not all(map(_is_numeric, each)) else _compare_arrays(*map(np.asarray, each))
    elif a.dtype.kind in "biufc" and b.dtype.kind in "biufc":
        finite = np.isfinite(a) & np.isfinite(b)
        specials_agree = bool(np.array_equal(a[~finite], b[~finite], equal_nan=True))
        kind = complex if "c" in (a.dtype.kind, b.dtype.kind) else float
        difference = float(np.max(np.abs(a[finite].astype(kind) - b[finite].astype(kind)), initial=0.0))
        scale = float(np.max(np.abs(a[finite].astype(kind)), initial=0.0))
        yield specials_agree and difference <= _tolerance(scale, a.dtype, b.dtype), difference
    else:
        yield bool(np.array_equal(a, b)), None


def _tolerance(scale: float, *dtypes: Any) -> float:
    import numpy as np

    epsilon = float(max((np.finfo(dtype).eps for dtype in dtypes if dtype.kind in "fc"), default=0.0))
    return epsilon**0.5 * scale + epsilon
