"""The float64 original that everything is compared with, and the comparison."""

import math
from typing import Any

import numpy as np

from ...devices import to_cpu
from ...results import Validation
from ..engine import Neighbors
from ..inputs import check_k, check_pair, check_vectors, require_memory, unit_float64
from .methods import Method

_BLOCK_ROWS = 2**16


def reference(X: Any, k: int = 10, *, Y: Any = None, rows: Any = None) -> Neighbors:
    """What `top_k` should answer, by plain NumPy in float64: the whole matrix, each row fully sorted.

    Args:
        X, k, Y: as `top_k`; without invalid rows.
        rows: answer for these rows of `X` only (their indices); None: for all.

    Returns:
        `Neighbors` with scores in float64, one row for each of `rows`.

    Raises:
        MemoryError: scores and sort would not fit; ask for fewer `rows`.
    """
    k, of_itself = check_k(k), Y is None
    X, Y = check_pair(X, Y)
    similarity = _similarity64(X, Y, rows, leave_out_self=of_itself)
    k = max(0, min(k, similarity.shape[1] - of_itself))
    indices = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return Neighbors(indices, np.take_along_axis(similarity, indices, axis=1))


def _similarity64(X: Any, Y: Any, rows: Any, *, leave_out_self: bool) -> np.ndarray:
    """Float64 cosines of `X[rows]` with `Y`; -inf for each row with itself."""
    rows = np.arange(len(X)) if rows is None else np.asarray(rows)
    require_memory(24 * len(rows) * len(Y), f"the reference for {len(rows):,} x {len(Y):,} rows", "pass fewer rows=")
    wanted, similarity = unit_float64(to_cpu(X)[rows]).T, np.empty((len(rows), len(Y)))
    for start in range(0, len(Y), _BLOCK_ROWS):  # of a memory map, which is never read as a whole
        similarity[:, start : start + _BLOCK_ROWS] = (unit_float64(to_cpu(Y[start : start + _BLOCK_ROWS])) @ wanted).T
    if leave_out_self:
        similarity[np.arange(len(rows)), rows] = -np.inf
    return similarity


def tolerance_of(d: int) -> float:
    """By how much float32 may miss the cosine of two rows of `d` values.

    Four times the typical sum of its rounding errors: d of at most 2^-24 each that are independent add up to about
    sqrt(d) 2^-24 (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis"). With 384 dimensions it
    is 5e-6, where float16 is off by 1e-4 or more.
    """
    return 4 * math.sqrt(d) * 2.0**-24


def compare(
    X: np.ndarray, rows: np.ndarray, indices: np.ndarray, scores: np.ndarray, expected: np.ndarray
) -> tuple[float, int]:
    """The largest error of an answer for some `rows` of `X` (n, d), and how many of its neighbours are wrong.

    A score is compared both with the reference's score at its place and with the true cosine of the pair that it names;
    the larger difference counts, and NaN counts as 2, the largest there can be. A neighbour is a wrong one if it is no
    other row, is named twice, or is further away than the k-th of the reference by more than two tolerances, by which
    the rounding of two scores can exchange them.

    Args:
        rows: (r,) row numbers.
        indices, scores: (r, k), the answer.
        expected: (r, k) float64, the reference's scores, descending.
    """
    named = (indices >= 0) & (indices < len(X)) & (indices != rows[:, None])
    pairs = zip(rows, np.where(named, indices, 0), strict=True)
    cosines = [unit_float64(X[others]) @ unit_float64(X[row : row + 1])[0] for row, others in pairs]
    true = np.where(named, np.reshape(cosines, indices.shape), -np.inf)
    ascending = np.sort(indices, axis=1)
    n_repeated = np.count_nonzero(ascending[:, 1:] == ascending[:, :-1])
    n_too_far = np.count_nonzero(true < expected[:, -1:] - 2 * tolerance_of(X.shape[1]))  # no other row is infinitely far
    differences = np.maximum(abs(scores - expected), abs(scores - np.where(named, true, expected)))
    return float(np.nan_to_num(differences, nan=2, posinf=2).max(initial=0)), n_repeated + n_too_far


def validate(method: Method, X: Any, k: int = 10, *, max_rows: int = 1000, seed: int = 0) -> Validation:
    """Run `method` on all of `X` (n, d) and `compare` with the float64 reference.

    Args:
        max_rows: with more rows than that, a random sample of so many is compared; all are computed.

    Raises:
        ValueError: the answer has not the shape (n, k) of the reference's.
    """
    X, n = check_vectors(X), len(X)
    rows = np.arange(n) if n <= max_rows else np.sort(np.random.default_rng(seed).choice(n, max_rows, replace=False))
    found = method.top_k(method.place(X), k)
    indices, scores = to_cpu(found.indices), to_cpu(found.scores).astype(np.float64)
    similarity = _similarity64(X, X, rows, leave_out_self=True)
    expected = np.sort(similarity, axis=1)[:, ::-1][:, : min(k, n - 1)]
    if not indices.shape == scores.shape == (n, expected.shape[1]):
        raise ValueError(f"{method.name} gave {indices.shape} and {scores.shape}: expected {(n, expected.shape[1])} for k={k}")
    largest_error, n_wrong = compare(to_cpu(X), rows, indices[rows], scores[rows], expected)
    return Validation(
        method=method.name,
        device=method.device_name,
        n_texts=n,
        n_rows_compared=len(rows) if len(rows) < n else None,
        largest_error=largest_error,
        tolerance=tolerance_of(X.shape[1]),
        n_other_neighbours=n_wrong,
    )
