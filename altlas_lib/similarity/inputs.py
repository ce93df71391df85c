"""What comes in: vectors checked, scaled to length 1, and moved to the device that computes."""

import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from ..devices import describe_cpu, get_namespace, has_gpu, memory_stats, to_cpu
from ..results import format_value

Device = Literal["auto", "cpu", "gpu"]
OnInvalid = Literal["raise", "skip"]

_N_SHOWN = 5
_BLOCK_BYTES = 8 * 2**20  # of float64 rows while they are scaled


def is_sparse(X: Any) -> bool:
    """Whether `X` is one of SciPy's sparse matrices. SciPy is not imported for it: whoever holds one has done so."""
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and scipy_sparse.issparse(X)


def check_vectors(X: Any, name: str = "X", *, or_sparse: bool = False) -> Any:
    """`X` as an (n, d) array of real numbers, NumPy or CuPy or, if allowed, sparse; not copied where it already is one."""
    if hasattr(X, "toarray") and not (or_sparse and is_sparse(X)):
        expected = "a dense array, or SciPy's sparse matrix" if or_sparse else "a dense array"
        raise TypeError(f"{name} is a sparse {type(X).__name__}: expected {expected}; pass {name}.toarray()")
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: expected one without a mask; pass {name}.filled(...) of it")
    if get_namespace(X) is np and not is_sparse(X):
        X = np.asarray(X)
    if X.dtype.kind not in "biuf" or X.dtype.itemsize > 8:
        raise TypeError(f"{name} has dtype {X.dtype}: expected float16, float32, float64, integers or booleans")
    if X.ndim != 2 or X.shape[1] == 0:
        raise ValueError(f"{name} has shape {X.shape}: expected (n, d) with d of at least 1, one row per vector")
    return X


def check_pair(X: Any, Y: Any, *, or_sparse: bool = False) -> tuple[Any, Any]:
    """`X` (n, d) and `Y` (m, d), checked; `X` twice where `Y` is None."""
    X = check_vectors(X, or_sparse=or_sparse)
    Y = X if Y is None else check_vectors(Y, "Y", or_sparse=or_sparse)
    if is_sparse(X) != is_sparse(Y):
        raise TypeError(f"X is a {type(X).__name__} and Y a {type(Y).__name__}: expected both sparse or both dense")
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"X has shape {X.shape} and Y {Y.shape}: expected the same number of columns")
    return X, Y


def check_count(name: str, value: int, what: str) -> int:
    """An integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r}: expected an integer, {what}")
    if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1, {what}")
    return int(value)


def check_k(k: int) -> int:
    return check_count("k", k, "the number of neighbours per row")


def check_n_jobs(n_jobs: int | None) -> int:
    """The number of threads: None is one for each CPU that this process may use, -1 too, as in scikit-learn."""
    if n_jobs is None or n_jobs == -1:
        return describe_cpu().n_threads
    return check_count("n_jobs", n_jobs, "the number of threads; None or -1 for one per CPU")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}")


def choose_device(device: Device, X: Any) -> Literal["cpu", "gpu"]:
    """Where to compute: as asked; for `"auto"` on the GPU where there is one, except for a sparse matrix."""
    check_choice("device", device, get_args(Device))
    if is_sparse(X) and device == "gpu":
        raise ValueError("device='gpu': sparse matrices are computed on the CPU; use device='cpu', or pass X.toarray()")
    if device == "auto":
        return "gpu" if not is_sparse(X) and (get_namespace(X) is not np or has_gpu()) else "cpu"
    return device


def where_it_was(X: Any, answer: Any) -> Any:
    """`answer` on the CPU, unless `X` is a CuPy array."""
    return to_cpu(answer) if get_namespace(X) is np else answer


def unit_rows(X: np.ndarray, on_invalid: OnInvalid = "raise", name: str = "X") -> tuple[np.ndarray, np.ndarray]:
    """The rows of `X` (n, d) scaled to length 1, and which of them were skipped.

    Works through `X` in blocks, so that a memory map is never read as a whole.

    Returns:
        (n - n_skipped, d) float32, C-contiguous; and the indices of skipped rows, int64.
    """
    n, d = X.shape
    unit, n_valid, skipped = np.empty((n, d), np.float32), 0, [np.empty(0, np.int64)]
    step = max(1, _BLOCK_BYTES // (8 * d))
    for start in range(0, n, step):
        rows = X[start : start + step]
        valid = np.isfinite(rows).all(axis=1)
        skipped.append(start + np.flatnonzero(~valid))
        rows = unit_float64(rows if valid.all() else rows[valid])
        unit[n_valid : n_valid + len(rows)] = rows
        n_valid += len(rows)
    skipped = np.concatenate(skipped)
    refuse_invalid(name, skipped, n, on_invalid)
    return unit[:n_valid], skipped


def unit_float64(rows: np.ndarray) -> np.ndarray:
    """Finite `rows` (n, d) scaled to length 1, float64; a zero row stays zero.

    Each row is first divided by its largest element: squares then neither overflow nor vanish.
    """
    rows = rows.astype(np.float64)
    for order in (np.inf, 2):
        norms = np.linalg.norm(rows, order, axis=1, keepdims=True)
        norms[norms == 0] = 1
        rows /= norms
    return rows


def refuse_invalid(
    name: str, rows: np.ndarray, n: int, on_invalid: OnInvalid = "raise", problem: str = "NaN or infinity"
) -> None:
    """A ValueError that names the first of the invalid `rows` of the n in `name`, if there are any that are not skipped."""
    if len(rows) and on_invalid == "raise":
        first = ", ".join(map(str, rows[:_N_SHOWN])) + (", ..." if len(rows) > _N_SHOWN else "")
        raise ValueError(
            f"{name} holds {problem} in {len(rows):,} of {n:,} rows (counted from 0: {first}); correct or remove them, "
            "or let top_k leave them out and report them (on_invalid='skip')"
        )


def require_memory(n_bytes: int, what: str, instead: str) -> None:
    """Refuse to start what cannot fit: a MemoryError that names the bytes and says what to do `instead`."""
    available = memory_stats("cpu").available_bytes
    if n_bytes > available:
        raise MemoryError(
            f"{what} needs {format_value(n_bytes, 'bytes')} ({n_bytes:,} bytes), and {format_value(available, 'bytes')} "
            f"({available:,} bytes) are available on the CPU; {instead}"
        )
