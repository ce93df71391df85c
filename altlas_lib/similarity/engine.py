"""The k nearest rows of every row by cosine, exactly, in blocks of rows: never the n x n matrix.

Written once for NumPy and CuPy: whatever runs on the GPU is the code that ordinary tests execute on the CPU.
"""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..devices import get_namespace, memory_stats
from .inputs import Device, OnInvalid, check_k, check_pair, choose_device, unit_rows, where_it_was

# A score takes 4 bytes; its copy that is partitioned, or the masks and counts that settle ties, take up to 12 more.
_BYTES_PER_SCORE = 16


def _no_rows() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest rows of every row, in NumPy arrays; in CuPy arrays where `X` was one and the GPU computed.

    Attributes:
        indices: (n, k) int64, nearest first; -1 in a skipped row.
        scores: (n, k) float32 cosines in [-1, 1], descending; NaN in a skipped row. `reference` gives float64.
        skipped_rows: rows of `X` with NaN or infinity, int64, ascending; empty unless `on_invalid="skip"`.
        skipped_columns: the same of `Y`, which are nobody's neighbours; `skipped_rows` where `Y` is None.
    """

    indices: Any
    scores: Any
    skipped_rows: np.ndarray = field(default_factory=_no_rows)
    skipped_columns: np.ndarray = field(default_factory=_no_rows)


def top_k(
    X: Any,
    k: int = 10,
    *,
    Y: Any = None,
    device: Device = "auto",
    working_memory: float | None = None,
    on_invalid: OnInvalid = "raise",
) -> Neighbors:
    """The `k` rows of `Y` nearest to each row of `X` by cosine similarity; of `X` itself, the row left out, without `Y`.

    Exact in float32: every pair is computed. Equal scores are ordered by index, the lower first; equal are the computed
    float32 values, whose rounding is 1e-7 to 1e-6. A zero row has similarity 0 with all.

    Args:
        X: (n, d), dense: float16, float32, float64, integers or booleans; NumPy, memory map, CuPy, or what NumPy converts.
        k: neighbours per row; with fewer rows than that to choose from, all of them: `k` becomes n - 1, or the rows of `Y`.
        Y: (m, d), or None.
        device: `"cpu"`, `"gpu"`, or `"auto"`: the GPU where there is one.
        working_memory: MiB for a block of scores and its selection, as in scikit-learn; at least one row is computed at a
            time. Default: 64 on a CPU; on a GPU a quarter of its free memory, 1024 at most. Beside it the rows of X and Y
            are held in float32 on the device.
        on_invalid: `"raise"`, or `"skip"`: a row with NaN or infinity gets indices -1 and scores NaN, is nobody's
            neighbour, and is listed in the answer.

    Raises:
        TypeError: `X` or `Y` is not an array of real numbers, or `k` no integer.
        ValueError: shapes do not fit, `k` or `working_memory` is too small, or rows are invalid.
        RuntimeError: `device="gpu"` without a GPU.
    """
    of_itself = Y is None
    X, Y = check_pair(X, Y)
    k, device = check_k(k), choose_device(device, X)
    rows, skipped_rows = unit_rows(X, device, on_invalid)
    columns, skipped_columns = (rows, skipped_rows) if of_itself else unit_rows(Y, device, on_invalid, "Y")
    xp = get_namespace(rows)
    scores_of_block = xp.empty((rows_per_block(rows, columns, working_memory, device), len(columns)), dtype=xp.float32)

    def negated_cosines(start: int, stop: int) -> Any:
        # Negating makes the left operand a copy: X @ X.T of one array crashes OpenBLAS at n = 30,000.
        block = xp.matmul(-rows[start:stop], columns.T, out=scores_of_block[: stop - start])
        return xp.clip(block, -1, 1, out=block)

    indices, scores = nearest_by_blocks(negated_cosines, rows, len(columns), k, len(scores_of_block), leave_out_self=of_itself)
    if len(skipped_columns):
        indices = xp.asarray(np.delete(np.arange(len(Y)), skipped_columns))[indices]
    if len(skipped_rows):
        kept = xp.asarray(np.delete(np.arange(len(X)), skipped_rows))
        indices, scores = _spread(indices, kept, len(X), -1), _spread(scores, kept, len(X), xp.nan)
    return Neighbors(where_it_was(X, indices), where_it_was(X, scores), skipped_rows, skipped_columns)


def rows_per_block(rows: Any, columns: Any, working_memory: float | None, device: str) -> int:
    """How many of the (n, d) `rows` are compared at a time with the (m, d) `columns`."""
    if working_memory is None:
        working_memory = 64 if device == "cpu" else min(1024, memory_stats("gpu").available_bytes / 4 / 2**20)
    if not isinstance(working_memory, numbers.Real) or not 0 < working_memory < math.inf:
        raise ValueError(f"working_memory={working_memory!r}: expected a number of MiB above 0")
    bytes_per_row = _BYTES_PER_SCORE * len(columns) + rows.itemsize * rows.shape[1]
    return max(1, min(len(rows), int(working_memory * 2**20 // bytes_per_row)))


def nearest_by_blocks(
    negated_cosines: Callable[[int, int], Any],
    rows: Any,
    n_columns: int,
    k: int,
    n_rows_per_block: int,
    *,
    leave_out_self: bool,
) -> tuple[Any, Any]:
    """The `k` nearest columns of each row, and their cosines, from blocks of negated cosines.

    Args:
        negated_cosines: gives rows start to stop, (stop - start, n_columns) float32; the block may be overwritten.
        rows: (n, d), for n and the device.
    """
    xp = get_namespace(rows)
    k = max(0, min(k, n_columns - leave_out_self))
    indices = xp.empty((len(rows), k), dtype=xp.int64)
    scores = xp.empty((len(rows), k), dtype=xp.float32)
    for start in range(0, len(rows) if k else 0, n_rows_per_block):
        stop = min(start + n_rows_per_block, len(rows))
        block = negated_cosines(start, stop)
        if leave_out_self:
            block[xp.arange(stop - start), xp.arange(start, stop)] = xp.inf
        indices[start:stop], smallest = k_smallest(block, k)
        scores[start:stop] = 0 - smallest  # not -smallest: that gives -0.0
    return indices, scores


def k_smallest(values: Any, k: int) -> tuple[Any, Any]:
    """Where the `k` smallest values of each row stand, ascending, equal ones by column; and the values.

    `partition` finds the k-th smallest value but not which of several equal ones are meant: those are counted off from
    the left, and only in rows that have too many. Smallest and not largest, because CuPy's `partition` is a selection
    for small k and a full sort for others.

    Args:
        values: (b, m) without NaN, C-contiguous, m >= k >= 1.

    Returns:
        (b, k) int64 and (b, k) of the dtype of `values`.
    """
    xp = get_namespace(values)
    kth = xp.partition(values, k - 1, axis=1)[:, k - 1 : k].copy()  # a copy, so that the partitioned block is freed
    chosen = values <= kth
    if int(xp.count_nonzero(chosen)) > len(values) * k:
        crowded = xp.flatnonzero(xp.count_nonzero(chosen, axis=1) > k)
        equal = values[crowded] == kth[crowded]
        n_needed = k - xp.count_nonzero(chosen[crowded] & ~equal, axis=1)
        surplus = equal & (xp.cumsum(equal, axis=1, dtype=xp.int32) > n_needed[:, None])
        chosen[crowded] ^= surplus
    columns = xp.flatnonzero(chosen).reshape(len(values), k) % values.shape[1]
    smallest = xp.take_along_axis(values, columns, axis=1)
    order = xp.argsort(smallest, axis=1, kind="stable")
    return xp.take_along_axis(columns, order, axis=1), xp.take_along_axis(smallest, order, axis=1)


def _spread(values: Any, to_rows: Any, n: int, filler: float) -> Any:
    """`values` at `to_rows` of n rows, `filler` in the others."""
    xp = get_namespace(values)
    spread = xp.full((n, values.shape[1]), filler, dtype=values.dtype)
    spread[to_rows] = values
    return spread
