"""The CPU engine: symmetric tiles, threads, cheap products that bound, exact verification of what is left."""

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..inputs import OnInvalid, check_n_jobs
from ..scheme import PairList, pilot_rows, split_keys
from .compiled import LANES, Scratch, Side, find, score_of, select
from .preparation import Prepared, UnitRows
from .products import Float32, Int8, int8_problem, multiply, packed
from .sparse import SparseUnitRows, search_sparse, search_sparse_above
from .threads import blocks_of, for_each, rectangular_tiles, square_tiles

_TILE_ROWS = 512  # products of a tile, 1 MiB, stay in the L2 cache of a core until they are looked through
_N_CANDIDATES = 4096  # that are verified together
_PAIRS_FOR_A_THREAD = 2**16  # below, starting it takes longer than its work
_TILES_TO_JUDGE = 16
_FLOAT32_COST = 4  # of float32 products, in int8 products of the same tile: three to four, by CPU
_SAMPLE_ROWS = 2048  # that show what the data are like
_PILOTS_FROM = 8192  # rows; below, comparing pilots costs what they save
_INT8_FROM = 2048  # rows and columns; below, preparing the codes costs what they save


@dataclass(frozen=True)
class Settings:
    """How to compute; the answer does not depend on it."""

    methods: Sequence[type]  # Float32, Int8, or both, the second of which is used where the first leaves much to verify
    n_threads: int
    tile_rows: int
    tile_columns: int | None = None  # more than rows, where a few rows are compared with many; None: as many
    progress: Callable[[float], None] | None = None  # called with the share that is done
    clock: list[tuple[float, float]] | None = None  # CPU seconds of each tile are added to it: of products, of selection

    @classmethod
    def choose(
        cls, method: str, shape: tuple[int, int], n_jobs: int | None = None, working_memory: float | None = None, **others: Any
    ) -> "Settings":
        """Settings for a comparison of `shape` (rows, columns), from the arguments of `top_k`; others as they are.

        Raises:
            RuntimeError: `method="int8"` where int8 products are missing or inexact.
        """
        n_threads = useful_threads(check_n_jobs(n_jobs), *shape)
        if method == "int8" and (problem := int8_problem()):
            raise RuntimeError(f"method='int8': {problem}; use method='float32', or 'auto', which finds out")
        is_large = min(shape) >= _INT8_FROM and not int8_problem()
        methods = {"float32": [Float32], "int8": [Int8], "auto": [Int8, Float32] if is_large else [Float32]}[method]
        # Several tiles for each thread, so that none waits long for the last.
        tile_rows = min(_TILE_ROWS, max(shape) // (2 * n_threads) + LANES)
        if working_memory is not None:
            tile_rows = min(tile_rows, int((working_memory * 2**20 / n_threads / 4) ** 0.5))
        return cls(methods, n_threads, max(1, tile_rows // LANES) * LANES, **others)


def useful_threads(n_threads: int, n_rows: int, n_columns: int) -> int:
    """Of so many, those that a comparison of this shape keeps busy."""
    return max(1, min(n_threads, n_rows * n_columns // _PAIRS_FOR_A_THREAD))


class _Choice:
    """The first method, and for good the second if bounds of the first leave so much to verify that it costs more.

    int8 products win almost everywhere. float32 products bound so closely that hardly any pair is verified in vain.
    """

    def __init__(self, n_methods: int, number: int = 0) -> None:
        self.number = number
        self._is_open = n_methods > 1
        self._costs: list[tuple[float, float]] = []

    def learn(self, products_s: float, selection_s: float) -> None:
        """A whole tile took so long, in CPU seconds. The first ones leave most to verify, and do not count."""
        if not self._is_open:
            return
        self._costs.append((products_s, selection_s))
        if len(self._costs) >= 2 * _TILES_TO_JUDGE:
            multiplying, selecting = np.median(self._costs[_TILES_TO_JUDGE:], axis=0)
            self._is_open, self.number = False, int(multiplying + selecting > _FLOAT32_COST * multiplying)


class Columns:
    """Rows that others are compared with, and what each method needs of them."""

    def __init__(self, B: UnitRows, settings: Settings) -> None:
        self.B, self.blocks = B, blocks_of(len(B), settings.tile_columns or settings.tile_rows)
        sample = B[:: -(-len(B) // _SAMPLE_ROWS)]
        self.methods = [method(sample) for method in settings.methods]
        self.prepared = [method.prepare(B, self.blocks, settings.n_threads) for method in self.methods]
        self.choice = _Choice(len(self.methods))

    def pack(self, n_threads: int) -> None:
        """Make columns that are multiplied in many calls what ONNX Runtime would make of them in each."""
        with ThreadPoolExecutor(n_threads) as pool:
            for method, operand in zip(self.methods, self.prepared, strict=True):
                operand.right[:] = pool.map(partial(packed, method.name), operand.right)


State = tuple[np.ndarray, np.ndarray]  # of rows: thresholds (n,) float32 and keys (n, k) uint64, as in `Side`


def for_each_tile(
    A: UnitRows, columns: Columns, settings: Settings, of_a: State, of_b: State, act: Callable[..., None]
) -> None:
    """Call `act(position, tile, scratch)` for every tile of `A` with the columns, in several threads.

    With `columns.B is A` each pair of blocks is a tile once. `position` numbers two blocks; `tile` is the arguments of
    `collect` down to `diagonal`.
    """
    B, is_square = columns.B, columns.B is A
    row_blocks, column_blocks = blocks_of(len(A), settings.tile_rows), columns.blocks
    of_rows = columns.prepared
    if not is_square:
        of_rows = [method.prepare(A, row_blocks, settings.n_threads) for method in columns.methods]
    sides = [
        (Side(A.rows, A.inverse_norms, left.bounds, *of_a), Side(B.rows, B.inverse_norms, right.bounds, *of_b))
        for left, right in zip(of_rows, columns.prepared, strict=True)
    ]
    n_a, n_b = len(row_blocks), len(column_blocks)
    tiles = square_tiles(n_a) if is_square else rectangular_tiles(n_a, n_b)
    n_tiles = n_a * (n_a + 1) // 2 if is_square else n_a * n_b
    whole = settings.tile_rows, settings.tile_columns or settings.tile_rows

    def make_worker() -> Callable[[tuple[int, int]], None]:
        buffer = np.empty(whole[0] * whole[1] + LANES, np.int32)
        scratch = Scratch.empty(whole[1], max(_N_CANDIDATES, 2 * whole[1]))

        def worker(position: tuple[int, int]) -> None:
            a, b = row_blocks[position[0]], column_blocks[position[1]]
            shape, number = (a.stop - a.start, b.stop - b.start), columns.choice.number
            method, right = columns.methods[number], columns.prepared[number].right[position[1]]
            products = buffer.view(method.dtype)
            started = time.thread_time()
            multiply(method.name, of_rows[number].left[a], right, shape, products)
            multiplied = time.thread_time()
            left, right = sides[number]
            diagonal = is_square and a == b
            act(position, (products, left, a.start, a.stop, right, b.start, b.stop, diagonal), scratch)
            costs = multiplied - started, time.thread_time() - multiplied
            if settings.clock is not None:
                settings.clock.append(costs)
            if number == 0 and not diagonal and shape == whole:
                columns.choice.learn(*costs)

        return worker

    for_each(tiles, n_tiles, make_worker, settings.n_threads, settings.progress)


def search(A: UnitRows, B: UnitRows, k: int, settings: Settings, *, columns: Columns | None = None) -> np.ndarray:
    """The keys of the `k` best of each row of `A` among `B`; with `B is A` without the row itself.

    Most of what is verified would only serve to raise the thresholds, so they are guessed from some rows (`pilot_rows`).

    Args:
        columns: of `B`, where it is prepared already.

    Returns:
        (n, k) uint64, descending, 0 where there are fewer.
    """
    columns = columns or Columns(B, settings)
    if len(A) < _PILOTS_FROM:
        return compare(A, columns, k, settings)[0]
    guess = score_of(_compare_some(A, pilot_rows(len(A)), columns, k, settings)[:, -1].min())
    keys, _ = compare(A, columns, k, settings, np.full(len(A), guess, np.float32))
    missed = np.flatnonzero(keys[:, -1] == 0)
    if len(missed):
        keys[missed] = _compare_some(A, missed, columns, k, settings)
    return keys


def _compare_some(A: UnitRows, some: np.ndarray, columns: Columns, k: int, settings: Settings) -> np.ndarray:
    """The keys of the `k` best of some rows. Without thresholds much is verified, which says nothing of the method."""
    of_itself = columns.B is A
    columns = copy.copy(columns)
    columns.choice = _Choice(1, columns.choice.number)
    keys, _ = compare(A[some], columns, k + of_itself, replace(settings, progress=None))
    if not of_itself:
        return keys
    # A row is among its own best, or else as many others tie with it: then the last is one too many.
    surplus = split_keys(keys)[0] == some[:, None]
    surplus[:, -1] |= ~surplus.any(axis=1)
    return keys[~surplus].reshape(len(some), k)


def compare(
    A: UnitRows,
    columns: Columns,
    k: int,
    settings: Settings,
    thresholds: np.ndarray | None = None,
    column_thresholds: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The keys of the `k` best of each row of `A` among the columns and, if these have thresholds, the other way round.

    Args:
        thresholds, column_thresholds: (n,) and (m,) float32, lower bounds of each row's k-th best score; None: not known.

    Returns:
        (n, k) and (m, k) uint64, descending; 0 in those of a row whose threshold fewer than k reach.
    """
    B, is_square = columns.B, columns.B is A

    def state_of(rows: UnitRows, known: np.ndarray | None) -> State:
        reached = np.full(len(rows), -np.inf, np.float32) if known is None else known.copy()
        return reached, np.zeros((len(rows), k), np.uint64)

    of_a = state_of(A, thresholds)
    of_b = of_a if is_square else state_of(B, column_thresholds)
    locks_a = [threading.Lock() for _ in range(0, len(A), settings.tile_rows)]
    locks_b = locks_a if is_square else [threading.Lock() for _ in columns.blocks]

    def act(position: tuple[int, int], tile: tuple, scratch: Scratch) -> None:
        update_both = (is_square or column_thresholds is not None) and not tile[-1]
        # In a square the row is the lower: no two threads wait for each other.
        with locks_a[position[0]], locks_b[position[1]] if update_both else contextlib.nullcontext():
            select(*tile, update_both, scratch)

    for_each_tile(A, columns, settings, of_a, of_b, act)
    return of_a[1], of_b[1]


def search_above(A: UnitRows, B: UnitRows, found: PairList, settings: Settings) -> None:
    """Add all pairs (row of `A`, row of `B`) that reach the threshold; with `B is A` each once, the lower row first."""
    of_a, of_b = ((np.full(len(rows), found.threshold, np.float32), np.empty((len(rows), 0), np.uint64)) for rows in (A, B))

    def act(position: tuple[int, int], tile: tuple, scratch: Scratch) -> None:
        _, _, row, stop, *_ = tile
        while row < stop:
            row, n = find(*tile, row, scratch)
            found.add(*scratch.pairs[:n].T.astype(np.int64), scratch.scores[:n].copy())

    for_each_tile(A, Columns(B, settings), settings, of_a, of_b, act)


def top_k(
    X: Any, Y: Any, k: int, settings: Settings, on_invalid: OnInvalid, search: Callable = search
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Indices, scores and skipped rows of both, as in `Neighbors`.

    Args:
        X, Y, k: checked; `Y` None for `X` itself, or prepared already.
        search: as `search`, which computes the keys of dense rows.
    """
    of_itself = Y is None
    a = Prepared.of(X, on_invalid, settings.n_threads, "X", k + 1 if of_itself else np.inf)
    b = a if of_itself else Y if isinstance(Y, Prepared) else Prepared.of(Y, on_invalid, settings.n_threads, "Y", k)
    k = max(0, min(k, b.n - len(b.skipped) - of_itself))
    keys = np.empty((len(a.unit), k), np.uint64)
    if keys.size:
        keys = (search_sparse if isinstance(a.unit, SparseUnitRows) else search)(a.unit, b.unit, k, settings)
    places, scores_kept = split_keys(keys)
    if len(a.indices) == a.n and len(b.indices) == b.n:
        return places, scores_kept, a.skipped, b.skipped
    indices, scores = np.full((a.n, k), -1), np.full((a.n, k), np.nan, np.float32)
    indices[a.indices], scores[a.indices] = b.indices[places], scores_kept
    indices[a.redundant], scores[a.redundant] = indices[a.instead], scores[a.instead]
    return indices, scores, a.skipped, b.skipped


def pairs_above(
    X: Any, Y: Any, threshold: float, settings: Settings, on_invalid: OnInvalid, max_pairs: int
) -> tuple[np.ndarray, ...]:
    """First, second, scores and skipped rows of both, as in `Pairs`, in no order."""
    a = Prepared.of(X, on_invalid, settings.n_threads)
    b = a if Y is None else Prepared.of(Y, on_invalid, settings.n_threads, "Y")
    found = PairList(threshold, max_pairs)
    if len(a.unit) and len(b.unit):
        (search_sparse_above if isinstance(a.unit, SparseUnitRows) else search_above)(a.unit, b.unit, found, settings)
    first, second, scores = found.arrays()
    return a.indices[first], b.indices[second], scores, a.skipped, b.skipped
