"""Sparse rows (TF-IDF), exactly as they are: each row is multiplied with the rows that share a column with it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csc_array, csr_array

from ..inputs import OnInvalid, refuse_invalid, refuse_more_than
from .cache import compiled
from .compiled import insert, key_of
from .threads import blocks_of, for_each

_BLOCK_ROWS = 128


@dataclass(frozen=True, eq=False)
class SparseUnitRows:
    """Rows of length 1, not computed but at hand: (n, d) float64 CSR, and (n,) float64 inverse norms, 0 of a zero row."""

    rows: csr_array
    inverse_norms: np.ndarray

    def __len__(self) -> int:
        return self.rows.shape[0]


def sparse_unit_rows(X: Any, on_invalid: OnInvalid, name: str = "X") -> tuple[SparseUnitRows, np.ndarray]:
    """The valid rows of a SciPy sparse matrix (n, d), and the indices of the others. Duplicate entries are added up."""
    rows = csr_array(X, dtype=np.float64, copy=True)
    rows.sum_duplicates()
    largest = abs(rows).max(axis=1).toarray().ravel() if rows.nnz else np.zeros(rows.shape[0])
    invalid = np.flatnonzero(~np.isfinite(largest))
    refuse_invalid(name, invalid, rows.shape[0], on_invalid)
    kept = np.delete(np.arange(rows.shape[0]), invalid)
    if len(invalid):
        rows, largest = rows[kept], largest[kept]
    largest[largest == 0] = 1
    rows.data /= np.repeat(largest, np.diff(rows.indptr))  # first to at most 1, so that no square overflows
    norms = np.sqrt(rows.multiply(rows).sum(axis=1))
    return SparseUnitRows(rows, np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)), invalid


@compiled
def scores_of_row(row, indptr, indices, data, column_indptr, column_rows, column_data, inverse_norms, inverse_norm, scores):
    """Fill `scores` with the cosines of one row with all: float64 sums, in the order of the columns."""
    scores[:] = 0
    for at in range(indptr[row], indptr[row + 1]):
        column, value = indices[at], data[at]
        for p in range(column_indptr[column], column_indptr[column + 1]):
            scores[column_rows[p]] += value * column_data[p]
    for j in range(len(scores)):
        scores[j] = min(max(scores[j] * (inverse_norm * inverse_norms[j]), -1.0), 1.0)


@compiled
def keep_best(scores, left_out, keys):
    """The keys of the best `scores` into descending `keys`, which start as zeros."""
    for j in range(len(scores)):
        key = key_of(np.float32(scores[j]) + np.float32(0), j)  # no -0.0, which is another key
        if key > keys[-1] and j != left_out:
            insert(keys, key)


def _for_each_row(A: SparseUnitRows, B: SparseUnitRows, n_threads: int, progress: Any, act: Callable) -> None:
    """Call `act(row, scores)` for each row of A; `scores` (m,) float64 is overwritten by the next."""
    columns = csc_array(B.rows)
    blocks = blocks_of(len(A), _BLOCK_ROWS)

    def make_worker() -> Callable[[slice], None]:
        scores = np.empty(len(B))

        def worker(block: slice) -> None:
            for row in range(block.start, block.stop):
                scores_of_row(
                    *(row, A.rows.indptr, A.rows.indices, A.rows.data, columns.indptr, columns.indices, columns.data),
                    *(B.inverse_norms, A.inverse_norms[row], scores),
                )
                act(row, scores)

        return worker

    report = (lambda n_done: progress(n_done / len(blocks))) if progress else None
    for_each(blocks, make_worker, min(n_threads, len(blocks)), progress=report)


def search_sparse(A: SparseUnitRows, B: SparseUnitRows, k: int, n_threads: int, progress: Any = None) -> np.ndarray:
    """The keys of the `k` best of each row of `A` among `B`; with `B is A` without the row itself."""
    keys = np.zeros((len(A), k), np.uint64)
    _for_each_row(A, B, n_threads, progress, lambda row, scores: keep_best(scores, row if B is A else -1, keys[row]))
    return keys


def search_sparse_above(
    A: SparseUnitRows, B: SparseUnitRows, threshold: float, n_threads: int, max_pairs: int, progress: Any = None
) -> tuple[np.ndarray, ...]:
    """All pairs that score `threshold` or more: rows of `A`, of `B` (with `B is A` higher ones), int64, and float32 scores."""
    first, second, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    lock, n_pairs = threading.Lock(), 0

    def act(row: int, scores: np.ndarray) -> None:
        nonlocal n_pairs
        start = row + 1 if B is A else 0
        rounded = scores[start:].astype(np.float32)
        hits = np.flatnonzero(rounded >= np.float32(threshold))
        if len(hits):
            with lock:
                first.append(np.full(len(hits), row))
                second.append(hits + start)
                found.append(rounded[hits])
                n_pairs += len(hits)
            refuse_more_than(max_pairs, n_pairs, threshold)

    _for_each_row(A, B, n_threads, progress, act)
    return np.concatenate(first), np.concatenate(second), np.concatenate(found)


def sparse_similarity(A: SparseUnitRows, B: SparseUnitRows, n_threads: int) -> np.ndarray:
    """The whole (n, m) float32 matrix."""
    similarity = np.empty((len(A), len(B)), np.float32)

    def act(row: int, scores: np.ndarray) -> None:
        similarity[row] = scores

    _for_each_row(A, B, n_threads, None, act)
    return similarity
