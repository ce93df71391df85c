"""Sparse rows (TF-IDF), exactly as they are: each row is multiplied with the rows that share a column with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csc_array, csr_array

from ..inputs import OnInvalid, refuse_invalid
from ..scheme import PairList
from .cache import compiled
from .compiled import insert, key_of
from .threads import blocks_of, for_each

_BLOCK_SCORES = 2**19  # 4 MiB of float64


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
    kept = np.flatnonzero(np.isfinite(largest))
    rows, largest = rows[kept], np.where(largest == 0, 1, largest)[kept]
    rows.data /= np.repeat(largest, np.diff(rows.indptr))  # first to at most 1, so that no square overflows
    norms = np.sqrt(rows.multiply(rows).sum(axis=1))
    return SparseUnitRows(rows, np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)), invalid


@compiled
def scores_of_rows(start, stop, indptr, indices, data, inverse_norms, column_indptr, column_rows, column_data, others, scores):
    """Fill `scores` (stop - start, m) with the cosines of some rows with all: float64 sums, in the order of the columns.

    Args:
        inverse_norms, others: of the rows, and (m,) of all that they are compared with.
    """
    scores[:] = 0
    for row in range(start, stop):
        of_row = scores[row - start]
        for at in range(indptr[row], indptr[row + 1]):
            column, value = indices[at], data[at]
            for p in range(column_indptr[column], column_indptr[column + 1]):
                of_row[column_rows[p]] += value * column_data[p]
        for j in range(len(of_row)):
            of_row[j] = min(max(of_row[j] * (inverse_norms[row] * others[j]), -1.0), 1.0)


@compiled
def keep_best(scores, first_left_out, keys):
    """The keys of each row's best `scores` into its descending `keys`, which start as zeros.

    Args:
        first_left_out: the column that row 0 leaves out, row 1 the next, and so on; far below 0: none.
    """
    for i in range(len(scores)):
        for j in range(scores.shape[1]):
            key = key_of(np.float32(scores[i, j]) + np.float32(0), j)  # no -0.0, which is another key
            if key > keys[i, -1] and j != first_left_out + i:
                insert(keys[i], key)


def _for_each_block(A: SparseUnitRows, B: SparseUnitRows, settings: Any, act: Callable[[slice, np.ndarray], None]) -> None:
    """Call `act(block, scores)` for blocks of rows of A; `scores` (rows, m) float64 is overwritten by the next."""
    columns = csc_array(B.rows)
    n_rows = max(1, _BLOCK_SCORES // max(1, len(B)))
    blocks = blocks_of(len(A), n_rows)

    def make_worker() -> Callable[[slice], None]:
        buffer = np.empty((min(n_rows, len(A)), len(B)))

        def worker(block: slice) -> None:
            scores = buffer[: block.stop - block.start]
            scores_of_rows(
                *(block.start, block.stop, A.rows.indptr, A.rows.indices, A.rows.data, A.inverse_norms),
                *(columns.indptr, columns.indices, columns.data, B.inverse_norms, scores),
            )
            act(block, scores)

        return worker

    for_each(blocks, len(blocks), make_worker, settings.n_threads, settings.progress)


def search_sparse(A: SparseUnitRows, B: SparseUnitRows, k: int, settings: Any) -> np.ndarray:
    """The keys of the `k` best of each row of `A` among `B`; with `B is A` without the row itself."""
    keys = np.zeros((len(A), k), np.uint64)

    def act(block: slice, scores: np.ndarray) -> None:
        keep_best(scores, block.start if B is A else -len(A), keys[block])

    _for_each_block(A, B, settings, act)
    return keys


def search_sparse_above(A: SparseUnitRows, B: SparseUnitRows, found: PairList, settings: Any) -> None:
    """Add all pairs that reach the threshold: rows of `A` and of `B`; with `B is A` each once, the lower row first."""

    def act(block: slice, scores: np.ndarray) -> None:
        rounded = scores.astype(np.float32)
        rows, columns = np.nonzero(rounded >= found.threshold)
        once = columns > rows + block.start if B is A else slice(None)
        rows, columns = rows[once], columns[once]
        found.add(rows + block.start, columns, rounded[rows, columns])

    _for_each_block(A, B, settings, act)
