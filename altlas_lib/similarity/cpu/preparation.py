"""What takes part in a comparison on the CPU: valid rows with their norms, without redundant ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...devices import to_cpu
from ..inputs import OnInvalid, is_sparse, refuse_invalid, unit_rows
from ..scheme import redundant_rows
from .compiled import measure_rows
from .sparse import SparseUnitRows, sparse_unit_rows
from .threads import blocks_of, for_each

_SAFE_NORMS = 1e-12, 1e12  # within which float32 products of rows that are not of length 1 neither overflow nor vanish


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written to, as memory maps are; for others Numba would compile everything again."""
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Rows of length 1, not computed but at hand: `rows[i] * inverse_norms[i]`; (n, d) and (n,), float32."""

    rows: np.ndarray
    inverse_norms: np.ndarray

    def __post_init__(self) -> None:
        for name in ("rows", "inverse_norms"):
            object.__setattr__(self, name, read_only(getattr(self, name)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: Any) -> "UnitRows":
        return UnitRows(self.rows[some], self.inverse_norms[some])


def unit_rows_of(
    X: np.ndarray, on_invalid: OnInvalid, n_threads: int, name: str = "X"
) -> tuple[UnitRows, np.ndarray, np.ndarray]:
    """The rows of `X` (n, d) that are valid, with a hash of the direction of each, and the indices of those that are not.

    float32 rows are used where they are, in a memory map too; others are copied.
    """
    if X.dtype == np.float32 and X.flags.c_contiguous and X.flags.aligned:
        norms, digests = _measure(X, n_threads)
        invalid = np.flatnonzero(~np.isfinite(norms))
        refuse_invalid(name, invalid, len(X), on_invalid)
        if len(invalid):
            X, norms, digests = (np.delete(values, invalid, axis=0) for values in (X, norms, digests))
        low, high = _SAFE_NORMS
        if ((norms == 0) | ((norms >= low) & (norms <= high))).all():
            inverse_norms = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
            return UnitRows(X, inverse_norms.astype(np.float32)), digests, invalid
        rows, _ = unit_rows(X, "raise", name)
    else:
        rows, invalid = unit_rows(X, on_invalid, name)
    norms, digests = _measure(rows, n_threads)
    return UnitRows(rows, (norms > 0).astype(np.float32)), digests, invalid


def _measure(rows: np.ndarray, n_threads: int) -> tuple[np.ndarray, np.ndarray]:
    rows = read_only(rows)
    norms, digests = np.empty(len(rows)), np.empty(len(rows), np.uint64)
    some = blocks_of(len(rows), 4096)
    for_each(some, len(some), lambda: lambda block: measure_rows(rows[block], norms[block], digests[block]), n_threads)
    return norms, digests


@dataclass(frozen=True, eq=False)
class Prepared:
    """What takes part in the comparison of the n rows of one side."""

    unit: UnitRows | SparseUnitRows
    n: int
    indices: np.ndarray  # (n_kept,) int64, where the rows of `unit` stand among the n
    skipped: np.ndarray  # invalid ones
    redundant: np.ndarray  # rows that are left out, and
    instead: np.ndarray  # for each the one whose answer is also theirs

    @classmethod
    def of(cls, X: Any, on_invalid: OnInvalid, n_threads: int, name: str = "X", n_duplicates: float = np.inf) -> "Prepared":
        """Of `X` (n, d), with at most `n_duplicates` rows of one direction; sparse rows all."""
        redundant = instead = np.empty(0, np.int64)
        if is_sparse(X):
            unit, skipped = sparse_unit_rows(X, on_invalid, name)
        else:
            unit, digests, skipped = unit_rows_of(to_cpu(X), on_invalid, n_threads, name)
            redundant, instead = redundant_rows(digests, unit.rows.__getitem__, n_duplicates)
        indices, kept = np.delete(np.arange(X.shape[0]), skipped), np.delete(np.arange(len(unit)), redundant)
        unit = unit[kept] if len(redundant) else unit
        return cls(unit, X.shape[0], indices[kept], skipped, indices[redundant], indices[instead])
