"""The public face: the k nearest rows of every row, and all pairs above a threshold; exact, never the n x n matrix."""

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..devices import to_cpu
from ..progress import progress_bar
from ..tables import ShownAsTable, Table
from .inputs import Device, OnInvalid, check_choice, check_k, check_pair, choose_device, is_sparse, where_it_was

if TYPE_CHECKING:
    from pandas import DataFrame

Method = Literal["auto", "float32", "int8"]


def _no_rows() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Neighbors(ShownAsTable):
    """The k nearest rows of every row, in NumPy arrays; in CuPy arrays where `X` was one and the GPU computed.

    Attributes:
        indices: (n, k) int64, nearest first; -1 in a skipped row.
        scores: (n, k) float32 cosines in [-1, 1], descending; NaN in a skipped row. `reference` gives float64.
        skipped_rows: rows of `X` with NaN or infinity, int64, ascending; empty unless `on_invalid="skip"`.
        skipped_columns: the same of `Y`, which are nobody's neighbours; `skipped_rows` where `Y` is None.
        labels: what `to_frame` calls the rows of `X` and, where there is one, of `Y`: the indices of data frames; None: their
            numbers.
    """

    indices: Any
    scores: Any
    skipped_rows: np.ndarray = field(default_factory=_no_rows)
    skipped_columns: np.ndarray = field(default_factory=_no_rows)
    labels: tuple[Any, ...] = (None,)

    def to_frame(self, labels: Sequence | None = None, other_labels: Sequence | None = None) -> "DataFrame":
        """A pandas DataFrame with a line for each neighbour: `row`, `neighbor`, `rank` from 1, `score`.

        Args:
            labels: (n,) names of the rows of `X`, such as the texts; of its neighbours too where there was no `Y`.
            other_labels: (m,) names of the rows of `Y`.
        """
        indices, scores = to_cpu(self.indices), to_cpu(self.scores)
        rows, ranks = np.nonzero(indices >= 0)
        found = {"row": rows, "neighbor": indices[rows, ranks], "rank": ranks + 1, "score": scores[rows, ranks]}
        return _labelled(self.labels, found, labels, other_labels)

    def _summary(self) -> tuple[str, Table]:
        n, k = self.indices.shape
        rows = [
            {"row": row, "nearest": ", ".join(map(str, near)), "cosine": ", ".join(f"{score:.3f}" for score in scores)}
            for row, (near, scores) in enumerate(zip(to_cpu(self.indices[:5, :5]), to_cpu(self.scores[:5, :5]), strict=True))
        ]
        said = f"{k} nearest of {n:,} rows, {len(self.skipped_rows):,} skipped; the first, more by to_frame():"
        return said, Table(rows)


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(ShownAsTable):
    """Pairs of rows, the most similar first, equal ones by index.

    Attributes:
        first: (n_pairs,) int64, rows of `X`.
        second: (n_pairs,) int64, rows of `Y`; where `Y` is None, of `X` and higher than `first`.
        scores: (n_pairs,) float32 cosines in [-1, 1].
        skipped_rows, skipped_columns, labels: as in `Neighbors`.
    """

    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray
    skipped_rows: np.ndarray = field(default_factory=_no_rows)
    skipped_columns: np.ndarray = field(default_factory=_no_rows)
    labels: tuple[Any, ...] = (None,)

    def __len__(self) -> int:
        return len(self.scores)

    def to_frame(self, labels: Sequence | None = None, other_labels: Sequence | None = None) -> "DataFrame":
        """A pandas DataFrame with a line for each pair: `first`, `second`, `score`; labels as in `Neighbors.to_frame`."""
        found = {"first": self.first, "second": self.second, "score": self.scores}
        return _labelled(self.labels, found, labels, other_labels)

    def groups(self) -> list[np.ndarray]:
        """The rows that pairs of one `X` hang together: each group ascending, its first row the one to keep, by that row.

        A group is a union of pairs: two of its rows need not be similar to each other.

        Raises:
            ValueError: the pairs are between an `X` and a `Y`.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if len(self.labels) > 1:
            raise ValueError("groups of pairs between X and Y: expected pairs within one X; call pairs_above without Y")
        rows, ends = np.unique(np.stack([self.first, self.second]), return_inverse=True)
        graph = coo_array((np.ones(len(self), bool), ends.reshape(2, -1)), shape=(len(rows), len(rows)))
        _, group = connected_components(graph, directed=False)
        by_group = rows[np.argsort(group, kind="stable")]
        return np.split(by_group, np.cumsum(np.bincount(group))[:-1]) if len(rows) else []

    def redundant_rows(self) -> np.ndarray:
        """The rows that go where one of each group is kept: (n_redundant,) int64, ascending."""
        return np.sort(np.concatenate([_no_rows(), *(group[1:] for group in self.groups())]))

    def _summary(self) -> tuple[str, Table]:
        shown = zip(self.first[:5], self.second[:5], self.scores[:5], strict=True)
        rows = [{"first": a, "second": b, "cosine": f"{score:.3f}"} for a, b, score in shown]
        return f"{len(self):,} pairs; the most similar, more by to_frame():", Table(rows)


def _labelled(
    own: tuple[Any, ...], columns: dict[str, Any], labels: Sequence | None, other_labels: Sequence | None
) -> "DataFrame":
    """The columns as a frame, in the first two of which labels stand for the numbers of rows."""
    import pandas as pd

    names = [known if given is None else given for given, known in zip((labels, other_labels), own, strict=False)]
    for column, known in zip(columns, (names[0], names[-1]), strict=False):
        if known is not None:
            columns[column] = np.asarray(known, object)[columns[column]]
    return pd.DataFrame(columns)


def top_k(
    X: Any,
    k: int = 10,
    *,
    Y: Any = None,
    device: Device = "auto",
    method: Method = "auto",
    working_memory: float | None = None,
    n_jobs: int | None = None,
    on_invalid: OnInvalid = "raise",
    progress: bool | Callable[[float], None] | None = None,
    client: Any = None,
) -> Neighbors:
    """The `k` rows of `Y` nearest to each row of `X` by cosine similarity; of `X` itself, the row left out, without `Y`.

    Exact: a score is the dot product, in float32, of the two rows scaled to length 1 (2e-7 or less from float64 for rows of
    some hundred values). Pairs are left uncomputed only where a bound shows that they cannot be among the nearest. Equal
    scores are ordered by index, the lower first, so the answer is the same in every run, with every method, number of
    threads and tile size. Of rows that are multiples of each other, up to rounding, more than k + 1 take part as one. A zero
    row has similarity 0 with all.

    Args:
        X: (n, d): float16, float32, float64, integers or booleans; NumPy, memory map, CuPy, what NumPy converts, or a SciPy
            sparse matrix. C-contiguous float32 is used where it is and never copied, in a memory map neither.
        k: neighbours per row; with fewer rows than that to choose from, all of them: `k` becomes n - 1, or the rows of `Y`.
        Y: (m, d), or None.
        device: `"cpu"`, `"gpu"`, or `"auto"`: the GPU where there is one. Sparse matrices are computed on the CPU.
        method: on the CPU, what bounds the scores: `"float32"` products, `"int8"` products, or `"auto"`, which goes over from
            int8 to float32 where the first tiles show that it is cheaper. The answer is the same.
        working_memory: MiB for tiles of scores, as in scikit-learn. Default: 1 per thread on a CPU; on a GPU by its free
            memory.
        n_jobs: threads on the CPU; None or -1: one per CPU that this process may use.
        on_invalid: `"raise"`, or `"skip"`: a row with NaN or infinity gets indices -1 and scores NaN, is nobody's
            neighbour, and is listed in the answer.
        progress: show on stderr what is done and the time left; None: where a terminal reads it, after two seconds; or a
            function, called with the share that is done.
        client: a `dask.distributed.Client`: its workers compute, each with as many threads as it has, or on its GPU. The answer
            is the same. Dense rows only.

    Raises:
        TypeError: `X` or `Y` is not an array of real numbers, or `k` no integer.
        ValueError: shapes do not fit, an argument is not one of its values, or rows are invalid.
        RuntimeError: `device="gpu"` without a GPU; `method="int8"` where int8 products are missing or inexact.
    """
    X, others, device, labels = _check(X, Y, device, method, working_memory, on_invalid)
    k = check_k(k)
    if client is not None and is_sparse(X):
        raise ValueError("client: sparse matrices are computed on this machine; leave client out, or pass X.toarray()")
    with progress_bar("top_k", progress) as report:
        if device == "gpu" and client is None:
            from . import gpu

            found = gpu.top_k(X, others, k, working_memory=working_memory, on_invalid=on_invalid, progress=report)
            return Neighbors(*(where_it_was(X, values) for values in found), labels)
        from . import cpu

        on_cluster = {}
        if client is not None:
            from .cluster import search_on

            on_cluster["search"] = search_on(client, device, method=method, n_jobs=n_jobs, working_memory=working_memory)
        settings = cpu.Settings.choose(method, _shape(X, others), n_jobs, working_memory, progress=report)
        return Neighbors(*cpu.top_k(X, others, k, settings, on_invalid, **on_cluster), labels)


def pairs_above(
    X: Any,
    threshold: float,
    *,
    Y: Any = None,
    device: Device = "auto",
    method: Method = "auto",
    working_memory: float | None = None,
    n_jobs: int | None = None,
    on_invalid: OnInvalid = "raise",
    progress: bool | Callable[[float], None] | None = None,
    max_pairs: int = 10_000_000,
) -> Pairs:
    """All pairs of rows whose cosine similarity is `threshold` or more (near-duplicates), the most similar first.

    Exact as `top_k`.

    Args:
        X: (n, d), and `Y` (m, d) or None, as `top_k`; without `Y` each pair of rows of `X` once, no row with itself.
        threshold: the least score, from -1 to 1.
        device, method, working_memory, n_jobs, on_invalid, progress: as `top_k`.
        max_pairs: what the answer may hold; a pair takes 20 bytes, and up to 60 while it is sorted.

    Raises:
        MemoryError: more than `max_pairs` pairs reach the threshold.
        TypeError, ValueError, RuntimeError: as `top_k`.
    """
    X, others, device, labels = _check(X, Y, device, method, working_memory, on_invalid)
    if not isinstance(threshold, numbers.Real) or not -1 <= threshold <= 1:
        raise ValueError(f"threshold={threshold!r}: expected a cosine similarity from -1 to 1")
    with progress_bar("pairs_above", progress) as report:
        if device == "gpu":
            from . import gpu

            options = {"max_pairs": max_pairs, "working_memory": working_memory, "on_invalid": on_invalid}
            found = gpu.pairs_above(X, others, threshold, progress=report, **options)
        else:
            from . import cpu

            settings = cpu.Settings.choose(method, _shape(X, others), n_jobs, working_memory, progress=report)
            found = cpu.pairs_above(X, others, float(threshold), settings, on_invalid, max_pairs)
    first, second, scores, *skipped = found
    order = np.lexsort((second, first, -scores))
    return Pairs(first[order], second[order], scores[order], *skipped, labels)


def _check(
    X: Any, Y: Any, device: Device, method: str, working_memory: Any, on_invalid: str
) -> tuple[Any, Any, str, tuple[Any, ...]]:
    """`X` and `Y` as they are computed with, where, and the indices of data frames among them."""
    given = (X,) if Y is None else (X, Y)
    labels = tuple(each.index if type(each).__module__.partition(".")[0] == "pandas" else None for each in given)
    X, others = check_pair(X, Y, or_sparse=True)
    check_choice("method", method, get_args(Method))
    check_choice("on_invalid", on_invalid, get_args(OnInvalid))
    if working_memory is not None and not (isinstance(working_memory, numbers.Real) and 0 < working_memory < math.inf):
        raise ValueError(f"working_memory={working_memory!r}: expected a number of MiB above 0")
    return X, None if Y is None else others, choose_device(device, X), labels


def _shape(X: Any, others: Any) -> tuple[int, int]:
    return X.shape[0], (X if others is None else others).shape[0]
